"""x_i of one parameter as an array or as a sum of outer products, and the dot products of two passes' x_i.

With x_i = Σ_t l_t r_tᵀ and x'_j = Σ_u l'_u r'_uᵀ, ⟨x_i, x'_j⟩ = Σ_{t,u} (l_t · l'_u)(r_t · r'_u), two products of
T × T' entries; where x'_j itself is cheaper, ⟨x_i, x'_j⟩ = Σ_t l_tᵀ x'_j r_t.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float

    from adamshap.reference.contract import Array

__all__ = ["Form", "Products", "flat", "pairs_in_common"]


@dataclass(frozen=True)
class Products:
    """``x_i = Σ_t l_t r_tᵀ``.

    Parameters
    ----------
    left : array (n, T, d_out), or integers (n, T)
        l_t; integers are the places of its only entry, a 1.
    right : array (n, T, d_in)
        r_t.
    """

    left: Any
    right: Any

    @property
    def picks(self) -> bool:
        """Whether every l_t has one entry."""
        return bool(self.left.ndim == 2)


Form = Any
"""`Products`, or an array (n, …) of x_i itself, which may end before the parameter's last units: those have 0."""


def flat(x: Any) -> Any:
    """Return x (n, T, d) as (n T, d)."""
    return x.reshape(-1, x.shape[-1])


def pairs_in_common(xp: Any, one: Any, other: Any, names: Collection[str] | None) -> Float[Array, "n n_other"] | None:
    """Return ⟨x_i, x'_j⟩ of two captures' rows, (n, n'), over the parameters of both that are in `names`, if given.

    Their method ``form(name)`` returns x_i of a parameter as a `Form`. None if there is no such parameter.
    """
    total = None
    for name in one.names:
        if name in other.names and (names is None or name in names):
            dots = _pairs(xp, one.form(name), other.form(name))
            total = dots if total is None else total + dots
    return total


def _pairs(xp: Any, one: Form, other: Form) -> Any:
    if isinstance(one, Products):
        with_row = _with_products if isinstance(other, Products) else _with_array
        rows = [with_row(one, other, j) for j in range(len(other.right if with_row is _with_products else other))]
        return xp.stack(rows, axis=1)
    if isinstance(other, Products):
        return _pairs(xp, other, one).T
    units = min(one.shape[1], other.shape[1])
    x, y = (x[:, :units].reshape(len(x), -1) for x in (one, other))
    return x @ y.T


def _with_products(one: Products, other: Products, j: int) -> Any:
    """Return ⟨x_i, x'_j⟩ for all i, by the products of positions, or by x'_j where that costs less."""
    right, own = flat(one.right), flat(other.right[j : j + 1])
    if not (one.picks or other.picks):
        entries, later = right.shape[-1] * one.left.shape[-1], len(own)
        if later * (right.shape[-1] + one.left.shape[-1]) * len(right) > entries * (len(right) + later):
            return _with_array(one, (other.left[j].T @ own)[None], 0)
    dots = right @ own.T
    if one.picks and other.picks:
        dots *= one.left.reshape(-1, 1) == other.left[j]
    elif one.picks:
        dots *= other.left[j].T[one.left.reshape(-1)]
    elif other.picks:
        dots *= flat(one.left)[:, other.left[j]]
    else:
        dots *= flat(one.left) @ other.left[j].T
    return dots.reshape(len(one.right), -1).sum(axis=1)


def _with_array(one: Products, arrays: Any, j: int) -> Any:
    """Return ⟨x_i, x'_j⟩ for all i, from x'_j itself."""
    x, right = arrays[j], one.right
    z = x[one.left] if one.picks else (flat(one.left) @ x).reshape(right.shape)
    return (z * right).reshape(len(right), -1).sum(axis=1)
