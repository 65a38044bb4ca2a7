"""ROC AUC by ranks: how well a score separates two groups, or the classes of a network."""

import math
from collections.abc import Mapping

import numpy as np

from adamshap.reference.command.job import Detection
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


def log_odds(logits: Array) -> Array:
    """Return the logarithm of the odds of each class, from `logits` (n, k).

    They order examples as the probabilities of the class do, which are all equal, to rounding, where they are near 1.
    """
    odds = np.empty(logits.shape)
    for label in range(logits.shape[1]):
        others = np.delete(logits, label, axis=1)
        most = others.max(axis=1)
        odds[:, label] = logits[:, label] - most - np.log(np.exp(others - most[:, None]).sum(axis=1))
    return odds


def mean_roc_auc(scores: Array, labels: Array) -> float | None:
    """Return the mean, over the classes, of the ROC AUC of a class against all others.

    With two classes that is the ROC AUC of either.

    Parameters
    ----------
    scores : array (n, k)
        Of each class; the larger, the more probable.
    labels : int array (n,)

    Returns
    -------
    float or None
        Classes without examples, or with all of them, are left out; None if no class is left.
    """
    found = [
        roc_auc(column, labels == label)
        for label, column in enumerate(scores.T)
        if 0 < np.count_nonzero(labels == label) < len(labels)
    ]
    return math.fsum(found) / len(found) if found else None


def detection_of(columns: Mapping[str, Array]) -> Detection | None:
    """Return how well low scores find the flipped labels of a score table; None without any."""
    flipped = columns["flipped"]
    if not flipped.any():
        return None
    return Detection(*(roc_auc(-columns[name], flipped) for name in ("score", "sgd_score")))
