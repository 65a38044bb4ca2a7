"""⟨P, x_i⟩ as the derivative of a sample's weighted loss along P, without captures (docs/method.md 4).

A stack whose layers all have a tangent takes it in one pass from the first layer to the last, with the arrays that its
last forward pass left behind. For any other stack it is a central difference of the losses.

=======  ====================  ========================================================
paper    name                  meaning
=======  ====================  ========================================================
P        ``direction``         score matrix, by parameter
θ        ``params``            the parameters of the pass
w        ``weight``            weight of a sample's loss: a number, or an array (n, 1)
h        ``h``                 step of a difference
δ        ``move``              largest change of a loss in it, over the largest loss
=======  ====================  ========================================================
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.gpu.arrays import like
from adamshap.gpu.context import EngineContext
from adamshap.gpu.stack import Stack, Workspace
from adamshap.gpu.threads import in_parts

__all__ = ["LossDerivatives", "best_move", "central_difference"]

FARTHEST = 2.0**-4
"""Largest length of h P, in units of ‖θ‖."""

TRIALS = 8
"""Largest number of steps tried for a difference."""


def best_move(dtype: Any) -> float:
    """Return δ, the relative change of a loss in a difference: 1.3e-3 in float32, 3e-7 in float64.

    Rounding costs ε/δ. Truncation costs δ² where the loss is smooth, so that ε^(1/3) would be best, and δ where it has
    kinks, as with ReLU or max pooling, so that ε^(1/2) would be: this is their geometric mean.
    """
    return math.pow(np.finfo(dtype).eps, 5 / 12)


@dataclass(frozen=True)
class LossDerivatives:
    """A pass whose losses can be differentiated along P.

    Parameters
    ----------
    stack : Stack
    workspace : Workspace
        Its arrays, as `Stack.run` left them.
    params : mapping
        θ, unchanged since.
    y : array (n, …)
    weight : float or array (n, 1)
    """

    stack: Stack
    workspace: Workspace
    params: Mapping[str, Any]
    y: Any
    weight: Any

    def rows(self, which: slice) -> "LossDerivatives":
        """Return the pass of some rows, as views."""
        weight = self.weight if isinstance(self.weight, float) else self.weight[which]
        return LossDerivatives(self.stack, self.workspace.rows(which), self.params, self.y[which], weight)

    def add_dots(self, context: EngineContext, direction: Mapping[str, Any], out: Any) -> None:
        """Add each row's derivative along `direction`, ⟨P, x_i⟩, to `out`."""
        count, captures = len(out), self.workspace.captures
        if not self.stack.has_tangents:
            out += self._differences(context, direction, 2 * count * captures.macs)
            return
        context.now("forward mode")

        def rows_between(low: int, high: int) -> None:
            rows = slice(low, high)
            part = self.workspace if high - low == count else self.workspace.rows(rows)
            self.stack.add_tangent_dots(context, part, self.params, direction, out[rows])

        in_parts(rows_between, count, 4 * count * captures.macs)

    def _differences(self, context: EngineContext, direction: Mapping[str, Any], flops: float) -> Any:
        """Return w (ℓ(θ + h P) − ℓ(θ − h P))/(2 h). Overwrites the workspace, and waits for a device."""
        context.now("differences of losses")
        point, count = like(context, "difference point"), len(self.y)

        def losses_at(h: float) -> Any:
            for name, array in point.items():
                context.backend.xp.multiply(direction[name], array.dtype.type(h), out=array)
                array += self.params[name]
            out = context.backend.xp.empty(count, context.backend.dtype)

            def rows_between(low: int, high: int) -> None:
                rows = slice(low, high)
                part = self.workspace if high - low == count else self.workspace.rows(rows)
                out[rows] = self.stack.losses(context, part, point, self.y[rows])

            in_parts(rows_between, count, flops)
            return out

        length = _norm(direction)
        if length == 0:
            return context.backend.xp.zeros(count, context.backend.dtype)
        unit = (_norm(self.params) or 1.0) / length
        slope, _ = central_difference(losses_at, unit, best_move(context.backend.dtype))
        weight = self.weight if isinstance(self.weight, float) else self.weight[:, 0]
        return slope * (slope.dtype.type(weight) if isinstance(weight, float) else weight)


def central_difference(losses_at: Callable[[float], Any], unit: float, move: float) -> tuple[Any, float]:
    """Return the derivative by h at 0, with h such that a loss changes by about `move` of the largest loss, and that h.

    h is at most `FARTHEST` `unit`.
    """
    size = float(abs(losses_at(0.0)).max()) or 1.0
    h, largest = move * unit, FARTHEST * unit
    low, high = 0.0, math.inf  # steps in which the losses move too little, and too much
    for _ in range(TRIALS):
        tried = h
        slope = (losses_at(h) - losses_at(-h)) / (2 * h)
        change = h * float(abs(slope).max()) / size
        if move / 4 <= change <= 2 * move or (h == largest and change <= move) or not math.isfinite(change):
            break
        low, high = (max(low, h), high) if change < move else (low, min(high, h))
        h = min(largest, h * move / change) if change > 0 else largest
        if 0 < low < high < math.inf and not low < h < high:
            h = math.sqrt(low * high)
    return slope, tried


def _norm(arrays: Mapping[str, Any]) -> float:
    """Return the Euclidean norm over all arrays."""
    return math.hypot(*(float((array.astype("float64") ** 2).sum()) ** 0.5 for array in arrays.values()))
