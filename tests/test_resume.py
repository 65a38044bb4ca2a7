"""Runs that are stopped and resumed, with the same bits, from every step; and runs that diverge (non-finite values)."""

import dataclasses
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_each_device
from hypothesis import event, given, settings
from hypothesis import strategies as st

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu import step_account
from adamshap.gpu.kernels.plan import SPLIT_SLOPES
from adamshap.reference import checkpoint
from adamshap.reference.contract import (
    GRADIENTS,
    Adam,
    Array,
    Batch,
    Diverged,
    Network,
    Progress,
    Run,
    RunConfig,
    Snapshot,
    batch_order,
)
from adamshap.verify.strategies import run_configs

NET = Network((6, 8, 3))
RUN: dict[str, Any] = {"epochs": 2, "batch_size": 5, "seed": 1}
STEPS = 10  # of 22 samples: the last batch of an epoch holds 2


def batch(n: int, seed: int, scale: float = 1.0) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(scale * generator.standard_normal((n, 6)), generator.integers(0, 3, n))


TRAIN, VALID = batch(22, 0), batch(4, 1)


def arrays_of(run: Run) -> dict[str, Array]:
    found = {"scores": run.scores, "sgd_scores": run.sgd_scores, "seen": run.seen, "step": np.array(run.state.step)}
    accounts = ("decay", "closed", "truncated")
    found |= {name: getattr(run, name) for name in accounts if getattr(run, name) is not None}
    groups = {"params": run.params, "m": run.state.m, "v": run.state.v, "initial": run.initial_params}
    for group, named in {**groups, "history": run.history}.items():
        found |= {f"{group}/{name}": array for name, array in named.items()}
    return found


def assert_same(run: Run, other: Run) -> None:
    assert_equal(arrays_of(run), arrays_of(other))


def assert_equal(ours: dict[str, Array], theirs: dict[str, Array]) -> None:
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def assert_resumes(
    attribute: Any, tmp_path: Any, options: dict[str, Any], every: int = 1, adam: Adam | None = None
) -> list[Snapshot]:
    adam, snapshots = adam or Adam(), list[Snapshot]()
    whole = attribute(NET, adam, TRAIN, VALID, on_checkpoint=lambda _, take: snapshots.append(take()), **options)
    assert [int(snapshot["step"]) for snapshot in snapshots] == list(range(1, STEPS + 1))
    for snapshot in snapshots[::every]:
        checkpoint.write(tmp_path / "c.npz", snapshot, "0" * checkpoint.DIGEST)
        read = checkpoint.read(tmp_path / "c.npz", "0" * checkpoint.DIGEST)
        reports: list[Progress] = []
        assert_same(attribute(NET, adam, TRAIN, VALID, resume=read, on_step=reports.append, **options), whole)
        assert [progress.step for progress in reports] == list(range(int(snapshot["step"]) + 1, STEPS + 1))
        assert_equal(read, snapshot)  # the caller's snapshot is unchanged
    assert_same(attribute(NET, adam, TRAIN, VALID, **options), whole)
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
def test_the_oracle_resumes_bit_by_bit(tmp_path: Any, options: Any) -> None:
    assert_resumes(oracle.attribute, tmp_path, RUN | options, every=3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options", [{}, {"micro_batch": 2, "reduction": "sum"}, {"rank": 1, "per_validation": True}, {"rank": 1}]
)
def test_the_engine_resumes_bit_by_bit(tmp_path: Any, dtype: str, options: Any) -> None:
    snapshots = assert_resumes(engine.attribute, tmp_path, RUN | options | {"dtype": dtype, "device": "cpu"})
    bases = [name for name in snapshots[-1] if name.startswith("basis/")]
    assert bool(bases) == ("rank" in options)  # the sketch's warm bases are part of the state


