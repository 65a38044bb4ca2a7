"""ROC AUC by ranks: how well a score tells two groups apart."""

import numpy as np

from adamshap.reference.contract import Array


def roc_auc(score: Array, positive: Array) -> float:
    """Return the chance that a positive has the larger `score` than a negative, ties counting half.

    Parameters
    ----------
    score : array (n,)
    positive : bool array (n,)
        At least one of each kind.
    """
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    # Equal scores share the mean of the ranks 1..n that they take up.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
