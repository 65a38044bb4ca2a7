"""Average and maximum of each window of an image's channels. A remainder at the edge is in no window."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Capture
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.stage import Planned, Room, Stage
from adamshap.gpu.windows import Windows

__all__ = ["AveragePool", "MaxPool"]


@dataclass(frozen=True)
class _Pool:
    windows: Windows

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Plan the gradient at every pixel."""
        stage.arrays["b"] = b
        if wanted:
            stage.arrays["below"] = room("below", stage["x"].shape[1:])
        return stage.get("below"), True

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return none."""
        return ()

    def _out(self, x: Any, room: Room) -> Any:
        return room("out", (x.shape[1], *self.windows.places(x)))

    def _seen(self, images: Any) -> list[Any]:
        """Return, for each element of the window, what it sees at every place, as a view of `images`."""
        places = self.windows.places(images)
        return [self.windows.seen(images, offset, places) for offset in self.windows.offsets()]


@dataclass(frozen=True)
class AveragePool(_Pool):
    """The mean of each window."""

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage."""
        out = self._out(x, room)
        return Stage(self, {"x": x, "out": out}), (out, True)

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the mean."""
        self._mean(stage["x"], stage["out"])

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Add an equal part of the gradient to each pixel of a window."""
        if (below := stage.get("below")) is None:
            return
        below[...] = 0
        seen = self._seen(below)
        part = stage["b"] / below.dtype.type(len(seen))
        for one in seen:
            one += part

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return the mean of the tangent."""
        if tangent is None:
            return None
        moved = context.backend.xp.empty(stage["out"].shape, tangent.dtype)
        self._mean(tangent, moved)
        return moved

    def _mean(self, images: Any, out: Any) -> None:
        seen = self._seen(images)
        out[...] = 0
        for one in seen:
            out += one
        out /= out.dtype.type(len(seen))


@dataclass(frozen=True)
class MaxPool(_Pool):
    """The largest element of each window; of equal ones the first, row by row, has the gradient."""

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage; the output is read again in the backward pass, so that no index is kept."""
        out = self._out(x, room)
        return Stage(self, {"x": x, "out": out}), (out, False)

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the largest."""
        xp, out = context.backend.xp, stage["out"]
        first, *others = self._seen(stage["x"])
        out[...] = first
        for one in others:
            xp.maximum(out, one, out=out)

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Add the gradient to the first pixel that equals the largest."""
        if (below := stage.get("below")) is None:
            return
        xp, b, out = context.backend.xp, stage["b"], stage["out"]
        below[...] = 0
        none, unassigned = b.dtype.type(0), xp.ones(b.shape, bool)
        for pixels, gradient in zip(self._seen(stage["x"]), self._seen(below), strict=True):
            hit = unassigned & (pixels == out)
            gradient += xp.where(hit, b, none)
            unassigned &= ~hit

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return the tangent at the first pixel that equals the largest."""
        if tangent is None:
            return None
        xp, out = context.backend.xp, stage["out"]
        moved = xp.zeros(out.shape, tangent.dtype)
        none, unassigned = tangent.dtype.type(0), xp.ones(out.shape, bool)
        for pixels, change in zip(self._seen(stage["x"]), self._seen(tangent), strict=True):
            hit = unassigned & (pixels == out)
            moved += xp.where(hit, change, none)
            unassigned &= ~hit
        return moved
