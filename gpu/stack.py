"""The interface of a kind of model: a forward and a backward pass that leave captures (`layers`)."""

from collections.abc import Mapping
from typing import Any, Protocol

from adamshap.gpu.captures import Captures
from adamshap.gpu.context import EngineContext

__all__ = ["Stack", "Workspace"]


class Workspace(Protocol):
    """The arrays of one forward and backward pass, for rows that share nothing but the parameters.

    Rows may be run in parts, at different parameters.
    """

    @property
    def captures(self) -> Captures:
        """The captures of the passes so far."""

    def rows(self, which: slice) -> "Workspace":
        """Return the workspace of some rows, as views."""


class Stack(Protocol):
    """A model's forward and backward pass. A workspace is passed only to the stack that returned it."""

    @property
    def has_tangents(self) -> bool:
        """Whether every layer has a tangent; else forward mode takes differences of the losses."""

    def workspace(self, context: EngineContext, name: str, x: Any) -> Workspace:
        """Return a workspace for the inputs `x`, its other arrays in buffers under `name`."""

    def run(self, context: EngineContext, workspace: Any, params: Mapping[str, Any], y: Any, weight: Any) -> Captures:
        """Run both passes for the loss ``Σ weight · ℓ`` and return the captures, with each row's own loss.

        `weight` is a number, or an array (rows, 1).
        """

    def losses(self, context: EngineContext, workspace: Any, params: Mapping[str, Any], y: Any) -> Any:
        """Return each row's loss, by a forward pass alone, which leaves no captures in the workspace."""

    def add_tangent_dots(
        self, context: EngineContext, workspace: Any, params: Mapping[str, Any], direction: Mapping[str, Any], out: Any
    ) -> None:
        """Add the derivative of each row's weighted loss along `direction` to `out`, after `run` at `params`.

        Called only if the stack `has_tangents`.
        """
