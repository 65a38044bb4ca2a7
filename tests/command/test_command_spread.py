"""Means and standard errors over runs, and the distributions that their intervals and marks need."""

import numpy as np
import pytest

from adamshap.reference.command.spread import spread_of


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """1,000 groups of three runs each: 95 % of the intervals hold the mean; those of ± 2 standard errors do not."""
    truth = 3.0
    values = np.random.default_rng(1).normal(truth, 2.0, size=(3, 1000))
    spread = spread_of(values)
    low, high = spread.interval()
    assert 0.93 < np.mean((low < truth) & (truth < high)) < 0.97
    assert np.mean(np.abs(spread.mean - truth) < 2 * spread.standard_error) < 0.85
    np.testing.assert_allclose(spread.deviation, values.std(axis=0, ddof=1))


def test_one_run_has_no_spread() -> None:
    with pytest.raises(ValueError, match="got 1 runs; needs at least two"):
        spread_of(np.zeros((1, 4)))


def test_values_whose_squares_are_beyond_float64() -> None:
    """A run that almost diverged has such scores, while others' are ordinary, in the same table."""
    spread = spread_of(np.array([[1e200, 1.0, 0.0], [3e200, 3.0, 0.0]]))
    np.testing.assert_allclose(spread.mean, [2e200, 2.0, 0.0])
    np.testing.assert_allclose(spread.standard_error, [1e200, 1.0, 0.0])
