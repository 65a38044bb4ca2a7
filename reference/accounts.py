"""Accounts of a run: the credit of each training sample, step by step.

The run loop does not depend on the kind of account. ``credit="step"`` has `StepAccount`, which is complete after every
step; ``credit="carry"`` has `adamshap.reference.carry.Ledger`, which is settled at the end of the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from adamshap.reference.contract import Array, Estimator, Params, RunConfig, Snapshot, Step
from adamshap.reference.scoring import unchecked_scores


class Entry(Protocol):
    """An account's record of one step."""

    def numbers(self) -> Params:
        """Return the arrays that must be finite, keyed by their names in error messages."""


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True, eq=False)
class Settlement:
    """Total credit of a run's samples, and, with "carry", the parts of each step credited to no sample; see `Run`."""

    scores: Array
    decay: Array | None = None
    closed: Array | None = None


class Account(Protocol[E]):
    """The interface that the run loop needs of an account. Scores are (N,), or (N, n_val) with ``per_validation``."""

    def scores(self, step: Step, validated: Step) -> Array | None:
        """Return the scores of a step's batch, (n, ...); None if they depend on the parameters after the step.

        Γ is that of the step `validated`.
        """

    def entry(self, index: Array, scores: Array | None, step: Step, after: Params) -> E:
        """Return the entry of a step of the samples `index`, which ended at the parameters `after`."""

    def record(self, entry: E) -> None:
        """Add a step's entry."""

    def own_scores(self) -> Array:
        """Return each sample's scores from its own steps."""

    def settle(self) -> Settlement:
        """Return the credit of the samples if the run ends here."""

    def kept(self) -> Snapshot:
        """Return the state that `own_scores` lacks, for a snapshot: arrays (steps, ...) of the steps so far."""

    def restore(self, own_scores: Array, kept: Mapping[str, Array]) -> None:
        """Restore an empty account from the values that `own_scores` and `kept` returned."""


def zero_scores(config: RunConfig, estimator: Estimator) -> Array:
    """Return scores of 0 for every sample of a run."""
    return np.zeros((config.train.n, config.valid.n) if estimator.per_validation else config.train.n)


@dataclass(frozen=True, eq=False)
class StepEntry:
    """The scores of a step's batch."""

    index: Array
    scores: Array

    def numbers(self) -> Params:
        """Return the scores."""
        return {"scores": self.scores}


@dataclass(frozen=True, eq=False)
class StepAccount:
    """The sum of each step's scores; the step that momentum takes without data is credited to no sample."""

    estimator: Estimator
    totals: Array

    def scores(self, step: Step, validated: Step) -> Array:
        """Return the scores of a step's batch with the Γ of the step `validated`, finite or not."""
        return unchecked_scores(step, self.estimator, validated)

    def entry(self, index: Array, scores: Any, step: Step, after: Params) -> StepEntry:
        """Return the entry of a step of the samples `index`."""
        return StepEntry(index, scores)

    def record(self, entry: StepEntry) -> None:
        """Add a step's scores to the totals."""
        self.totals[entry.index] += entry.scores

    def own_scores(self) -> Array:
        """Return the totals."""
        return self.totals

    def settle(self) -> Settlement:
        """Return the totals."""
        return Settlement(self.totals)

    def kept(self) -> Snapshot:
        """Return nothing: the totals are the whole state."""
        return {}

    def restore(self, own_scores: Array, kept: Mapping[str, Array]) -> None:
        """Set the totals."""
        self.totals[...] = own_scores
