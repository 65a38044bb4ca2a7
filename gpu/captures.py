"""Captures: the arrays that one use of parameters leaves in a forward and backward pass, and that all scoring reads.

Layers create captures (`layers`); scoring depends on no layer. A parameter that is used twice has several captures:
Σ x_i and ⟨P, x_i⟩ add up over them, and so do the pairs of two passes' captures. Quantities that are quadratic in x_i
would need cross terms; they are refused, or bounded.

======  ======================  ==================================================
paper   name                    meaning
======  ======================  ==================================================
x_i     no array                contribution of sample (row) i to a gradient
a       ``OuterProduct.a``      inputs (n, d_in)
b       ``OuterProduct.b``      gradients in the outputs (n, d_out), weighted
ℓ       ``Captures.losses``     (n,), not weighted
P       ``matrix``              score matrix, by parameter
======  ======================  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from adamshap.gpu.context import EngineContext
from adamshap.gpu.products import score_product
from adamshap.gpu.squares import outer_root_squares, row_norms
from adamshap.gpu.threads import in_parts

if TYPE_CHECKING:
    from jaxtyping import Float

    from adamshap.reference.contract import Array

__all__ = [
    "Capture",
    "Captures",
    "Factors",
    "OuterProduct",
    "RootSquares",
    "multiply_by_sums",
    "sum_blocks",
    "write_sums",
]

CACHED = 1 << 16
"""Elements of a gradient computed at a time, few enough to stay in the cache."""

Factors = tuple[Any, Any]
"""Q (d_out, r) and C (r, d_in) of a matrix ``P ≈ Q C``."""


@dataclass(frozen=True)
class RootSquares:
    """√Σ x_i² of one parameter: as an array of its shape, or of rank one, ``row ⊗ col / √n``."""

    root: Any = None
    row: Any = None
    col: Any = None


class Capture(Protocol):
    """One use of parameters in a forward and backward pass, of n rows."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters used."""

    @property
    def n(self) -> int:
        """Number of rows."""

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

    def pair_dots(self, other: Any, names: Collection[str] | None = None) -> Float[Array, "n n_other"] | None:
        """Return ⟨x_i, x'_j⟩ with another capture's rows, (n, n'), over the parameters that both use.

        Only those in `names` count, if given. None if no parameter is in common.
        """

    def root_squares(self, context: EngineContext, exact: bool, room: Callable[[str], Any]) -> dict[str, RootSquares]:
        """Return √Σ x_i² of each parameter, of rank one unless `exact`.

        ``room(name)`` returns an array for the root.
        """

    def row_norms(self, xp: Any) -> Float[Array, " n"]:
        """Return ‖x_i‖, or a bound on it, (n,)."""

    def signed_roots(self, context: EngineContext) -> Capture:
        """Return the capture of each sign(x_i) √|x_i|, in buffers."""

    def kept(self) -> dict[str, Any]:
        """Return the arrays that rebuild the capture together with the model's inputs."""

    def rebuilt(self, arrays: Mapping[str, Any], inputs: Float[Array, "n d_in"]) -> Capture:
        """Return the capture of other rows, from arrays like those of `kept` and the model's inputs."""


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
    def macs(self) -> int:
        """d_in d_out."""
        return self.a.shape[1] * self.b.shape[1]  # type: ignore[no-any-return]

    @property
    def pair_macs(self) -> int:
        """d_in + d_out."""
        return self.a.shape[1] + self.b.shape[1]  # type: ignore[no-any-return]

    @property
    def scratch(self) -> int:
        """d_out."""
        return self.b.shape[1]  # type: ignore[no-any-return]

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

    def pair_dots(self, other: Any, names: Collection[str] | None = None) -> Float[Array, "n n_other"] | None:
        """Return ``(b_i · b'_j) (a_i · a'_j + 1)``, where the 1 is the bias's; None if no parameter is in common."""
        if not isinstance(other, OuterProduct):
            if not set(self.names) & set(other.names):
                return None
            raise NotImplementedError(f"pairs of OuterProduct and {type(other).__name__}")
        with_weight = self.weight == other.weight and (names is None or self.weight in names)
        with_bias = self.bias is not None and self.bias == other.bias and (names is None or self.bias in names)
        if not with_weight:
            return self.b @ other.b.T if with_bias else None
        inner = self.a @ other.a.T
        if with_bias:
            inner += inner.dtype.type(1)
        inner *= self.b @ other.b.T
        return inner

    def root_squares(self, context: EngineContext, exact: bool, room: Callable[[str], Any]) -> dict[str, RootSquares]:
        """Return √Σ x_i² of the weight, exact or ``‖b‖ ‖a‖/√n``, and of the bias, exact."""
        found = {}
        norms = None if exact and self.bias is None else context.ops.column_norms(self.b)
        if exact:
            root = outer_root_squares(context, self.a, self.b, room(self.weight))
            found[self.weight] = RootSquares(root)
        else:
            found[self.weight] = RootSquares(None, norms, context.ops.column_norms(self.a))
        if self.bias is not None:
            found[self.bias] = RootSquares(norms)
        return found

    def row_norms(self, xp: Any) -> Float[Array, " n"]:
        """Return ``‖b_i‖ √(‖a_i‖² + 1)``, without the 1 where there is no bias."""
        norms = row_norms(xp, self.a)
        if self.bias is not None:
            norms = xp.hypot(norms, self.a.dtype.type(1))
        return row_norms(xp, self.b) * norms  # type: ignore[no-any-return]

    def signed_roots(self, context: EngineContext) -> OuterProduct:
        """Return the capture of the signed roots of a and b, whose outer products are the signed roots of x."""

        def signed_root(array: Any, name: str) -> Any:
            xp, out = context.backend.xp, context.buffers.get(f"root {name} {self.weight}", array.shape)
            xp.sqrt(abs(array), out=out)
            return xp.copysign(out, array, out=out)

        return OuterProduct(self.weight, self.bias, signed_root(self.a, "inputs"), signed_root(self.b, "gradients"))

    def kept(self) -> dict[str, Any]:
        """Return a, unless it is the model's input, and b."""
        return {"b": self.b} if self.a_is_input else {"a": self.a, "b": self.b}

    def rebuilt(self, arrays: Mapping[str, Any], inputs: Float[Array, "n d_in"]) -> OuterProduct:
        """Return the capture of other rows, from arrays like those of `kept` and the model's inputs."""
        return replace(self, a=inputs if self.a_is_input else arrays["a"], b=arrays["b"])


