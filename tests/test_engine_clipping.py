"""Clipping by the global norm in the engine: steps, scores, games and runs against the oracle's."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_devices import DEVICES, assert_scores, in_each_dtype, on_each_device

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu.arrays import BatchGradient
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.case import Case
from adamshap.gpu.clipping import clip, multiply
from adamshap.gpu.layers import context_for
from adamshap.gpu.step import attribute_step
from adamshap.reference import models
from adamshap.reference.contract import (
    SCORE_SLOPES,
    Adam,
    AdamGroups,
    AdamState,
    Array,
    Batch,
    Clipped,
    Diverged,
    Estimator,
    Network,
    Optimiser,
    Schedule,
    Step,
)
from adamshap.verify.implementation import Query
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.tolerance import assert_within, rounding

NET, N, N_VAL = Network((4, 6, 3), "tanh"), 9, 4
PLAIN = Adam(0.02, (0.9, 0.99), 1e-4, 1e-8, weight_decay=0.1)
GROUPS = AdamGroups((("*.bias", Adam(0.05, (0.8, 0.9), 1e-3)),), PLAIN)
TIGHT = 0.05
"""A norm that every gradient here exceeds."""
CLIPPED = Clipped(Schedule(GROUPS, "linear", steps=40), TIGHT)
RUN: dict[str, Any] = {"epochs": 3, "batch_size": 4, "gradient": "path"}


def data() -> tuple[Batch, Batch]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N + N_VAL, 4))
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    return Batch(x[:N], y[:N]), Batch(x[N:], y[N:])


def step(adam: Optimiser, **more: Any) -> Step:
    generator, params = np.random.default_rng(1), NET.init(2)
    m = {name: 0.02 * generator.standard_normal(p.shape) for name, p in params.items()}
    v = {name: 4e-4 * generator.chisquare(3, p.shape) for name, p in params.items()}
    return Step(NET, params, adam, AdamState(3, m, v), *data(), **more)


def factor_of(one: Step) -> float:
    assert isinstance(one.adam, Clipped)
    x = models.unclipped_gradients(one)
    return models.clip_factor(one.adam, {name: x_i.sum(axis=0) for name, x_i in x.items()})


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("gradient", ["start", "midpoint"])
@pytest.mark.parametrize("slope", SCORE_SLOPES)
def test_scores_are_the_oracles(device: Any, dtype: Any, slope: Any, gradient: Any) -> None:
    one = step(CLIPPED)
    assert factor_of(one) < 0.5
    got = engine.scores(one, slope, gradient, device=device, dtype=dtype)
    assert_scores(got, one, dtype, slope=slope, gradient=gradient)
    in_chunks = engine.scores(one, slope, gradient, micro_batch=4, device=device, dtype=dtype)
    assert_scores(in_chunks, one, dtype, slope=slope, gradient=gradient)


@in_each_dtype
@pytest.mark.parametrize("options", [{}, {"micro_batch": 4}, {"per_validation": True}])
def test_scores_by_forward_mode_are_clipped_too(dtype: Any, options: dict[str, Any]) -> None:
    one = step(CLIPPED)
    got = engine.scores(one, "secant", **options, contraction="forward", device="cpu", dtype=dtype)
    options = {name: value for name, value in options.items() if name != "micro_batch"}
    assert_scores(got, one, dtype, slope="secant", **options)


@in_each_dtype
@pytest.mark.parametrize("options", [{"per_validation": True}, {"efficient": True}, {"gradient": "path"}])
@pytest.mark.parametrize("slope", ["random_order", "two_term"])
def test_options_of_scores_are_the_oracles(dtype: Any, slope: Any, options: dict[str, Any]) -> None:
    one = step(replace(CLIPPED, eps=0.0), reduction="sum")
    got = engine.scores(one, slope, **options, device="cpu", dtype=dtype)
    assert_scores(got, one, dtype, slope=slope, **options)


@on_each_device
@pytest.mark.parametrize("options", [{"rank": 2}, {"variance": "rank_one"}, {"slope": "two_term", "rank": None}])
def test_a_clipped_step_is_that_of_samples_that_weigh_c_times_as_much(device: Any, options: dict[str, Any]) -> None:
    """Also for what the oracle has not: sketches, and norms of rank one."""
    one = step(CLIPPED)
    estimator = Estimator(**{"slope": "random_order", **options})

    def scored(adam: Optimiser, part: float) -> tuple[Array, Array]:
        case = Case.of(replace(one, adam=adam), device, "float64")
        host = case.context.backend.host
        with case.context.at_work():
            got = attribute_step(
                case.context, case.adam, case.state, case.batch, part / N, estimator, case.fresh(), with_sgd=True
            )
        return np.array(host(got.scores)), np.array(host(got.sgd_scores))

    for ours, theirs in zip(scored(CLIPPED, 1.0), scored(CLIPPED.adam, factor_of(one)), strict=True):
        assert_within(ours, theirs, rounding(np.abs(theirs).max(), 1000), "scores")


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("norm", [TIGHT, 1e3])
def test_steps_and_influence_are_the_oracles(device: Any, dtype: Any, norm: float) -> None:
    one, query, influence = step(replace(CLIPPED, norm=norm)), Query("update"), Query("influence")
    params, state = engine.update(one, device=device, dtype=dtype)
    wanted, close = expected(one, query), bounds(one, query, dtype)
    for group, arrays in (("params", params), ("m", state.m), ("v", state.v)):
        for name, array in arrays.items():
            assert_within(array, wanted[f"{group}.{name}"], close[f"{group}.{name}"], f"{group} {name}")
    values = engine.influence(one, device=device, dtype=dtype)
    assert_within(values, expected(one, influence)["values"], bounds(one, influence, dtype)["values"], "influence")


@on_each_device
@pytest.mark.parametrize("clip_each", [False, True])
def test_games_hold_the_factor_or_clip_each_coalition(device: Any, clip_each: bool) -> None:
    one, nobody = step(CLIPPED), np.zeros(N, bool)
    for coalition in (nobody, np.arange(N) < 2, ~nobody):
        got = engine.utility(one, coalition, clip_each=clip_each, device=device, dtype="float64")
        wanted = oracle.utility(one, coalition, clip_each=clip_each)
        assert_within(got, wanted, rounding(3.0, 1000), "utility")
    values = []
    for loss in ("exact", "first_order"):
        got, wanted = (
            module.marginals(one, "last", loss, clip_each=clip_each, **options)  # type: ignore[operator]
            for module, options in ((engine, {"device": device, "dtype": "float64"}), (oracle, {}))
        )
        assert_within(got.values, wanted.values, rounding(3.0, 1000), loss)
        assert_within((got.empty, got.total), (wanted.empty, wanted.total), rounding(3.0, 1000), loss)
        values.append(got.values)
    other = oracle.marginals(one, "last", clip_each=not clip_each).values
    assert np.abs(values[0] - other).max() > 1e-5  # the two games differ here


@on_each_device
@in_each_dtype
@pytest.mark.parametrize(("credit", "slope"), [("step", "random_order"), ("carry", "secant"), ("carry", "frozen")])
def test_runs_are_the_oracles(device: Any, dtype: Any, credit: Any, slope: Any) -> None:
    """The norm is exceeded at some steps, not at all, and the momenta of the two β1 have windows of their own."""
    adam = replace(CLIPPED, norm=0.33)
    options = {**RUN, "credit": credit, "slope": slope}
    wanted = oracle.attribute(NET, adam, *data(), **options)
    if credit == "carry":
        options["carry_window"] = 20
    got = engine.attribute(NET, adam, *data(), **options, device=device, dtype=dtype)
    unclipped = oracle.attribute(NET, adam.adam, *data(), **RUN)
    assert np.abs(unclipped.params["0.weight"] - wanted.params["0.weight"]).max() > 1e-3
    for name in ("scores", "sgd_scores", "decay", "closed"):
        ours, theirs = getattr(got, name), getattr(wanted, name)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            scale = np.abs(wanted.scores).max() if name == "closed" else np.abs(theirs).max()
            assert_within(ours, theirs, rounding(scale, 300, dtype), name)


@on_each_device
@pytest.mark.parametrize("options", [{"micro_batch": 3}, {"per_validation": True}, {"rank": 2}])
def test_options_of_runs_do_not_change_the_clipping(device: Any, options: dict[str, Any]) -> None:
    adam = replace(CLIPPED, norm=0.33)
    got, plain = (
        engine.attribute(NET, adam, *data(), **RUN, **some, device=device, dtype="float64") for some in (options, {})
    )
    for name, p in got.params.items():
        assert_within(p, plain.params[name], rounding(np.abs(plain.params[name]).max(), 100), name)
    scores = got.scores.mean(axis=1) if got.scores.ndim == 2 else got.scores
    close = 0.05 if "rank" in options else 1e-11
    assert np.abs(scores - plain.scores).max() < close * np.abs(plain.scores).max()


@in_each_dtype
@pytest.mark.parametrize("credit", ["step", "carry"])
def test_a_run_resumes_with_the_same_bits(dtype: Any, credit: Any) -> None:
    kept: list[Any] = []
    adam = replace(CLIPPED, norm=0.33)
    options: dict[str, Any] = RUN | {"credit": credit, "device": "cpu", "dtype": dtype}
    if credit == "carry":
        options["carry_window"] = 2
    whole = engine.attribute(NET, adam, *data(), **options, on_checkpoint=lambda done, take: kept.append(take()))
    for snapshot in kept[:-1:2]:
        resumed = engine.attribute(NET, adam, *data(), **options, resume=snapshot)
        for name in ("scores", "sgd_scores", "decay", "closed", "truncated"):
            np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    with pytest.raises(ValueError, match="differs in adam"):
        engine.attribute(NET, replace(adam, norm=0.4), *data(), **options, resume=kept[0])


@pytest.mark.parametrize("device", [DEVICES[1]])
def test_a_clipped_step_waits_for_no_device(device: Any) -> None:
    import cupyx

    case = Case.of(step(CLIPPED), device, "float32")
    context, estimator = case.context, Estimator("two_term")
    with context.at_work():
        for may_wait in (True, False):  # the first step compiles
            with cupyx.allow_synchronize(may_wait):
                attribute_step(context, case.adam, case.state, case.batch, case.weight, estimator, case.fresh())


# --- the norm


def gradient_of(device: Any, dtype: Any, **arrays: Any) -> tuple[Any, BatchGradient]:
    context = context_for(NET, pick_backend(device, dtype))
    real = context.backend.real
    return context, BatchGradient({name: real(np.array(array, float)) for name, array in arrays.items()})


@on_each_device
@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 1e-30), ("float32", 1e30), ("float64", 1e-200), ("float64", 1e200)]
)
def test_no_square_over_or_underflows(device: Any, dtype: Any, size: float) -> None:
    context, g = gradient_of(device, dtype, a=[3 * size, 0.0], b=[[4 * size], [0.0]])
    with context.at_work():
        factor = clip(context, Clipped(PLAIN, 0.5 * size, eps=0.0), g)
    assert_within(float(factor), 0.1, rounding(0.1, 4, dtype), "factor")
    host = context.backend.host
    assert_within(host(g["a"])[0], 0.3 * size, rounding(0.3 * size, 4, dtype), "a")
    assert_within(host(g["b"])[0, 0], 0.4 * size, rounding(0.4 * size, 4, dtype), "b")


@on_each_device
def test_a_factor_below_the_dtypes_smallest_number_is_not_lost(device: Any) -> None:
    context, g = gradient_of(device, "float32", a=[2e36, 0.0])
    with context.at_work():
        factor = clip(context, Clipped(PLAIN, 1e-9, eps=0.0), g)
    assert_within(context.backend.host(g["a"])[0], 1e-9, rounding(1e-9, 4, "float32"), "a")
    array = context.backend.real(np.full(1, 1e36))
    multiply(context, array, factor)
    assert_within(context.backend.host(array)[0], 5e-10, rounding(5e-10, 4, "float32"), "array")


@on_each_device
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_a_gradient_of_0_is_not_clipped(device: Any, eps: float) -> None:
    context, g = gradient_of(device, "float64", a=np.zeros(3))
    with context.at_work():
        factor = clip(context, Clipped(PLAIN, 1e-12 if not eps else 1.0, eps), g)
    assert factor is None or float(factor) == 1
    assert not context.backend.host(g["a"]).any()


def test_the_norm_of_many_coordinates_does_not_depend_on_threads() -> None:
    values = np.random.default_rng(0).standard_normal(300_000)
    found = []
    for parts in (1, 2, 3):
        context = context_for(NET, pick_backend("cpu", "float32"), parts)
        g = BatchGradient({"a": context.backend.real(values[:200_001]), "b": context.backend.real(values[200_001:])})
        with context.at_work():
            found.append(float(clip(context, Clipped(PLAIN, 1.0, 0.0), g)))
    assert found[0] == found[1] == found[2]
    assert_within(found[0], 1 / np.linalg.norm(values), rounding(found[0], 10, "float32"), "factor")


@on_each_device
def test_a_norm_that_is_not_finite_is_refused(device: Any) -> None:
    """A gradient beyond float32 has no clipped step: the other coordinates, which c = 0 makes 0, do not hide it."""
    _, valid = data()
    net, train = Network((4, 3)), Batch(np.full((N, 4), 2e38), np.arange(N) % 3)
    params = net.init(0)
    one = Step(net, params, Clipped(PLAIN, 1.0), AdamState.zeros(params), train, valid, "sum")
    with pytest.raises(ValueError, match="float32"):
        engine.update(one, device=device, dtype="float32")
    with pytest.raises((Diverged, ValueError)):
        engine.attribute(net, one.adam, train, valid, epochs=1, reduction="sum", device=device, dtype="float32")
