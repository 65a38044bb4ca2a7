"""Roots: √Σ x_i² of one parameter by computing x_i, and sign(x) √|x| of the factors of an x_i.

x_i is computed for one sample and a block of units at a time. The squares of float32 are added in double on the host;
else √Σ x² itself is updated, so that no square is lost.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from adamshap.gpu.captures.capture import Capture
from adamshap.gpu.captures.sums import CACHED
from adamshap.gpu.context import EngineContext
from adamshap.gpu.threads import in_parts

__all__ = ["sample_roots", "signed_roots"]


def sample_roots(context: EngineContext, uses: Sequence[Capture], name: str, out: Any) -> Any:
    """Write √Σ_i x_i² of the parameter `name`, x_i summed over its `uses`, and return it.

    The blocks do not depend on the number of threads.
    """
    xp, count = context.backend.xp, len(out)
    samples = [[use.rows(slice(i, i + 1)) for use in uses] for i in range(uses[0].n)]
    block = count if context.backend.on_cuda else max(CACHED // max(out[:1].size, 1), 1)
    in_double = out.dtype == np.float32 and not context.backend.on_cuda

    def blocks(low: int, high: int) -> None:
        for number in range(low, high):
            units = slice(number * block, min((number + 1) * block, count))
            total = xp.zeros(out[units].shape, np.float64) if in_double else out[units]
            total[...] = 0
            for parts in samples:
                x = parts[0].sum_of(xp, name, units)
                for other in parts[1:]:
                    x += other.sum_of(xp, name, units)
                if in_double:
                    total += np.multiply(x, x, dtype=np.float64)
                else:
                    xp.hypot(total, x, out=total)
            if in_double:
                out[units] = np.sqrt(total)

    in_parts(blocks, -(-count // block), 2 * len(samples) * sum(use.macs for use in uses))
    return out


def signed_roots(context: EngineContext, weight: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Return sign(x) √|x| of inputs and output gradients, in buffers of the parameter `weight`."""

    def signed_root(array: Any, name: str) -> Any:
        xp, out = context.backend.xp, context.buffers.get(f"root {name} {weight}", array.shape)
        xp.sqrt(abs(array), out=out)
        return xp.copysign(out, array, out=out)

    return signed_root(a, "inputs"), signed_root(b, "gradients")
