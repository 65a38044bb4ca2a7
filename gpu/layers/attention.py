"""Causal multi-head attention of a sequence to itself.

For each head, with S = Q Kᵀ/√d for positions up to t and W = softmax(S) by rows, the mixture is W V. Backward, with G
the gradient in W V: that in V is Wᵀ G, in S it is W ⊙ (G Vᵀ − Σ W ⊙ G Vᵀ), and Q's is that times K/√d, K's its
transpose times Q/√d. Both projections are linear layers at every position. The derivative along P is
W ⊙ (Ṡ − Σ W ⊙ Ṡ) V + W V̇ with Ṡ = (Q̇ Kᵀ + Q K̇ᵀ)/√d.

=======  ============  ==================================================
paper    name          meaning
=======  ============  ==================================================
W        ``weights``   (n, heads, T, T), the one array of that size
Q, K, V  no name       parts of ``projected`` (n, T, 3 width)
=======  ============  ==================================================
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Capture, outer_products
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.linear import linear_tangent
from adamshap.gpu.layers.stage import Planned, Room, Stage, flat
from adamshap.gpu.products import product

__all__ = ["Attention"]


@dataclass(frozen=True)
class Attention:
    """Causal attention; `name` is the layer's."""

    name: str
    heads: int
    bias: bool

    @property
    def projections(self) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
        """Names of weight and bias of the projection to query, key and value, and of that of the mixture."""
        weights = (f"{self.name}.in_proj_weight", f"{self.name}.out_proj.weight")
        biases = (f"{self.name}.in_proj_bias", f"{self.name}.out_proj.bias") if self.bias else (None, None)
        return (weights[0], biases[0]), (weights[1], biases[1])

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage."""
        T, width = x.shape[1:]
        arrays = {
            "x": x,
            "projected": room("projected", (T, 3 * width)),
            "weights": room("weights", (self.heads, T, T)),
            "mixed": room("mixed", (T, width)),
            "out": room("out", (T, width)),
        }
        return Stage(self, arrays), (arrays["out"], True)

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Plan the gradients in the projections and in the input."""
        stage.arrays["b"] = b
        stage.arrays["mixed b"] = room("mixed b", b.shape[1:])
        stage.arrays["projected b"] = room("projected b", stage["projected"].shape[1:])
        if wanted:
            stage.arrays["below"] = room("below", b.shape[1:])
        return stage.get("below"), True

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the output."""
        (weight, bias), (out_weight, out_bias) = self.projections
        projected, mixed, out = stage["projected"], stage["mixed"], flat(stage["out"])
        product(context, flat(stage["x"]), params[weight].T, flat(projected))
        if bias is not None:
            projected += params[bias]
        for rows in self._blocks(context, len(mixed)):
            self._mix(context.backend.xp, projected[rows], stage["weights"][rows], mixed[rows])
        product(context, flat(mixed), params[out_weight].T, out)
        if out_bias is not None:
            out += params[out_bias]

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the gradients in the mixture, in query, key and value, and in the input."""
        (weight, _), (out_weight, _) = self.projections
        mixed_b, projected_b = stage["mixed b"], stage["projected b"]
        product(context, flat(stage["b"]), params[out_weight], flat(mixed_b))
        for rows in self._blocks(context, len(mixed_b)):
            self._unmix(
                context.backend.xp, stage["projected"][rows], stage["weights"][rows], mixed_b[rows], projected_b[rows]
            )
        if (below := stage.get("below")) is not None:
            product(context, flat(projected_b), params[weight], flat(below))

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return the derivative of the output."""
        own, last = self.projections
        projected, mixed = stage["projected"], stage["mixed"]
        through = None if tangent is None else flat(tangent)
        moved = linear_tangent(context, params, direction, own, flat(stage["x"]), through).reshape(projected.shape)
        mixed_moved = context.backend.xp.empty_like(mixed)
        for rows in self._blocks(context, len(mixed)):
            weights = stage["weights"][rows]
            self._mix_tangent(context.backend.xp, projected[rows], moved[rows], weights, mixed_moved[rows])
        return linear_tangent(context, params, direction, last, flat(mixed), flat(mixed_moved)).reshape(mixed.shape)

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return the captures of both projections."""
        (weight, bias), (out_weight, out_bias) = self.projections
        return (
            outer_products(weight, bias, stage["x"], stage["projected b"], "input" in stage.in_place),
            outer_products(out_weight, out_bias, stage["mixed"], stage["b"]),
        )

    def _blocks(self, context: EngineContext, rows: int) -> list[slice]:
        """Return the samples to go through one after another: on a device all at once."""
        return [slice(0, rows)] if context.backend.on_cuda else [slice(i, i + 1) for i in range(rows)]

    def _heads(self, x: Any, parts: int) -> list[Any]:
        """Return the parts of x (n, T, parts · width), each as a view (n, heads, T, d)."""
        n, T, width = x.shape
        split = x.reshape(n, T, parts, self.heads, width // (parts * self.heads))
        return [split[:, :, part].swapaxes(1, 2) for part in range(parts)]

    def _mix(self, xp: Any, projected: Any, weights: Any, mixed: Any) -> None:
        """Write W and W V."""
        q, k, v = self._heads(projected, 3)
        (out,) = self._heads(mixed, 1)
        T = weights.shape[-1]
        xp.matmul(q, k.swapaxes(2, 3), out=weights)
        weights *= weights.dtype.type(1 / math.sqrt(q.shape[-1]))
        seen = xp.tri(T, dtype=bool)
        weights -= xp.where(seen, weights, weights.dtype.type(-math.inf)).max(axis=-1, keepdims=True)
        none = weights.dtype.type(0)
        weights[...] = xp.where(seen, xp.exp(xp.where(seen, weights, none)), none)
        weights /= weights.sum(axis=-1, keepdims=True)
        out[...] = xp.matmul(weights, v)

    def _unmix(self, xp: Any, projected: Any, weights: Any, mixed_b: Any, projected_b: Any) -> None:
        """Write the gradients in Q, K and V."""
        (q, k, v), (q_b, k_b, v_b) = self._heads(projected, 3), self._heads(projected_b, 3)
        (g,) = self._heads(mixed_b, 1)
        v_b[...] = xp.matmul(weights.swapaxes(2, 3), g)
        s = xp.matmul(g, v.swapaxes(2, 3))
        self._through_the_softmax(s, weights, q.shape[-1])
        q_b[...] = xp.matmul(s, k)
        k_b[...] = xp.matmul(s.swapaxes(2, 3), q)

    def _mix_tangent(self, xp: Any, projected: Any, moved: Any, weights: Any, out: Any) -> None:
        """Write the derivative of W V, from that of Q, K and V, `moved`."""
        (q, k, v), (q_moved, k_moved, v_moved) = self._heads(projected, 3), self._heads(moved, 3)
        (mixed,) = self._heads(out, 1)
        s = xp.matmul(q_moved, k.swapaxes(2, 3))
        s += xp.matmul(q, k_moved.swapaxes(2, 3))
        self._through_the_softmax(s, weights, q.shape[-1])
        mixed[...] = xp.matmul(s, v)
        mixed += xp.matmul(weights, v_moved)

    def _through_the_softmax(self, s: Any, weights: Any, d: int) -> None:
        """Multiply `s` in place by the derivative of W in Q Kᵀ, which is symmetric: W ⊙ (s − Σ W ⊙ s)/√d."""
        s -= (s * weights).sum(axis=-1, keepdims=True)
        s *= weights
        s *= weights.dtype.type(1 / math.sqrt(d))