@in_each_dtype
@pytest.mark.parametrize(
    ("beta1", "options"),
    [
        pytest.param(0.9, {"carry_window": None, "reduction": "sum"}, id="window of the whole run, two blocks"),
        pytest.param(0.95, {"slope": "secant", "gradient": "path"}, id="of one unfinished block"),
        pytest.param(0.8, {"carry_window": 1, "variance": "exact"}, id="shorter than a block, of three steps"),
        pytest.param(0.8, {"carry_window": 5, "slope": "frozen", "gradient": "start"}, id="of two blocks"),
        pytest.param(0.5, {"carry_window": 3, "slope": "tangent"}, id="of three blocks of one step"),
        pytest.param(0.0, {"slope": "linearized"}, id="without momentum"),
    ],
)
def test_the_engine_resumes_a_carrying_run(tmp_path: Any, dtype: str, beta1: float, options: Any) -> None:
    """The run resumes from every step: within a block, at its end, and after the window's oldest steps were paid."""
    options = RUN | options | {"credit": "carry", "dtype": dtype, "device": "cpu"}
    adam = Adam(0.01, (beta1, 0.99), weight_decay=0.1)
    snapshots = assert_resumes(engine.attribute, tmp_path, options, adam=adam)
    lost = snapshots[-1]["truncated"].any()
    assert lost == (options.get("carry_window") is not None)


def test_the_engine_resumes_bit_by_bit_on_cupy(tmp_path: Any, cupy_on_cpu: Any) -> None:
    assert_resumes(engine.attribute, tmp_path, RUN | {"rank": 1, "device": "cuda"}, every=4)
    carrying = RUN | {"credit": "carry", "carry_window": 1, "device": "cuda"}
    assert_resumes(engine.attribute, tmp_path, carrying, every=4, adam=Adam(betas=(0.8, 0.99)))


@in_each_dtype
@given(
    config=run_configs(),
    beta1=st.none() | st.floats(0.1, 0.75),  # small enough for a short run to be longer than its window
    window=st.none() | st.integers(1, 3),
    slope=st.sampled_from(SPLIT_SLOPES),
    gradient=st.sampled_from(GRADIENTS),
    share=st.floats(0, 1),
)
@settings(max_examples=25)
def test_a_carrying_run_resumes_from_any_step_through_the_same_states(
    dtype: Any, config: RunConfig, beta1: float | None, window: int | None, slope: Any, gradient: Any, share: float
) -> None:
    betas = config.adam.betas if beta1 is None else (beta1, 0.99)
    adam = dataclasses.replace(config.adam, betas=betas, eps=max(config.adam.eps, 1e-3))  # no denominator is 0
    config = dataclasses.replace(config, adam=adam, epochs=3)
    options: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    options |= {"credit": "carry", "carry_window": window, "slope": slope, "gradient": gradient, "dtype": dtype}
    states: list[Snapshot] = []
    whole = engine.attribute(**options, device="cpu")
    engine.attribute(**options, device="cpu", on_checkpoint=lambda _, take: states.append(take()))
    stop = round(share * (len(states) - 1))
    event("truncated" if whole.truncated.any() else "all paid")
    later: list[Snapshot] = []
    run = engine.attribute(
        **options, device="cpu", resume=states[stop], on_checkpoint=lambda _, take: later.append(take())
    )
    assert_same(run, whole)
    for ours, theirs in zip(later, states[stop + 1 :], strict=True):
        assert_equal(ours, theirs)


@in_each_dtype
def test_the_scores_in_a_carrying_state_are_those_of_the_run_that_ends_there(dtype: Any) -> None:
    """Except for the credit that its steps leave open."""
    options: dict[str, Any] = {"credit": "carry", "dtype": dtype, "device": "cpu"}
    for step in (6, 8, STEPS):  # with blocks of six steps, as in the whole run
        scores = snapshot_after(engine.attribute, step, **options)["scores"].copy()
        ended = engine.attribute(NET, Adam(), TRAIN, VALID, **RUN | {"steps": step}, **options)
        batches = [index for _, index in batch_order(TRAIN.n, **RUN)]
        for index, closed in zip(batches[:step], ended.closed, strict=True):
            scores[index] += closed / len(index)
        np.testing.assert_array_equal(scores, ended.scores)


def test_a_state_copies_the_window_once() -> None:
    generator = np.random.default_rng(0)
    train = Batch(generator.standard_normal((400, 4)), generator.integers(0, 3, 400))
    peaks: list[tuple[int, int]] = []

    def take_it(number: int, take: Callable[[], Snapshot]) -> None:
        if number >= 8:
            tracemalloc.start()
            taken = take()
            peaks.append((tracemalloc.get_traced_memory()[1], sum(array.nbytes for array in taken.values())))
            tracemalloc.stop()

    net, valid = Network((4, 64, 64, 3)), train.take(np.arange(8))
    engine.attribute(net, Adam(), train, valid, batch_size=50, epochs=2, credit="carry", on_checkpoint=take_it)
    assert len(peaks) == 9
    for peak, held in peaks[1:]:  # the first allocates the buffers
        assert held <= peak < 1.5 * held


