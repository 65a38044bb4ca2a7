"""Which examples differ from the rest, and how well more runs would agree: on noise, and on effects that are known."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from adamshap.reference.command.agreement import agreement_of
from adamshap.reference.command.distinction import FALSE_SHARE, fewest_marked, normal_scores, q_values
from adamshap.reference.contract import Array

EXAMPLES = 600
TRIALS = 40


def first_batches(generator: np.random.Generator, runs: int) -> Array:
    """Return noise in which the 32 examples of each run's first batch have far larger scores than all others."""
    values = generator.normal(size=(runs, EXAMPLES))
    for run in values:
        run[generator.choice(EXAMPLES, 32, replace=False)] += 40 * np.abs(generator.normal(size=32))
    return values


def normal(generator: np.random.Generator, runs: int) -> Array:
    return generator.normal(size=(runs, EXAMPLES))


def unequal(generator: np.random.Generator, runs: int) -> Array:
    """Return noise of which a few examples have far more."""
    return generator.normal(size=(runs, EXAMPLES)) * np.where(np.arange(EXAMPLES) < 12, 30.0, 1.0)


@pytest.mark.parametrize("noise", [normal, first_batches, unequal])
@pytest.mark.parametrize("runs", [2, 3, 5, 9])
def test_of_noise_almost_nothing_is_marked(noise: Callable[[np.random.Generator, int], Array], runs: int) -> None:
    """A single mark is a false discovery: at most 5 % of the trials may have one (P(6 or more of 40) is 1.4 %)."""
    generator = np.random.default_rng(1)
    marked = sum(bool((np.abs(q_values(noise(generator, runs))) <= FALSE_SHARE).any()) for _ in range(TRIALS))
    assert marked <= 5


@pytest.mark.parametrize(("runs", "found"), [(3, 0.7), (5, 0.95)])
def test_most_planted_effects_are_marked_and_few_others(runs: int, found: float) -> None:
    """60 effects of three standard deviations of a run: a t test of three runs with Bonferroni's bound finds none."""
    generator = np.random.default_rng(2)
    effects = np.zeros(EXAMPLES)
    effects[:30], effects[30:60] = 3, -3
    shares, right = [], []
    for _ in range(TRIALS):
        values = normal(generator, runs) + effects
        q = q_values(values)
        marked = np.abs(q) <= FALSE_SHARE
        false = marked & (np.sign(q) != np.sign(effects))
        shares.append(false.sum() / max(marked.sum(), 1))
        right.append((marked & ~false).sum() / 60)
        each = stats.ttest_1samp(values, 0).pvalue
        assert (each < FALSE_SHARE / EXAMPLES).sum() <= 60 * found / 2
    assert np.mean(shares) < FALSE_SHARE + 3 * np.std(shares) / np.sqrt(TRIALS)
    assert np.mean(right) > found


def test_scale_and_outliers_of_a_run_change_nothing() -> None:
    """Only the order within each run counts."""
    values = normal(np.random.default_rng(3), 4) + np.linspace(-2, 2, EXAMPLES)
    other = np.stack([np.exp(values[0]), values[1] * 1e-9, values[2] ** 3, values[3] + 7])
    np.testing.assert_array_equal(q_values(values), q_values(other))


def test_equal_scores_are_not_told_apart() -> None:
    assert (np.abs(q_values(np.zeros((3, 50)))) == 1).all()
    np.testing.assert_array_equal(
        normal_scores(np.array([[2.0, 5.0, 2.0, 2.0]]))[0, [0, 2, 3]],
        normal_scores(np.array([[1.0, 2.0, 3.0, 4.0]]))[0, 1],
    )


def test_too_few_runs_cannot_mark_a_few_examples() -> None:
    """However clear: with three runs, one in four examples of no difference has its own signs at the first place."""
    assert [fewest_marked(runs) for runs in (2, 3, 4, 6, 20)] == [20, 7, 3, 1, 1]
    generator = np.random.default_rng(4)
    for clear, marked in ((5, False), (12, True)):
        values = normal(generator, 3)
        values[:, :clear] += 50 + np.arange(clear)
        assert (np.abs(q_values(values)[:clear]) <= FALSE_SHARE).all() == marked


@pytest.mark.parametrize("runs", [2, 3, 5, 8])
@pytest.mark.parametrize("reliability", [0.3, 0.8])
def test_the_agreement_with_other_runs_is_as_foretold(runs: int, reliability: float) -> None:
    generator = np.random.default_rng(5)
    foretold, seen = [], []
    for _ in range(TRIALS // 2):
        truth = generator.normal(size=EXAMPLES) * np.sqrt(reliability / (1 - reliability))
        here, there = (normal(generator, runs) + truth for _ in range(2))
        agreement = agreement_of(here, 20)
        foretold.append((agreement.spearman, agreement.helpful, agreement.harmful))
        orders = [np.argsort(values.mean(axis=0)) for values in (here, there)]
        shared = [len(set(a) & set(b)) for a, b in zip(*((o[-20:], o[:20]) for o in orders), strict=True)]
        seen.append((stats.spearmanr(here.mean(axis=0), there.mean(axis=0)).statistic, *shared))
    difference = np.array(foretold) - np.array(seen)
    assert (np.abs(difference.mean(axis=0)) < [0.02, 1.0, 1.0]).all(), difference.mean(axis=0)


def test_heavy_tails_are_averaged_less() -> None:
    """Where first batches rule the means, Spearman's and Brown's formula promises too much; this says what happens."""
    generator = np.random.default_rng(6)
    foretold, seen, by_formula = [], [], []
    for _ in range(TRIALS // 2):
        truth = generator.normal(size=EXAMPLES)
        here, there = (first_batches(generator, 5) + truth for _ in range(2))
        foretold.append(agreement_of(here, 10).spearman)
        seen.append(stats.spearmanr(here.mean(axis=0), there.mean(axis=0)).statistic)
        single = stats.spearmanr(here[0], here[1]).statistic
        by_formula.append(5 * single / (1 + 4 * single))
    assert np.mean(by_formula) - np.mean(seen) > 0.1
    assert abs(np.mean(foretold) - np.mean(seen)) < 0.05
