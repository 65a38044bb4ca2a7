"""Σ_i x_i of captures: written, added, or used a block at a time."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from adamshap.gpu.captures.collection import Captures
from adamshap.gpu.context import EngineContext
from adamshap.gpu.threads import in_parts

__all__ = ["CACHED", "multiply_by_sums", "sum_blocks", "write_sums"]

CACHED = 1 << 16
"""Elements of a gradient computed at a time, few enough to stay in the cache."""


def write_sums(context: EngineContext, captures: Captures, into: Mapping[str, Any], add: bool = False) -> None:
    """Write Σ_i x_i, the gradient summed over the rows, of each parameter; or `add` it to the contents of `into`."""
    context.now("gradient")
    xp, parts = context.backend.xp, max(len(array) for array in into.values())

    def units_between(low: int, high: int) -> None:
        written = set(into) if add else set()
        for capture in captures.uses:
            for name in capture.names:
                count = len(into[name])
                units = slice(count * low // parts, count * high // parts)
                if name in written:
                    array = into[name][units]
                    array += capture.sum_of(xp, name, units)
                else:
                    capture.sum_of(xp, name, units, out=into[name][units])
                    written.add(name)

    in_parts(units_between, parts, 2 * captures.n * captures.macs)


def multiply_by_sums(context: EngineContext, captures: Captures, into: Mapping[str, Any]) -> None:
    """Multiply the arrays `into` by Σ_i x_i, the gradient summed over the rows."""

    def multiply(name: str, units: slice, gradient: Any) -> None:
        array = into[name][units]
        array *= gradient

    sum_blocks(context, captures, multiply, 4 * captures.n * captures.macs)


def sum_blocks(
    context: EngineContext, captures: Captures, use: Callable[[str, slice, Any], None], flops: float
) -> None:
    """Call ``use(name, units, gradient)`` for all units, with the gradient summed over the rows.

    On the host the gradient is computed for some units at a time, in the cache, and never stored as a whole.
    """
    context.now("validation gradient")
    xp, by_name, shapes = context.backend.xp, captures.by_name, context.shapes
    parts = max(shapes[name][0] for name in by_name)

    def units_between(low: int, high: int) -> None:
        for name, uses in by_name.items():
            count, *others = shapes[name]
            units = range(count * low // parts, count * high // parts)
            whole = context.backend.on_cuda or not others
            block = parts if whole else max(CACHED // math.prod(others), 1)
            for first in units[::block]:
                part = slice(first, min(first + block, units.stop))
                gradient = uses[0].sum_of(xp, name, part)
                for other in uses[1:]:
                    gradient += other.sum_of(xp, name, part)
                use(name, part, gradient)

    in_parts(units_between, parts, flops)
