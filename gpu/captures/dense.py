"""x_i as an array of its own: for gains, biases, positions and any other small parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adamshap.gpu.captures.capture import Factors, RootSquares
from adamshap.gpu.captures.forms import Form, pairs_in_common
from adamshap.gpu.context import EngineContext
from adamshap.gpu.squares import row_norms

if TYPE_CHECKING:
    from jaxtyping import Float

    from adamshap.reference.contract import Array

__all__ = ["Dense", "scale"]


@dataclass(frozen=True)
class Dense:
    """x_i itself.

    Parameters
    ----------
    name : str
    x : array (n, units, …)
        The first units of x_i; the parameter's other units have 0, such as positions beyond a shorter sequence.
    """

    name: str
    x: Float[Array, "n units ..."]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameter used."""
        return (self.name,)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.x)

    @property
    def products(self) -> dict[str, int]:
        """None."""
        return {}

    @property
    def macs(self) -> int:
        """Elements of x_i."""
        return math.prod(self.x.shape[1:])

    @property
    def pair_macs(self) -> int:
        """Elements of x_i."""
        return self.macs

    @property
    def scratch(self) -> int:
        """0."""
        return 0

    def rows(self, which: slice) -> Dense:
        """Return the capture of some rows, as views."""
        return Dense(self.name, self.x[which])

    def weighted(self, weights: Float[Array, "n 1"]) -> Dense:
        """Return the capture of each ``weights[i] x_i``; `weights` is (n, 1)."""
        return Dense(self.name, self.x * weights.reshape(-1, *(1,) * (self.x.ndim - 1)))

    def sum_of(self, xp: Any, name: str, units: slice, out: Any = None) -> Any:
        """Return Σ_i x_i of some units; in `out` if given."""
        x = self.x[:, units]
        if out is None:
            out = xp.empty((units.stop - units.start, *self.x.shape[2:]), self.x.dtype)
        x.sum(axis=0, out=out[: x.shape[1]])
        out[x.shape[1] :] = 0
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
        """Add ⟨P, x_i⟩ to ``out[i]``."""
        p = matrix[self.name][: self.x.shape[1]]
        out += self.x.reshape(self.n, -1) @ p.reshape(-1)

    def form(self, name: str) -> Form:
        """Return x."""
        return self.x

    def pair_dots(self, xp: Any, other: Any, names: Collection[str] | None = None) -> Float[Array, "n n_other"] | None:
        """Return ⟨x_i, x'_j⟩; None if the parameters differ."""
        return pairs_in_common(xp, self, other, names)

    def root_squares(
        self, context: EngineContext, names: Collection[str], exact: bool, room: Callable[[str], Any]
    ) -> dict[str, RootSquares]:
        """Return √Σ x_i², which is always exact."""
        if self.name not in names:
            return {}
        root = room(self.name)
        norms = context.ops.column_norms(self.x.reshape(self.n, -1))
        root[: self.x.shape[1]] = norms.reshape(self.x.shape[1:])
        root[self.x.shape[1] :] = 0
        return {self.name: RootSquares(root)}

    def row_norms(self, xp: Any) -> Float[Array, " n"]:
        """Return ‖x_i‖."""
        return row_norms(xp, self.x.reshape(self.n, -1))

    def signed_roots(self, context: EngineContext) -> Dense:
        """Return the capture of each sign(x_i) √|x_i|."""
        xp = context.backend.xp
        return replace(self, x=xp.copysign(xp.sqrt(abs(self.x)), self.x))

    def kept(self) -> dict[str, Any]:
        """Return x."""
        return {"x": self.x}

    def rebuilt(self, arrays: Mapping[str, Any], inputs: Any) -> Dense:
        """Return the capture of other rows, from arrays like those of `kept`."""
        return replace(self, x=arrays["x"])


def scale(xp: Any, gain: str, bias: str | None, inputs: Any, b: Any, room: Callable[[str], Any]) -> tuple[Dense, ...]:
    """Return the captures of a gain, ``x_i = Σ_t b_t ⊙ x̂_t``, and of a bias, whose input is 1.

    A sample's x_i is as small as one position, so that it is computed first.

    Parameters
    ----------
    inputs, b : arrays (n, T, d) or (n, d)
        x̂, and the gradients in the outputs.
    room : callable
        Returns an array (n, d) for the x_i of a parameter's name.
    """
    n, width = len(b), b.shape[-1]
    inputs, b = (array.reshape(n, math.prod(array.shape[1:-1]), width) for array in (inputs, b))
    found = [Dense(gain, room(gain))]
    found[0].x[...] = xp.einsum("ntd,ntd->nd", inputs, b)
    if bias is not None:
        found.append(Dense(bias, b.sum(axis=1, out=room(bias))))
    return tuple(found)
