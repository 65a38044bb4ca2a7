"""Each claim's arithmetic, on cases with known answers."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamshap.reference import attribute, marginals, models, scores, update
from adamshap.reference.contract import Adam, AdamState, Batch, Network, Step
from adamshap.verify.claims import data, downstream, fidelity, optimisers, page, stepping
from adamshap.verify.claims.statistics import auc, distinct, pearson, select, spearman, spread
from adamshap.verify.tolerance import parameter_count, rounding, score_magnitude


@pytest.fixture
def step() -> Step:
    generator = np.random.default_rng(0)
    net = Network((4, 5, 3))
    train, valid = (Batch(generator.normal(size=(n, 4)), generator.integers(0, 3, n)) for n in (6, 5))
    params = net.init(0)
    return Step(net, params, Adam(), AdamState.zeros(params), train, valid)


def close(got: float, wanted: float) -> bool:
    """Return whether two numbers of size 1, each after a few dozen roundings, are equal."""
    return abs(got - wanted) <= rounding(1.0, 100, np.float64)


def test_correlations_of_a_perfect_and_of_an_opposite_estimate() -> None:
    truth = np.array([3.0, -1.0, 0.5, 2.0])
    assert close(pearson(2 * truth + 1, truth), 1)
    assert close(pearson(-truth, truth), -1)
    assert close(spearman(truth**3, truth), 1)
    assert close(spearman(-(truth**3), truth), -1)


def test_what_is_not_defined_is_nan() -> None:
    assert np.isnan(pearson(np.ones(3), np.arange(3.0)))
    assert np.isnan(spearman(np.arange(3.0), np.array([1.0, np.nan, 2.0])))
    assert np.isnan(pearson(np.array([1.0]), np.array([2.0])))


def test_auc_counts_pairs() -> None:
    flipped = np.array([True, True, False, False, False])
    assert auc(np.array([5.0, 4, 3, 2, 1]), flipped) == 1
    assert auc(np.array([1.0, 2, 3, 4, 5]), flipped) == 0
    assert close(auc(np.array([3.0, 1, 2, 2, 0]), flipped), 4 / 6)


def test_spread_leaves_out_what_is_not_defined() -> None:
    found = spread([1.0, 3.0, float("nan")])
    assert (found.mean, found.least, found.greatest, found.count) == (2.0, 1.0, 3.0, 2)
    assert close(found.deviation / np.sqrt(2), 1)
    assert str(spread([])) == "–"
    assert str(spread([0.9999, 0.9999])).startswith("0.9999")
    assert str(spread([0.996, 0.96])).startswith("0.97")  # rounded towards zero, so that no digit is overstated
    records = [{"a": 1, "b": 2}, {"a": 1, "b": 3}]
    assert select(records, a=1, b=3) == [records[1]]
    assert distinct(records, "a") == [1]


def test_estimates_are_the_oracles_scores(step: Step) -> None:
    for name, values in stepping.estimates(step, stepping.ESTIMATORS).items():
        slope, gradient = name.split(" + ")
        wanted = scores(step, slope, gradient)  # type: ignore[arg-type]
        allowed = rounding(score_magnitude(step, slope, gradient, nodes=stepping.NODES), parameter_count(step), "f8")
        assert np.all(np.abs(values - wanted) <= allowed), name


def test_adam_with_a_huge_epsilon_is_sgd(step: Step) -> None:
    limit = Step(step.net, step.params, stepping.sgd(0.5), step.state, step.train, step.valid)
    x = models.sample_gradients(limit)
    after, _ = update(limit)
    # A(g) = η ε g/(|g| + ε) is η g up to a part in ε/|g|, a rounding of θ, and those of the products.
    reach = max(float(np.abs(x_i).sum(axis=0).max()) for x_i in x.values())
    for name, p in limit.params.items():
        wanted = 0.5 * x[name].sum(axis=0)
        allowed = reach * np.abs(wanted) / stepping.HUGE + rounding(np.abs(p) + np.abs(wanted), 10)
        assert np.all(np.abs(p - after[name] - wanted) <= allowed)
    # Likewise A'(Y) is η up to twice that part; SGD's formula uses η ε, Adam's learning rate.
    mine, his = stepping.estimates(limit, (stepping.RANDOM_ORDER, ("sgd", "midpoint"))).values()
    terms = score_magnitude(limit, "sgd", "midpoint") / stepping.HUGE
    allowed = 4 * reach / stepping.HUGE * terms + rounding(terms, parameter_count(step))
    assert np.all(np.abs(mine - his / stepping.HUGE) <= allowed)


def test_a_trace_is_the_oracles_run(step: Step) -> None:
    train, valid = step.train, step.valid
    kept = stepping.trace(step.net, Adam(), train, valid, (stepping.SGD,), batch_size=4, epochs=3, seed=5)
    run = attribute(step.net, Adam(), train, valid, epochs=3, batch_size=4, seed=5)
    assert_array_equal(kept.valid_loss[:-1], run.history["valid_loss"])
    assert_array_equal(np.bincount(np.concatenate(kept.index)), run.seen)
    split = kept.total("sgd + start", last=2) + kept.total("sgd + start", first=2)
    allowed = rounding(np.abs(run.sgd_scores) + np.abs(split), len(kept.index))
    assert np.all(np.abs(split - run.sgd_scores) <= allowed)
    params = stepping.final_params(step.net, Adam(), train, batch_size=4, epochs=3, seed=5)
    for name, p in run.params.items():
        # A step moves a parameter by about η, through a gradient that is a sum over all parameters.
        moved = Adam().lr * len(kept.index)
        assert np.all(np.abs(params[name] - p) <= rounding(np.abs(p) + moved, parameter_count(step)))
        assert_array_equal(kept.params[name], p)


def test_exact_quantities_of_the_map(step: Step) -> None:
    settings = replace(fidelity.FULL, counted=6)
    exact, noise = fidelity.truths(step, settings, seed=0)
    assert noise == 0
    for kind, values in exact.items():
        assert_array_equal(values, marginals(step, kind).values)  # type: ignore[arg-type]
    assert_array_equal(optimisers.first_marginals(step), exact["first"])
    sampled, noise = fidelity.truths(step, replace(settings, counted=5, evaluations=6000), seed=0)
    assert 0 < noise < 1
    assert pearson(sampled["shapley"], exact["shapley"]) ** 2 > 1 - 4 * noise


def test_flips_change_the_share_asked_for_and_always_the_class() -> None:
    y = np.arange(100) % 4
    flipped, labels = downstream.flip(y, 4, 0.13, seed=3)
    assert flipped.sum() == 13
    assert_array_equal(labels != y, flipped)
    assert labels.min() >= 0
    assert labels.max() < 4


def planted(scores_by_step: list[list[float]]) -> stepping.Trace:
    """Return a run of four samples, all in every step, with the given scores."""
    kept = tuple(np.array(scores) for scores in scores_by_step)
    who = tuple(np.arange(4) for _ in kept)
    return stepping.Trace(who, {"mine": kept}, np.zeros(len(kept) + 1), {}, 4)


def test_steps_are_left_out_and_sizes_taken_out() -> None:
    run = planted([[100.0, -100, 100, -100], [1.0, 1, -1, -1], [2.0, 2, -2, -2]])
    found = {(choice, cut): total for choice, cut, total in downstream.step_choices(run, "mine", (1, 2, 9))}
    assert_array_equal(found["all steps", 0], [103, -97, 97, -103])
    assert_array_equal(found["without the first k", 1], [3, 3, -3, -3])
    assert_array_equal(found["the first k only", 1], [100, -100, 100, -100])
    assert_array_equal(found["each step's size removed", 0], [3, 1, -1, -3])
    assert not any(cut == 9 for _, cut in found)  # longer than the run
    shares = downstream.early_share(run.scores["mine"], (1, 2))
    assert close(shares[1], 40000 / 40020)


def test_patterns_take_the_sizes_of_another() -> None:
    mixed = downstream.with_sizes_of([np.array([3.0, -3]), np.zeros(2)], [np.array([5.0, 5]), np.ones(2)])
    assert_array_equal(mixed[0], [5, -5])
    assert_array_equal(mixed[1], [0, 0])  # without a pattern the size does not matter


@pytest.mark.parametrize("name", data.TASKS)
def test_tasks_are_split_anew_by_seed_and_hold_together(name: str) -> None:
    task = data.load(name, 0, train=50, valid=20, test=10)
    assert (task.train.n, task.valid.n, task.test.n, len(task.source), len(task.valid_source)) == (50, 20, 10, 50, 20)
    task.network((3,)).check_batch("train", task.train)
    again, other = data.load(name, 0, train=50, valid=20, test=10), data.load(name, 1, train=50, valid=20, test=10)
    assert_array_equal(task.train.x, again.train.x)
    assert not np.array_equal(task.train.y, other.train.y) or not np.array_equal(task.train.x, other.train.x)
    rows = {row.tobytes() for row in task.train.x}
    shared = sum(row.tobytes() in rows for row in task.valid.x)
    assert shared < task.valid.n / 2  # texts repeat themselves here and there; the split does not


def test_features_are_rescaled_alike_in_training_and_validation() -> None:
    batches = [Batch(np.ones((2, 3)), np.zeros(2, int)), Batch(2 * np.ones((2, 3)), np.zeros(2, int))]
    train, valid = optimisers.rescaled(batches, 1.0, seed=0)
    assert_array_equal(2 * train.x, valid.x)
    assert train.x.min() >= 0.1
    assert train.x.max() <= 10
    assert np.ptp(train.x[0]) > 0


def test_json_has_null_where_nothing_is_defined() -> None:
    (table,) = page._columns([{"seed": 0, "pearson": float("nan")}, {"seed": 1, "pearson": 0.5}])
    assert table == {"columns": ["seed", "pearson"], "rows": [[0, None], [1, 0.5]]}


def test_pruning_within_classes_takes_the_lowest_of_each() -> None:
    totals = np.array([5.0, 1.0, 3.0, 2.0, -9.0, -7.0, -8.0, -6.0])
    classes = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    ranks = downstream.rank_within(totals, classes)
    assert_array_equal(np.sort(np.argsort(ranks)[:4]), [1, 3, 4, 6])
    assert_array_equal(ranks[:4], [0.875, 0.125, 0.625, 0.375])


def test_variance_between_classes_is_all_where_classes_are_constant_and_none_where_their_means_agree() -> None:
    means, between = downstream.by_class(np.array([1.0, 1.0, 4.0]), np.array([0, 0, 2]), 4)
    assert_array_equal(means, [1.0, 0.0, 4.0, 0.0])
    assert close(between, 1)
    assert close(downstream.by_class(np.array([1.0, 3.0, 0.0, 4.0]), np.array([0, 0, 1, 1]), 2)[1], 0)
