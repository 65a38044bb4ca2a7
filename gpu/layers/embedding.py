"""An embedding, which is a model's first layer, and learned positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Capture, Dense, Gather
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.stage import Planned, Room, Stage

__all__ = ["Embedding", "Positions"]


@dataclass(frozen=True)
class Embedding:
    """A vector for each token."""

    weight: str
    width: int

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage for tokens `x` (rows, T)."""
        out = room("out", (*x.shape[1:], self.width))
        return Stage(self, {"x": x, "out": out}), (out, True)

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Keep `b` for the capture; tokens have no gradient."""
        stage.arrays["b"] = b
        return None, False

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the row of each token."""
        unchecked = {} if context.backend.on_cuda else {"mode": "clip"}  # NumPy buffers the output of a checked take
        context.backend.xp.take(params[self.weight], stage["x"], axis=0, out=stage["out"], **unchecked)

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
        """Return the row of P of each token."""
        return direction[self.weight][stage["x"]]

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return the capture of the weight."""
        return (Gather(self.weight, stage["x"], stage["b"]),)


@dataclass(frozen=True)
class Positions:
    """Adds a vector to each position; row t of the weight belongs to position t."""

    weight: str

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage."""
        stage = Stage(self, {"x": x})
        return stage, (stage.own_or_overwritten("out", room, x, free), True)

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Hand `b` on: it is the gradient in the input too, and x_i itself."""
        stage.arrays["b"] = b
        return b, False

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Add the rows of the positions."""
        context.backend.xp.add(stage["x"], params[self.weight][: stage["x"].shape[1]], out=stage["out"])

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
        """Return the tangent plus the rows of P of the positions."""
        rows = direction[self.weight][: stage["x"].shape[1]]
        if tangent is None:
            return context.backend.xp.broadcast_to(rows, stage["x"].shape).copy()
        tangent += rows
        return tangent

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return the capture of the weight; a shorter sequence leaves its last rows at 0."""
        return (Dense(self.weight, stage["b"]),)
