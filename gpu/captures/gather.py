"""The capture of an embedding: each position adds its gradient to the row of its token."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adamshap.gpu.captures.capture import Factors, RootSquares
from adamshap.gpu.captures.forms import Form, Products, flat, pairs_in_common
from adamshap.gpu.captures.outer_products import refuse_roots
from adamshap.gpu.captures.roots import sample_roots
from adamshap.gpu.context import EngineContext
from adamshap.gpu.squares import row_norms

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from adamshap.reference.contract import Array

__all__ = ["Gather"]


@dataclass(frozen=True)
class Gather:
    """``x_i``, of which row ``ids[i, t]`` gets ``b[i, t]`` from every position t: repeated tokens add up.

    Parameters
    ----------
    name : str
    ids : integers (n, T)
        The model's inputs, which a kept capture is rebuilt from.
    b : array (n, T, d)
    """

    name: str
    ids: Int[Array, "n positions"]
    b: Float[Array, "n positions d"]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameter used."""
        return (self.name,)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.b)

    @property
    def products(self) -> dict[str, int]:
        """None."""
        return {}

    @property
    def macs(self) -> int:
        """T d."""
        return math.prod(self.b.shape[1:])

    @property
    def pair_macs(self) -> int:
        """T² d."""
        return int(self.b.shape[1]) * self.macs

    @property
    def scratch(self) -> int:
        """0."""
        return 0

    def rows(self, which: slice) -> Gather:
        """Return the capture of some rows, as views."""
        return Gather(self.name, self.ids[which], self.b[which])

    def weighted(self, weights: Float[Array, "n 1"]) -> Gather:
        """Return the capture of each ``weights[i] x_i``; `weights` is (n, 1)."""
        return replace(self, b=self.b * weights[:, :, None])

    def sum_of(self, xp: Any, name: str, units: slice, out: Any = None) -> Any:
        """Return Σ_i x_i of some tokens; in `out` if given."""
        count, width = units.stop - units.start, self.b.shape[2]
        if out is None:
            out = xp.empty((count, width), self.b.dtype)
        out[...] = 0
        ids, b = self.ids.reshape(-1) - units.start, flat(self.b)
        inside = (ids >= 0) & (ids < count)
        if xp.__name__ == "numpy" and not inside.all():
            ids, b = ids[inside], b[inside]
        else:  # a device does not wait to count those inside
            ids, b = xp.where(inside, ids, 0), xp.where(inside[:, None], b, b.dtype.type(0))
        _at(xp, xp.add, out, ids, b)
        return out

    def add_dots(
        self,
        context: EngineContext,
        matrix: Mapping[str, Any],
        factors: Mapping[str, Factors],
        out: Float[Array, " n"],
        scratch: Float[Array, "n scratch"],
        score_dtype: str | None,
    ) -> None:
        """Add ``Σ_t b_t · P[id_t]`` to ``out[i]``."""
        n, width = self.n, self.macs
        context.ops.row_dot(self.b.reshape(n, width), matrix[self.name][self.ids].reshape(n, width), None, out)

    def form(self, name: str) -> Form:
        """Return the tokens and b."""
        return Products(self.ids, self.b)

    def pair_dots(self, xp: Any, other: Any, names: Collection[str] | None = None) -> Float[Array, "n n_other"] | None:
        """Return ⟨x_i, x'_j⟩, over the positions of both with the same token; None if the parameters differ."""
        return pairs_in_common(xp, self, other, names)

    def distinct(self, xp: Any) -> Any:
        """Return the rows of x_i, (n, T, d): at the first position of each token their sum, at its others 0."""
        same = self.ids[:, :, None] == self.ids[:, None, :]
        first = xp.argmax(same, axis=2) == xp.arange(same.shape[1])
        return xp.matmul((same & first[:, :, None]).astype(self.b.dtype), self.b)

    def root_squares(
        self, context: EngineContext, names: Collection[str], exact: bool, room: Callable[[str], Any]
    ) -> dict[str, RootSquares]:
        """Return √Σ x_i², which is always exact; squares are taken in units of the largest of their element."""
        if self.name not in names:
            return {}
        xp, root = context.backend.xp, room(self.name)
        if context.backend.on_cuda:  # CuPy's maximum.at compares doubles as floats (fmaxf)
            return {self.name: RootSquares(sample_roots(context, [self], self.name, root))}
        ids, sizes = self.ids.reshape(-1), flat(abs(self.distinct(xp)))
        root[...] = 0
        _at(xp, xp.maximum, root, ids, sizes)
        unit = root[ids]
        sizes /= xp.where(unit > 0, unit, unit.dtype.type(1))
        squares = xp.zeros(root.shape, root.dtype)
        _at(xp, xp.add, squares, ids, sizes * sizes)
        root *= xp.sqrt(squares)
        return {self.name: RootSquares(root)}

    def row_norms(self, xp: Any) -> Float[Array, " n"]:
        """Return ‖x_i‖."""
        return row_norms(xp, self.distinct(xp).reshape(self.n, self.macs))

    def signed_roots(self, context: EngineContext) -> Gather:
        """Return the capture of each sign(x_i) √|x_i|; refused for several positions."""
        refuse_roots(self.b.shape[1])
        xp = context.backend.xp
        return replace(self, b=xp.copysign(xp.sqrt(abs(self.b)), self.b))

    def kept(self) -> dict[str, Any]:
        """Return b."""
        return {"b": self.b}

    def rebuilt(self, arrays: Mapping[str, Any], inputs: Int[Array, "n positions"]) -> Gather:
        """Return the capture of other rows, from arrays like those of `kept` and the model's inputs."""
        return replace(self, ids=inputs, b=arrays["b"])


def _at(xp: Any, ufunc: Any, out: Any, ids: Any, rows: Any) -> None:
    """Apply `ufunc` to the rows `ids` of `out` and `rows`, one after another."""
    width = out.shape[1]
    places = ids[:, None] * width + xp.arange(width)
    ufunc.at(out.reshape(-1), places.reshape(-1), rows.reshape(-1))
