"""Which examples differ from the rest over several runs: ranks, and signs flipped for comparison.

docs/method.md 13 derives it. In each run the examples are ranked, and rank r of N becomes the normal score
z = Φ⁻¹((r - 1/2)/N): 0 for the example in the middle. An example that is no different from the rest is above the middle
as often as below, so to change the sign of z in some of its runs changes nothing about its distribution. The test
compares an example with itself: T of its K normal scores, with T after each of B other choices of signs.

======================  ==========================================  ==========
in the derivation       here                                        shape
======================  ==========================================  ==========
z                       the result of `normal_scores`               (K, N)
K, N                    runs, examples
T                       the result of `_statistic`                  (B + 1, N)
a choice of signs       a row of the result of `_signs`             (K,)
B                       ``len(flipped)``
q                       the absolute value of `q_values`' result    (N,)
======================  ==========================================  ==========
"""

from statistics import NormalDist

import numpy as np

from adamshap.reference.contract import Array

__all__ = ["FALSE_SHARE", "fewest_marked", "mean_ranks", "normal_scores", "q_values"]

FALSE_SHARE = 0.05
"""Expected share, at most, of false ones among the examples that are marked as different from the rest."""

BITS = 5
"""At most 2^5 choices of signs are tried: more make a test slower, and no better."""


def mean_ranks(values: Array) -> Array:
    """Return the ranks 1 to N of `values` (N,), equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def normal_scores(values: Array) -> Array:
    """Return the normal scores of `values` (K, N), of each run by itself."""
    count = values.shape[1]
    quantile = NormalDist().inv_cdf
    # Mean ranks are multiples of 1/2.
    table = np.array([quantile((half + 1) / (2 * count)) for half in range(2 * count - 1)])
    return np.stack([table[(2 * mean_ranks(run) - 2).astype(int)] for run in values])


def q_values(values: Array) -> Array:
    """Return the q value of each example: the smallest false-discovery rate at which it differs from the rest.

    Parameters
    ----------
    values : array (K, N)
        Scores of N examples in K ≥ 2 runs.

    Returns
    -------
    array (N,)
        Its size is at most 1. Its sign is that of the difference: negative for an example below the middle.
    """
    z = normal_scores(values)
    signs = _signs(len(z))
    means = signs @ z / len(z)
    statistic, *flipped = _statistic(means, np.square(z).mean(axis=0), len(z))
    best_flipped = np.max(flipped, axis=0)
    won = statistic > best_flipped
    order = np.argsort(-np.maximum(statistic, best_flipped), kind="stable")
    wins = np.cumsum(won[order])
    # An example of no difference wins with probability 1/(B + 1): B wins of flipped signs stand for one false win.
    rates = (1 + np.cumsum(~won[order])) / (len(flipped) * np.maximum(wins, 1))
    smallest = np.minimum.accumulate(rates[::-1])[::-1]
    q = np.ones(len(won))
    q[order] = np.where(won[order], np.minimum(smallest, 1.0), 1.0)
    return np.where(means[0] < 0, -q, q)


def fewest_marked(runs: int) -> int:
    """Return the number of examples below which `runs` runs cannot mark any: 20 for two, 7 for three, 3 for four."""
    return int(np.ceil(1 / (FALSE_SHARE * (len(_signs(runs)) - 1)) - 1e-9))


def _statistic(means: Array, squares: Array, runs: int) -> Array:
    """Return T = |m| / (e + e₀) for `means` m (B + 1, N), after each choice of signs; `squares` (N,) are means of z².

    e² = (`squares` - m²) / (K - 1) is the squared standard error of m. Alone it says little about an example of three
    runs; e₀, its median over examples and choices of signs, keeps one whose scores agree by chance from the first
    place. e₀ is the same for all choices of signs, as no choice may be at an advantage.
    """
    error = np.sqrt(np.maximum(squares - np.square(means), 0) / (runs - 1))
    return np.asarray(np.abs(means) / (error + (np.median(error) or 1.0)))


def _signs(runs: int) -> Array:
    """Return a group of choices of signs (B + 1, runs): all, up to a common sign, or 2^`BITS`; the first changes none.

    It must be a group: then, without a difference, each of them is equally likely to give an example's largest T.
    Choice b gives run k the sign (-1)^(number of ones in b & code of k), so that the product of two is one of them.
    """
    bits = min(runs - 1, BITS)
    units = [0, *(1 << bit for bit in range(bits))]
    codes = (units + [code for code in range(1 << bits) if code not in units] * runs)[:runs]
    return np.array([[(-1.0) ** (choice & code).bit_count() for code in codes] for choice in range(1 << bits)])
