"""The scores of each step of a run, kept beside their totals: the samples of each step, and a record to fill."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.reference.contract.arrays import Array
from adamshap.reference.contract.checks import true_or_false
from adamshap.reference.contract.refusal import refuse
from adamshap.reference.contract.run import Credit, RunConfig

__all__ = ["StepScores", "keeps_step_scores"]

NAMES = ("step_scores", "step_sgd_scores")
"""Fields of `Run`; in a snapshot they follow ``history/``."""


def keeps_step_scores(value: object, credit: Credit) -> bool:
    """Return the option `keep_step_scores` of `attribute` as a bool, or refuse it."""
    keep = true_or_false("keep_step_scores", value)
    if keep and credit == "carry":
        needs = "False, or credit 'step': with 'carry', later steps credit a sample as well, so no step has its score"
        refuse("keep_step_scores", "True with credit 'carry'", needs)
    return keep


@dataclass(frozen=True, eq=False)
class StepScores:
    """A record of both scores of each step's samples.

    Parameters
    ----------
    index : int array (steps, batch)
        `RunConfig.step_index`.
    scores, sgd_scores : arrays (steps, batch), or (steps, batch, n_val) with ``per_validation``
        In the order of `index`; 0 where a short batch has no sample, and for steps not yet recorded.
    with_sgd : bool
        Whether there are scores by SGD's formula; if not, `sgd_scores` stays 0, and a run has NaN.
    """

    index: Array
    scores: Array
    sgd_scores: Array
    with_sgd: bool = True

    @classmethod
    def empty(cls, config: RunConfig, *, per_validation: bool, with_sgd: bool) -> "StepScores":
        """Return the record of a run before its first step."""
        index = config.step_index()
        shape = (*index.shape, config.valid.n) if per_validation else index.shape
        return cls(index, np.zeros(shape), np.zeros(shape), with_sgd)

    def record(self, step: int, scores: Array, sgd_scores: Array | None) -> None:
        """Record the scores of the batch of step number `step`, counted from 0."""
        self.scores[step, : len(scores)] = scores
        if sgd_scores is not None:
            self.sgd_scores[step, : len(sgd_scores)] = sgd_scores

    def of_run(self, steps: int) -> dict[str, Any]:
        """Return the fields of `Run` after `steps` steps: NaN where a short batch has no sample."""
        index = self.index[:steps].copy()
        arrays = {name: array[:steps].copy() for name, array in self._named().items()}
        for array in arrays.values():
            array[index < 0] = np.nan
        if not self.with_sgd:
            arrays["step_sgd_scores"][...] = np.nan
        return arrays | {"step_index": index}

    def arrays(self, steps: int) -> dict[str, Array]:
        """Return copies of the first `steps` rows under their names in a snapshot, which holds finite numbers only."""
        return {f"history/{name}": array[:steps].copy() for name, array in self._named().items()}

    def restore(self, kept: Mapping[str, Array]) -> None:
        """Take over the rows of a snapshot."""
        for name, array in self._named().items():
            rows = kept[f"history/{name}"]
            array[: len(rows)] = rows

    def _named(self) -> dict[str, Array]:
        return dict(zip(NAMES, (self.scores, self.sgd_scores), strict=True))
