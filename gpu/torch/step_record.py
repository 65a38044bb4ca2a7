"""A record of each step's scores beside their totals: which samples a step had, and what it added to their scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adamshap.reference.contract import Array

__all__ = ["StepRecord"]


@dataclass
class StepRecord:
    """Samples and scores of a loop's steps: lists with an array for each step, as batches may differ in size.

    Parameters
    ----------
    index : list of int arrays (n,)
    scores, sgd_scores : lists of arrays (n,), or (n, n_val) for each validation sample
        SGD's are NaN if they are not wanted.
    """

    index: list[Array] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)
    sgd_scores: list[Array] = field(default_factory=list)

    @property
    def width(self) -> int:
        """The largest number of samples of a step."""
        return max(map(len, self.index), default=0)

    def add(self, index: Array, scores: Array, sgd_scores: Array | None) -> None:
        """Record a step."""
        self.index.append(np.array(index))
        self.scores.append(np.array(scores, float))
        self.sgd_scores.append(np.full(scores.shape, np.nan) if sgd_scores is None else np.array(sgd_scores, float))

    def arrays(self) -> dict[str, Any]:
        """Return the fields of `Run`: arrays (steps, batch, ...), -1 and NaN where a step has no further sample."""
        return {
            "step_index": _padded(self.index, self.width, -1),
            "step_scores": _padded(self.scores, self.width, np.nan),
            "step_sgd_scores": _padded(self.sgd_scores, self.width, np.nan),
        }

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> "StepRecord":
        """Return the record from the result of `arrays`, or one of that kind with empty places in between."""
        record = cls()
        rows = (arrays[name] for name in ("step_index", "step_scores", "step_sgd_scores"))
        for index, scores, sgd_scores in zip(*rows, strict=True):
            record.add(index[index >= 0], scores[index >= 0], sgd_scores[index >= 0])
        return record

    def joined(self, place: int, places: int, width: int, sum_of: Callable[[Array], Array]) -> "StepRecord":
        """Return the record of all processes.

        Parameters
        ----------
        place, places : int
            The number of this process and of all.
        width : int
            The largest number of samples of a step in any process.
        sum_of : callable
            The sum of an array over the processes.
        """
        mine = slice(place * width, place * width + self.width)
        joined = {}
        for name, rows in self.arrays().items():
            whole = np.zeros((len(rows), places * width, *rows.shape[2:]), rows.dtype)
            whole[:, mine] = rows + 1 if name == "step_index" else rows  # a place without a sample is 0 in all
            joined[name] = sum_of(whole) - 1 if name == "step_index" else sum_of(whole)
        return StepRecord.of(joined)

    def emptied(self) -> "StepRecord":
        """Return a record of as many steps, all without samples."""
        return StepRecord(*([rows[:0] for rows in some] for some in (self.index, self.scores, self.sgd_scores)))

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy, as tensors."""
        return {name: torch.from_numpy(array) for name, array in self.arrays().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> "StepRecord":
        """Return the record from a copy."""
        return cls.of({name: tensor.numpy() for name, tensor in state.items()})


def _padded(rows: list[Array], width: int, nothing: float) -> Array:
    """Return one array with `rows` at the beginning of its rows."""
    kinds: Any = rows[0] if rows else np.zeros(0, type(nothing))
    whole = np.full((len(rows), width, *kinds.shape[1:]), nothing, kinds.dtype)
    for line, row in zip(whole, rows, strict=True):
        line[: len(row)] = row
    return whole
