"""Correlations, AUC and spread over seeds: scipy's and scikit-learn's, with NaN where they are not defined."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

from adamshap.reference.contract import Array

Record = dict[str, Any]
"""One measurement: what was measured under which settings, with its seed; JSON's types only."""


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation, least and greatest of `count` values, one a seed or more."""

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
    """Return the spread of `values`, without those that are NaN; the deviation of one value is 0."""
    finite = np.array([value for value in values if value is not None and np.isfinite(value)])
    if not len(finite):
        return Spread(float("nan"), float("nan"), float("nan"), float("nan"), 0)
    deviation = float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
    return Spread(float(finite.mean()), deviation, float(finite.min()), float(finite.max()), len(finite))


def select(records: Sequence[Record], **wanted: Any) -> list[Record]:
    """Return the records that have all the values `wanted`."""
    return [record for record in records if all(record.get(key) == value for key, value in wanted.items())]


def distinct(records: Sequence[Record], key: str) -> list[Any]:
    """Return the values of `key` in the order in which they first come."""
    return list(dict.fromkeys(record[key] for record in records if key in record))


def pearson(a: Array, b: Array) -> float:
    """Return Pearson's R, NaN where it is not defined (fewer than two samples, or a constant)."""
    return float(stats.pearsonr(a, b).statistic) if _vary(a, b) else float("nan")


def spearman(a: Array, b: Array) -> float:
    """Return Spearman's rank correlation, NaN where it is not defined."""
    return float(stats.spearmanr(a, b).statistic) if _vary(a, b) else float("nan")


def auc(score: Array, positive: Array) -> float:
    """Return the chance that a positive has the larger `score` than a negative."""
    return float(roc_auc_score(positive, score))


def _vary(*arrays: Array) -> bool:
    return all(
        len(array) > 1 and np.isfinite(array).all() and np.ptp(array) > 1e-13 * np.abs(array).max() for array in arrays
    )
