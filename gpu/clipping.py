"""Clipping of the gradient by its norm over all parameters (docs/method.md 9).

The captures keep w∇ℓ, since c is known only after the whole batch's gradient: g and √Σ x² are multiplied by c where
they lie, and each score, linear in x_i, at the end. For chunks of a batch the norm is that of their sum.

======  ============  ==============================================
paper   name          meaning
======  ============  ==============================================
g       ``g``         gradient of the whole batch
c       ``factor``    min(1, C/(‖g‖ + ε_c)); None stands for 1
======  ============  ==============================================
"""

import math
from typing import Any

import numpy as np

from adamshap.gpu.arrays import BatchGradient
from adamshap.gpu.captures.sums import CACHED
from adamshap.gpu.context import EngineContext
from adamshap.gpu.threads import in_parts
from adamshap.reference.contract import Clipped

__all__ = ["clip", "multiply"]

FLOPS_OF_A_SQUARE = 20
"""Cost of a coordinate's square, as flops of matrix products that take as long."""


def clip(context: EngineContext, clipped: Clipped | None, g: BatchGradient) -> Any:
    """Multiply `g` by c and return c: a number, on a device an array without axes; None without clipping, or if c is 1.

    A norm that is not finite makes the gradient's infinite coordinates NaN, which the checks of a step's results find.
    """
    if clipped is None:
        return None
    xp = context.backend.xp
    factor = clipped.norm / xp.maximum(_norm(context, g) + clipped.eps, clipped.norm)
    if not context.backend.on_cuda and factor == 1:  # a device does not wait to know
        return None
    for array in g.values():
        multiply(context, array, factor)
    return factor


def multiply(context: EngineContext, array: Any, factor: Any) -> None:
    """Multiply `array` in place by the number `factor`, in double where the dtype does not hold it; None: by 1."""
    if factor is None:
        return
    xp = context.backend.xp
    if not context.backend.on_cuda and not factor < np.finfo(array.dtype).tiny:
        factor = array.dtype.type(factor)
    flat = array.reshape(-1)

    def elements_between(low: int, high: int) -> None:
        xp.multiply(flat[low:high], factor, out=flat[low:high], casting="same_kind")

    if context.backend.on_cuda:
        elements_between(0, flat.size)
    else:
        in_parts(elements_between, flat.size, FLOPS_OF_A_SQUARE * flat.size)


def _norm(context: EngineContext, g: BatchGradient) -> Any:
    """Return ‖g‖ in double, from blocks that do not depend on the number of threads."""
    xp, flats = context.backend.xp, [array.reshape(-1) for array in g.values()]
    if context.backend.on_cuda:
        total, *others = (_block_norm(xp, flat) for flat in flats)
        for other in others:
            total = xp.hypot(total, other)
        return total
    blocks = [flat[low : low + CACHED] for flat in flats for low in range(0, flat.size, CACHED)]
    norms = [0.0] * len(blocks)

    def blocks_between(low: int, high: int) -> None:
        for number in range(low, high):
            norms[number] = float(_block_norm(xp, blocks[number]))

    in_parts(blocks_between, len(blocks), FLOPS_OF_A_SQUARE * sum(flat.size for flat in flats))
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)


def _block_norm(xp: Any, block: Any) -> Any:
    """Return the norm of a block, its squares taken in units of its largest entry: none over- or underflows."""
    top = abs(block).max()
    scaled = block / xp.where(top > 0, top, top.dtype.type(1))
    scaled *= scaled
    return top.astype(np.float64) * xp.sqrt(scaled.sum(dtype=np.float64))
