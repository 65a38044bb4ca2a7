"""The captures of one pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from adamshap.gpu.captures.capture import Capture
from adamshap.gpu.captures.dense import Dense
from adamshap.gpu.context import EngineContext
from adamshap.reference.contract import refuse

if TYPE_CHECKING:
    from jaxtyping import Float

    from adamshap.reference.contract import Array

__all__ = ["Captures"]


class Differentiable(Protocol):
    """A pass whose rows' weighted losses can be differentiated along P, by another road than captures."""

    def rows(self, which: slice) -> Differentiable:
        """Return the pass of some rows, as views."""

    def add_dots(self, context: EngineContext, direction: Mapping[str, Any], out: Any) -> None:
        """Add each row's derivative along `direction`, ⟨P, x_i⟩, to `out`."""


@dataclass(frozen=True)
class Captures:
    """The captures of one pass, one for each use of parameters, the rows' losses if known, and the pass itself."""

    uses: tuple[Capture, ...]
    losses: Any = None
    origin: Differentiable | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.uses[0].n

    @cached_property
    def products(self) -> dict[str, int]:
        """Number of outer products per row, by each parameter that is contracted by them."""
        found: dict[str, int] = {}
        for capture in self.uses:
            for name, count in capture.products.items():
                found[name] = found.get(name, 0) + count
        return found

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
        origin = None if self.origin is None else self.origin.rows(which)
        return Captures(tuple(capture.rows(which) for capture in self.uses), losses, origin)

    def of(self, context: EngineContext, names: Collection[str]) -> Captures:
        """Return the captures of the parameters in `names` alone."""
        if all(name in names for capture in self.uses for name in capture.names):
            return self
        return Captures(tuple(part for capture in self.uses for part in _parts(context, capture, names)))

    def weighted(self, weights: Float[Array, "n 1"]) -> Captures:
        """Return the captures of each ``weights[i] x_i``; `weights` is (n, 1)."""
        return Captures(tuple(capture.weighted(weights) for capture in self.uses), self.losses)

    def signed_roots(self, context: EngineContext) -> Captures:
        """Return the captures of each sign(x_i) √|x_i|; refused for a parameter with several uses."""
        if twice := self.used_twice:
            refuse(
                "slope",
                f"'two_term' for parameters that are used more than once, {', '.join(twice)}",
                "another slope: the signed root of a sum is not the sum of the signed roots",
            )
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


def _parts(context: EngineContext, capture: Any, names: Collection[str]) -> Iterator[Capture]:
    """Yield the captures of those of its parameters that are in `names`: a bias's x_i, if alone, is an array."""
    used = [name for name in capture.names if name in names]
    if not used:
        return
    if len(used) == len(capture.names):
        yield capture
    elif used == [capture.weight]:
        yield replace(capture, bias=None)
    elif hasattr(capture, "form"):
        yield Dense(capture.bias, capture.form(capture.bias))
    else:  # by what every capture has
        xp, units = context.backend.xp, slice(0, context.shapes[capture.bias][0])
        samples = (capture.rows(slice(i, i + 1)) for i in range(capture.n))
        yield Dense(capture.bias, xp.stack([sample.sum_of(xp, capture.bias, units) for sample in samples]))
