"""The stability study's statistics on planted truths, and its retraining and baselines against exact ones."""

from dataclasses import replace
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from adamshap import gpu, reference
from adamshap.reference.contract import Adam, Array, Batch, Network
from adamshap.reference.models import mean_loss
from adamshap.reference.retraining import final_loss
from adamshap.verify.claims import stability
from adamshap.verify.claims.stability import (
    agreement,
    baselines,
    experiment,
    presentation,
    retraining,
    runs,
    weightings,
)
from adamshap.verify.claims.stability.runs import Kept, Training
from adamshap.verify.claims.stability.settings import Case, Settings
from adamshap.verify.claims.stability.tasks import load
from adamshap.verify.claims.statistics import auc, pearson, select
from adamshap.verify.tolerance import rounding

TINY = Settings(
    2,
    (Case("wine", "wine", runs=10, one_varies=2, halves=32, retrainings=2, left_out=8, leave_one_out_seeds=2),),
    hidden=(8,),
)


def close(a: object, b: object) -> bool:
    return bool(np.all(np.abs(np.asarray(a) - b) <= rounding(np.abs(np.asarray(b)) + 1, 1000)))


# --- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_is_one_for_equal_rankings_and_near_chance_for_unrelated_ones() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 1000))
    alike = agreement.agreement([a, 3 * a, a + 1], 50)
    assert close(list(alike.values()), 1)
    unlike = agreement.agreement([a, b], 50)
    assert abs(unlike["spearman"]) < 0.1
    assert unlike["top"] < 0.2
    opposite = agreement.agreement([a, -a], 50)
    assert close([opposite["spearman"], opposite["pearson"], opposite["top"], opposite["bottom"]], [-1, -1, 0, 0])


def test_overlap_counts_the_shared_members_of_both_ends() -> None:
    a, b = np.array([5.0, 4, 3, 2, 1, 0]), np.array([5.0, 4, 3, 0, 1, 2])
    found = agreement.agreement([a, b], 2)
    assert (found["top"], found["bottom"]) == (1.0, 0.5)
    assert np.isnan(list(agreement.agreement([a], 2).values())).all()
    assert agreement.list_length(1000, 50) == 50
    assert agreement.list_length(142, 50) == 14


def test_means_are_over_disjoint_runs_and_agree_better_than_runs() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=400)
    totals = [truth + generator.normal(size=400) for _ in range(11)]
    means = agreement.means(totals, 5)
    assert len(means) == 2
    assert close(means[1], np.mean(totals[5:10], axis=0))
    one, five = (agreement.agreement(agreement.means(totals, k), 40) for k in (1, 5))
    # With noise of the truth's variance, R is 1/2, and 1/(1 + 1/5) for means of five.
    assert abs(one["pearson"] - 1 / 2) < 0.1
    assert abs(five["pearson"] - 5 / 6) < 0.1


# --- weightings ------------------------------------------------------------------------------------------------------


def a_run(scores: Array, batch: int = 4) -> Kept:
    """Return a run of one epoch or more over `batch` × steps samples in turn, with the scores (steps, batch)."""
    steps, count = len(scores), batch * len(scores) // 2
    index = np.arange(steps * batch).reshape(steps, batch) % count
    epoch, loss, rates = np.arange(steps) * batch // count, np.linspace(2, 1, steps), np.full(steps, 0.1)
    return Kept(index, {"Adam": scores, "SGD": scores}, epoch, loss, rates, {}, count)


def test_unit_steps_have_the_same_size_and_a_large_first_step_counts_no_more() -> None:
    scores = np.random.default_rng(0).normal(size=(200, 4))
    scores[0] *= 1000
    run = a_run(scores)
    plain, unit = (weightings.totals(run, "Adam", name) for name in (weightings.SUM, weightings.UNIT))
    first = np.abs(plain[run.first_batch()])
    assert first.min() > np.delete(np.abs(plain), run.first_batch()).max()
    assert experiment.first_step_share(run, "Adam", weightings.SUM) > 0.99
    assert close(experiment.first_step_share(run, "Adam", weightings.UNIT), 1 / 200)
    assert experiment.first_batch_in_top(run, plain) >= 1
    assert close(weightings.sizes(run.steps["Adam"] * weightings.WEIGHTINGS[weightings.UNIT](run, "Adam")[:, None]), 1)
    assert np.abs(unit[run.first_batch()]).max() < 4


