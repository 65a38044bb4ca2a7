"""Means over runs with their standard errors: of examples, of groups, of anything that each run has a value of."""

import math
from dataclasses import dataclass

import numpy as np

from adamshap.reference.contract import Array

CONFIDENCE = 0.95
"""Confidence of the intervals that the command shows."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Mean and standard error of values over `count` independent runs.

    Parameters
    ----------
    count : int
        Number of runs K.
    mean, standard_error : arrays
        The mean m of the K values, and s/√K with s² = Σ (value - m)² / (K - 1).
    """

    count: int
    mean: Array
    standard_error: Array

    @property
    def deviation(self) -> Array:
        """The standard deviation s of a single run."""
        return self.standard_error * math.sqrt(self.count)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[Array, Array]:
        """Return the ends of the interval that holds the mean over infinitely many runs with this `confidence`.

        It is m ± t s/√K with Student's t of K - 1 degrees of freedom, for values whose distribution is near to normal:
        sums over many examples, or validation results. At 95 % t is 12.7 for two runs, 4.3 for three, 2.8 for five.
        """
        from scipy.special import stdtrit  # slow to import

        reach = stdtrit(self.count - 1, (1 + confidence) / 2) * self.standard_error
        return self.mean - reach, self.mean + reach


def spread_of(values: Array) -> Spread:
    """Return the spread of `values` (K, ...) over the first axis, the runs.

    Raises
    ------
    ValueError
        There are fewer than two runs.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        raise ValueError(f"values: got {len(values)} runs; needs at least two for a standard error")
    size = np.abs(values).max(axis=0)
    size = np.where(size > 0, size, 1.0)
    units = values / size  # squares of the scores of a run that almost diverged are beyond float64
    error = units.std(axis=0, ddof=1) / math.sqrt(len(values))
    return Spread(len(values), units.mean(axis=0) * size, error * size)
