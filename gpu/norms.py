"""√Σ x_i² of each parameter over a batch, from which the kernels compute σ: exactly, or of rank one by norms alone."""

import math
from dataclasses import replace
from typing import Any

from adamshap.gpu.arrays import as_matrix
from adamshap.gpu.captures import Captures, RootSquares
from adamshap.gpu.captures.roots import sample_roots
from adamshap.gpu.clipping import multiply
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
            row = row * row.dtype.type(1 / math.sqrt(n))
            return GradientNorms(n, row if found.own is None else row * found.correction(), found.col)
        return GradientNorms(n, root=as_matrix(found.root[units]))

    def clip(self, context: EngineContext, factor: Any) -> None:
        """Multiply all norms by `factor`, that of the clipped gradient."""
        for name, found in self.items():
            if found.root is None:
                row = found.row.copy()
                multiply(context, row, factor)
                self[name] = replace(found, row=row)
            else:
                multiply(context, found.root, factor)


def add_norms(context: EngineContext, norms: Norms, captures: Captures, variance: str) -> None:
    """Add the norms of a chunk of the batch to those of the chunks before it."""
    context.now("norms of the samples")
    xp, twice = context.backend.xp, captures.used_twice

    def room(name: str) -> Any:
        shape = context.shapes[name]
        return xp.empty(shape, context.backend.dtype) if name in norms else context.buffers.get(f"roots {name}", shape)

    def add(name: str, found: RootSquares) -> None:
        norms[name] = _joined(xp, norms[name], found) if name in norms else found

    for capture in captures.uses:
        once = [name for name in capture.names if name not in twice]
        for name, found in capture.root_squares(context, once, variance == "exact", room).items():
            add(name, found)
    for name in twice:
        add(name, RootSquares(sample_roots(context, captures.by_name[name], name, room(name))))


def _joined(xp: Any, one: RootSquares, other: RootSquares) -> RootSquares:
    """Return √Σ x² over the samples of both, in the memory of `one`."""
    if one.root is None:
        pairs = ((one.row, other.row), (one.col, other.col), (one.own, other.own), (one.apart, other.apart))
        return RootSquares(None, *(None if a is None else xp.hypot(a, b) for a, b in pairs))
    return RootSquares(xp.hypot(one.root, other.root, out=one.root))
