"""Layers without parameters that change a sample's shape: one axis, and the mean over positions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Capture
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.stage import Planned, Room, Stage

__all__ = ["Flatten", "MeanOverPositions"]


@dataclass(frozen=True)
class Flatten:
    """All of a sample in one axis: views of the same memory."""

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage."""
        return Stage(self, {"x": x}), (x.reshape(len(x), math.prod(x.shape[1:])), free)

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Return `b` in the input's shape."""
        return b.reshape(stage["x"].shape), free

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Do nothing."""

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Do nothing."""

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return the tangent in one axis."""
        return None if tangent is None else tangent.reshape(len(tangent), math.prod(tangent.shape[1:]))

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return none."""
        return ()


@dataclass(frozen=True)
class MeanOverPositions:
    """The mean over a sequence's positions."""

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage."""
        out = room("out", x.shape[2:])
        return Stage(self, {"x": x, "out": out}), (out, True)

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Plan the gradient at every position."""
        stage.arrays["b"] = b
        if wanted:
            stage.arrays["below"] = room("below", stage["x"].shape[1:])
        return stage.get("below"), True

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the mean."""
        stage["x"].mean(axis=1, out=stage["out"])

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write an equal part of the gradient to each position."""
        if (below := stage.get("below")) is not None:
            below[...] = (stage["b"] / below.dtype.type(below.shape[1]))[:, None]

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return the mean of the tangent."""
        return None if tangent is None else tangent.mean(axis=1)

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return none."""
        return ()