@dataclass(frozen=True)
class Captures:
    """The captures of one pass, one for each use of parameters, and the rows' losses if known."""

    uses: tuple[Capture, ...]
    losses: Any = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.uses[0].n

    @cached_property
    def macs(self) -> int:
        """Multiplications per row of a contraction with P."""
        return sum(capture.macs for capture in self.uses)

    @cached_property
    def pair_macs(self) -> int:
        """Multiplications of the dot product of two rows' gradients."""
        return sum(capture.pair_macs for capture in self.uses)

    @cached_property
    def by_name(self) -> dict[str, list[Capture]]:
        """The uses of each parameter."""
        found: dict[str, list[Capture]] = {}
        for capture in self.uses:
            for name in capture.names:
                found.setdefault(name, []).append(capture)
        return found

    @property
    def used_twice(self) -> list[str]:
        """The parameters with more than one use."""
        return [name for name, uses in self.by_name.items() if len(uses) > 1]

    def rows(self, which: slice) -> Captures:
        """Return the captures of some rows, as views."""
        losses = None if self.losses is None else self.losses[which]
        return Captures(tuple(capture.rows(which) for capture in self.uses), losses)

    def weighted(self, weights: Float[Array, "n 1"]) -> Captures:
        """Return the captures of each ``weights[i] x_i``; `weights` is (n, 1)."""
        return Captures(tuple(capture.weighted(weights) for capture in self.uses), self.losses)

    def signed_roots(self, context: EngineContext) -> Captures:
        """Return the captures of each sign(x_i) √|x_i|; refused for a parameter with several uses."""
        self.refuse_two_uses("sign(x) √|x|")
        return Captures(tuple(capture.signed_roots(context) for capture in self.uses))

    def row_norms(self, xp: Any) -> Float[Array, " n"]:
        """Return ‖x_i‖ over all parameters, or a bound on it, (n,)."""
        join = xp.add if self.used_twice else xp.hypot  # triangle inequality
        first, *others = (capture.row_norms(xp) for capture in self.uses)
        for norms in others:
            first = join(first, norms)
        return first

    def kept(self) -> dict[str, Any]:
        """Return the arrays that rebuild the captures together with the model's inputs, in order of their names."""
        kept = [(name, number, array) for number, one in enumerate(self.uses) for name, array in one.kept().items()]
        return {f"{name}/{number}": array for name, number, array in sorted(kept, key=lambda entry: entry[:2])}

    def rebuilt(self, arrays: Mapping[str, Any], inputs: Float[Array, "n d_in"]) -> Captures:
        """Return the captures of other rows, from arrays like those of `kept` and the model's inputs."""
        return Captures(
            tuple(
                capture.rebuilt({name: arrays[f"{name}/{number}"] for name in capture.kept()}, inputs)
                for number, capture in enumerate(self.uses)
            )
        )

    def refuse_two_uses(self, what: str) -> None:
        """Refuse `what` for parameters with several uses, as it needs cross terms."""
        if twice := self.used_twice:
            raise NotImplementedError(f"{what} of parameters that are used more than once: {', '.join(twice)}")


