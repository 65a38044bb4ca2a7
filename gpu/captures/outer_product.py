"""One outer product a sample: a linear layer that each sample goes through once.

======  ======================  ==================================================
paper   name                    meaning
======  ======================  ==================================================
a       ``OuterProduct.a``      inputs (n, d_in)
b       ``OuterProduct.b``      gradients in the outputs (n, d_out), weighted
======  ======================  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adamshap.gpu.captures.capture import Factors, RootSquares
from adamshap.gpu.captures.forms import Form, Products, pairs_in_common
from adamshap.gpu.captures.roots import signed_roots
from adamshap.gpu.context import EngineContext
from adamshap.gpu.products import score_product
from adamshap.gpu.squares import outer_root_squares, row_norms

if TYPE_CHECKING:
    from jaxtyping import Float

    from adamshap.reference.contract import Array

__all__ = ["OuterProduct"]


@dataclass(frozen=True)
class OuterProduct:
    """``x_i = b_i a_iᵀ`` for a weight, and b_i for its bias, whose input is 1; neither is ever an array.

    Parameters
    ----------
    weight : str
    bias : str or None
    a : array (n, d_in)
    b : array (n, d_out)
    a_is_input : bool
        Whether `a` is the model's input itself.
    """

    weight: str
    bias: str | None
    a: Float[Array, "n d_in"]
    b: Float[Array, "n d_out"]
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
    def products(self) -> dict[str, int]:
        """1, of the weight."""
        return {self.weight: 1}

    @property
    def macs(self) -> int:
        """d_in d_out."""
        return int(self.a.shape[1] * self.b.shape[1])

    @property
    def pair_macs(self) -> int:
        """d_in + d_out."""
        return int(self.a.shape[1] + self.b.shape[1])

    @property
    def scratch(self) -> int:
        """d_out."""
        return int(self.b.shape[1])

    def rows(self, which: slice) -> OuterProduct:
        """Return the capture of some rows, as views."""
        return OuterProduct(self.weight, self.bias, self.a[which], self.b[which], self.a_is_input)

    def weighted(self, weights: Float[Array, "n 1"]) -> OuterProduct:
        """Return the capture of each ``weights[i] x_i``; `weights` is (n, 1)."""
        return replace(self, b=self.b * weights)

    def sum_of(self, xp: Any, name: str, units: slice, out: Any = None) -> Any:
        """Return some rows of ``bᵀ a``, or some elements of Σ b; in `out` if given."""
        b = self.b[:, units]
        return xp.matmul(b.T, self.a, out=out) if name == self.weight else b.sum(axis=0, out=out)

    def add_dots(
        self,
        context: EngineContext,
        matrix: Mapping[str, Any],
        factors: Mapping[str, Factors],
        out: Float[Array, " n"],
        scratch: Float[Array, "n scratch"],
        score_dtype: str | None,
    ) -> None:
        """Add ``b_iᵀ (P a_i + p)`` to ``out[i]``, by one product with P, or two with its factors."""
        a, b = self.a, self.b
        p = None if self.bias is None else matrix[self.bias]
        if self.weight in factors:
            q, c = factors[self.weight]
            context.ops.row_dot(b @ q, a @ c.T, None, out)
            if p is not None:
                out += b @ p
        else:
            z = scratch.reshape(-1)[: b.size].reshape(b.shape)
            score_product(context, a, matrix[self.weight].T, z, score_dtype)
            context.ops.row_dot(b, z, p, out)

    def form(self, name: str) -> Form:
        """Return x_i of the weight, one outer product, or of the bias, b_i."""
        return Products(self.b[:, None], self.a[:, None]) if name == self.weight else self.b

    def pair_dots(self, xp: Any, other: Any, names: Collection[str] | None = None) -> Float[Array, "n n_other"] | None:
        """Return ``(b_i · b'_j) (a_i · a'_j + 1)``, where the 1 is the bias's; None if no parameter is in common."""
        if not isinstance(other, OuterProduct):
            return pairs_in_common(xp, self, other, names)
        with_weight = self.weight == other.weight and (names is None or self.weight in names)
        with_bias = self.bias is not None and self.bias == other.bias and (names is None or self.bias in names)
        if not with_weight:
            return self.b @ other.b.T if with_bias else None
        inner = self.a @ other.a.T
        if with_bias:
            inner += inner.dtype.type(1)
        inner *= self.b @ other.b.T
        return inner

    def root_squares(
        self, context: EngineContext, names: Collection[str], exact: bool, room: Callable[[str], Any]
    ) -> dict[str, RootSquares]:
        """Return √Σ x_i² of the weight, exact or ``‖b‖ ‖a‖/√n``, and of the bias, exact."""
        found: dict[str, RootSquares] = {}
        with_weight, with_bias = self.weight in names, self.bias is not None and self.bias in names
        norms = context.ops.column_norms(self.b) if with_bias or (with_weight and not exact) else None
        if with_weight and exact:
            root = outer_root_squares(context, self.a, self.b, room(self.weight))
            found[self.weight] = RootSquares(root)
        elif with_weight:
            found[self.weight] = RootSquares(None, norms, context.ops.column_norms(self.a))
        if self.bias is not None and with_bias:
            found[self.bias] = RootSquares(norms)
        return found

    def row_norms(self, xp: Any) -> Float[Array, " n"]:
        """Return ``‖b_i‖ √(‖a_i‖² + 1)``, without the 1 where there is no bias."""
        norms = row_norms(xp, self.a)
        if self.bias is not None:
            norms = xp.hypot(norms, self.a.dtype.type(1))
        return row_norms(xp, self.b) * norms

    def signed_roots(self, context: EngineContext) -> OuterProduct:
        """Return the capture of the signed roots of a and b, whose outer products are the signed roots of x."""
        a, b = signed_roots(context, self.weight, self.a, self.b)
        return OuterProduct(self.weight, self.bias, a, b)

    def kept(self) -> dict[str, Any]:
        """Return a, unless it is the model's input, and b."""
        return {"b": self.b} if self.a_is_input else {"a": self.a, "b": self.b}

    def rebuilt(self, arrays: Mapping[str, Any], inputs: Float[Array, "n d_in"]) -> OuterProduct:
        """Return the capture of other rows, from arrays like those of `kept` and the model's inputs."""
        return replace(self, a=inputs if self.a_is_input else arrays["a"], b=arrays["b"])
