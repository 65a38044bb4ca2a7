"""√Σ x_i² of each parameter over a batch, from which the kernels compute σ: exactly, or of rank one by norms alone."""

import math
from typing import Any

from adamshap.gpu.captures import Captures, RootSquares
from adamshap.gpu.context import EngineContext
from adamshap.gpu.kernels.groups import GradientNorms

__all__ = ["Norms", "add_norms"]


class Norms(dict[str, RootSquares]):
    """√Σ x_i² of each parameter, by its name."""

    def of(self, name: str, n: int, units: slice = slice(None)) -> GradientNorms:
        """Return the norms of some units of a parameter, for σ: two vectors, or √Σ x² as a matrix.

        The product of the two vectors is √Σ x² of rank one.
        """
        found = self[name]
        if found.root is None:
            row = found.row[units]
            return GradientNorms(n, row * row.dtype.type(1 / math.sqrt(n)), found.col)
        root = found.root[units]
        return GradientNorms(n, root=root if root.ndim == 2 else root[None, :])


def add_norms(context: EngineContext, norms: Norms, captures: Captures, variance: str) -> None:
    """Add the norms of a chunk of the batch to those of the chunks before it."""
    captures.refuse_two_uses("√Σ x²")
    xp = context.backend.xp

    def room(name: str) -> Any:
        shape = context.shapes[name]
        return xp.empty(shape, context.backend.dtype) if name in norms else context.buffers.get(f"roots {name}", shape)

    for capture in captures.uses:
        for name, found in capture.root_squares(context, variance == "exact", room).items():
            norms[name] = _joined(xp, norms[name], found) if name in norms else found


def _joined(xp: Any, one: RootSquares, other: RootSquares) -> RootSquares:
    """Return √Σ x² over the samples of both, in the memory of `one`."""
    if one.root is None:
        return RootSquares(None, xp.hypot(one.row, other.row), xp.hypot(one.col, other.col))
    return RootSquares(xp.hypot(one.root, other.root, out=one.root))
