"""Runs that stop and go on: to the same bits, from every step; and runs that come upon numbers that are not finite."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_devices import on_each_device

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu import trainer
from adamshap.reference import checkpoint
from adamshap.reference.problem import Adam, Array, Batch, Diverged, Network, Progress, Run, Snapshot, batch_order

NET = Network((6, 8, 3))
RUN: dict[str, Any] = {"epochs": 2, "batch_size": 5, "seed": 1}
STEPS = 10  # of 22 samples: the last batch of an epoch holds 2


def batch(n: int, seed: int, scale: float = 1.0) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(scale * generator.standard_normal((n, 6)), generator.integers(0, 3, n))


TRAIN, VALID = batch(22, 0), batch(4, 1)


def arrays_of(run: Run) -> dict[str, Array]:
    found = {"scores": run.scores, "sgd_scores": run.sgd_scores, "seen": run.seen, "step": np.array(run.state.step)}
    found |= {name: getattr(run, name) for name in ("decay", "closed") if getattr(run, name) is not None}
    groups = {"params": run.params, "m": run.state.m, "v": run.state.v, "initial": run.initial_params}
    for group, named in {**groups, "history": run.history}.items():
        found |= {f"{group}/{name}": array for name, array in named.items()}
    return found


def assert_same(run: Run, other: Run) -> None:
    ours, theirs = arrays_of(run), arrays_of(other)
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def assert_resumes(attribute: Any, tmp_path: Any, options: dict[str, Any], every: int = 1) -> list[Snapshot]:
    snapshots: list[Snapshot] = []
    whole = attribute(NET, Adam(), TRAIN, VALID, on_checkpoint=lambda _, take: snapshots.append(take()), **options)
    assert [int(snapshot["step"]) for snapshot in snapshots] == list(range(1, STEPS + 1))
    for snapshot in snapshots[::every]:
        checkpoint.write(tmp_path / "c.npz", snapshot, "0" * checkpoint.DIGEST)
        read = checkpoint.read(tmp_path / "c.npz", "0" * checkpoint.DIGEST)
        told: list[Progress] = []
        assert_same(attribute(NET, Adam(), TRAIN, VALID, resume=read, on_step=told.append, **options), whole)
        assert [progress.step for progress in told] == list(range(int(snapshot["step"]) + 1, STEPS + 1))
    assert_same(attribute(NET, Adam(), TRAIN, VALID, **options), whole)
    return snapshots


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_validation": True, "slope": "secant", "gradient": "path"},
        {"credit": "carry", "reduction": "sum"},
        {"credit": "carry", "per_validation": True, "slope": "frozen", "gradient": "start"},
    ],
)
def test_the_oracle_goes_on_bit_by_bit(tmp_path: Any, options: Any) -> None:
    assert_resumes(oracle.attribute, tmp_path, RUN | options, every=3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options", [{}, {"micro_batch": 2, "reduction": "sum"}, {"rank": 1, "per_validation": True}, {"rank": 1}]
)
def test_the_engine_goes_on_bit_by_bit(tmp_path: Any, dtype: str, options: Any) -> None:
    snapshots = assert_resumes(engine.attribute, tmp_path, RUN | options | {"dtype": dtype, "device": "cpu"})
    bases = [name for name in snapshots[-1] if name.startswith("basis/")]
    assert bool(bases) == ("rank" in options)  # the sketch's warm bases are part of the state


def test_the_engine_goes_on_bit_by_bit_on_cupy(tmp_path: Any, cupy_on_cpu: Any) -> None:
    assert_resumes(engine.attribute, tmp_path, RUN | {"rank": 1, "device": "cuda"}, every=4)


# --- states that are refused -----------------------------------------------------------------------------------------


class Enough(Exception):
    """The step that was waited for."""


def snapshot_after(attribute: Any, step: int, net: Network = NET, train: Batch = TRAIN, **options: Any) -> Snapshot:
    kept: list[Snapshot] = []

    def stop(number: int, take: Callable[[], Snapshot]) -> None:
        if number == step:
            kept.append(take())
            raise Enough

    with np.errstate(all="ignore"), pytest.raises(Enough):
        attribute(net, Adam(), train, VALID, on_checkpoint=stop, **RUN, **options)
    return kept[0]


@pytest.mark.parametrize("attribute", [oracle.attribute, engine.attribute], ids=["oracle", "engine"])
def test_a_state_of_another_run_is_refused(attribute: Any) -> None:
    snapshot = snapshot_after(attribute, 3)
    for changed, name in (
        ({"seed": 2}, "seed"),
        ({"batch_size": 6}, "batch_size"),
        ({"slope": "sgd"}, "slope" if attribute is oracle.attribute else "question"),
    ):
        with pytest.raises(ValueError, match=f"resume: got the state of another run, which differs in .*{name}"):
            attribute(NET, Adam(), TRAIN, VALID, resume=snapshot, **(RUN | changed))
    for train, adam in ((batch(22, 5), Adam()), (TRAIN, Adam(lr=0.1))):
        with pytest.raises(ValueError, match="resume: got the state of another run"):
            attribute(NET, adam, train, VALID, resume=snapshot, **RUN)


def test_a_state_of_the_other_trainer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resume: got (the names|the state of another run)"):
        engine.attribute(NET, Adam(), TRAIN, VALID, resume=snapshot_after(oracle.attribute, 3), **RUN)


@pytest.mark.parametrize("attribute", [oracle.attribute, engine.attribute], ids=["oracle", "engine"])
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda s: 3, TypeError, "resume: got int"),
        (lambda s: {}, ValueError, "resume: got the names"),
        (lambda s: {k: a for k, a in s.items() if k != "seen"}, ValueError, "resume: got the names"),
        (lambda s: s | {"more": s["seen"]}, ValueError, "resume: got the names"),
        (lambda s: s | {"settings": np.array("{")}, ValueError, "another run, without settings"),
        (
            lambda s: s | {"step": np.array(99)},
            ValueError,
            r"resume\['step'\]: got array\(99\); needs an integer from 0",
        ),
        (lambda s: s | {"step": np.array(3.0)}, ValueError, r"resume\['step'\]"),
        (
            lambda s: s | {"step": np.array(2)},
            ValueError,
            r"resume\['history/train_loss'\]: got float64 of shape \(3,\)",
        ),
        (lambda s: s | {"seen": s["seen"][:-1]}, ValueError, r"resume\['seen'\]: got int64 of shape \(21,\)"),
        (lambda s: s | {"v/0.bias": s["v/0.bias"].astype("f2")}, ValueError, r"resume\['v/0.bias'\]: got float16"),
        (lambda s: s | {"scores": np.full(22, np.nan)}, ValueError, r"resume\['scores'\]: got values that are NaN"),
    ],
)
def test_a_state_that_is_none_is_refused(attribute: Any, change: Any, error: Any, says: str) -> None:
    snapshot = snapshot_after(attribute, 3)
    with pytest.raises(error, match=says):
        attribute(NET, Adam(), TRAIN, VALID, resume=change(snapshot), **RUN)


# --- numbers that are not finite -------------------------------------------------------------------------------------


LINEAR = Network((6, 3))  # nothing saturates: a gradient grows with its input


def broken(
    attribute: Any, net: Network, adam: Adam, train: Batch, valid: Batch = VALID, **options: Any
) -> tuple[Diverged, list[Progress]]:
    told: list[Progress] = []
    with np.errstate(all="ignore"), pytest.raises(Diverged) as caught:
        attribute(net, adam, train, valid, on_step=told.append, **RUN, **options)
    return caught.value, told


BREAKS_AT = 3
LAST_GOOD_BATCHES = [index for _, index in batch_order(TRAIN.n, **RUN)][: BREAKS_AT - 1]


def with_one_huge(value: float) -> Batch:
    """Return the training samples with one that is huge, of an unlikely class, and first in step `BREAKS_AT`."""
    huge = [index for _, index in batch_order(TRAIN.n, **RUN)][BREAKS_AT - 1][0]
    x, y = TRAIN.x.copy(), TRAIN.y.copy()
    x[huge] = value
    y[huge] = LINEAR.init(RUN["seed"])["0.weight"].sum(axis=1).argmin()
    return Batch(x, y)


CASES = [
    pytest.param(oracle.attribute, {}, 1e160, id="oracle"),
    pytest.param(engine.attribute, {"device": "cpu", "dtype": "float64"}, 1e160, id="engine-float64"),
    pytest.param(engine.attribute, {"device": "cpu", "dtype": "float32"}, 1e25, id="engine-float32"),
]


@pytest.mark.parametrize(("attribute", "options", "scale"), CASES)
def test_a_gradient_too_large_to_square_stops_the_run_at_its_step(attribute: Any, options: Any, scale: float) -> None:
    train, step = with_one_huge(scale), BREAKS_AT
    error, told = broken(attribute, LINEAR, Adam(), train, **options)
    assert (error.step, error.tensor) == (step, "square of the gradient of '0.weight'")
    assert f"got inf at step {step} of {STEPS}" in str(error)
    assert "smaller inputs" in str(error)
    assert ("dtype='float64'" in str(error)) == (options.get("dtype") == "float32")
    assert [progress.step for progress in told] == list(range(1, step))
    # All up to there is as in a run that was stopped there.
    before = snapshot_after(attribute, step - 1, net=LINEAR, train=train, **options)
    for name in ("scores", "sgd_scores", "seen"):
        np.testing.assert_array_equal(getattr(error.run, name), before[name])
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_array_equal(error.run.history[name], before[f"history/{name}"])
    assert error.run.scores.any()


@pytest.mark.parametrize(("attribute", "options", "scale"), CASES)
def test_a_loss_that_is_not_finite_stops_the_run(attribute: Any, options: Any, scale: float) -> None:
    del scale
    net = Network((6, 3), loss="mse")
    train = Batch(TRAIN.x, np.zeros((22, 3)))
    valid = Batch(VALID.x, np.full((4, 3), np.finfo(options.get("dtype", "float64")).max / 8))
    error, told = broken(attribute, net, Adam(), train, valid, **options)
    assert (error.step, error.tensor, told) == (1, "valid_loss", [])
    assert not error.run.scores.any()
    assert not error.run.seen.any()
    assert str(error).startswith("valid_loss: got inf at step 1 of 10; needs finite numbers: a smaller lr than 0.001")


@pytest.mark.parametrize(("attribute", "options", "scale"), CASES)
def test_a_carrying_run_stops_too_and_keeps_what_it_has_paid(attribute: Any, options: Any, scale: float) -> None:
    train, options = with_one_huge(scale), options | {"credit": "carry"}
    error, told = broken(attribute, LINEAR, Adam(), train, **options)
    assert (error.step, error.tensor) == (BREAKS_AT, "square of the gradient of '0.weight'")
    assert [progress.step for progress in told] == list(range(1, BREAKS_AT))
    assert error.run.seen.sum() == 5 * (BREAKS_AT - 1)
    assert np.isfinite(error.run.scores).all()
    good = np.concatenate(LAST_GOOD_BATCHES)
    assert error.run.scores[good].any()
    assert not np.delete(error.run.scores, good).any()


@pytest.mark.parametrize("name", ["on_checkpoint", "resume"])
def test_a_carrying_run_of_the_engine_has_no_checkpoints(name: str) -> None:
    given: Any = {"on_checkpoint": lambda _, take: take(), "resume": snapshot_after(engine.attribute, 1)}[name]
    with pytest.raises(ValueError, match=f"{name}: got one with credit 'carry'; needs None"):
        engine.attribute(NET, Adam(), TRAIN, VALID, credit="carry", **RUN, **{name: given})


def test_a_run_does_not_go_on_with_another_credit() -> None:
    taken = snapshot_after(oracle.attribute, 2)
    with pytest.raises(ValueError, match=r"resume: got the names .* needs exactly the names .*'history/owed/0.bias'"):
        oracle.attribute(NET, Adam(), TRAIN, VALID, credit="carry", resume=taken, **RUN)
    taken = snapshot_after(oracle.attribute, 2, credit="carry")
    with pytest.raises(ValueError, match=r"resume: got the names .* needs exactly the names"):
        oracle.attribute(NET, Adam(), TRAIN, VALID, resume=taken, **RUN)


def test_the_state_of_a_carrying_run_has_what_each_step_gave_its_own_samples() -> None:
    """The rest comes from later steps; after the first there is nothing else."""
    first = snapshot_after(oracle.attribute, 1, credit="carry")["scores"]
    alone = oracle.attribute(NET, Adam(), TRAIN, VALID, credit="carry", **RUN | {"steps": 1}).scores
    np.testing.assert_array_equal(first, alone)


@on_each_device
def test_a_learning_rate_beyond_reason_stops_the_run(device: Any) -> None:
    for attribute, options in ((engine.attribute, {"device": device}), (oracle.attribute, {})):
        error, _ = broken(attribute, NET, Adam(lr=1e308), TRAIN, **options)
        assert error.step == 1
        assert np.isfinite(error.run.scores).all()
        assert "a smaller lr than 1e+308" in str(error)


@on_each_device
def test_nothing_is_added_after_the_step_that_broke(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device has gone on when it is looked at: what it has done since counts for nothing."""
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_FETCHES", 1e9)
    train = with_one_huge(float(np.finfo(np.float32).max))
    error, told = broken(engine.attribute, LINEAR, Adam(), train, device=device)
    assert error.step in (BREAKS_AT, BREAKS_AT + 1)  # on a device, a score may show what a gradient did the step before
    assert len(told) == len(error.run.history["epoch"]) == error.step - 1
    assert error.run.seen.sum() == 5 * (error.step - 1)
    assert np.isfinite(error.run.scores).all()
    before = snapshot_after(engine.attribute, BREAKS_AT - 1, net=LINEAR, train=train, device=device)
    good = np.concatenate(LAST_GOOD_BATCHES)  # in the first epoch: no sample of these is in the step that broke
    np.testing.assert_array_equal(error.run.scores[good], before["scores"][good])
