"""A training run equals its steps taken one by one, and credits each sample for the steps whose batch has it."""

import inspect

import numpy as np
import pytest

from adamshap import gpu
from adamshap.reference import Adam, AdamState, Batch, Network, Progress, Step, attribute, scores, update
from adamshap.reference.contract import batch_order
from adamshap.reference.models import mean_loss
from adamshap.verify.tolerance import assert_within, rounding


@pytest.fixture(scope="module")
def data() -> tuple[Network, Batch, Batch]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((26, 4))
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    return Network((4, 6, 3)), Batch(x[:19], y[:19]), Batch(x[19:], y[19:])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_run_is_its_steps(data: tuple[Network, Batch, Batch], reduction: str) -> None:
    net, train, valid = data
    adam = Adam(lr=0.01, weight_decay=0.1)
    told: list[Progress] = []
    run = attribute(
        net,
        adam,
        train,
        valid,
        epochs=2,
        batch_size=8,
        seed=3,
        slope="secant",
        reduction=reduction,
        on_step=told.append,
    )
    params = net.init(3)
    state = AdamState.zeros(params)
    totals, sgd, seen = np.zeros(19), np.zeros(19), np.zeros(19)
    for number, (epoch, index) in enumerate(batch_order(19, batch_size=8, epochs=2, seed=3)):
        step = Step(net, params, adam, state, train.take(index), valid, reduction)
        assert run.history["epoch"][number] == epoch
        assert run.history["train_loss"][number] == mean_loss(net, params, step.train)
        assert run.history["valid_loss"][number] == mean_loss(net, params, valid)
        assert told[number] == Progress(
            number + 1, 6, epoch, run.history["train_loss"][number], run.history["valid_loss"][number]
        )
        for i, score, sgd_score in zip(index, scores(step, "secant"), scores(step, "sgd", "start"), strict=True):
            totals[i] += score
            sgd[i] += sgd_score
            seen[i] += 1
        params, state = update(step)
    np.testing.assert_array_equal(run.scores, totals)
    np.testing.assert_array_equal(run.sgd_scores, sgd)
    np.testing.assert_array_equal(run.seen, seen)
    assert run.state.step == state.step == 6
    for name in params:
        np.testing.assert_array_equal(run.params[name], params[name])
        np.testing.assert_array_equal(run.initial_params[name], net.init(3)[name])


def test_per_validation_scores_average_to_the_scores(data: tuple[Network, Batch, Batch]) -> None:
    net, train, valid = data
    matrix = attribute(net, Adam(), train, valid, epochs=1, batch_size=5, per_validation=True)
    run = attribute(net, Adam(), train, valid, epochs=1, batch_size=5)
    assert matrix.scores.shape == (19, 7)
    bound = rounding(np.abs(matrix.scores).sum(axis=1) + np.abs(run.scores).max(), 4 * 7 * 51)
    assert_within(matrix.scores.mean(axis=1), run.scores, bound, "scores")
    assert_within(matrix.sgd_scores.mean(axis=1), run.sgd_scores, bound, "sgd_scores")


def test_harmful_examples_score_low() -> None:
    """On a learnable task, examples with a wrong label score below the others."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((120, 5))
    y = (x @ generator.standard_normal(5) > 0).astype(np.int64)
    flipped = np.arange(80) < 8
    labels = np.where(flipped, 1 - y[:80], y[:80])
    run = attribute(Network((5, 8, 2)), Adam(lr=0.01), Batch(x[:80], labels), Batch(x[80:], y[80:]), batch_size=16)
    assert run.history["valid_loss"][-1] < run.history["valid_loss"][0]
    assert np.median(run.scores[flipped]) < np.median(run.scores[~flipped])


def test_a_run_refuses_data_that_do_not_fit(data: tuple[Network, Batch, Batch]) -> None:
    net, train, valid = data
    with pytest.raises(ValueError, match=r"valid\.y: got labels from 5 to 5; needs labels from 0 to 2"):
        attribute(net, Adam(), train, Batch(valid.x, np.full(7, 5)))
    with pytest.raises(ValueError, match=r"batch_size: got 0"):
        attribute(net, Adam(), train, valid, batch_size=0)


@pytest.mark.parametrize(
    ("option", "value"),
    [("rank", 4), ("variance", "rank_one"), ("score_dtype", "tf32"), ("device", "cuda"), ("dtype", "float32")],
)
def test_the_oracle_refuses_options_of_the_engine(
    data: tuple[Network, Batch, Batch], option: str, value: object
) -> None:
    net, train, valid = data
    with pytest.raises(ValueError, match=f"{option}: got {value!r}; needs .*the oracle supports nothing else"):
        attribute(net, Adam(), train, valid, **{option: value})


def test_both_accept_the_same_call(data: tuple[Network, Batch, Batch]) -> None:
    ours, theirs = (inspect.signature(function).parameters for function in (attribute, gpu.attribute))
    assert list(ours) == list(theirs)
    assert all(ours[name].kind == theirs[name].kind for name in ours)
