"""√Σ x² over a batch of outer products x_i = b_i a_iᵀ, by one matrix product of squares, whatever their sizes.

Σ x_i² = Σ b_i² a_i². The squares of float32 span 10^±38 only, and x_i may be of any size that float32 holds. A large
input sets the scale of its column, perhaps that of a sample with b = 0, and beside it the squares of all other samples'
inputs underflow. So

1. each column is scaled to a largest entry of 2^p, p as large as n such products allow without overflow;
2. an element of the product that is at least `Scaling.least` has lost less than a rounding to underflow (below);
3. any other element is computed again from the x_i themselves, scaled by the largest; it is left out where no entry of
   its columns is small enough to be lost, so that it is 0.

What underflows of a squared entry is at most t, the smallest normal number, and so it is of a product. With squared
entries up to 4^p, the sum of n products is off by at most n t (2·4^p + 1) < 4 n t 4^p, which is below u Σ for
Σ ≥ 4 n t 4^p / u = ``least``. All but the third is done for every element, and the third for next to none.

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

__all__ = ["outer_root_squares", "row_norms", "scaling_of"]

UNITS = 128
"""Rows of a weight matrix whose Σ x² are computed at a time: few enough for a block to each thread."""


def outer_root_squares(context: EngineContext, a: Any, b: Any, out: Any) -> Any:
    """Write √Σ b² a² of every weight and return it; in blocks that are the same for any number of threads."""
    xp, ops = context.backend.xp, context.ops
    scaling = scaling_of(len(a), a.dtype)
    of_b, of_a = ops.ranges(b), ops.ranges(a)
    squares = ops.scaled_squares(b, of_b[0], scaling), ops.scaled_squares(a, of_a[0], scaling)
    count = len(out)
    block = count if context.backend.on_cuda else UNITS

    def blocks(low: int, high: int) -> None:
        for first in range(low * block, min(high * block, count), block):
            units = slice(first, min(first + block, count))
            xp.matmul(squares[0][:, units].T, squares[1], out=out[units])
            ops.roots(out, units, b, a, of_b, of_a, scaling)

    in_parts(blocks, -(-count // block), 2 * len(a) * out.size)
    return out


@cache
def scaling_of(n: int, dtype: Any) -> Scaling:
    """Return how the columns of a batch of `n` are scaled before they are squared."""
    info = np.finfo(dtype)
    power = (info.maxexp - 2 - math.ceil(math.log2(n))) // 4
    scale = 2.0**power
    least = 4 * n * float(info.tiny) * scale * scale / (float(info.eps) / 2)
    return Scaling(scale, least, 1 / (scale * scale * math.sqrt(n)), math.sqrt(n))


def row_norms(xp: Any, x: Any) -> Any:
    """Return the Euclidean norm of each row, in units of its largest entry: no square over- or underflows."""
    top = abs(x).max(axis=1)
    scaled = x / xp.where(top > 0, top, x.dtype.type(1))[:, None]
    return top * xp.sqrt(xp.einsum("no,no->n", scaled, scaled))
