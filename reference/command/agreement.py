"""How well K further runs would agree with these K: rank correlation, and overlap of the ends of the list.

docs/method.md 13 derives it. The rank correlation of means over K runs is extrapolated from that of single runs, and of
single runs with the means of all others. For the ends of the list, means over m = ⌊K/2⌋ runs are compared with means
over m others, and Spearman's and Brown's formula takes the result from m runs to K.

======================  ======================================================
in the derivation       here
======================  ======================================================
K, N                    ``len(values)``, ``count``
r₁, r₋                  ``single``, ``left_out``
γ                       ``exponent``
m                       ``half``
n                       ``length``, of the list
ρ                       ``correlation`` of two normal variables in `_overlap`
======================  ======================================================
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np

from adamshap.reference.command.distinction import mean_ranks
from adamshap.reference.contract import Array

__all__ = ["Agreement", "agreement_of"]

EVERY_SPLIT, MOST_SPLITS = 6, 60
"""Up to how many runs all pairs of halves are tried (15 of five runs), and how many of more runs."""

POINTS = 200
BISECTIONS = 30
SMALLEST = 1e-9


@dataclass(frozen=True)
class Agreement:
    """What to expect of the means over as many further runs, with other seeds.

    Parameters
    ----------
    spearman : float
        Rank correlation of their scores with these.
    helpful, harmful : float
        Number of examples that their lists of the `length` highest and lowest scores share with these.
    length : int
    """

    spearman: float
    helpful: float
    harmful: float
    length: int


def agreement_of(values: Array, length: int) -> Agreement:
    """Return what K further runs would agree on with these.

    Parameters
    ----------
    values : array (K, N)
        Scores of N examples in K ≥ 2 runs.
    length : int
        Examples in a list, at most N/2.
    """
    runs, count = values.shape
    half = runs // 2
    helpful, harmful = [], []
    for members, others in _halves(runs, half):
        here, there = (np.argsort(values[part].mean(axis=0), kind="stable") for part in (members, others))
        harmful.append(len(np.intersect1d(here[:length], there[:length])))
        helpful.append(len(np.intersect1d(here[-length:], there[-length:])))
    high, low = (_more_overlap(float(np.mean(shared)), length, count, runs / half) for shared in (helpful, harmful))
    return Agreement(_more_spearman(values), high, low, length)


def _more_spearman(values: Array) -> float:
    """Return the rank correlation of the mean over the K runs with that over K others."""
    runs = len(values)
    ranks = np.stack([mean_ranks(run) for run in values])
    single = _normal(np.mean([_correlation(ranks[i], ranks[j]) for i, j in combinations(range(runs), 2)]))
    exponent = 1.0
    if runs > 2:
        others = [mean_ranks((values.sum(axis=0) - run) / (runs - 1)) for run in values]
        left_out = _normal(np.mean([_correlation(*pair) for pair in zip(ranks, others, strict=True)]))
        # A correlation with a single run is √(reliability of the mean · that of one run).
        gain = _odds(min(left_out**2 / single, 1.0)) / _odds(single)
        exponent = min(max(math.log(gain) / math.log(runs - 1), 0.0), 1.0)
    odds = _odds(single) * runs**exponent
    return 6 / math.pi * math.asin(odds / (1 + odds) / 2)


def _halves(runs: int, half: int) -> list[tuple[Array, Array]]:
    """Return the ways to choose two sets of `half` runs; `MOST_SPLITS` of them, at random, if there are more."""
    if runs <= EVERY_SPLIT:
        pairs = combinations(combinations(range(runs), half), 2)
        return [(np.array(a), np.array(b)) for a, b in pairs if not set(a) & set(b)]
    generator = np.random.default_rng(0)
    mixed = [generator.permutation(runs) for _ in range(MOST_SPLITS)]
    return [(order[:half], order[half : 2 * half]) for order in mixed]


def _correlation(first: Array, second: Array) -> float:
    """Return Pearson's correlation; 0 where it is undefined because all values of one are equal."""
    first, second = (values - values.mean() for values in (first, second))
    size = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / size if size else 0.0


def _normal(spearman: Any) -> float:
    """Return the correlation ρ of two normal variables with this Spearman coefficient, 6/π arcsin(ρ/2); at least ε."""
    return max(2 * math.sin(math.pi * float(spearman) / 6), SMALLEST)


def _odds(reliability: float) -> float:
    reliability = min(max(reliability, SMALLEST), 1 - SMALLEST)
    return reliability / (1 - reliability)


def _more_runs(correlation: float, factor: float) -> float:
    """Return the correlation of means over `factor` times as many runs (Spearman and Brown); 0 if it is negative."""
    correlation = min(max(correlation, 0.0), 1.0)
    return factor * correlation / (1 + (factor - 1) * correlation)


def _more_overlap(shared: float, length: int, count: int, factor: float) -> float:
    """Return the overlap of two lists of means over `factor` times as many runs, from the mean overlap `shared`.

    The overlap is that of two normal variables with a correlation ρ, which describes the ends of the list better than
    the correlation of all examples; Spearman's and Brown's formula holds for ρ.
    """
    if shared >= length:
        return float(length)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _overlap(middle, length, count) < shared else (low, middle)
    return _overlap(_more_runs(low, factor), length, count)


def _overlap(correlation: float, length: int, count: int) -> float:
    """Return N P(X > t, Y > t) for normal X and Y with this correlation, with t such that N P(X > t) = `length`."""
    from scipy.special import ndtr  # slow to import

    # Given X > t, Y is normal around ρ X.
    threshold = -NormalDist().inv_cdf(length / count)
    rest = math.sqrt(max(1 - correlation**2, 1e-12))
    x = _beyond(length, count)
    return length * float(ndtr((correlation * x - threshold) / rest).mean())


@cache
def _beyond(length: int, count: int) -> Array:
    """Return points of equal probability of a normal X given X > t."""
    places = (np.arange(POINTS) + 0.5) / POINTS * length / count
    return np.array([-NormalDist().inv_cdf(place) for place in places.tolist()])
