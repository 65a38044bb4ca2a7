"""Weightings of a run's steps: the plain sum, and steps of unit size."""

from typing import Any

import numpy as np
import pytest

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.reference import weighted
from adamshap.reference.contract import Adam, Array, Batch, Network, Run
from adamshap.reference.weighting import WEIGHTINGS, weighted_steps
from adamshap.verify.tolerance import assert_within, rounding

NET = Network((6, 8, 3))
N, SIZE = 22, 5


def batch(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.standard_normal((n, 6)), generator.integers(0, 3, n))


TRAIN, VALID = batch(N, 0), batch(4, 1)


def run_of(attribute: Any = oracle.attribute, **options: Any) -> Run:
    """Return a run that ends within its second epoch, so that some samples are seen once more than others."""
    given = {"epochs": 2, "steps": 8, "batch_size": SIZE, "seed": 1, "keep_step_scores": True} | options
    run: Run = attribute(NET, Adam(0.01), TRAIN, VALID, **given)
    return run


def unit_by_hand(run: Run, steps: Array) -> Array:
    """Return the weighting "unit" from its formula, one sample and one step at a time."""
    scores = [[] for _ in range(N)]  # type: list[list[float]]
    for index, row in zip(run.step_index, steps, strict=True):
        taken = [(i, s) for i, s in zip(index, row, strict=True) if i >= 0]
        size = np.sqrt(np.mean([s**2 for _, s in taken]))
        for i, s in taken:
            scores[i].append(s / size)
    return np.array([np.mean(of_sample) if of_sample else 0.0 for of_sample in scores])


@pytest.mark.parametrize("attribute", [oracle.attribute, engine.attribute])
@pytest.mark.parametrize("sgd", [False, True])
def test_the_sum_has_the_bits_of_the_totals_and_unit_is_its_formula(attribute: Any, sgd: bool) -> None:
    run = run_of(attribute)
    totals, steps = (run.sgd_scores, run.step_sgd_scores) if sgd else (run.scores, run.step_scores)
    assert steps is not None
    np.testing.assert_array_equal(weighted(run, "sum", sgd=sgd), totals)
    np.testing.assert_array_equal(weighted_steps(run.step_index, steps, N, "sum"), totals)
    wanted = unit_by_hand(run, steps)
    assert_within(weighted(run, "unit", sgd=sgd), wanted, rounding(np.sqrt(SIZE), SIZE, np.float64), "score")
    assert len(set(run.seen)) == 2


def test_unit_does_not_depend_on_the_size_of_any_step() -> None:
    run = run_of()
    assert run.step_scores is not None
    base = weighted(run, "unit")
    factors = 2.0 ** np.array([-900, 0, 700, 3, -4, 10, 0, 1])  # powers of two, so that nothing rounds
    scaled = weighted_steps(run.step_index, run.step_scores * factors[:, None], N, "unit")
    np.testing.assert_array_equal(scaled, base)
    assert not np.array_equal(weighted_steps(run.step_index, run.step_scores * factors[:, None], N, "sum"), run.scores)


def test_a_step_of_zeros_counts_as_a_step_and_stays_zero() -> None:
    index = np.array([[0, 1], [2, -1], [1, 0]])
    steps = np.array([[3.0, 4.0], [-5.0, np.nan], [0.0, 0.0]])
    size = np.sqrt(12.5)
    assert_within(
        weighted_steps(index, steps, 4, "unit"), [3 / size / 2, 4 / size / 2, -1, 0], rounding(2, 2, float), "score"
    )
    np.testing.assert_array_equal(weighted_steps(index, steps, 4, "sum"), [3, 4, -5, 0])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_each_validation_samples_scores_average_to_the_scores(weighting: Any) -> None:
    each, mean = (weighted(run_of(slope="secant", per_validation=per), weighting) for per in (True, False))
    assert each.shape == (N, VALID.n)
    largest = np.abs(each).max()
    parameters = sum(p.size for p in NET.init(0).values())
    assert_within(each.mean(axis=1), mean, rounding(largest, parameters * SIZE, np.float64), "score")


def test_a_run_of_no_steps_has_no_scores() -> None:
    np.testing.assert_array_equal(weighted_steps(np.empty((0, 3), int), np.empty((0, 3)), 2, "unit"), np.zeros(2))


def test_a_run_without_step_scores_is_refused() -> None:
    run = run_of(keep_step_scores=False)
    np.testing.assert_array_equal(weighted(run, "sum"), run.scores)
    with pytest.raises(ValueError, match=r"run: got a run without step scores; needs one with keep_step"):
        weighted(run)