def test_steps_without_a_score_keep_it_and_short_batches_are_read_right() -> None:
    scores = np.array([[0.0, 0.0, 0, 0], [2.0, -2, np.nan, np.nan]])
    assert_array_equal(weightings.sizes(scores), [1.0, 2.0])
    index = np.array([[0, 1, 2, 3], [3, 0, -1, -1]])
    run = Kept(index, {"Adam": scores, "SGD": scores}, np.zeros(2), np.ones(2), np.ones(2), {}, 4)
    assert_array_equal(weightings.totals(run, "Adam", weightings.SUM), [-2, 0, 0, 2])
    assert_array_equal(weightings.totals(run, "Adam", weightings.UNIT), [-1, 0, 0, 1])


def test_weights_of_the_steps() -> None:
    scores = np.ones((6, 4))
    scores[2] = 2
    run = replace(a_run(scores), rates=np.array([0.0, 0.5, 1, 1, 1, 1]))  # epochs of three steps

    def weights(name: str) -> list[float]:
        return list(weightings.WEIGHTINGS[name](run, "Adam"))

    assert weights("sum") == [1] * 6
    assert weights("without step 1") == [0, 1, 1, 1, 1, 1]
    assert weights("without the first epoch") == [0, 0, 0, 1, 1, 1]
    assert close(weights("first epoch rising"), [1 / 3, 2 / 3, 1, 1, 1, 1])
    assert weights("unit") == [1, 1, 0.5, 1, 1, 1]
    assert weights("unit, without the first epoch") == [0, 0, 0, 1, 1, 1]
    assert close(weights("root of the size"), [1, 1, np.sqrt(0.5), 1, 1, 1])
    assert weights("unit, later steps more") == [1, 2, 1.5, 4, 5, 6]
    assert close(weights("step to the fall"), [0.2, 0.2, 0.1, 0.2, 0.2, 0])
    divided = weightings.totals(run, "Adam", weightings.RATE)
    assert_array_equal(divided[run.index[0]], run.steps["Adam"][3])  # the first step moved nothing
    assert_array_equal(divided[run.index[1]], 2 * run.steps["Adam"][1] + run.steps["Adam"][4])


def test_within_classes_no_class_has_more_than_another() -> None:
    values, classes = np.array([1.0, 3, 10, 14, 5]), np.array([0, 0, 2, 2, 1])
    assert_array_equal(weightings.within_classes(values, classes), [-1, 1, -2, 2, 0])


# --- truths ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["cross_entropy", "mse"])
def problem(request: pytest.FixtureRequest) -> tuple[Network, Batch, Batch]:
    generator = np.random.default_rng(0)
    net = Network((3, 5, 4, 2), "tanh", request.param)

    def batch(n: int) -> Batch:
        y = generator.integers(0, 2, n) if request.param == "cross_entropy" else generator.normal(size=(n, 2))
        return Batch(generator.normal(size=(n, 3)), y)

    return net, batch(23), batch(9)


def test_leave_one_out_is_the_oracles_retraining(problem: tuple[Network, Batch, Batch]) -> None:
    net, train, valid = problem
    training = Training(epochs=3, batch_size=5, lr=0.01)
    run = reference.attribute(net, Adam(lr=0.01), train, valid, epochs=3, batch_size=5, seed=4)
    samples = np.array([0, 7, 22])
    mine = retraining.leave_one_out(net, train, valid, samples, training, seed=4, dtype="float64")
    oracle = reference.retrained(run, samples)
    # The losses agree to rounding, which the step's quotients m̂/√v̂ enlarge; effects are their small differences.
    allowed = rounding(np.full(3, mean_loss(net, run.params, valid)), 10_000)
    assert np.all(np.abs(mine - oracle) <= allowed)
    assert np.all(np.abs(oracle) > 10 * allowed)


