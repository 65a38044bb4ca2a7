"""A convolution: each output channel is the product of its kernel with every window of its group's channels.

The windows are unfolded a few samples at a time, in each pass anew: kept, they would take as many times the memory of
the input as a kernel has elements.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Capture, WindowProducts
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.stage import Planned, Room, Stage
from adamshap.gpu.windows import Windows

__all__ = ["Convolution"]


@dataclass(frozen=True)
class Convolution:
    """A convolution of images (c_in, h, w); `weight` and `bias` are the names of its parameters."""

    weight: str
    bias: str | None
    c_out: int
    windows: Windows
    groups: int

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage: the output has an array of its own, as the capture needs the input."""
        out = room("out", (self.c_out, *self.windows.places(x)))
        return Stage(self, {"x": x, "out": out}), (out, True)

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Plan the gradient in the input in an array of its own, as the capture needs `b`."""
        stage.arrays["b"] = b
        if wanted:
            stage.arrays["below"] = room("below", stage["x"].shape[1:])
        return stage.get("below"), True

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the product of the kernels with every window, and the bias."""
        self._convolve(context.backend.xp, params, self.bias, stage["x"], stage["out"])

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the gradient in the input: each window's is the transposed kernels times b, and pixels add them up."""
        if (below := stage.get("below")) is None:
            return
        xp, b = context.backend.xp, _flat_places(stage["b"])
        transposed = self._kernels(params).swapaxes(1, 2)
        for rows in self.windows.blocks(xp, below):
            by_channel = b[rows].swapaxes(0, 1).reshape(self.groups, self.c_out // self.groups, -1)
            self.windows.fold(xp, xp.matmul(transposed, by_channel), below[rows])

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return the input convolved with P and its tangent with the kernels, and P's bias."""
        xp, out = context.backend.xp, stage["out"]
        moved = xp.empty(out.shape, out.dtype)
        self._convolve(xp, direction, self.bias, stage["x"], moved)
        if tangent is not None:
            through = xp.empty(out.shape, out.dtype)
            self._convolve(xp, params, None, tangent, through)
            moved += through
        return moved

    def _convolve(self, xp: Any, params: Mapping[str, Any], bias: str | None, x: Any, out: Any) -> None:
        """Write to `out` the product of the kernels in `params` with every window of `x`, and the bias."""
        kernels, out = self._kernels(params), _flat_places(out)
        for rows in self.windows.blocks(xp, x):
            columns = self.windows.unfolded(xp, x[rows])
            z = xp.matmul(kernels, columns.reshape(self.groups, -1, columns.shape[1]))
            z = z.reshape(self.c_out, -1, out.shape[2])
            if bias is not None:
                z += params[bias][:, None, None]
            out[rows] = z.swapaxes(0, 1)

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return the one capture of weight and bias."""
        b, a_is_input = _flat_places(stage["b"]), "input" in stage.in_place
        return (WindowProducts(self.weight, self.bias, self.windows, self.groups, stage["x"], b, a_is_input),)

    def _kernels(self, params: Mapping[str, Any]) -> Any:
        """Return the weight as (groups, channels of a group, elements of a kernel)."""
        return params[self.weight].reshape(self.groups, self.c_out // self.groups, -1)


def _flat_places(x: Any) -> Any:
    """Return x (n, c, places down, places across) as (n, c, places)."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
