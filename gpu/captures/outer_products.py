"""A sum of outer products a sample: a linear layer at T positions.

With l_t = b_t and r_t = a_t, ‖x_i‖² = Σ_{t,u} (b_t · b_u)(a_t · a_u), by two products of T × T entries.

======  =======================  ==================================================
paper   name                     meaning
======  =======================  ==================================================
a       ``OuterProducts.a``      inputs (n, T, d_in)
b       ``OuterProducts.b``      gradients in the outputs (n, T, d_out), weighted
======  =======================  ==================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adamshap.gpu.captures.capture import Capture, Factors, RootSquares
from adamshap.gpu.captures.forms import Form, Products, flat, pairs_in_common
from adamshap.gpu.captures.outer_product import OuterProduct
from adamshap.gpu.captures.roots import sample_roots
from adamshap.gpu.context import EngineContext
from adamshap.gpu.products import score_product
from adamshap.gpu.squares import row_norms
from adamshap.gpu.threads import in_parts
from adamshap.reference.contract import refuse

if TYPE_CHECKING:
    from jaxtyping import Float

    from adamshap.reference.contract import Array

__all__ = ["OuterProducts", "outer_products", "refuse_roots"]

POSITION_PAIRS = 1 << 18
"""Products of two positions that are computed at a time."""


@dataclass(frozen=True)
class OuterProducts:
    """``x_i = Σ_t b_it a_itᵀ`` for a weight, and Σ_t b_it for its bias, whose input is 1.

    Parameters
    ----------
    weight : str
    bias : str or None
    a : array (n, T, d_in)
    b : array (n, T, d_out)
    a_is_input : bool
        Whether `a` is the model's input itself.
    """

    weight: str
    bias: str | None
    a: Float[Array, "n positions d_in"]
    b: Float[Array, "n positions d_out"]
    a_is_input: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters used."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.b)

    @property
    def widths(self) -> tuple[int, int]:
        """d_in and d_out."""
        return self.a.shape[2], self.b.shape[2]

    @property
    def products(self) -> dict[str, int]:
        """T, of the weight."""
        return {self.weight: self.a.shape[1]}

    @property
    def macs(self) -> int:
        """T d_in d_out."""
        return int(self.a.shape[1]) * math.prod(self.widths)

    @property
    def pair_macs(self) -> int:
        """T² (d_in + d_out), or T d_in d_out if that is less."""
        return int(min(self.a.shape[1] ** 2 * sum(self.widths), self.macs))

    @property
    def scratch(self) -> int:
        """T, times the smaller of d_in and d_out and one more."""
        return int(self.a.shape[1]) * (min(self.widths) + 1)

    def rows(self, which: slice) -> OuterProducts:
        """Return the capture of some rows, as views."""
        return replace(self, a=self.a[which], b=self.b[which])

    def weighted(self, weights: Float[Array, "n 1"]) -> OuterProducts:
        """Return the capture of each ``weights[i] x_i``; `weights` is (n, 1)."""
        return replace(self, b=self.b * weights[:, :, None])

    def sum_of(self, xp: Any, name: str, units: slice, out: Any = None) -> Any:
        """Return some rows of ``Σ bᵀ a``, or some elements of Σ b; in `out` if given."""
        b = flat(self.b)[:, units]
        return xp.matmul(b.T, flat(self.a), out=out) if name == self.weight else b.sum(axis=0, out=out)

    def add_dots(
        self,
        context: EngineContext,
        matrix: Mapping[str, Any],
        factors: Mapping[str, Factors],
        out: Float[Array, " n"],
        scratch: Float[Array, "n scratch"],
        score_dtype: str | None,
    ) -> None:
        """Add ``Σ_t b_tᵀ (P a_t + p)`` to ``out[i]``, by one product with P, or two with its factors."""
        a, b = flat(self.a), flat(self.b)
        room = scratch.reshape(-1)
        dots, room = room[: len(a)], room[len(a) :]
        dots[...] = 0
        if self.weight in factors:
            q, c = factors[self.weight]
            context.ops.row_dot(b @ q, a @ c.T, None, dots)
        elif a.shape[1] < b.shape[1]:
            z = room[: a.size].reshape(a.shape)
            score_product(context, b, matrix[self.weight], z, score_dtype)
            context.ops.row_dot(a, z, None, dots)
        else:
            z = room[: b.size].reshape(b.shape)
            score_product(context, a, matrix[self.weight].T, z, score_dtype)
            context.ops.row_dot(b, z, None, dots)
        out += dots.reshape(self.n, -1).sum(axis=1)
        if self.bias is not None:
            out += self.b.sum(axis=1) @ matrix[self.bias]

    def form(self, name: str) -> Form:
        """Return x_i of the weight, b and a, or of the bias."""
        return Products(self.b, self.a) if name == self.weight else self.b.sum(axis=1)

    def pair_dots(self, xp: Any, other: Any, names: Collection[str] | None = None) -> Float[Array, "n n_other"] | None:
        """Return ``Σ_{t,u} (b_t · b'_u) (a_t · a'_u)`` and the bias's; None if no parameter is in common."""
        return pairs_in_common(xp, self, other, names)

    def root_squares(
        self, context: EngineContext, names: Collection[str], exact: bool, room: Callable[[str], Any]
    ) -> dict[str, RootSquares]:
        """Return √Σ x_i² of the weight, exact or of rank one, and of the bias, exact.

        Of rank one it is ``‖b‖ ‖a‖/√n`` over all positions, times √Σ ‖x_i‖² / √Σ ‖a_i‖² ‖b_i‖², which is 1 for T = 1.
        """
        found = {}
        if self.weight in names:
            if exact:
                found[self.weight] = RootSquares(sample_roots(context, [self], self.weight, room(self.weight)))
            else:
                found[self.weight] = self._rank_one(context)
        if self.bias is not None and self.bias in names:
            root = room(self.bias)
            root[...] = context.ops.column_norms(self.b.sum(axis=1))
            found[self.bias] = RootSquares(root)
        return found

    def _rank_one(self, context: EngineContext) -> RootSquares:
        xp, norms = context.backend.xp, context.ops.column_norms
        own, apart = self._lengths(xp)
        total, most = (norms(lengths[:, None])[0] for lengths in (own, apart))
        return RootSquares(None, norms(flat(self.b)), norms(flat(self.a)), total, most)

    def row_norms(self, xp: Any) -> Float[Array, " n"]:
        """Return ‖x_i‖."""
        own, _ = self._lengths(xp)
        norms: Array = own if self.bias is None else xp.hypot(own, row_norms(xp, self.b.sum(axis=1)))
        return norms

    def _lengths(self, xp: Any) -> tuple[Any, Any]:
        """Return ‖x_i‖ of the weight and ‖a_i‖ ‖b_i‖, its largest possible value: (n,) each."""
        n, positions = self.a.shape[:2]
        fractions, apart = (xp.empty(n, self.a.dtype) for _ in range(2))
        by_pairs = positions * sum(self.widths) <= math.prod(self.widths)
        block = max(POSITION_PAIRS // positions**2, 1) if by_pairs else 1

        def samples(low: int, high: int) -> None:
            for first in range(low, high, block):
                rows = slice(first, min(first + block, high))
                if by_pairs:
                    (squares, length), (others, other) = (_pairs_of_positions(xp, x[rows]) for x in (self.a, self.b))
                    squares *= others
                else:
                    (a, length), (b, other) = (_of_unit_length(xp, x[rows]) for x in (self.a, self.b))
                    squares = xp.matmul(b.swapaxes(1, 2), a)
                    squares *= squares
                fractions[rows] = squares.reshape(len(squares), -1).sum(axis=1)
                apart[rows] = length * other

        in_parts(samples, n, 2 * n * self.pair_macs)
        return apart * xp.sqrt(xp.maximum(fractions, fractions.dtype.type(0))), apart

    def signed_roots(self, context: EngineContext) -> OuterProducts:
        """Refuse: the signed roots of a sum are no sum of outer products."""
        refuse_roots(self.a.shape[1])
        return self

    def kept(self) -> dict[str, Any]:
        """Return a, unless it is the model's input, and b."""
        return {"b": self.b} if self.a_is_input else {"a": self.a, "b": self.b}

    def rebuilt(self, arrays: Mapping[str, Any], inputs: Float[Array, "n positions d_in"]) -> OuterProducts:
        """Return the capture of other rows, from arrays like those of `kept` and the model's inputs."""
        return replace(self, a=inputs if self.a_is_input else arrays["a"], b=arrays["b"])


def _pairs_of_positions(xp: Any, x: Any) -> tuple[Any, Any]:
    """Return the products of each row's positions (n, T, T), in units of its squared length, and its length (n,)."""
    if xp.__name__ == "numpy":  # a device does not wait to know
        with np.errstate(over="ignore", invalid="ignore"):
            products = np.matmul(x, x.swapaxes(1, 2))
            squares = np.einsum("ntt->n", products)
        limits = np.finfo(x.dtype)
        # What underflows in a product is then far below a rounding of the largest.
        if (squares > limits.tiny**0.5).all() and (squares < limits.max**0.5).all():
            products /= squares[:, None, None]
            return products, np.sqrt(squares)
    x, length = _of_unit_length(xp, x)
    return xp.matmul(x, x.swapaxes(1, 2)), length


def _of_unit_length(xp: Any, x: Any) -> tuple[Any, Any]:
    """Return rows (n, T, d) in units of their length, and the length (n,)."""
    length = row_norms(xp, x.reshape(len(x), -1))
    return x / xp.where(length > 0, length, x.dtype.type(1))[:, None, None], length


def outer_products(weight: str, bias: str | None, a: Any, b: Any, a_is_input: bool = False) -> Capture:
    """Return the capture of a linear layer with inputs (n, d_in) or (n, …, d_in): for T = 1 an `OuterProduct`."""
    if a.ndim == 2:
        return OuterProduct(weight, bias, a, b, a_is_input)
    n, positions = len(a), math.prod(a.shape[1:-1])
    if positions == 1:
        return OuterProduct(weight, bias, a.reshape(n, a.shape[-1]), b.reshape(n, b.shape[-1]))
    a_is_input = a_is_input and a.ndim == 3
    a, b = (x.reshape(n, positions, x.shape[-1]) for x in (a, b))
    return OuterProducts(weight, bias, a, b, a_is_input)


def refuse_roots(positions: int) -> None:
    """Refuse sign(x_i) √|x_i| for samples of several positions."""
    if positions > 1:
        refuse(
            "slope",
            f"'two_term' for samples of {positions} positions, whose x_i is a sum of outer products",
            "another slope: the signed root of a sum is no such sum, so that its scores would need every x_i itself",
        )