def test_halves_are_trained_on_their_samples_alone(problem: tuple[Network, Batch, Batch]) -> None:
    net, train, valid = problem
    masks = retraining.half_masks(train.n, 40, np.random.default_rng(0))
    assert_array_equal(masks.sum(axis=1), 11)
    batches = list(retraining._batches(masks, Training(epochs=2, batch_size=4), np.random.default_rng(0)))
    assert len(batches) == 6
    for number, mask in enumerate(masks):
        taken = np.concatenate([index[number][weight[number] > 0] for index, weight in batches[:3]])
        assert_array_equal(np.sort(taken), np.flatnonzero(mask))  # an epoch has each sample of its half once
    assert all(close(weight.sum(axis=1), 1) for _, weight in batches)
    training = Training(epochs=2, batch_size=4, scheduled=True)
    losses = retraining.losses_of_halves(net, train, valid, masks, training, retrainings=2, first_seed=3)
    assert losses.shape == (2, 40)
    # The samples outside a mask do not matter to its network; those inside do.
    changed = Batch(np.where(masks[0][:, None], train.x, 9.0), train.y)
    again = retraining.losses_of_halves(net, changed, valid, masks, training, retrainings=2, first_seed=3)
    assert_array_equal(losses[:, 0], again[:, 0])
    assert np.all(losses[:, 1:].mean(axis=0) != again[:, 1:].mean(axis=0))


def test_a_half_is_an_ordinary_run_on_its_samples(problem: tuple[Network, Batch, Batch]) -> None:
    net, train, valid = problem
    half = train.take(np.arange(0, 23, 2))
    training = Training(epochs=2, batch_size=5, lr=0.01)
    run = reference.attribute(net, Adam(lr=0.01), half, valid, epochs=2, batch_size=5, seed=1)
    order = [index for _, index in run.config.order()]  # type: ignore[union-attr]
    gaps = [(0, 5 - len(index)) for index in order]
    index = np.array([np.pad(part, gap) for part, gap in zip(order, gaps, strict=True)])[:, None]
    weight = np.array([np.pad(np.ones(len(p)) / len(p), gap) for p, gap in zip(order, gaps, strict=True)])[:, None]
    optimiser = training.optimiser(half.n)
    mine = retraining.final_losses(net, optimiser, half, valid, index, weight, net.init(1), "float64")
    oracle = final_loss(run.config, np.ones(half.n))  # type: ignore[arg-type]
    assert abs(mine[0] - oracle) <= rounding(np.array(oracle), 10_000)
    theta = retraining.trained(net, optimiser, half, index, weight, net.init(1), "float64")
    params = retraining.params_of(net, theta, 0)
    assert {name: p.shape for name, p in params.items()} == {name: p.shape for name, p in run.params.items()}
    assert abs(mean_loss(net, params, valid) - oracle) <= rounding(np.array(oracle), 10_000)


def test_the_datamodeling_score_finds_the_values_that_made_the_losses() -> None:
    generator = np.random.default_rng(0)
    values, other = generator.normal(size=(2, 60))
    masks = retraining.half_masks(60, 300, generator)
    losses = 5 - masks @ values + generator.normal(scale=0.1, size=(3, 300))
    assert retraining.datamodeling_score(values, masks, losses) > 0.99
    assert retraining.datamodeling_score(-values, masks, losses) < -0.99
    assert abs(retraining.datamodeling_score(other, masks, losses)) < 0.4


def test_the_ceiling_is_the_correlation_that_the_truth_itself_would_have() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=2000)
    for noise, count in ((0.3, 2), (1.0, 5), (3.0, 4)):
        repeated = truth + generator.normal(scale=noise, size=(count, 2000))
        assert abs(retraining.ceiling(repeated) - pearson(truth, repeated.mean(axis=0))) < 0.05
    assert retraining.ceiling(generator.normal(size=(5, 2000))) < 0.3
    assert np.isnan(retraining.ceiling(truth[None]))


# --- baselines -------------------------------------------------------------------------------------------------------


def two_clouds(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, n)
    return Batch(generator.normal(size=(n, 2)) + 3 * y[:, None], y)


