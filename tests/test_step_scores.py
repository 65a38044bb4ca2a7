"""Each step's scores, kept beside their totals: by oracle and engine, for resumed and for diverged runs."""

from typing import Any

import numpy as np
import pytest
from engine_devices import on_each_device

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu import step_account
from adamshap.reference.contract import Adam, Array, Batch, Diverged, Network, Run, RunConfig, Snapshot

NET = Network((6, 8, 3))
N, SIZE = 22, 5
RUN: dict[str, Any] = {"epochs": 2, "batch_size": SIZE, "seed": 1}
STEPS, LAST = 10, 2
"""Steps of a run, and samples of an epoch's last batch."""


def batch(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.standard_normal((n, 6)), generator.integers(0, 3, n))


TRAIN, VALID = batch(N, 0), batch(4, 1)


def run_of(attribute: Any, **options: Any) -> Run:
    run: Run = attribute(NET, Adam(0.01), TRAIN, VALID, **({"keep_step_scores": True} | RUN | options))
    return run


def kept(run: Run) -> tuple[Array, Array]:
    assert run.step_scores is not None
    assert run.step_sgd_scores is not None
    return run.step_scores, run.step_sgd_scores


def summed(run: Run, steps: Array) -> Array:
    """Return the sum of each sample's scores over its steps, in the order of the steps."""
    totals = np.zeros_like(run.scores)
    for index, scores in zip(run.step_index, steps, strict=True):
        totals[index[index >= 0]] += scores[index >= 0]
    return totals


TRAINERS = pytest.mark.parametrize(
    ("attribute", "options"),
    [
        pytest.param(oracle.attribute, {}, id="oracle"),
        pytest.param(
            oracle.attribute, {"per_validation": True, "slope": "secant"}, id="oracle, each validation sample"
        ),
        pytest.param(engine.attribute, {"device": "cpu"}, id="engine"),
        pytest.param(engine.attribute, {"device": "cpu", "per_validation": True, "rank": 2}, id="engine, sketch"),
        pytest.param(engine.attribute, {"device": "cpu", "dtype": "float64", "micro_batch": 3}, id="engine, chunks"),
    ],
)


@TRAINERS
def test_the_totals_are_the_sums_of_the_steps_scores(attribute: Any, options: Any) -> None:
    run = run_of(attribute, **options)
    short = np.zeros((STEPS, SIZE), bool)
    short[[4, 9], LAST:] = True
    for steps, totals in zip(kept(run), (run.scores, run.sgd_scores), strict=True):
        assert steps.dtype == np.float64
        assert steps.shape == (STEPS, SIZE, *totals.shape[1:])
        wanted = np.broadcast_to(short.reshape(STEPS, SIZE, *[1] * (totals.ndim - 1)), steps.shape)
        np.testing.assert_array_equal(np.isnan(steps), wanted)
        np.testing.assert_array_equal(summed(run, steps), totals)
    plain = run_of(attribute, keep_step_scores=False, **options)
    np.testing.assert_array_equal(plain.scores, run.scores)
    assert plain.step_scores is plain.step_sgd_scores is None


@on_each_device
def test_a_device_that_fetches_seldom_keeps_every_step(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps wait on a device until a fetch is due: here until the end of the run."""
    monkeypatch.setattr(step_account, "SECONDS_BETWEEN_CHECKS", 1e9)
    run = run_of(engine.attribute, device=device)
    for steps, totals in zip(kept(run), (run.scores, run.sgd_scores), strict=True):
        np.testing.assert_array_equal(summed(run, steps), totals)


@pytest.mark.parametrize(("batch_size", "steps"), [(SIZE, None), (SIZE, 7), (N, None), (3 * N, None), (1, None)])
def test_the_samples_of_each_step_are_in_the_runs_order(batch_size: int, steps: int | None) -> None:
    config = RunConfig(NET, Adam(), TRAIN, VALID, epochs=2, batch_size=batch_size, seed=4, steps=steps)
    order = [index for _, index in config.order()]
    rows = config.step_index()
    assert rows.shape == (config.length, min(batch_size, N))
    for row, index in zip(rows, order, strict=True):
        np.testing.assert_array_equal(row[: len(index)], index)
        assert (row[len(index) :] == -1).all()


@TRAINERS
def test_a_resumed_run_has_the_same_step_scores(attribute: Any, options: Any) -> None:
    snapshots: list[Snapshot] = []
    whole = run_of(attribute, on_checkpoint=lambda _, take: snapshots.append(take()), **options)
    for snapshot in snapshots[::3]:
        resumed = run_of(attribute, resume=snapshot, **options)
        for ours, theirs in zip(kept(resumed), kept(whole), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        done = int(snapshot["step"])
        for name, steps in zip(("step_scores", "step_sgd_scores"), kept(whole), strict=True):
            np.testing.assert_array_equal(snapshot[f"history/{name}"], np.nan_to_num(steps[:done]))


@pytest.mark.parametrize("attribute", [oracle.attribute, engine.attribute])
@pytest.mark.parametrize("keep", [False, True])
def test_a_state_with_and_one_without_step_scores_are_not_exchanged(attribute: Any, keep: bool) -> None:
    snapshots: list[Snapshot] = []
    run_of(attribute, keep_step_scores=keep, on_checkpoint=lambda _, take: snapshots.append(take()))
    with pytest.raises(ValueError, match=r"resume: got the names .*; needs exactly the names"):
        run_of(attribute, keep_step_scores=not keep, resume=snapshots[3])


@pytest.mark.parametrize("attribute", [oracle.attribute, engine.attribute])
def test_momentums_credit_has_no_step_scores(attribute: Any) -> None:
    with pytest.raises(
        ValueError, match=r"keep_step_scores: got True with credit 'carry'.*later steps credit a sample"
    ):
        run_of(attribute, credit="carry")


@pytest.mark.parametrize(("attribute", "growth"), [(oracle.attribute, 1e130), (engine.attribute, 1e15)])
def test_a_diverged_run_has_the_step_scores_of_the_steps_before(attribute: Any, growth: float) -> None:
    """Weight decay multiplies the weights by −`growth` in each step: the third step is beyond the dtype."""
    growing, train = Adam(lr=1.0, weight_decay=growth), Batch(TRAIN.x, np.zeros(N, np.int64))
    options: dict[str, Any] = {"slope": "frozen", "gradient": "start", "keep_step_scores": True}
    with pytest.raises(Diverged) as caught:
        attribute(Network((6, 3)), growing, train, VALID, **RUN, **options)
    run = caught.value.run
    assert caught.value.step == 3
    for steps, totals in zip(kept(run), (run.scores, run.sgd_scores), strict=True):
        assert steps.shape == run.step_index.shape == (2, SIZE)
        assert np.isfinite(steps).all()
        np.testing.assert_array_equal(summed(run, steps), totals)
