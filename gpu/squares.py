"""√Σ x² over a batch of outer products x_i = b_i a_iᵀ, by one matrix product of squares, whatever their sizes.

Σ x_i² = Σ b_i² a_i². The squares of float32 span 10^±38 only, and x_i may be of any size that float32 holds. A large
input sets the scale of its column, even if its sample has b = 0, and the squares of all other samples' inputs may then
underflow. So

1. each column is scaled to a largest entry of 2^p, p as large as n such products allow without overflow;
2. an element of the product that is at least `Scaling.least` has lost less than a rounding to underflow (below);
3. any other element is recomputed from the x_i themselves, scaled by the largest, unless no entry of its columns is
   small enough to be lost: then it is 0.

Underflow changes a squared entry, or a product of two, by at most t, the smallest normal number. With squared
entries up to 4^p, the sum of n products is off by at most n t (2·4^p + 1) < 4 n t 4^p, which is below u Σ for
Σ ≥ 4 n t 4^p / u = ``least``. The third step concerns next to no elements.

======  =============  ==================================================
paper   name           meaning
======  =============  ==================================================
a, b    ``a, b``       inputs (n, d_in) and output gradients (n, d_out)
======  =============  ==================================================
"""

import math
from functools import cache
from typing import Any

import numpy as np

from adamshap.gpu.context import EngineContext
from adamshap.gpu.ops import Scaling
from adamshap.gpu.threads import in_parts
from adamshap.reference.contract import Array

__all__ = ["outer_root_squares", "row_norms", "scaling_of"]

UNITS = 128
"""Rows of a weight matrix whose Σ x² are computed at a time: few enough to give each thread a block."""


def outer_root_squares(context: EngineContext, a: Any, b: Any, out: Any) -> Any:
    """Write √Σ b² a² of every weight and return it, in blocks that do not depend on the number of threads."""
    xp, ops = context.backend.xp, context.ops
    scaling = scaling_of(len(a), a.dtype)
    range_b, range_a = ops.ranges(b), ops.ranges(a)
    squares = ops.scaled_squares(b, range_b[0], scaling), ops.scaled_squares(a, range_a[0], scaling)
    count = len(out)
    block = count if context.backend.on_cuda else UNITS

    def blocks(low: int, high: int) -> None:
        for first in range(low * block, min(high * block, count), block):
            units = slice(first, min(first + block, count))
            xp.matmul(squares[0][:, units].T, squares[1], out=out[units])
            ops.roots(out, units, b, a, range_b, range_a, scaling)

    in_parts(blocks, -(-count // block), 2 * len(a) * out.size)
    return out


@cache
def scaling_of(n: int, dtype: Any) -> Scaling:
    """Return the scaling of the columns of a batch of `n`."""
    info = np.finfo(dtype)
    power = (info.maxexp - 2 - math.ceil(math.log2(n))) // 4
    scale = 2.0**power
    least = 4 * n * float(info.tiny) * scale * scale / (float(info.eps) / 2)
    return Scaling(scale, least, 1 / (scale * scale * math.sqrt(n)), math.sqrt(n))


def row_norms(xp: Any, x: Any) -> Array:
    """Return the Euclidean norm of each row, in units of its largest entry: no square over- or underflows."""
    top = abs(x).max(axis=1)
    scaled = x / xp.where(top > 0, top, x.dtype.type(1))[:, None]
    norms: Array = top * xp.sqrt(xp.einsum("no,no->n", scaled, scaled))
    return norms
