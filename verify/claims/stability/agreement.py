"""How well rankings agree: of two runs, or of the means of several runs each."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from adamshap.reference.contract import Array

MEASURES = ("spearman", "pearson", "top", "bottom")


def list_length(count: int, longest: int) -> int:
    """Return the length of the lists compared: `longest`, but at most a tenth of `count` samples."""
    return max(1, min(longest, count // 10))


def highest(values: Array, length: int) -> Array:
    """Return the `length` samples with the largest values."""
    return np.argsort(values, kind="stable")[len(values) - length :]


def means(totals: Sequence[Array], runs: int) -> list[Array]:
    """Return the means of `runs` totals each, over disjoint groups."""
    return [np.mean(totals[at : at + runs], axis=0) for at in range(0, len(totals) - runs + 1, runs)]


def agreement(rankings: Sequence[Array], length: int) -> dict[str, float]:
    """Return the mean of each of `MEASURES` over all pairs of rankings; NaN with fewer than two, or a constant."""
    values = np.asarray(rankings)
    with np.errstate(invalid="ignore"):  # a constant has no correlation
        spearman, pearson = np.corrcoef(rankdata(values, axis=1)), np.corrcoef(values)
    return {
        "spearman": _mean_of_pairs(spearman),
        "pearson": _mean_of_pairs(pearson),
        "top": _mean_of_pairs(_shared(values, length)),
        "bottom": _mean_of_pairs(_shared(-values, length)),
    }


def _shared(values: Array, length: int) -> Array:
    """Return the share of the `length` highest that each two rows of `values` have in common."""
    chosen = np.zeros(values.shape)
    np.put_along_axis(chosen, np.array([highest(row, length) for row in values]), 1.0, axis=1)
    shared: Array = chosen @ chosen.T / length
    return shared


def _mean_of_pairs(of_pairs: Array) -> float:
    pairs = np.atleast_2d(of_pairs)[np.triu_indices(of_pairs.shape[0] if of_pairs.ndim else 1, 1)]
    return float(pairs.mean()) if len(pairs) else float("nan")
