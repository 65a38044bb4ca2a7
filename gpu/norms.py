"""Norms over a batch, from which the kernels make σ: √Σ x² of each parameter, or the rank-one product of norms.

A sample's contribution to a weight is x_i = b_i a_i, so that Σ x_i² = Σ b_i² a_i² is one matrix product of squares. The
squares of float32 span 10^±38 only, and x_i may be of any size that float32 holds. A large input sets the scale of its
column, perhaps that of a sample with b = 0, and beside it the squares of all other samples' inputs underflow. So

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
Σ x²    ``root``       its root, (d_out, d_in) of a weight
a, b    ``a, b``       inputs (n, d_in) and output gradients (n, d_out)
======  =============  ==================================================
"""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from adamshap.gpu.kernels.groups import GradientNorms
from adamshap.gpu.layers import EngineContext, Trace
from adamshap.gpu.ops import Scaling
from adamshap.gpu.threads import in_parts

__all__ = ["Norms", "add_norms", "scaling_of"]

UNITS = 128
"""Rows of a weight matrix whose Σ x² are computed at a time: few enough for a block to each thread."""


@dataclass
class Norms:
    """For each layer, norms over the batch of output gradients and of inputs, and √Σ x² where that was asked for."""

    row: dict[int, Any] = field(default_factory=dict)
    col: dict[int, Any] = field(default_factory=dict)
    root: dict[int, Any] = field(default_factory=dict)

    def of(self, key: str, n: int, units: slice = slice(None)) -> GradientNorms:
        """Return what the kernels take for σ of some units of a parameter: two norms, or √Σ x² as a matrix.

        The product of the two norms is √Σ x² of rank one. A bias has contributions b_i, whose norm is exact.
        """
        layer, kind = int(key.split(".")[0]), key.split(".")[1]
        if kind == "bias":
            return GradientNorms(n, root=self.row[layer][None, units])
        if layer in self.root:
            return GradientNorms(n, root=self.root[layer][units])
        row = self.row[layer][units]
        return GradientNorms(n, row * row.dtype.type(1 / math.sqrt(n)), self.col[layer])


def add_norms(context: EngineContext, norms: Norms, trace: Trace, variance: str) -> None:
    """Add a chunk's norms to those of the chunks before it."""
    xp, ops = context.backend.xp, context.ops

    def add(to: dict[int, Any], layer: int, norm: Any) -> None:
        to[layer] = xp.hypot(to[layer], norm) if layer in to else norm

    for layer, (a, b) in enumerate(zip(trace.inputs, trace.grads, strict=True)):
        if variance == "rank_one" or context.net.bias:
            add(norms.row, layer, ops.column_norms(b))
        if variance == "rank_one":
            add(norms.col, layer, ops.column_norms(a))
        elif layer in norms.root:
            root = norms.root[layer]
            xp.hypot(root, _roots(context, a, b, xp.empty_like(root)), out=root)
        else:
            norms.root[layer] = _roots(context, a, b, context.buffers.get(f"roots {layer}", (b.shape[1], a.shape[1])))


def _roots(context: EngineContext, a: Any, b: Any, out: Any) -> Any:
    """Write √Σ b² a² of every weight and return it; in blocks that are the same for any number of threads."""
    xp, ops = context.backend.xp, context.ops
    scaling = scaling_of(len(a), a.dtype)
    of_b, of_a = ops.ranges(b), ops.ranges(a)
    squares = ops.scaled_squares(b, of_b[0], scaling), ops.scaled_squares(a, of_a[0], scaling)
    count = len(out)
    block = count if context.backend.on_cuda else UNITS

    def some(low: int, high: int) -> None:
        for first in range(low * block, min(high * block, count), block):
            units = slice(first, min(first + block, count))
            xp.matmul(squares[0][:, units].T, squares[1], out=out[units])
            ops.roots(out, units, b, a, of_b, of_a, scaling)

    in_parts(some, -(-count // block), 2 * len(a) * out.size)
    return out


@cache
def scaling_of(n: int, dtype: Any) -> Scaling:
    """Return how the columns of a batch of `n` are scaled before they are squared."""
    info = np.finfo(dtype)
    power = (info.maxexp - 2 - math.ceil(math.log2(n))) // 4
    scale = 2.0**power
    least = 4 * n * float(info.tiny) * scale * scale / (float(info.eps) / 2)
    return Scaling(scale, least, 1 / (scale * scale * math.sqrt(n)), math.sqrt(n))
