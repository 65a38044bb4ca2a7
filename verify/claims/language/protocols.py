"""The ways to correlate an estimator with a target over the steps of a run; both are arrays (steps, n)."""

import numpy as np
from scipy.stats import rankdata

from adamshap.reference.contract import Array
from adamshap.verify.claims.statistics import pearson, spearman

WITHIN, POOLED, TOTALS = "within", "pooled", "totals"


def within(values: Array, wanted: Array) -> Array:
    """Return Pearson's R in each step (steps,); NaN where one of the two is constant."""
    a, b = (_units(rows) for rows in (values, wanted))
    found: Array = (a * b).sum(axis=1)
    return found


def within_ranks(values: Array, wanted: Array) -> Array:
    """Return Spearman's correlation in each step (steps,); NaN where one of the two is constant."""
    return within(*(np.where(_constant(rows), np.nan, rankdata(rows, axis=1)) for rows in (values, wanted)))


def _units(rows: Array) -> Array:
    """Return each row less its mean, at length 1; NaN for a constant row."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    units: Array = centred / np.where(_constant(rows), np.nan, length)
    return units


def _constant(rows: Array) -> Array:
    """Return whether each row (steps, 1) is constant to rounding, as in `statistics`."""
    constant: Array = np.ptp(rows, axis=1, keepdims=True) <= 1e-13 * np.abs(rows).max(axis=1, keepdims=True)
    return constant


def sums(rows: Array, index: Array, count: int) -> Array:
    """Return the sums over the steps of the samples that had one; `index` (steps, n) has each step's samples."""
    seen = np.bincount(index.ravel(), minlength=count) > 0
    total: Array = np.bincount(index.ravel(), rows.ravel(), count)[seen]
    return total


def summary(protocol: str, values: Array, wanted: Array, index: Array, count: int) -> dict[str, float]:
    """Return Pearson's and Spearman's correlation by a protocol; of several steps the means, and the lowest Pearson.

    Parameters
    ----------
    protocol : {"within", "pooled", "totals"}
        The mean over steps of the correlation within each; one correlation over the samples of all steps; that of each
        sample's sum over the steps.
    values, wanted : array (steps, n)
        Estimator and target.
    index : int array (steps, n)
        The samples of each step.
    count : int
        Number N of samples.
    """
    if protocol == WITHIN:
        each, ranks = within(values, wanted), within_ranks(values, wanted)
        if np.isnan(each).all():
            return dict.fromkeys(("pearson", "spearman", "lowest"), float("nan"))
        return {
            "pearson": float(np.nanmean(each)),
            "spearman": float(np.nanmean(ranks)),
            "lowest": float(np.nanmin(each)),
        }
    a, b = (rows.ravel() if protocol == POOLED else sums(rows, index, count) for rows in (values, wanted))
    r = pearson(a, b)
    return {"pearson": r, "spearman": spearman(a, b), "lowest": r}
