"""An activation as a layer of its own, in place where it can be; it may add the bias of the linear layer before it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Capture
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.activation import activate, keeps_derivative, scale_by_derivative
from adamshap.gpu.layers.stage import Planned, Room, Stage, flat

__all__ = ["ActivationLayer"]


@dataclass(frozen=True)
class ActivationLayer:
    """An elementwise function; `bias` is the name of a parameter to add before, or None."""

    function: str
    bias: str | None = None

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage; ReLU's output is read again in the backward pass."""
        stage = Stage(self, {"x": x})
        out = stage.own_or_overwritten("out", room, x, free)
        if keeps_derivative(self.function):
            stage.arrays["derivative"] = room("derivative", x.shape[1:])
        return stage, (out, self.function != "relu")

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Plan the product with the derivative."""
        stage.arrays["b"] = b
        return (stage.own_or_overwritten("below", room, b, free) if wanted else None), True

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the activation, and the derivative where one is kept."""
        out, derivative = stage["out"], stage.get("derivative")
        if "out" not in stage.in_place:
            out[...] = stage["x"]
        bias = None if self.bias is None else params[self.bias]
        activate(context, self.function, flat(out), bias, None if derivative is None else flat(derivative))

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the gradient times the derivative."""
        if (below := stage.get("below")) is None:
            return
        if "below" not in stage.in_place:
            below[...] = stage["b"]
        derivative = stage.get("derivative")
        derivative = None if derivative is None else flat(derivative)
        scale_by_derivative(context, self.function, flat(below), flat(stage["out"]), derivative)

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return the tangent, and the bias's, times the derivative."""
        if self.bias is not None:
            tangent += direction[self.bias]
        if tangent is None:
            return None
        derivative = stage.get("derivative")
        derivative = None if derivative is None else flat(derivative)
        scale_by_derivative(context, self.function, flat(tangent), flat(stage["out"]), derivative)
        return tangent

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return none."""
        return ()