# --- states that are refused -----------------------------------------------------------------------------------------


class Enough(Exception):
    """Stops a run at a given step."""


def snapshot_after(
    attribute: Any, step: int, net: Network = NET, train: Batch = TRAIN, adam: Adam | None = None, **options: Any
) -> Snapshot:
    kept: list[Snapshot] = []

    def stop(number: int, take: Callable[[], Snapshot]) -> None:
        if number == step:
            kept.append(take())
            raise Enough

    with np.errstate(all="ignore"), pytest.raises(Enough):
        attribute(net, adam or Adam(), train, VALID, on_checkpoint=stop, **RUN, **options)
    return kept[0]


@pytest.mark.parametrize("attribute", [oracle.attribute, engine.attribute], ids=["oracle", "engine"])
def test_a_state_of_another_run_is_refused(attribute: Any) -> None:
    snapshot = snapshot_after(attribute, 3)
    for changed, name in (
        ({"seed": 2}, "seed"),
        ({"batch_size": 6}, "batch_size"),
        ({"slope": "sgd"}, "estimator.slope"),
    ):
        with pytest.raises(ValueError, match=f"resume: got the state of another run, which differs in .*{name}"):
            attribute(NET, Adam(), TRAIN, VALID, resume=snapshot, **(RUN | changed))
    for train, adam in ((batch(22, 5), Adam()), (TRAIN, Adam(lr=0.1))):
        with pytest.raises(ValueError, match="resume: got the state of another run"):
            attribute(NET, adam, train, VALID, resume=snapshot, **RUN)


@pytest.mark.parametrize("changed", [{"micro_batch": 3}, {"micro_batch": None}, {"rank": 3}, {"variance": "rank_one"}])
def test_a_state_of_a_run_with_other_options_of_the_engine_is_refused(changed: dict[str, Any]) -> None:
    (name,), options = changed, {"micro_batch": 4, "rank": 2}
    snapshot = snapshot_after(engine.attribute, 3, **options)
    with pytest.raises(ValueError, match=f"resume: got the state of another run, which differs in .*{name}"):
        engine.attribute(NET, Adam(), TRAIN, VALID, resume=snapshot, **(RUN | options | changed))


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
def test_an_invalid_state_is_refused(attribute: Any, change: Any, error: Any, says: str) -> None:
    snapshot = snapshot_after(attribute, 3)
    with pytest.raises(error, match=says):
        attribute(NET, Adam(), TRAIN, VALID, resume=change(snapshot), **RUN)


# --- non-finite values -----------------------------------------------------------------------------------------------


LINEAR = Network((6, 3))  # no saturation: a gradient grows with its input


def broken(
    attribute: Any, net: Network, adam: Adam, train: Batch, valid: Batch = VALID, **options: Any
) -> tuple[Diverged, list[Progress]]:
    reports: list[Progress] = []
    with np.errstate(all="ignore"), pytest.raises(Diverged) as caught:
        attribute(net, adam, train, valid, on_step=reports.append, **RUN, **options)
    return caught.value, reports


BREAKS_AT = 3
LAST_GOOD_BATCHES = [index for _, index in batch_order(TRAIN.n, **RUN)][: BREAKS_AT - 1]


def with_one_huge(value: float) -> Batch:
    """Return the training samples, one of them huge with an unlikely class, first used in step `BREAKS_AT`."""
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
    error, reports = broken(attribute, LINEAR, Adam(), train, **options)
    assert (error.step, error.tensor) == (step, "square of the gradient of '0.weight'")
    assert f"got inf at step {step} of {STEPS}" in str(error)
    assert "smaller inputs" in str(error)
    assert ("dtype='float64'" in str(error)) == (options.get("dtype") == "float32")
    assert [progress.step for progress in reports] == list(range(1, step))
    # Everything up to that point equals a run stopped there.
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
    error, reports = broken(attribute, net, Adam(), train, valid, **options)
    assert (error.step, error.tensor, reports) == (1, "valid_loss", [])
    assert not error.run.scores.any()
    assert not error.run.seen.any()
    assert str(error).startswith("valid_loss: got inf at step 1 of 10; needs finite numbers: a smaller lr than 0.001")


