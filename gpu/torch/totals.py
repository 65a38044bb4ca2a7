"""The scores of a loop so far, on the host, in double precision, and their state between two steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adamshap.gpu.step import StepResult
from adamshap.reference.contract import Array, refuse, shown

__all__ = ["Totals", "check_settings"]


@dataclass
class Totals:
    """Scores, SGD's scores and counts of N samples, and the history of the steps.

    Parameters
    ----------
    scores, sgd_scores : arrays (N,)
        SGD's are NaN if they are not wanted.
    seen : int array (N,)
    steps : int
        Number of completed steps.
    history : dict of list of float
    initial : dict of arrays
        The parameters before the first step; empty until then.
    """

    scores: Array
    sgd_scores: Array
    seen: Array
    steps: int = 0
    history: dict[str, list[float]] = field(default_factory=lambda: {"valid_loss": [], "factor": []})
    initial: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, count: int, with_sgd: bool) -> "Totals":
        """Return the totals before the first step."""
        return cls(np.zeros(count), np.zeros(count) if with_sgd else np.full(count, np.nan), np.zeros(count, np.int64))

    def add(self, index: Array, result: StepResult, factor: float) -> None:
        """Add a step's results; refuse numbers that are not finite."""
        for name, added in (("scores", result.scores), ("sgd_scores", result.sgd_scores)):
            if added is not None and not np.isfinite(added).all():
                got, needs = f"numbers that are not finite at step {self.steps + 1}", "finite gradients"
                refuse(name, got, f"{needs}: a smaller lr, or clipping, may help", FloatingPointError)
        np.add.at(self.scores, index, result.scores)
        if result.sgd_scores is not None:
            np.add.at(self.sgd_scores, index, result.sgd_scores)
        np.add.at(self.seen, index, 1)
        self.history["factor"].append(factor)
        if result.valid_loss is not None:
            self.history["valid_loss"].append(float(result.valid_loss))

    def clear(self) -> None:
        """Begin the sums anew; steps, history and first parameters stay."""
        for name in ("scores", "sgd_scores", "seen"):
            array = getattr(self, name)
            array[...] = array * 0  # NaN stays

    def complete_history(self) -> dict[str, Array]:
        """Return what is known of every step."""
        return {name: np.array(values) for name, values in self.history.items() if len(values) == self.steps}

    def state(self) -> dict[str, Any]:
        """Return a copy, as tensors and plain numbers."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in ("scores", "sgd_scores", "seen")}
        initial = {name: torch.from_numpy(array.copy()) for name, array in self.initial.items()}
        history = {name: list(values) for name, values in self.history.items()}
        return arrays | {"steps": self.steps, "history": history, "initial": initial}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a copy."""
        if (count := len(state["scores"])) != len(self.scores):
            refuse("state", f"scores of {count} samples", f"those of {len(self.scores)}, n_samples")
        for name in ("scores", "sgd_scores", "seen"):
            setattr(self, name, state[name].numpy().copy())
        self.steps = state["steps"]
        self.history = {name: list(values) for name, values in state["history"].items()}
        self.initial = {name: tensor.numpy().copy() for name, tensor in state["initial"].items()}


def check_settings(state: object, settings: str) -> None:
    """Refuse what is no state of an attribution with these settings."""
    if not isinstance(state, Mapping) or "settings" not in state:
        refuse("state", shown(state), "the state_dict() of an Attribution", TypeError)
    if state["settings"] != settings:
        refuse("state", f"one of {state['settings']}", f"one of {settings}")
