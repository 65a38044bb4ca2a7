"""Runs with validation gradients kept for some steps (`validation_every`), by oracle and engine."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_each_device
from hypothesis import given, settings
from hypothesis import strategies as st

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.reference import models, slopes
from adamshap.reference.contract import (
    SLOPES,
    TWO_TERM,
    Adam,
    AdamState,
    Array,
    Batch,
    Checkpointer,
    Network,
    Progress,
    Run,
    RunConfig,
    Snapshot,
    Step,
)
from adamshap.verify.run_tolerance import run_conditioning
from adamshap.verify.strategies import run_configs
from adamshap.verify.tolerance import assert_within, rounding

NET, STEPS = Network((6, 8, 3)), 10
RUN: dict[str, Any] = {"epochs": 2, "batch_size": 5, "seed": 1}
CPU = {"device": "cpu", "dtype": "float64"}


def batch(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.standard_normal((n, 6)), generator.integers(0, 3, n))


TRAIN, VALID = batch(22, 0), batch(4, 1)


def run_of(attribute: Any, **options: Any) -> Run:
    run: Run = attribute(NET, Adam(0.01), TRAIN, VALID, **RUN | options)
    return run


def arrays_of(run: Run) -> list[Array]:
    of_sgd = run.sgd_scores if np.isfinite(run.sgd_scores).all() else np.zeros_like(run.scores)
    return [run.scores, of_sgd, run.history["valid_loss"][np.isfinite(run.history["valid_loss"])]]


BOTH = pytest.mark.parametrize(
    "attribute", [pytest.param(oracle.attribute, id="oracle"), pytest.param(engine.attribute, id="engine")]
)


# --- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [2, 3, 4])
def test_a_score_has_the_gradient_of_the_first_step_of_its_interval(every: int) -> None:
    run = run_of(oracle.attribute, slope="secant", gradient="start", validation_every=every, keep_step_scores=True)
    params, adam, starts = NET.init(RUN["seed"]), Adam(0.01), []
    state = AdamState.zeros(params)
    for t, index in enumerate(run.step_index, start=1):
        starts.append(models.loss_gradient(NET, params, VALID))
        gamma = starts[every * ((t - 1) // every)]
        step = Step(NET, params, adam, state, TRAIN.take(index[index >= 0]), VALID)
        x = models.sample_gradients(step)
        g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
        S = slopes.step_slopes(step, "secant", x, g, (4, 4))
        for slope, scores in ((S, run.step_scores), (dict.fromkeys(S, 0.01), run.step_sgd_scores)):
            terms = [(x_i * (gamma[name] * slope[name])).reshape(step.n, -1) for name, x_i in x.items()]
            every_term = np.concatenate(terms, axis=1)
            bound = rounding(np.abs(every_term).sum(axis=1), every_term.shape[1])
            assert_within(scores[t - 1][: step.n], every_term.sum(axis=1), bound, "scores")
        params, state = oracle.update(step)


@BOTH
@pytest.mark.parametrize("gradient", ["start", "midpoint"])
def test_an_interval_as_long_as_the_run_keeps_the_gradient_of_its_first_step(attribute: Any, gradient: str) -> None:
    options: dict[str, Any] = {"gradient": gradient, "keep_step_scores": True}
    own, kept = run_of(attribute, **options), run_of(attribute, **options, validation_every=STEPS)
    np.testing.assert_array_equal(kept.step_scores[0], own.step_scores[0])
    assert not np.allclose(kept.step_scores[1], own.step_scores[1], rtol=1e-6)
    longer = run_of(attribute, **options, validation_every=3 * STEPS)
    np.testing.assert_array_equal(longer.scores, kept.scores)


@on_each_device
@in_each_dtype
@given(
    config=run_configs(),
    every=st.integers(1, 6),
    slope=st.sampled_from((*SLOPES, TWO_TERM)),
    gradient=st.sampled_from(("midpoint", "start")),
    per_validation=st.booleans(),
    with_sgd=st.booleans(),
    micro_batch=st.none() | st.integers(1, 3),
)
@settings(max_examples=8)
def test_a_run_is_the_oracles(
    device: Any,
    dtype: Any,
    config: RunConfig,
    every: int,
    slope: Any,
    gradient: Any,
    per_validation: bool,
    with_sgd: bool,
    micro_batch: int | None,
) -> None:
    # Without kinks, on different sides of which the two runs might fall in float32.
    config = dataclasses.replace(config, adam=dataclasses.replace(config.adam, eps=max(config.adam.eps, 1e-3)))
    options: dict[str, Any] = {
        "slope": slope,
        "gradient": gradient,
        "per_validation": per_validation,
        "with_sgd": with_sgd,
        "validation_every": every,
    }

    def answer(near: RunConfig) -> list[Array]:
        fields = {field.name: getattr(near, field.name) for field in dataclasses.fields(near)}
        return arrays_of(oracle.attribute(**fields, **options))

    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    got = engine.attribute(**fields, **options, micro_batch=micro_batch, device=device, dtype=dtype)
    own = config.train.n * config.length
    for name, ours, theirs, close in zip(
        ("scores", "sgd_scores", "valid_loss"),
        arrays_of(got),
        answer(config),
        run_conditioning(answer, config, dtype),
        strict=True,
    ):
        assert_within(ours, theirs, close + rounding(np.abs(theirs).max(initial=0), own, dtype), name)


# --- what is not computed --------------------------------------------------------------------------------------------


@BOTH
def test_the_other_steps_have_no_validation_loss(attribute: Any) -> None:
    reports: list[Progress] = []
    own, kept = run_of(attribute), run_of(attribute, validation_every=4, on_step=reports.append)
    known = np.arange(STEPS) % 4 == 0
    losses = np.where(known, own.history["valid_loss"], math.nan)
    np.testing.assert_array_equal(kept.history["valid_loss"], losses)
    np.testing.assert_array_equal([report.valid_loss for report in reports], losses)
    np.testing.assert_array_equal(kept.history["train_loss"], own.history["train_loss"])


@pytest.mark.parametrize("options", [{}, {"with_sgd": False}, {"gradient": "start"}, {"per_validation": True}])
def test_the_engine_runs_the_validation_samples_once_in_an_interval(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    for module, name in (("step", "at_point"), ("forward", "_run_together"), ("step_account", "mean_loss")):
        counted(f"adamshap.gpu.{module}.{name}", passes, monkeypatch)
    run_of(engine.attribute, **CPU, **options)
    of_all = len(passes)
    passes.clear()
    run_of(engine.attribute, **CPU, **options, validation_every=5)
    assert len(passes) == of_all / 5 > 0


def counted(name: str, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every call of a function noted."""
    module, _, own = name.rpartition(".")
    function = getattr(__import__(module, fromlist=[own]), own)

    def noting(*given: Any, **options: Any) -> Any:
        calls.append(1)
        return function(*given, **options)

    monkeypatch.setattr(name, noting)


