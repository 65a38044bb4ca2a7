"""The interface of a layer within a stack, and the arrays of its passes.

Which array holds what is decided once, when a workspace is planned: a layer may write its output over its input, and
the gradient in its input over that in its output, where nothing else reads them. The passes then follow the plan, for
all rows or for some.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from adamshap.gpu.captures import Capture
from adamshap.gpu.context import EngineContext

__all__ = ["Planned", "Room", "Stage", "TangentLayer", "flat"]

Room = Callable[[str, tuple[int, ...]], Any]
"""Returns an array (rows, …) under a name."""

Planned = tuple[Any, bool]
"""An array, and whether the next layer may overwrite it."""


@dataclass(frozen=True)
class Stage:
    """One layer in a workspace: its arrays, by their role, with a row for each sample.

    ``x`` is the input and ``out`` the output, ``b`` the gradient in the output and ``below`` that in the input. Equal
    arrays are used in place: ``in_place`` holds "out" or "below" then.
    """

    layer: "StackLayer"
    arrays: dict[str, Any]
    in_place: set[str] = field(default_factory=set)
    inner: tuple["Stage", ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]

    def get(self, name: str) -> Any:
        """Return an array, or None where there is none."""
        return self.arrays.get(name)

    def rows(self, which: slice) -> "Stage":
        """Return the arrays of some rows, as views."""
        arrays = {name: array[which] for name, array in self.arrays.items()}
        return Stage(self.layer, arrays, self.in_place, tuple(stage.rows(which) for stage in self.inner))

    def own_or_overwritten(self, name: str, room: Room, array: Any, free: bool) -> Any:
        """Plan an output of the shape of `array`: over it if it is free, else in an array of its own."""
        if free:
            self.in_place.add(name)
        self.arrays[name] = array if free else room(name, array.shape[1:])
        return self.arrays[name]


class StackLayer(Protocol):
    """A layer: it plans its arrays, runs forward and backward, and leaves captures."""

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        """Return the stage for the input `x`, and its output."""

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        """Plan the backward pass for the gradient `b` in the output; return that in the input, if `wanted`."""

    def forward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the output."""

    def backward(self, context: EngineContext, params: Mapping[str, Any], stage: Stage) -> None:
        """Write the gradient in the input, where it is planned, and what the captures need."""

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        """Return the captures of the uses of its parameters."""


@runtime_checkable
class TangentLayer(Protocol):
    """A layer with a tangent, which is optional: without one, forward mode takes differences of the losses."""

    def tangent(
        self,
        context: EngineContext,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        stage: Stage,
        tangent: Any,
    ) -> Any:
        """Return the derivative of the output along `direction`, from that of the input, `tangent`; None is 0.

        The arrays of the stage are those that the last backward pass left. A new array is returned, or `tangent`
        itself, which may be overwritten.
        """


def flat(x: Any) -> Any:
    """Return x (rows, …, d) as (rows of all positions, d)."""
    return x.reshape(-1, x.shape[-1])