def test_neighbour_shapley_is_the_shapley_value_of_the_votes() -> None:
    generator = np.random.default_rng(0)  # labels without a pattern, so that neighbours' votes differ at every rank
    train, valid = (Batch(generator.normal(size=(n, 2)), generator.integers(0, 2, n)) for n in (7, 5))

    def value(coalition: tuple[int, ...]) -> float:
        votes = 0.0
        for x, y in zip(valid.x, valid.y, strict=True):
            near = sorted(coalition, key=lambda i: float(((train.x[i] - x) ** 2).sum()))[:3]
            votes += sum(train.y[i] == y for i in near) / 3
        return votes / valid.n

    players = range(7)
    wanted = np.zeros(7)
    for i in players:
        others = [j for j in players if j != i]
        for size in range(7):
            for coalition in combinations(others, size):
                wanted[i] += (value((*coalition, i)) - value(coalition)) / (7 * comb(6, size))
    assert close(baselines.neighbour_shapley(train, valid, 3), wanted)


def test_baselines_of_the_data_find_planted_flips() -> None:
    train = two_clouds(200, 0)
    flipped = np.arange(200) < 20
    wrong = Batch(train.x, np.where(flipped, 1 - train.y, train.y))
    found = baselines.of_data(wrong, two_clouds(50, 1))
    assert set(found) == {"out-of-fold confidence", "out-of-fold margin", "kNN-Shapley"}
    for name, values in found.items():
        assert auc(-values, flipped) > 0.9, name
    x = np.random.default_rng(0).normal(size=(100, 3))
    y = x.sum(axis=1, keepdims=True)
    y[:10] += 5
    (residual,) = baselines.of_data(Batch(x, y), Batch(x, y)).values()
    assert auc(-residual, np.arange(100) < 10) > 0.99


def test_gradients_of_a_network_are_the_oracles(problem: tuple[Network, Batch, Batch]) -> None:
    net, train, valid = problem
    params = net.init(0)
    step = reference.Step(net, params, Adam(), reference.AdamState.zeros(params), train, valid)
    x = reference.models.sample_gradients(step)  # with the divisor 1/n
    exact = np.sqrt(sum((train.n * x_i.reshape(train.n, -1)) ** 2 @ np.ones(x_i[0].size) for x_i in x.values()))
    found = baselines.of_network(net, params, train, valid, 16, 0)
    assert close(-found["GraNd"], exact)
    assert close(-found["loss"].mean(), mean_loss(net, params, train))
    passes = baselines.Passes.of(net, params, train)
    widths = [(d_in + 1) * d_out for d_in, d_out in zip(net.sizes, net.sizes[1:], strict=False)]
    bases = [np.eye(width, dtype=np.float32) for width in widths]
    sized = [np.pad(basis, ((0, 0), (0, 40 - basis.shape[1]))) for basis in bases]
    norms = np.zeros(train.n)
    for place in range(net.depth):
        alone = [basis if at == place else 0 * basis for at, basis in enumerate(sized)]
        norms += (baselines._projected(params, passes, passes.errors(), alone) ** 2).sum(axis=1)
    assert np.all(np.abs(np.sqrt(norms) - exact) <= rounding(exact, 100, "f4"))


def test_influence_on_a_linear_regression_is_that_of_leaving_a_sample_out() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 3)) * [1.0, 3.0, 0.5]
    y = x @ np.array([[1.0], [2], [-1]]) + generator.normal(size=(400, 1))
    train, valid = Batch(x[:300], y[:300]), Batch(x[300:], y[300:])
    net = Network((3, 1), "tanh", "mse")

    def fitted(keep: Array) -> dict[str, Array]:
        solved = np.linalg.lstsq(np.column_stack([train.x, np.ones(300)])[keep], train.y[keep], rcond=None)[0]
        return {"0.weight": solved[:3].T, "0.bias": solved[3]}

    everyone = np.ones(300, bool)
    params = fitted(everyone)
    wanted = [mean_loss(net, fitted(np.arange(300) != i), valid) - mean_loss(net, params, valid) for i in range(60)]
    found = baselines.of_network(net, params, train, valid, 4, 0)
    assert pearson(found["last-layer influence"][:60], np.array(wanted)) > 0.99
    assert pearson(found["TRAK"][:60], np.array(wanted)) > 0.95  # four projections of four parameters lose nothing


# --- the experiment --------------------------------------------------------------------------------------------------


