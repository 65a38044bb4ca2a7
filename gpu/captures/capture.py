"""The interface of a capture: what one use of parameters in a forward and backward pass offers to scoring."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from adamshap.gpu.context import EngineContext

if TYPE_CHECKING:
    from jaxtyping import Float

    from adamshap.reference.contract import Array

__all__ = ["Capture", "Factors", "RootSquares"]

Factors = tuple[Any, Any]
"""Q (d_out, r) and C (r, d_in) of a matrix ``P ≈ Q C``."""


@dataclass(frozen=True)
class RootSquares:
    """√Σ x_i² of one parameter: as an array of its shape, or of rank one, ``row ⊗ col / √n``.

    A sum of several outer products has a smaller norm than the products of the norms: then the rank-one form is also
    multiplied by ``own / apart``, √Σ ‖x_i‖² over √Σ ‖a_i‖² ‖b_i‖².
    """

    root: Any = None
    row: Any = None
    col: Any = None
    own: Any = None
    apart: Any = None

    def correction(self) -> Any:
        """Return ``own / apart``, 1 if both are 0."""
        none = self.apart == 0
        return (self.own + none) / (self.apart + none)


class Capture(Protocol):
    """One use of parameters in a forward and backward pass, of n rows."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters used."""

    @property
    def n(self) -> int:
        """Number of rows."""

    @property
    def products(self) -> dict[str, int]:
        """Number of outer products per row, by each parameter that `add_dots` may contract by factors."""

    @property
    def macs(self) -> int:
        """Multiplications per row of `add_dots`, and of `sum_of`."""

    @property
    def pair_macs(self) -> int:
        """Multiplications per pair of rows of `pair_dots`."""

    @property
    def scratch(self) -> int:
        """Elements of scratch memory per row that `add_dots` needs."""

    def rows(self, which: slice) -> Capture:
        """Return the capture of some rows, as views."""

    def weighted(self, weights: Float[Array, "n 1"]) -> Capture:
        """Return the capture of each ``weights[i] x_i``; `weights` is (n, 1)."""

    def sum_of(self, xp: Any, name: str, units: slice, out: Any = None) -> Any:
        """Return Σ_i x_i of some units (the first axis) of the parameter `name`; in `out` if given."""

    def add_dots(
        self,
        context: EngineContext,
        matrix: Mapping[str, Any],
        factors: Mapping[str, Factors],
        out: Float[Array, " n"],
        scratch: Float[Array, "n scratch"],
        score_dtype: str | None,
    ) -> None:
        """Add ⟨P, x_i⟩ over the parameters used to ``out[i]``; by factors of P where given."""

    def pair_dots(self, xp: Any, other: Any, names: Collection[str] | None = None) -> Float[Array, "n n_other"] | None:
        """Return ⟨x_i, x'_j⟩ with another capture's rows, (n, n'), over the parameters that both use.

        Only those in `names` count, if given. None if no parameter is in common.
        """

    def root_squares(
        self, context: EngineContext, names: Collection[str], exact: bool, room: Callable[[str], Any]
    ) -> dict[str, RootSquares]:
        """Return √Σ x_i² of those of its parameters that are in `names`, of rank one unless `exact`.

        Vectors and embeddings are always exact. ``room(name)`` returns an array for the root.
        """

    def row_norms(self, xp: Any) -> Float[Array, " n"]:
        """Return ‖x_i‖, or a bound on it, (n,)."""

    def signed_roots(self, context: EngineContext) -> Capture:
        """Return the capture of each sign(x_i) √|x_i|, in buffers."""

    def kept(self) -> dict[str, Any]:
        """Return the arrays that rebuild the capture together with the model's inputs."""

    def rebuilt(self, arrays: Mapping[str, Any], inputs: Float[Array, "n d_in"]) -> Capture:
        """Return the capture of other rows, from arrays like those of `kept` and the model's inputs."""
