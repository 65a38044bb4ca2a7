"""Roots: √Σ x_i² of one parameter by computing x_i, and sign(x) √|x| of the factors of an x_i.

x_i is computed for one sample and a block of units at a time. No square is lost to underflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.gpu.captures.capture import Capture
from adamshap.gpu.captures.sums import CACHED
from adamshap.gpu.context import EngineContext
from adamshap.gpu.threads import in_parts

__all__ = ["RootSum", "sample_roots", "signed_roots"]


@dataclass(frozen=True)
class RootSum:
    """√Σ x², one x at a time: the squares of float32 are added in double on the host, else √Σ x² itself is updated."""

    context: EngineContext
    out: Any
    squares: Any

    @classmethod
    def of(cls, context: EngineContext, out: Any) -> RootSum:
        """Return the sum of no x; `out` receives the root in the end."""
        in_double = out.dtype == np.float32 and not context.backend.on_cuda
        out[...] = 0
        return cls(context, out, np.zeros(out.shape) if in_double else None)

    def add(self, x: Any) -> None:
        """Add one x."""
        if self.squares is None:
            self.context.backend.xp.hypot(self.out, x, out=self.out)
        else:
            self.context.ops.add_squares(x, self.squares)

    def add_sum(self, other: RootSum) -> None:
        """Add all x of another sum."""
        if self.squares is None:
            self.add(other.out)
        else:
            np.add(self.squares, other.squares, out=self.squares)

    def finish(self) -> None:
        """Write the root to `out`."""
        if self.squares is not None:
            self.out[...] = np.sqrt(self.squares)


def sample_roots(context: EngineContext, uses: Sequence[Capture], name: str, out: Any) -> Any:
    """Write √Σ_i x_i² of the parameter `name`, x_i summed over its `uses`, and return it.

    The blocks do not depend on the number of threads.
    """
    xp, count = context.backend.xp, len(out)
    samples = [[use.rows(slice(i, i + 1)) for use in uses] for i in range(uses[0].n)]
    block = count if context.backend.on_cuda else max(CACHED // max(out[:1].size, 1), 1)

    def blocks(low: int, high: int) -> None:
        for number in range(low, high):
            units = slice(number * block, min((number + 1) * block, count))
            total = RootSum.of(context, out[units])
            for parts in samples:
                x = parts[0].sum_of(xp, name, units)
                for other in parts[1:]:
                    x += other.sum_of(xp, name, units)
                total.add(x)
            total.finish()

    in_parts(blocks, -(-count // block), 2 * len(samples) * sum(use.macs for use in uses))
    return out


def signed_roots(context: EngineContext, weight: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Return sign(x) √|x| of inputs and output gradients, in buffers of the parameter `weight`."""

    def signed_root(array: Any, name: str) -> Any:
        xp, out = context.backend.xp, context.buffers.get(f"root {name} {weight}", array.shape)
        xp.sqrt(abs(array), out=out)
        return xp.copysign(out, array, out=out)

    return signed_root(a, "inputs"), signed_root(b, "gradients")
