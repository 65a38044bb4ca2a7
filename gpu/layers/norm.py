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
        xp = context.backend.xp
        x, normalised, inverse, out = (flat(stage[name]) for name in ("x", "normalised", "inverse", "out"))
        if self.centred:
            xp.subtract(x, x.mean(axis=1, keepdims=True), out=normalised)
        else:
            normalised[...] = x
        variance = xp.einsum("nd,nd->n", normalised, normalised)[:, None] / x.dtype.type(x.shape[1])
        inverse[...] = 1 / xp.sqrt(variance + x.dtype.type(self.eps))
        normalised *= inverse
        xp.multiply(normalised, params[self.gain], out=out)
        if self.bias is not None:
            out += params[self.bias]

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write x_i of gain and bias, and the gradient in the input."""
        xp = context.backend.xp
        rooms = {self.gain: stage["gain"]} | ({} if self.bias is None else {self.bias: stage["bias"]})
        scale(xp, self.gain, self.bias, stage["normalised"], stage["b"], rooms.__getitem__)
        if (below := stage.get("below")) is None:
            return
        below, b = flat(below), flat(stage["b"])
        xp.multiply(b, params[self.gain], out=below)
        self._through_the_norm(xp, below, stage)

    def _through_the_norm(self, xp: Any, g: Any, stage: Stage) -> None:
        """Multiply `g` in place by the derivative of x̂ in x, which is symmetric: (g − mean(g) − x̂ mean(g ⊙ x̂))/s."""
        normalised, inverse = flat(stage["normalised"]), flat(stage["inverse"])
        along = xp.einsum("nd,nd->n", g, normalised)[:, None] / g.dtype.type(g.shape[1])
        if self.centred:
            g -= g.mean(axis=1, keepdims=True)
        g -= normalised * along
        g *= inverse

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
            self._through_the_norm(context.backend.xp, flat(tangent), stage)
            tangent *= params[self.gain]
            out += tangent
        if self.bias is not None:
            out += direction[self.bias]
        return out

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return the captures of gain and bias."""
        gain = Dense(self.gain, stage["gain"])
        return (gain,) if self.bias is None else (gain, Dense(self.bias, stage["bias"]))
