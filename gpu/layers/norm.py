"""LayerNorm and RMSNorm over the last axis.

With x̂ = (x − mean)/s and s = √(variance + ε), or x̂ = x/s and s = √(mean square + ε), the output is x̂ ⊙ gain + bias.
The gradient in x is (g − mean(g) − x̂ mean(g ⊙ x̂))/s with g = b ⊙ gain, without mean(g) for RMSNorm.

======  ===============  ============================================
paper   name             meaning
======  ===============  ============================================
x̂       ``normalised``   the input of the gain
1/s     ``inverse``      one number for each position
======  ===============  ============================================
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Capture, Dense, scale
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.stage import Planned, Room, Stage, flat

__all__ = ["Norm"]


@dataclass(frozen=True)
class Norm:
    """A norm; `gain` and `bias` are the names of its parameters, and it subtracts the mean if it is `centred`."""

    gain: str
    bias: str | None
    eps: float
    centred: bool

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage."""
        arrays = {"x": x, "out": room("out", x.shape[1:]), "normalised": room("normalised", x.shape[1:])}
        arrays["inverse"] = room("inverse", (*x.shape[1:-1], 1))
        return Stage(self, arrays), (arrays["out"], True)

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Plan the gradient in the input, and x_i of gain and bias."""
        stage.arrays["b"], width = b, (b.shape[-1],)
        stage.arrays["gain"] = room("gain", width)
        if self.bias is not None:
            stage.arrays["bias"] = room("bias", width)
        if wanted:
            stage.arrays["below"] = room("below", b.shape[1:])
        return stage.get("below"), True

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write x̂ and the output."""
        x, *out = (flat(stage[name]) for name in ("x", "normalised", "inverse", "out"))
        bias = None if self.bias is None else params[self.bias]
        context.ops.normalise(x, self.eps, self.centred, params[self.gain], bias, tuple(out))

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write x_i of gain and bias, and the gradient in the input."""
        xp = context.backend.xp
        rooms = {self.gain: stage["gain"]} | ({} if self.bias is None else {self.bias: stage["bias"]})
        scale(xp, self.gain, self.bias, stage["normalised"], stage["b"], rooms.__getitem__)
        if (below := stage.get("below")) is None:
            return
        self._through_the_norm(context, flat(stage["b"]), params[self.gain], stage, flat(below))

    def _through_the_norm(self, context: EngineContext, g: Any, gain: Any, stage: Stage, out: Any) -> None:
        """Write the derivative of x̂ in x, which is symmetric, times g ⊙ gain."""
        normalised, inverse = flat(stage["normalised"]), flat(stage["inverse"])
        context.ops.norm_derivative(g, gain, normalised, inverse, self.centred, out)

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return the derivative of x̂ times the gain, plus x̂ times the gain's direction, plus the bias's."""
        out = stage["normalised"] * direction[self.gain]
        if tangent is not None:
            self._through_the_norm(context, flat(tangent), None, stage, flat(tangent))
            tangent *= params[self.gain]
            out += tangent
        if self.bias is not None:
            out += direction[self.bias]
        return out

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return the captures of gain and bias."""
        gain = Dense(self.gain, stage["gain"])
        return (gain,) if self.bias is None else (gain, Dense(self.bias, stage["bias"]))