def test_the_figure_shows_the_losses_that_are_known() -> None:
    pytest.importorskip("matplotlib")
    run = run_of(engine.attribute, **CPU, validation_every=4)
    drawn = run.plot().axes[2].lines[1]
    np.testing.assert_array_equal(drawn.get_xdata(), [1, 5, 9])
    assert np.isfinite(drawn.get_ydata()).all()


# --- states ----------------------------------------------------------------------------------------------------------

STATES = [
    pytest.param(oracle.attribute, {}, id="oracle"),
    pytest.param(oracle.attribute, {"per_validation": True, "slope": "two_term"}, id="oracle, each"),
    pytest.param(engine.attribute, CPU, id="engine"),
    pytest.param(engine.attribute, CPU | {"rank": 1, "dtype": "float32"}, id="engine, rank 1"),
    pytest.param(engine.attribute, CPU | {"per_validation": True, "micro_batch": 2}, id="engine, each"),
    pytest.param(engine.attribute, CPU | {"contraction": "forward", "slope": "secant"}, id="engine, forward"),
    pytest.param(engine.attribute, CPU | {"gradient": "start", "with_sgd": False}, id="engine, start"),
]


def appending(snapshots: list[Snapshot]) -> Checkpointer:
    """Return a function for `on_checkpoint` that keeps each state."""
    return lambda _, take: snapshots.append(take())


def assert_resumes(attribute: Any, options: dict[str, Any]) -> None:
    snapshots: list[Snapshot] = []
    whole = run_of(attribute, **options, on_checkpoint=appending(snapshots))
    assert len(snapshots) == STEPS
    for number, snapshot in enumerate(snapshots):
        later: list[Snapshot] = []
        run = run_of(attribute, **options, resume=snapshot, on_checkpoint=appending(later))
        np.testing.assert_array_equal(run.scores, whole.scores)
        np.testing.assert_array_equal(run.sgd_scores, whole.sgd_scores)
        np.testing.assert_array_equal(run.history["valid_loss"], whole.history["valid_loss"])
        for ours, theirs in zip(later, snapshots[number + 1 :], strict=True):
            assert list(ours) == list(theirs)
            for name, array in ours.items():
                np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.parametrize(("attribute", "options"), STATES)
def test_a_run_resumes_bit_by_bit_from_every_step(attribute: Any, options: dict[str, Any]) -> None:
    assert_resumes(attribute, options | {"validation_every": 3})


def test_a_run_on_cupy_resumes_bit_by_bit(cupy_on_cpu: Any) -> None:
    assert_resumes(engine.attribute, {"rank": 1, "device": "cuda", "validation_every": 4})


@BOTH
def test_a_state_of_another_interval_is_refused(attribute: Any) -> None:
    snapshots: list[Snapshot] = []
    run_of(attribute, validation_every=3, on_checkpoint=appending(snapshots))
    with pytest.raises(ValueError, match="resume: got the state of another run, which differs in validation_every"):
        run_of(attribute, validation_every=4, resume=snapshots[4])
    with pytest.raises(ValueError, match="resume: got the names"):
        run_of(attribute, resume=snapshots[4])


@BOTH
def test_a_state_of_single_steps_is_that_of_runs_without_the_option(attribute: Any) -> None:
    snapshots: list[Snapshot] = []
    run_of(attribute, validation_every=1, on_checkpoint=appending(snapshots))
    assert "validation_every" not in str(snapshots[0]["settings"])
    assert not any(name.startswith("valid") for name in snapshots[0])


# --- refusals --------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"validation_every": 0}, ValueError, "validation_every: got 0; needs an integer of at least 1"),
        ({"validation_every": 2.0}, TypeError, r"validation_every: got 2\.0; needs an integer of at least 1"),
        (
            {"validation_every": 2, "gradient": "path"},
            ValueError,
            "validation_every: got 2 with gradient 'path'; needs 1, or gradient 'midpoint'",
        ),
        (
            {"validation_every": 2, "credit": "carry"},
            ValueError,
            "validation_every: got 2 with credit 'carry'; needs 1, or credit 'step'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(attribute: Any, options: dict[str, Any], error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        run_of(attribute, **options)
