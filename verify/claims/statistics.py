"""Correlations, AUC and spread over seeds, by scipy and scikit-learn, with NaN for undefined values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

from adamshap.reference.contract import Array

Record = dict[str, Any]
"""One measurement: settings, seed and measured values, in JSON types only."""


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation, minimum and maximum of `count` values, one or more for each seed."""

    mean: float
    deviation: float
    least: float
    greatest: float
    count: int

    def __str__(self) -> str:
        if not self.count:
            return "–"
        digits = 4 if 0.99 < self.mean <= 1 and self.deviation < 0.01 else 2
        mean = np.trunc(self.mean * 10**digits) / 10**digits if abs(self.mean) <= 1 else self.mean
        return f"{mean:.{digits}f} ± {self.deviation:.{digits}f}"


def spread(values: Iterable[float]) -> Spread:
    """Return the spread of the finite `values`; the deviation of a single value is 0."""
    finite = np.array([value for value in values if value is not None and np.isfinite(value)])
    if not len(finite):
        return Spread(float("nan"), float("nan"), float("nan"), float("nan"), 0)
    deviation = float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
    return Spread(float(finite.mean()), deviation, float(finite.min()), float(finite.max()), len(finite))


def select(records: Sequence[Record], **wanted: Any) -> list[Record]:
    """Return the records with all the values `wanted`."""
    return [record for record in records if all(record.get(key) == value for key, value in wanted.items())]


def distinct(records: Sequence[Record], key: str) -> list[Any]:
    """Return the distinct values of `key`, in order of first occurrence."""
    return list(dict.fromkeys(record[key] for record in records if key in record))


def pearson(a: Array, b: Array) -> float:
    """Return Pearson's R; NaN if it is undefined (fewer than two samples, or a constant)."""
    return float(stats.pearsonr(a, b).statistic) if _vary(a, b) else float("nan")


def spearman(a: Array, b: Array) -> float:
    """Return Spearman's rank correlation; NaN if it is undefined."""
    return float(stats.spearmanr(a, b).statistic) if _vary(a, b) else float("nan")


def auc(score: Array, positive: Array) -> float:
    """Return the ROC AUC: the probability that a positive has a larger `score` than a negative."""
    return float(roc_auc_score(positive, score))


def _vary(*arrays: Array) -> bool:
    return all(
        len(array) > 1 and np.isfinite(array).all() and np.ptp(array) > 1e-13 * np.abs(array).max() for array in arrays
    )
