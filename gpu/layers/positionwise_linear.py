"""A linear layer at every position of a sample, also with another layer's weight: ``z = W a`` and its bias."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Capture, outer_products
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.linear import linear_tangent
from adamshap.gpu.layers.stage import Planned, Room, Stage, flat
from adamshap.gpu.products import product

__all__ = ["PositionwiseLinear"]


@dataclass(frozen=True)
class PositionwiseLinear:
    """A linear layer; `weight` and `bias` are the names of its parameters.

    The bias is added here unless `bias_later`: then the next layer adds it, in its own pass over z.
    """

    weight: str
    bias: str | None
    d_out: int
    bias_later: bool = False

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage: the output has an array of its own, as the capture needs the input."""
        out = room("out", (*x.shape[1:-1], self.d_out))
        return Stage(self, {"x": x, "out": out}), (out, True)

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Plan the gradient in the input in an array of its own, as the capture needs `b`."""
        stage.arrays["b"] = b
        if wanted:
            stage.arrays["below"] = room("below", stage["x"].shape[1:])
        return stage.get("below"), True

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write ``W a`` of each position, and its bias."""
        z = flat(stage["out"])
        product(context, flat(stage["x"]), params[self.weight].T, z)
        if self.bias is not None and not self.bias_later:
            z += params[self.bias]

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write ``Wᵀ b`` of each position."""
        if (below := stage.get("below")) is not None:
            product(context, flat(stage["b"]), params[self.weight], flat(below))

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return ``P a + W ȧ + p`` of each position."""
        names = self.weight, None if self.bias_later else self.bias
        through = None if tangent is None else flat(tangent)
        z = linear_tangent(context, params, direction, names, flat(stage["x"]), through)
        return z.reshape(stage["out"].shape)

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return the one capture of weight and bias."""
        return (outer_products(self.weight, self.bias, stage["x"], stage["b"], "input" in stage.in_place),)