def write_sums(context: EngineContext, captures: Captures, into: Mapping[str, Any], add: bool = False) -> None:
    """Write Σ_i x_i, the gradient summed over the rows, of each parameter; or `add` it to the contents of `into`."""
    context.now("gradient")
    xp, parts = context.backend.xp, max(len(array) for array in into.values())

    def units_between(low: int, high: int) -> None:
        written = set(into) if add else set()
        for capture in captures.uses:
            for name in capture.names:
                count = len(into[name])
                units = slice(count * low // parts, count * high // parts)
                if name in written:
                    array = into[name][units]
                    array += capture.sum_of(xp, name, units)
                else:
                    capture.sum_of(xp, name, units, out=into[name][units])
                    written.add(name)

    in_parts(units_between, parts, 2 * captures.n * captures.macs)


def multiply_by_sums(context: EngineContext, captures: Captures, into: Mapping[str, Any]) -> None:
    """Multiply the arrays `into` by Σ_i x_i, the gradient summed over the rows."""

    def multiply(name: str, units: slice, gradient: Any) -> None:
        array = into[name][units]
        array *= gradient

    sum_blocks(context, captures, multiply, 4 * captures.n * captures.macs)


def sum_blocks(
    context: EngineContext, captures: Captures, use: Callable[[str, slice, Any], None], flops: float
) -> None:
    """Call ``use(name, units, gradient)`` for all units, with the gradient summed over the rows.

    On the host the gradient is computed for some units at a time, in the cache, and never stored as a whole.
    """
    context.now("validation gradient")
    xp, by_name, shapes = context.backend.xp, captures.by_name, context.shapes
    parts = max(shapes[name][0] for name in by_name)

    def units_between(low: int, high: int) -> None:
        for name, uses in by_name.items():
            count, *others = shapes[name]
            units = range(count * low // parts, count * high // parts)
            whole = context.backend.on_cuda or not others
            block = parts if whole else max(CACHED // others[0], 1)
            for first in units[::block]:
                part = slice(first, min(first + block, units.stop))
                gradient = uses[0].sum_of(xp, name, part)
                for other in uses[1:]:
                    gradient += other.sum_of(xp, name, part)
                use(name, part, gradient)

    in_parts(units_between, parts, flops)
