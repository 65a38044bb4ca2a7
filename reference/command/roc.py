"""ROC AUC by ranks: how well a score separates two groups."""

import numpy as np

from adamshap.reference.contract import Array


def roc_auc(score: Array, positive: Array) -> float:
    """Return the probability that a positive has a larger `score` than a negative, ties counting half.

    Parameters
    ----------
    score : array (n,)
    positive : bool array (n,)
        With at least one positive and one negative.
    """
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    # Equal scores share the mean of their ranks in 1..n.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
