"""Utilities and Shapley values against brute force over all permutations, and sampled against enumerated values."""

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap.reference import game, models, update
from adamshap.reference.contract import MARGINAL_LOSSES, Adam, AdamState, Array, Batch, Network, Step
from adamshap.verify.strategies import seeds, steps
from adamshap.verify.tolerance import assert_within, conditioning, rounding


def random_game(n: int, seed: int) -> game.Game:
    """Return a set function without structure: a random number for each coalition."""
    numbers = np.random.default_rng(seed).standard_normal(2**n)
    return lambda coalition: float(numbers[coalition @ (2 ** np.arange(n))])


def permutation_average(U: game.Game, n: int) -> Array:
    """Return the values by definition: each player's marginal contribution, averaged over all n! orders."""
    total = np.zeros(n)
    for order in itertools.permutations(range(n)):
        present = np.zeros(n, bool)
        for i in order:
            before = U(present)
            present[i] = True
            total[i] += U(present) - before
    return total / math.factorial(n)


@given(st.integers(1, 6), seeds)
@settings(max_examples=30)
def test_shapley_values_are_the_average_over_all_orders(n: int, seed: int) -> None:
    U = random_game(n, seed)
    size = sum(abs(U(np.array(coalition))) for coalition in itertools.product([False, True], repeat=n))
    assert_within(game.shapley_values(U, n), permutation_average(U, n), rounding(size, math.factorial(n)), "φ")


def test_shapley_values_of_a_known_game() -> None:
    """The game is the glove game, with one left and two right gloves; the textbook's values are 2/3, 1/6, 1/6."""
    values = game.shapley_values(lambda S: float(S[0] and (S[1] or S[2])), 3)
    assert_within(values, [2 / 3, 1 / 6, 1 / 6], rounding(1.0, 8), "φ")


def test_sampled_values_lie_within_their_standard_error() -> None:
    """In a batch of estimates with known truth, z = error / standard error is about standard normal."""
    n, z = 8, []
    for seed in range(40):
        U = random_game(n, seed)
        values, error = game.sampled_shapley_values(U, n, permutations=128, seed=seed)
        assert_within(values.sum(), U(np.ones(n, bool)) - U(np.zeros(n, bool)), rounding(128 * n, n), "efficiency")
        z.extend((values - game.shapley_values(U, n)) / error)
    z = np.array(z)
    # 320 values: their mean square has a standard deviation of √(2/320), and five deviations never occur by chance.
    assert abs(np.mean(z**2) - 1) < 5 * math.sqrt(2 / len(z))
    assert abs(np.mean(z)) < 5 / math.sqrt(len(z))


def test_antithetic_pairs_reduce_the_variance_of_a_smooth_game() -> None:
    """If marginal contributions grow with the coalition, an order and its reverse err in opposite directions."""
    n, weights, permutations = 10, np.linspace(1, 2, 10), 64

    def U(coalition: Array) -> float:
        return math.exp(0.1 * weights @ coalition)

    _, error = game.sampled_shapley_values(U, n, permutations=permutations, seed=0)
    generator = np.random.default_rng(0)
    independent = [game.arrival_marginals(U, generator.permutation(n)) for _ in range(permutations)]
    assert (error < np.std(independent, axis=0, ddof=1) / math.sqrt(permutations) / 2).all()


@given(steps(max_n=6, max_n_val=4))
@settings(max_examples=50)
def test_marginals_are_differences_of_the_utility(step: Step) -> None:
    """The definitions are written out with `utility` alone."""
    n = step.n
    everybody = np.ones(n, bool)
    scale = loss_scale(step)
    for kind in ("first", "last"):
        result = game.marginals(step, kind)
        for i in range(n):
            alone = np.arange(n) == i
            expected = (
                game.utility(step, alone) - game.utility(step, ~everybody)
                if kind == "first"
                else game.utility(step, everybody) - game.utility(step, ~alone)
            )
            assert_within(result.values[i], expected, rounding(scale, 4), kind)
        assert result.empty == game.utility(step, ~everybody)
        assert result.total == game.utility(step, everybody)
        assert not result.standard_error.any()


@given(steps())
@settings(max_examples=50)
def test_the_utility_of_the_batch_is_the_loss_change_of_the_update(step: Step) -> None:
    params, _ = update(step)
    expected = models.mean_loss(step.net, step.params, step.valid) - models.mean_loss(step.net, params, step.valid)

    def total(given: Step) -> Array:
        return np.array(game.utility(given, np.ones(given.n, bool)))

    assert_within(total(step), expected, rounding(loss_scale(step), 4) + conditioning(total, step), "U(B)")


@given(steps(max_n=8, max_n_val=4), st.sampled_from(MARGINAL_LOSSES))
@settings(max_examples=40)
def test_shapley_values_are_efficient(step: Step, loss: str) -> None:
    result = game.marginals(step, "shapley", loss)  # type: ignore[arg-type]
    scale = loss_scale(step) if loss == "exact" else first_order_scale(step)
    assert_within(result.values.sum(), result.total - result.empty, rounding(scale, 2**step.n), "Σφ")


def test_large_batches_are_sampled_with_a_standard_error() -> None:
    step = large_step()
    counted = game.shapley_values(game.exact_game(step), step.n)
    sampled = game.marginals(step, "shapley", permutations=64, seed=1)
    z = (sampled.values - counted) / sampled.standard_error
    assert (sampled.standard_error > 0).all()
    assert np.mean(z**2) < 1 + 5 * math.sqrt(2 / step.n)


def large_step() -> Step:
    generator = np.random.default_rng(5)
    net = Network((4, 5, 3))
    params = net.init(2)
    train = Batch(generator.standard_normal((13, 4)), generator.integers(0, 3, 13))
    valid = Batch(generator.standard_normal((5, 4)), generator.integers(0, 3, 5))
    return Step(net, params, Adam(lr=0.01), AdamState.zeros(params), train, valid)


def loss_scale(step: Step) -> float:
    """Return a bound on the losses whose difference is a utility: the larger of before and after, with its terms."""
    values = [models.mean_loss(step.net, step.params, step.valid)]
    for coalition in (np.ones(step.n, bool), np.zeros(step.n, bool)):
        values.append(values[0] - game.utility(step, coalition))
    logits = np.abs(models.outputs(step.net, step.params, step.valid.x)).max()
    return float(max(abs(v) for v in values) + logits + 1)


def first_order_scale(step: Step) -> float:
    """Return a bound on U₁, with Σ |∂L| η for its dot products."""
    U1 = game.first_order_game(step)
    largest = max(abs(U1(np.array(mask))) for mask in itertools.product([False, True], repeat=step.n))
    gradient = models.loss_gradient(step.net, step.params, step.valid)
    return largest + step.adam.lr * sum(float(np.abs(part).sum()) for part in gradient.values())