@pytest.mark.parametrize(("attribute", "options", "scale"), CASES)
def test_a_carrying_run_stops_too_and_keeps_what_it_has_paid(attribute: Any, options: Any, scale: float) -> None:
    train, options = with_one_huge(scale), options | {"credit": "carry"}
    error, reports = broken(attribute, LINEAR, Adam(), train, **options)
    assert (error.step, error.tensor) == (BREAKS_AT, "square of the gradient of '0.weight'")
    assert [progress.step for progress in reports] == list(range(1, BREAKS_AT))
    assert error.run.seen.sum() == 5 * (BREAKS_AT - 1)
    assert np.isfinite(error.run.scores).all()
    good = np.concatenate(LAST_GOOD_BATCHES)
    assert error.run.scores[good].any()
    assert not np.delete(error.run.scores, good).any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {k: a for k, a in s.items() if k != "exposed"}, r"resume: got the names .* needs .*'exposed'"),
        (lambda s: s | {"window/b/1": s["window/b/1"][1:]}, r"\['window/b/1'\]: got float32 of shape \(9, 5, 3\)"),
        (lambda s: s | {"window/a/1": s["window/a/1"].astype(float)}, r"\['window/a/1'\]: got float64 of shape"),
        (
            lambda s: s | {"window/owed/0.bias": np.full_like(s["window/owed/0.bias"], np.inf)},
            r"\['window/owed/0.bias'\]: got values that are NaN",
        ),
        (lambda s: s | {"history/own": s["history/own"][:-1]}, r"resume\['history/own'\]: got float64 of shape \(3,\)"),
        (lambda s: s | {"paid": np.full(22, np.nan)}, r"resume\['paid'\]: got values that are NaN or infinite"),
    ],
)
def test_an_invalid_state_of_a_carrying_run_is_refused(change: Any, says: str) -> None:
    options: dict[str, Any] = {"credit": "carry", "device": "cpu", "dtype": "float32"}
    snapshot = snapshot_after(engine.attribute, 4, **options)
    with pytest.raises(ValueError, match=says):
        engine.attribute(NET, Adam(), TRAIN, VALID, resume=change(snapshot), **RUN, **options)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"carry_window": 3}, "differs in carry_window"),
        ({"seed": 2}, "differs in seed"),
        ({"gradient": "path"}, "differs in estimator.gradient"),
    ],
)
def test_a_carrying_run_resumes_with_its_own_window_only(changed: Any, says: str) -> None:
    options: dict[str, Any] = RUN | {"credit": "carry", "device": "cpu", "carry_window": 9}
    states: list[Snapshot] = []
    engine.attribute(NET, Adam(), TRAIN, VALID, on_checkpoint=lambda _, take: states.append(take()), **options)
    with pytest.raises(ValueError, match=rf"resume: got the state of another run, which {says};"):
        engine.attribute(NET, Adam(), TRAIN, VALID, resume=states[4], **(options | changed))


@pytest.mark.parametrize(
    ("attribute", "owed"), [(oracle.attribute, "history/owed/0.bias"), (engine.attribute, "window/owed/0.bias")]
)
def test_a_run_does_not_resume_with_another_credit(attribute: Any, owed: str) -> None:
    taken = snapshot_after(attribute, 2)
    with pytest.raises(ValueError, match=f"resume: got the names .* needs exactly the names .*'{owed}'"):
        attribute(NET, Adam(), TRAIN, VALID, credit="carry", resume=taken, **RUN)
    taken = snapshot_after(attribute, 2, credit="carry")
    with pytest.raises(ValueError, match=r"resume: got the names .* needs exactly the names"):
        attribute(NET, Adam(), TRAIN, VALID, resume=taken, **RUN)


def test_the_state_of_a_carrying_run_has_each_steps_credit_for_its_own_samples() -> None:
    """Other credit comes from later steps, so after the first step these are all scores."""
    first = snapshot_after(oracle.attribute, 1, credit="carry")["scores"]
    alone = oracle.attribute(NET, Adam(), TRAIN, VALID, credit="carry", **RUN | {"steps": 1}).scores
    np.testing.assert_array_equal(first, alone)


@on_each_device
def test_a_learning_rate_beyond_reason_stops_the_run(device: Any) -> None:
    cases: Any = ((engine.attribute, 3e38, {"device": device}), (oracle.attribute, 1e308, {}))
    for attribute, lr, options in cases:
        error, _ = broken(attribute, NET, Adam(lr=lr), TRAIN, **options)
        assert error.step == 1
        assert np.isfinite(error.run.scores).all()
        assert f"a smaller lr than {lr}" in str(error)


