"""Layers one after the other, and a residual around some of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Capture
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.stage import Planned, Room, StackLayer, Stage, TangentLayer

__all__ = ["Residual", "have_tangents", "plan_chain", "plan_chain_back", "run_back", "run_forward", "run_tangents"]


def plan_chain(layers: Sequence[StackLayer], x: Any, free: bool, room: Room) -> tuple[tuple[Stage, ...], Planned]:
    """Return the stages of layers one after the other, and the last one's output."""
    stages = []
    for number, layer in enumerate(layers):
        stage, (x, free) = layer.plan(x, free, _room_of(room, number))
        stages.append(stage)
    return tuple(stages), (x, free)


def plan_chain_back(stages: Sequence[Stage], b: Any, free: bool, wanted: bool, room: Room) -> Planned:
    """Plan the backward pass; the first layer's gradient in its input only if it is `wanted`."""
    for number in range(len(stages) - 1, -1, -1):
        stage = stages[number]
        b, free = stage.layer.plan_back(stage, b, free, wanted or number > 0, _room_of(room, number))
    return b, free


def run_forward(context: EngineContext, params: Mapping[str, Any], stages: Sequence[Stage]) -> None:
    """Run the layers' forward passes in their order."""
    for stage in stages:
        stage.layer.forward(context, params, stage)


def run_back(context: EngineContext, params: Mapping[str, Any], stages: Sequence[Stage]) -> None:
    """Run the layers' backward passes, the last one first."""
    for stage in reversed(stages):
        stage.layer.backward(context, params, stage)


def have_tangents(layers: Sequence[StackLayer]) -> bool:
    """Whether all layers have a tangent, those within a residual included."""
    return all(
        isinstance(layer, TangentLayer) and (not isinstance(layer, Residual) or have_tangents(layer.layers))
        for layer in layers
    )


def run_tangents(
    context: EngineContext,
    params: Mapping[str, Any],
    direction: Mapping[str, Any],
    stages: Sequence[Stage],
    tangent: Any,
) -> Any:
    """Return the derivative of the last layer's output, from that of the first one's input; None is 0."""
    for stage in stages:
        assert isinstance(stage.layer, TangentLayer)
        tangent = stage.layer.tangent(context, params, direction, stage, tangent)
    return tangent


def _room_of(room: Room, number: int) -> Room:
    return lambda name, shape: room(f"{number} {name}", shape)


@dataclass(frozen=True)
class Residual:
    """Adds its layers' output to their input."""

    layers: tuple[StackLayer, ...]

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage: the sum is written over the layers' output where nothing else reads that."""
        inner, (f, f_free) = plan_chain(self.layers, x, False, room)
        stage = Stage(self, {"x": x, "f": f}, inner=inner)
        return stage, (stage.own_or_overwritten("out", room, f, f_free), True)

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Plan the sum of `b` and the gradient through the layers."""
        stage.arrays["b"] = b
        g, g_free = plan_chain_back(stage.inner, b, False, wanted, room)
        if not wanted:
            return None, False
        stage.arrays["g"] = g
        return stage.own_or_overwritten("below", room, g, g_free), True

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the sum."""
        run_forward(context, params, stage.inner)
        context.backend.xp.add(stage["x"], stage["f"], out=stage["out"])

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the sum of both gradients."""
        run_back(context, params, stage.inner)
        if (below := stage.get("below")) is not None:
            context.backend.xp.add(stage["b"], stage["g"], out=below)

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return the sum of the tangent and that through the layers."""
        inner = None if tangent is None else tangent.copy()  # the layers may overwrite it
        through = run_tangents(context, params, direction, stage.inner, inner)
        if tangent is None or through is None:
            return through if tangent is None else tangent
        through += tangent
        return through

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return those of its layers."""
        return tuple(capture for inner in stage.inner for capture in inner.layer.captures(inner))