def test_initialisation_and_order_have_seeds_of_their_own() -> None:
    task = load(TINY.cases[0], 0)
    net = task.network((4,))
    training = Training(epochs=1, batch_size=16)

    def run(start: int, order: int) -> Kept:
        return runs.train(net, task.train, task.valid, training, start=start, order=order)

    first, other_start, other_order = run(0, 0), run(1, 0), run(0, 1)
    assert_array_equal(first.index, other_start.index)
    assert first.valid_loss[0] != other_start.valid_loss[0]
    assert first.valid_loss[0] == other_order.valid_loss[0]
    assert not np.array_equal(first.index, other_order.index)
    assert_array_equal(runs.started(net, 3).init(0)["0.weight"], net.init(3)["0.weight"])


def test_unit_steps_are_the_weighting_of_the_command() -> None:
    task = load(TINY.cases[0], 0)
    net, training = task.network((4,)), Training(epochs=2, batch_size=16)
    kept = runs.train(net, task.train, task.valid, training, start=5, order=5)
    usual = {"epochs": 2, "batch_size": 16, "seed": 5, "keep_step_scores": True}
    run = gpu.attribute(net, Adam(), task.train, task.valid, **usual)  # type: ignore[arg-type]
    for weighting, divisor in ((weightings.UNIT, run.seen), (weightings.SUM, 1)):
        mine = weightings.totals(kept, "Adam", weighting) / divisor
        assert close(mine, reference.weighted(run, weighting))  # type: ignore[arg-type]
        mine = weightings.totals(kept, "SGD", weighting) / divisor
        assert close(mine, reference.weighted(run, weighting, sgd=True))  # type: ignore[arg-type]


def test_data_are_split_and_standardised_as_by_the_command() -> None:
    task = load(Case("digits", "digits"), 0)
    assert task.valid.n == round(0.2 * 1797)
    scale = task.train.x.std(axis=0)
    assert np.all((np.abs(scale - 1) < 1e-6) | (scale == 0))
    assert load(Case("many", "visits"), 0).valid.n == 500
    assert load(Case("few", "visits", train=1600, valid=400), 0).train.n == 1600


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return stability.measure(TINY, 0)


def test_records_hold_every_part_and_the_page_shows_them(records: list[dict[str, Any]]) -> None:
    assert {r["part"] for r in records} == {"seeds", "first batch", "halves", "one left out", "noise", "flips"}
    five = select(records, part="halves", score="Adam", weighting="unit", runs=5)
    assert len(five) == 2  # ten runs make two means of five
    section = stability.section(TINY, records)
    for table in section.tables:
        assert table.rows, table.caption
        assert all(len(row) == len(table.header) for row in table.rows), table.caption
    assert any("linear datamodeling score" in line for line in section.findings)


def test_on_wine_unit_steps_agree_better_than_plain_sums_and_predict_halves_better(
    records: list[dict[str, Any]],
) -> None:
    unit, plain = (
        [
            np.mean([r["spearman"] for r in select(records, part=part, score="Adam", weighting=weighting, runs=1)])
            for part in ("seeds", "halves")
        ]
        for weighting in ("unit", "sum")
    )
    assert unit[0] > plain[0]
    assert unit[1] > plain[1]


def test_splits_are_counted_on_which_adam_agrees_better() -> None:
    def record(seed: int, score: str, weighting: str, value: float) -> dict[str, Any]:
        runs = 5 if weighting else 0
        return {"task": "t", "seed": seed, "score": score, "weighting": weighting, "runs": runs, "spearman": value}

    planted = [
        record(seed, *of)
        for seed, values in enumerate([(0.9, 0.5, 0.6, 0.4, 0.8), (0.5, 0.3, 0.6, 0.4, 0.4), (0.7, 0.5, 0.6, 0.4, 0.9)])
        for of in zip(("Adam", "Adam", "SGD", "SGD", "loss"), ("unit", "sum", "unit", "sum", ""), values, strict=True)
    ]
    found = presentation._wins(planted)
    assert "better than SGD on 2 of 3 splits" in found
    assert "best baseline on 2;" in found
    assert found.endswith("with plain sums better than SGD on 2")