@on_each_device
def test_nothing_is_added_after_the_step_that_diverged(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device continues until its values are fetched: results after the bad step must be discarded."""
    monkeypatch.setattr(step_account, "SECONDS_BETWEEN_FETCHES", 1e9)
    train = with_one_huge(float(np.finfo(np.float32).max))
    error, reports = broken(engine.attribute, LINEAR, Adam(), train, device=device)
    assert error.step in (BREAKS_AT, BREAKS_AT + 1)  # on a device, a score may show it one step later
    assert len(reports) == len(error.run.history["epoch"]) == error.step - 1
    assert error.run.seen.sum() == 5 * (error.step - 1)
    assert np.isfinite(error.run.scores).all()
    before = snapshot_after(engine.attribute, BREAKS_AT - 1, net=LINEAR, train=train, device=device)
    good = np.concatenate(LAST_GOOD_BATCHES)  # in the first epoch: none of these samples is in the bad step
    np.testing.assert_array_equal(error.run.scores[good], before["scores"][good])


@pytest.mark.parametrize("credit", ["step", "carry"])
@pytest.mark.parametrize("steps", [2, None])
@pytest.mark.parametrize(
    ("attribute", "options", "growth"),
    [
        pytest.param(oracle.attribute, {}, 1e180, id="oracle"),
        pytest.param(engine.attribute, {"device": "cpu", "dtype": "float64"}, 1e180, id="engine-float64"),
        pytest.param(engine.attribute, {"device": "cpu", "dtype": "float32"}, 1e23, id="engine-float32"),
    ],
)
def test_a_diverged_run_has_the_results_before_the_step(
    attribute: Any, options: Any, growth: float, steps: int | None, credit: str
) -> None:
    """The run diverges in the middle, or at its last step.

    Weights grow by a factor of −`growth` per step, beyond the dtype in the second; gradients and losses stay finite.
    """
    growing = Adam(lr=1.0, weight_decay=growth)
    options = options | {"credit": credit, "slope": "frozen", "gradient": "start"}
    train = Batch(TRAIN.x, np.zeros(22, np.int64))
    error, reports = broken(attribute, LINEAR, growing, train, steps=steps, **options)
    done = error.step - 1
    assert (error.step, error.tensor) == (2, "params['0.weight']")
    assert [progress.step for progress in reports] == list(range(1, error.step))
    batches = [index for _, index in batch_order(TRAIN.n, **RUN)][:done]
    seen = sum((np.isin(np.arange(TRAIN.n), index) for index in batches), np.zeros(TRAIN.n, int))
    np.testing.assert_array_equal(error.run.seen, seen)
    assert not error.run.scores[seen == 0].any()
    assert not error.run.sgd_scores[seen == 0].any()
    accounts = [error.run.scores, error.run.sgd_scores, *error.run.history.values()]
    assert all(np.isfinite(array).all() for array in accounts)
    assert {len(array) for array in error.run.history.values()} == {done}
    assert error.run.state.step == error.step
    if error.run.decay is not None:
        assert len(error.run.decay) == done
        assert np.isfinite(error.run.decay).all()
    if done:
        whole = snapshot_after(attribute, done, net=LINEAR, adam=growing, train=train, **options)
        np.testing.assert_array_equal(error.run.sgd_scores, whole["sgd_scores"])
        if credit == "step":
            np.testing.assert_array_equal(error.run.scores, whole["scores"])


@pytest.mark.parametrize("steps", [1, 2, 3])
@on_each_device
def test_a_carrying_run_whose_final_loss_overflows_does_not_return(device: Any, steps: int) -> None:
    """The account closes with the loss after the last step; without it, that step has no scores."""
    net = Network((6, 3), loss="mse")
    train, valid = (Batch(given.x, np.zeros((given.n, 3))) for given in (TRAIN, VALID))
    options: dict[str, Any] = {"credit": "carry", "slope": "frozen", "gradient": "start", "steps": steps}
    for attribute, lr, here in ((engine.attribute, 1e25, {"device": device}), (oracle.attribute, 1e200, {})):
        with np.errstate(all="ignore"), pytest.raises(Diverged) as caught:
            attribute(net, Adam(lr=lr), train, valid, **RUN, **options, **here)
        error = caught.value
        assert error.run.seen.sum() == 5 * (error.step - 1)
        assert np.isfinite(error.run.scores).all()
        assert len(error.run.history["epoch"]) == error.step - 1
