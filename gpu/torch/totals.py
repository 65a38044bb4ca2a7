"""The scores of a loop so far, on the host, in double precision, and their state between two steps.

The results of a step on a card are fetched at the next step, or when they are asked for: no step waits for its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from adamshap.gpu.step import StepResult
from adamshap.reference.contract import Array, refuse, shown
from adamshap.torch.step_record import StepRecord
from adamshap.torch.validation import refuse_not_finite

__all__ = ["Totals", "check_settings"]


@dataclass
class Totals:
    """Scores, SGD's scores and counts of N samples, and the history of the steps.

    Parameters
    ----------
    scores, sgd_scores : arrays (N,), or (N, n_val) for each validation sample, from the first step on
        SGD's are NaN if they are not wanted.
    seen : int array (N,)
    steps : int
        Number of completed steps.
    history : dict of list of float
    initial : dict of arrays
        The parameters before the first step; empty until then.
    record : StepRecord or None
        Each step's scores, if they are kept.
    waiting : list
        Results of steps that are still on a device.
    """

    scores: Array
    sgd_scores: Array
    seen: Array
    steps: int = 0
    history: dict[str, list[float]] = field(default_factory=lambda: {"valid_loss": [], "factor": []})
    initial: dict[str, Array] = field(default_factory=dict)
    record: StepRecord | None = None
    waiting: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, count: int, *, with_sgd: bool, keep_step_scores: bool) -> "Totals":
        """Return the totals before the first step."""
        sgd_scores = np.zeros(count) if with_sgd else np.full(count, np.nan)
        record = StepRecord() if keep_step_scores else None
        return cls(np.zeros(count), sgd_scores, np.zeros(count, np.int64), record=record)

    def counted(self, n_val: int) -> int:
        """Return the number of validation samples, and give each a column of scores before the first step."""
        if self.scores.ndim == 1:
            self.scores, self.sgd_scores = (one[:, None] + np.zeros(n_val) for one in (self.scores, self.sgd_scores))
        if (before := self.scores.shape[1]) != n_val:
            refuse("validation()", f"{n_val} losses", f"those of {before} validation samples, as before")
        return n_val

    def add(
        self, index: Array, result: StepResult, history: Mapping[str, float], host: Callable[[Any], Any] | None = None
    ) -> None:
        """Add a step's results; those of a device wait for `settle`, and `host` fetches them."""
        self.waiting.append((self.steps + 1, index, result, history, host or (lambda array: array)))
        if host is None:
            self.settle()

    def settle(self) -> None:
        """Add the results that wait; refuse numbers that are not finite."""
        waiting, self.waiting = self.waiting, []
        for step, index, result, history, host in waiting:
            found: dict[str, Any] = {
                name: None if array is None else host(array)
                for name, array in (("scores", result.scores), ("sgd_scores", result.sgd_scores))
            }
            valid_loss = None if result.valid_loss is None else float(host(result.valid_loss))
            if valid_loss is not None:
                refuse_not_finite([valid_loss])
            for name, added in found.items():
                if added is not None and not np.isfinite(added).all():
                    got, needs = f"numbers that are not finite at step {step}", "finite gradients"
                    refuse(name, got, f"{needs}: a smaller lr, or clipping, may help", FloatingPointError)
            np.add.at(self.scores, index, found["scores"])
            if found["sgd_scores"] is not None:
                np.add.at(self.sgd_scores, index, found["sgd_scores"])
            np.add.at(self.seen, index, 1)
            if self.record is not None:
                self.record.add(index, found["scores"], found["sgd_scores"])
            for name, value in history.items():
                self.history.setdefault(name, []).append(value)
            if valid_loss is not None:
                self.history["valid_loss"].append(valid_loss)

    @property
    def width(self) -> int:
        """The largest number of samples of a step in the record; 0 without one."""
        return 0 if self.record is None else self.record.width

    def summed(self, place: int, places: int, width: int, sum_of: Callable[[Array], Array]) -> "Totals":
        """Return the totals of all processes, whose arrays `sum_of` adds up; the other arguments are `joined`'s."""
        scores, sgd_scores = sum_of(self.scores), sum_of(self.sgd_scores)
        record = None if self.record is None else self.record.joined(place, places, width, sum_of)
        return replace(self, scores=scores, sgd_scores=sgd_scores, seen=sum_of(self.seen), record=record)

    def clear(self) -> None:
        """Begin the sums anew; steps, history and first parameters stay."""
        for name in ("scores", "sgd_scores", "seen"):
            array = getattr(self, name)
            array[...] = array * 0  # NaN stays
        if self.record is not None:
            self.record = self.record.emptied()

    def complete_history(self) -> dict[str, Array]:
        """Return what is known of every step."""
        return {name: np.array(values) for name, values in self.history.items() if len(values) == self.steps}

    def state(self) -> dict[str, Any]:
        """Return a copy, as tensors and plain numbers."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in ("scores", "sgd_scores", "seen")}
        initial = {name: torch.from_numpy(array.copy()) for name, array in self.initial.items()}
        history = {name: list(values) for name, values in self.history.items()}
        record = {} if self.record is None else {"record": self.record.state()}
        return arrays | {"steps": self.steps, "history": history, "initial": initial} | record

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a copy."""
        if (count := len(state["scores"])) != len(self.scores):
            refuse("state", f"scores of {count} samples", f"those of {len(self.scores)}, n_samples")
        for name in ("scores", "sgd_scores", "seen"):
            setattr(self, name, state[name].numpy().copy())
        self.steps, self.waiting = state["steps"], []
        self.history = {name: list(values) for name, values in state["history"].items()}
        self.initial = {name: tensor.numpy().copy() for name, tensor in state["initial"].items()}
        if self.record is not None:
            self.record = StepRecord.from_state(state["record"])


def check_settings(state: object, settings: str) -> None:
    """Refuse what is no state of an attribution with these settings."""
    if not isinstance(state, Mapping) or not {"settings", "totals", "sketches"} <= set(state):
        refuse("state", shown(state), "the state_dict() of an Attribution", TypeError)
    if state["settings"] != settings:
        refuse("state", f"one of {state['settings']}", f"one of {settings}")
