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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Capture, outer_products
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.linear import linear_tangent
from adamshap.gpu.layers.stage import Planned, Room, Stage, flat
from adamshap.gpu.products import product
from adamshap.gpu.threads import in_parts

__all__ = ["Attention"]

POSITIONS = 64
"""Positions in a block of W on the host: blocks above the diagonal are 0, and left out of the products."""


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

        def mix(rows: slice, heads: slice) -> None:
            self._mix(context, projected[rows], stage["weights"][rows], mixed[rows], heads)

        self._by_heads(context, mix, 4 * mixed.size * mixed.shape[1], len(mixed))
        product(context, flat(mixed), params[out_weight].T, out)
        if out_bias is not None:
            out += params[out_bias]

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the gradients in the mixture, in query, key and value, and in the input."""
        (weight, _), (out_weight, _) = self.projections
        mixed_b, projected_b = stage["mixed b"], stage["projected b"]
        product(context, flat(stage["b"]), params[out_weight], flat(mixed_b))

        def unmix(rows: slice, heads: slice) -> None:
            own = (stage["projected"][rows], stage["weights"][rows], mixed_b[rows], projected_b[rows])
            self._unmix(context, *own, heads)

        self._by_heads(context, unmix, 8 * mixed_b.size * mixed_b.shape[1], len(mixed_b))
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

        def mix(rows: slice, heads: slice) -> None:
            self._mix_tangent(context, projected[rows], moved[rows], stage["weights"][rows], mixed_moved[rows], heads)

        self._by_heads(context, mix, 8 * mixed.size * mixed.shape[1], len(mixed))
        return linear_tangent(context, params, direction, last, flat(mixed), flat(mixed_moved)).reshape(mixed.shape)

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return the captures of both projections."""
        (weight, bias), (out_weight, out_bias) = self.projections
        return (
            outer_products(weight, bias, stage["x"], stage["projected b"], "input" in stage.in_place),
            outer_products(out_weight, out_bias, stage["mixed"], stage["b"]),
        )

    def _by_heads(
        self, context: EngineContext, function: Callable[[slice, slice], None], flops: float, rows: int
    ) -> None:
        """Call ``function(samples, heads)`` for one sample after another, the heads divided among threads.

        On a device it is called once.
        """
        step = rows if context.backend.on_cuda else 1

        def heads_between(low: int, high: int) -> None:
            for first in range(0, rows, step):
                function(slice(first, first + step), slice(low, high))

        in_parts(heads_between, self.heads, flops)

    def _split(self, x: Any, parts: int, heads: slice) -> list[Any]:
        """Return the parts of some heads of x (n, T, parts · width), each as a view (n, heads, T, d)."""
        n, T, width = x.shape
        split = x.reshape(n, T, parts, self.heads, width // (parts * self.heads))
        return [split[:, :, part, heads].swapaxes(1, 2) for part in range(parts)]

    def _mix(self, context: EngineContext, projected: Any, weights: Any, mixed: Any, heads: slice) -> None:
        """Write W and W V."""
        xp, weights = context.backend.xp, weights[:, heads]
        q, k, v = self._split(projected, 3, heads)
        (out,) = self._split(mixed, 1, heads)
        blocks = _blocks(context, weights.shape[-1])
        for own, earlier, _ in blocks:
            xp.matmul(q[:, :, own], k[:, :, earlier].swapaxes(2, 3), out=weights[:, :, own, earlier])
        context.ops.causal_softmax(weights, 1 / math.sqrt(q.shape[-1]))
        for own, earlier, _ in blocks:
            out[:, :, own] = xp.matmul(weights[:, :, own, earlier], v[:, :, earlier])

    def _unmix(
        self, context: EngineContext, projected: Any, weights: Any, mixed_b: Any, projected_b: Any, heads: slice
    ) -> None:
        """Write the gradients in Q, K and V."""
        xp, weights = context.backend.xp, weights[:, heads]
        q, k, v = self._split(projected, 3, heads)
        q_b, k_b, v_b = self._split(projected_b, 3, heads)
        (g,) = self._split(mixed_b, 1, heads)
        s, blocks = xp.empty_like(weights), _blocks(context, weights.shape[-1])
        for own, earlier, later in blocks:
            v_b[:, :, own] = xp.matmul(weights[:, :, later, own].swapaxes(2, 3), g[:, :, later])
            xp.matmul(g[:, :, own], v[:, :, earlier].swapaxes(2, 3), out=s[:, :, own, earlier])
            s[:, :, own, earlier.stop :] = 0
        context.ops.softmax_derivative(s, weights, 1 / math.sqrt(q.shape[-1]))
        for own, earlier, later in blocks:
            q_b[:, :, own] = xp.matmul(s[:, :, own, earlier], k[:, :, earlier])
            k_b[:, :, own] = xp.matmul(s[:, :, later, own].swapaxes(2, 3), q[:, :, later])

    def _mix_tangent(
        self, context: EngineContext, projected: Any, moved: Any, weights: Any, out: Any, heads: slice
    ) -> None:
        """Write the derivative of W V, from that of Q, K and V, `moved`."""
        xp, weights = context.backend.xp, weights[:, heads]
        (q, k, v), (q_moved, k_moved, v_moved) = (self._split(x, 3, heads) for x in (projected, moved))
        (mixed,) = self._split(out, 1, heads)
        s = xp.matmul(q_moved, k.swapaxes(2, 3))
        s += xp.matmul(q, k_moved.swapaxes(2, 3))
        context.ops.softmax_derivative(s, weights, 1 / math.sqrt(q.shape[-1]))
        mixed[...] = xp.matmul(s, v)
        mixed += xp.matmul(weights, v_moved)


def _blocks(context: EngineContext, positions: int) -> list[tuple[slice, slice, slice]]:
    """Return each block of positions with those that it sees, from 0 to its end, and those that see it."""
    size = positions if context.backend.on_cuda else POSITIONS
    ends = [(first, min(first + size, positions)) for first in range(0, positions, size)]
    return [(slice(first, end), slice(0, end), slice(first, positions)) for first, end in ends]
