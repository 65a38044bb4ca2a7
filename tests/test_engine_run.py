"""Runs: the engine's against the oracle's, low rank, micro-batches, memory, waiting, inputs and refusals."""

import dataclasses
import subprocess
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
from engine_devices import assert_scores, in_each_dtype, on_device, on_each_device
from hypothesis import given, settings
from hypothesis import strategies as st

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu import products
from adamshap.gpu import sketch as gpu_sketch
from adamshap.gpu import threads as gpu_threads
from adamshap.gpu.backend import Backend, Buffers, pick_backend, within_memory
from adamshap.gpu.captures import Captures, OuterProduct, sums
from adamshap.gpu.context import EngineContext
from adamshap.gpu.kernels.plan import adam_scalars
from adamshap.gpu.layers import context_for
from adamshap.gpu.scores import contract
from adamshap.gpu.sketch import Sketch
from adamshap.gpu.state import State, StepBatch
from adamshap.gpu.step import attribute_step, plain_step
from adamshap.reference.contract import (
    Adam,
    AdamGroups,
    AdamState,
    Array,
    Batch,
    Estimator,
    Network,
    Params,
    Progress,
    Run,
    Step,
    StepNumber,
    blas,
)
from adamshap.verify.implementation import Query
from adamshap.verify.oracle import bounds
from adamshap.verify.strategies import steps
from adamshap.verify.tolerance import DRAWS, SAFETY, assert_within, rounding, score_magnitude, unit_roundoff


def problem(sizes: tuple[int, ...] = (8, 16, 12, 4), n: int = 50, n_val: int = 6, seed: int = 0) -> Any:
    """Return a network and two batches of noise around one point for each class."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((sizes[-1], sizes[0]))

    def batch(size: int) -> Batch:
        y = generator.integers(0, sizes[-1], size)
        return Batch(centres[y] + generator.standard_normal((size, sizes[0])), y)

    return Network(sizes, "tanh"), batch(n), batch(n_val)


# 50 samples: the last batch holds 2.
RUN: dict[str, Any] = {"epochs": 4, "batch_size": 16, "seed": 3, "keep_step_scores": True}


@cache  # many tests compare with one run
def spread_of_runs(dtype: Any, **options: Any) -> Any:
    """Return the oracle's run of `problem`, and the change of its numbers when all inputs change relatively by u."""
    net, train, valid = problem()
    base = oracle.attribute(net, Adam(), train, valid, **RUN, **options)
    generator = np.random.default_rng(1)
    moved = []
    for _ in range(DRAWS):
        near = [
            dataclasses.replace(b, x=b.x * (1 + unit_roundoff(dtype) * generator.uniform(-1, 1, b.x.shape)))
            for b in (train, valid)
        ]
        run = oracle.attribute(net, Adam(), *near, **RUN, **options)
        moved.append([np.abs(a - b).max() for a, b in zip(of_run(run), of_run(base), strict=True)])
    return base, SAFETY * np.max(moved, axis=0)


def of_run(run: Run) -> list[Array]:
    """Return the arrays that are compared between two runs."""
    arrays = [run.scores, run.sgd_scores, run.history["train_loss"], run.history["valid_loss"]]
    for group in (run.params, run.state.m, run.state.v):
        arrays += list(group.values())
    return arrays + [np.nan_to_num(steps) for steps in (run.step_scores, run.step_sgd_scores) if steps is not None]


@pytest.fixture(params=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide even small work among threads, as the tests have no other, or none."""
    if request.param == "three threads":
        pool = ThreadPoolExecutor(2)
        monkeypatch.setattr(gpu_threads, "FLOPS_WORTH_A_THREAD", 1)
        monkeypatch.setattr(gpu_threads, "cpu_threads", lambda: 3)
        monkeypatch.setattr(gpu_threads, "_threads", lambda: pool)
        monkeypatch.setattr(sums, "CACHED", 24)  # a thread's part of Γ ⊙ S is computed in several blocks
        monkeypatch.setattr(products, "FEW_ROWS", 4)  # the validation rows are divided, a last batch of 2 is not


@on_each_device
@pytest.mark.parametrize("gradient", ["midpoint", "path"])
def test_sgds_scores_of_a_run_have_the_runs_own_validation_gradient(device: Any, gradient: Any) -> None:
    """SGD is scored twice then, once at θ for `sgd_scores`: the two products must not share memory."""
    net, train, valid = problem()
    run = engine.attribute(
        net, Adam(), train, valid, epochs=1, batch_size=train.n, slope="sgd", gradient=gradient, dtype="float64",
        device=device,
    )  # fmt: skip
    params = net.init(0)
    step = Step(net, params, Adam(), AdamState.zeros(params), train, valid)
    length = sum(p.size for p in params.values()) * (train.n + valid.n)
    for got, where in ((run.scores, gradient), (run.sgd_scores, "start")):
        expected = oracle.scores(step, "sgd", where)
        assert_within(got, expected, rounding(np.abs(expected).max(), length, np.float64), f"scores at {where}")


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("micro_batch", [None, 5])
@pytest.mark.parametrize("options", [{}, {"slope": "secant", "gradient": "path"}, {"reduction": "sum"}])
@pytest.mark.usefixtures("threads")
def test_a_run_is_the_oracles(device: Any, dtype: Any, micro_batch: Any, options: Any) -> None:
    net, train, valid = problem()
    expected, moved = spread_of_runs(dtype, **options)
    theirs: list[Progress] = []
    got = engine.attribute(
        net,
        Adam(),
        train,
        valid,
        device=device,
        dtype=dtype,
        variance="exact",
        micro_batch=micro_batch,
        on_step=theirs.append,
        **RUN,
        **options,
    )
    for i, (ours, exact, close) in enumerate(zip(of_run(got), of_run(expected), moved, strict=True)):
        # Besides the change with the inputs: each step rounds, and scores of both signs are added up.
        steps_ = rounding(np.abs(exact).max(), len(expected.history["epoch"]), dtype)
        assert_within(ours, exact, close + steps_, f"part {i} of the run")
    assert got.step_scores is not None
    assert expected.step_scores is not None
    np.testing.assert_array_equal(np.isnan(got.step_scores), np.isnan(expected.step_scores))
    np.testing.assert_array_equal(got.seen, expected.seen)
    np.testing.assert_array_equal(got.history["epoch"], expected.history["epoch"])
    assert got.state.step == expected.state.step == len(theirs)
    assert [(p.step, p.steps, p.epoch) for p in theirs] == [
        (i + 1, len(theirs), int(e)) for i, e in enumerate(expected.history["epoch"])
    ]
    np.testing.assert_array_equal([p.train_loss for p in theirs], got.history["train_loss"])
    np.testing.assert_array_equal([p.valid_loss for p in theirs], got.history["valid_loss"])
    for name, p in net.init(RUN["seed"]).items():
        np.testing.assert_array_equal(got.initial_params[name], p.astype(dtype))


def test_blas_has_one_thread_until_the_last_user_is_done() -> None:
    def threads() -> list[int]:
        return [library["num_threads"] for library in blas.blas().info()]

    inside, first_is_done = threading.Event(), threading.Event()
    seen: list[list[int]] = []

    def second() -> None:
        with gpu_threads.own_threads():
            inside.set()
            first_is_done.wait(60)
            seen.append(threads())

    with blas.blas().limit(limits=2, user_api="blas"):
        before = threads()
        with blas.one_blas_thread():  # as the oracle asks for it
            assert set(threads()) == {1}
            other = threading.Thread(target=second)
            other.start()
            inside.wait(60)
        first_is_done.set()
        other.join()
        assert seen == [[1] * len(before)]
        assert threads() == before
    assert set(before) == {2}


def test_an_error_in_a_thread_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_threads, "cpu_threads", lambda: 2)
    pool = ThreadPoolExecutor(1)
    monkeypatch.setattr(gpu_threads, "_threads", lambda: pool)

    def second_half_fails(low: int, high: int) -> None:
        if low:
            raise FloatingPointError("the second half")

    with gpu_threads.own_threads(), pytest.raises(FloatingPointError, match="the second half"):
        gpu_threads.in_parts(second_half_fails, 10, 1e9)


@on_each_device
@in_each_dtype
def test_the_loss_of_a_sure_label_keeps_its_digits(device: Any, dtype: Any) -> None:
    """The label's probability is 1 to the last digit, and its logarithm 0."""
    net, gap = Network((1, 2), bias=False), 40.0
    weights = net.init(0)["0.weight"]
    batch = Batch((gap / (weights[0] - weights[1]))[None], np.array([0]))
    got = engine.attribute(net, Adam(), batch, batch, epochs=1, batch_size=1, device=device, dtype=dtype)
    expected, outputs = np.log1p(np.exp(-gap)), np.abs(weights * batch.x).sum()
    assert_within(got.history["train_loss"], np.array([expected]), rounding(outputs * expected, 2, dtype), "loss")


@on_each_device
@pytest.mark.parametrize("gradient", ["midpoint", "path"])
def test_a_run_for_each_validation_sample(device: Any, gradient: Any) -> None:
    net, train, valid = problem()
    options: dict[str, Any] = {"per_validation": True, "gradient": gradient}
    expected, moved = spread_of_runs("float64", **options)
    got = engine.attribute(
        net, Adam(), train, valid, device=device, dtype="float64", variance="exact", **options, **RUN
    )
    for name, close in zip(("scores", "sgd_scores"), moved[:2], strict=True):
        ours, theirs = getattr(got, name), getattr(expected, name)
        assert ours.shape == (train.n, valid.n)
        assert_within(ours, theirs, close + rounding(np.abs(theirs).max(), 16), name)


@on_each_device
def test_runs_repeat_bit_by_bit(device: Any) -> None:
    net, train, valid = problem()
    first, second = (engine.attribute(net, Adam(), train, valid, device=device, rank=2, **RUN) for _ in range(2))
    np.testing.assert_array_equal(first.scores, second.scores)


@on_each_device
@pytest.mark.parametrize("score_dtype", ["tf32", "float16"])
def test_scores_in_less_precision_are_near(device: Any, score_dtype: Any) -> None:
    """The products' inputs have eleven binary digits, TF32's as float16's; nothing under- or overflows."""
    net, train, valid = problem()
    params = net.init(0)
    step = Step(net, params, Adam(), AdamState.zeros(params), train, valid)
    if device == "cpu":
        with pytest.raises(ValueError, match="needs None, or float32 on a CUDA device"):
            engine.scores(step, device=device, score_dtype=score_dtype)
        return
    got = engine.scores(step, device=device, score_dtype=score_dtype)
    close = rounding(score_magnitude(step, "random_order", "midpoint"), 1, "float16")
    assert_within(got, oracle.scores(step), close, "score")


LARGEST_EFFECT = 1e-3
"""Largest effect of rank one, in σ² or by a sketch: 1 − R, Pearson's, with exact scores."""


def disagreement(a: Array, b: Array) -> float:
    return 1 - float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@on_each_device
def test_the_rank_one_variance_changes_little(device: Any) -> None:
    net, train, valid = problem()
    exact, cheap = (
        engine.attribute(net, Adam(), train, valid, device=device, variance=v, **RUN) for v in ("exact", "rank_one")
    )
    assert 0 < disagreement(exact.scores, cheap.scores) < LARGEST_EFFECT


@on_each_device
def test_a_low_rank_run_agrees_with_the_exact_one(device: Any) -> None:
    net, train, valid = problem((64, 128, 128, 10), n=200, n_val=16)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 100, "seed": 3, "device": device}
    exact = engine.attribute(net, Adam(), train, valid, **options)
    sketched = engine.attribute(net, Adam(), train, valid, rank=16, **options)
    assert 0 < disagreement(exact.scores, sketched.scores) < LARGEST_EFFECT
    for name, p in exact.params.items():
        np.testing.assert_array_equal(sketched.params[name], p)


@on_each_device
def test_the_first_steps_are_exact_whatever_the_rank(device: Any, exact_squares: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu_sketch, "EXACT_SQUARES", exact_squares)
    net, train, valid = problem()
    options: dict[str, Any] = RUN | {"batch_size": 10, "device": device}
    exact, low = (engine.attribute(net, Adam(), train, valid, rank=rank, **options) for rank in (None, 1))
    same = [np.array_equal(*pair) for pair in zip(low.step_scores, exact.step_scores, strict=True)]
    assert same == [True] * 16 + [False] * 4


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.88, 0.9, 0.95, 0.999, 0.999999])
def test_a_sketch_waits_until_v_is_the_mean_of_more_than_sixteen_squares(
    beta2: float, exact_squares: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gpu_sketch, "EXACT_SQUARES", exact_squares)
    for t in (1, 2, 15, 16, 17, 18, 25, 100, 10_000):
        weights = beta2 ** np.arange(t)
        wanted = weights.sum() ** 2 / (weights**2).sum() > 16
        assert gpu_sketch.of_low_rank({"w": adam_scalars(Adam(betas=(0.9, beta2)), StepNumber(t))}) == (
            {"w"} if wanted else set()
        )


def test_each_parameter_has_a_sketch_by_its_own_beta2(exact_squares: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu_sketch, "EXACT_SQUARES", exact_squares)
    sketched, factor = [], Sketch._factor

    def noted(self: Sketch, context: EngineContext, p: Any, key: tuple[int, int]) -> Any:
        sketched.append(key[0])
        return factor(self, context, p, key)

    monkeypatch.setattr(Sketch, "_factor", noted)
    net, train, valid = problem()
    groups = AdamGroups(((("1.*",), Adam(betas=(0.9, 0.5))),), Adam())
    engine.attribute(net, groups, train, valid, rank=1, device="cpu", **RUN | {"batch_size": 10})
    assert sorted(sketched) == [0] * 4 + [2] * 4


@on_each_device
@in_each_dtype
@given(step=steps(max_width=8, max_n=32))
@settings(max_examples=15)
def test_full_rank_is_exact_and_small_layers_are_not_sketched(device: Any, dtype: Any, step: Step) -> None:
    """No layer of these gains by a sketch of rank 17: scores are the exact ones, bit by bit."""
    exact, sketched = (engine.scores(step, rank=rank, device=device, dtype=dtype) for rank in (None, 17))
    np.testing.assert_array_equal(sketched, exact)


@on_each_device
@in_each_dtype
def test_a_sketch_of_a_low_rank_product_is_exact(device: Any, dtype: Any) -> None:
    """SGD's P is Γ, of rank n_val at most: a sketch of that rank loses nothing."""
    net, train, valid = problem((40, 50, 30, 4), n=64, n_val=3)
    params = net.init(0)
    step = Step(net, params, Adam(), AdamState.zeros(params), train, valid)
    context = context_for(net, pick_backend(device, dtype))
    p = context.backend.real(np.random.default_rng(0).standard_normal((50, 3)) @ np.eye(3, 40))
    assert Sketch(3).pays(step.n, 40, 50)
    q, c = Sketch(3).factors(context, {f"{layer}.weight": p for layer in range(3)}, step.n)["0.weight"]
    scale = float(context.backend.host(abs(p).max()))
    assert_within(context.backend.host(q @ c), context.backend.host(p), rounding(scale, p.size, dtype), "Q C")


@on_each_device
def test_the_first_basis_is_drawn_from_the_seed(device: Any) -> None:
    context = context_for(Network((40, 50)), pick_backend(device, "float64"))
    p = context.backend.real(np.random.default_rng(0).standard_normal((50, 40)))
    first, again, other = (
        context.backend.host(Sketch(3, seed).factors(context, {"0.weight": p}, 64)["0.weight"][0]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > np.finfo(np.float64).eps


@on_each_device
def test_factors_score_biases_as_the_exact_contraction_does(device: Any) -> None:
    context = context_for(Network((40, 50)), pick_backend(device, "float64"))
    backend = context.backend
    generator = np.random.default_rng(0)
    a, b, q, c, p = (generator.standard_normal(shape) for shape in ((9, 40), (9, 50), (50, 3), (3, 40), (50,)))
    captured = Captures((OuterProduct("0.weight", "0.bias", backend.real(a), backend.real(b)),))
    product = {"0.weight": backend.real(q @ c), "0.bias": backend.real(p)}
    exact, sketched = backend.xp.zeros(9), backend.xp.zeros(9)
    contract(context, captured, product, exact)
    contract(context, captured, product, sketched, {"0.weight": (backend.real(q), backend.real(c))})
    magnitude = ((np.abs(b) @ np.abs(q)) * (np.abs(a) @ np.abs(c).T)).sum(axis=1) + np.abs(b) @ np.abs(p)
    assert_within(backend.host(sketched), backend.host(exact), rounding(magnitude, 40 * 50), "score")


@on_each_device
def test_a_basis_improves_from_step_to_step(device: Any) -> None:
    """On a P that stays the same, power iteration continues from the last step's basis."""
    context = context_for(Network((40, 50)), pick_backend(device, "float64"))
    p = np.random.default_rng(0).standard_normal((50, 40))
    sketch, errors = Sketch(3), []
    for _ in range(10):
        q, c = sketch.factors(context, {"0.weight": context.backend.real(p)}, 64)["0.weight"]
        errors.append(np.linalg.norm(p - context.backend.host(q @ c)))
    assert errors[9] < errors[4] < errors[1]


@on_each_device
def test_sgd_along_the_path_for_each_validation_sample(device: Any) -> None:
    step = float32_step()
    got = engine.scores(step, "sgd", "path", per_validation=True, device=device, dtype="float64")
    assert_scores(got, step, "float64", slope="sgd", gradient="path", per_validation=True)


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("n", [8, 32, 256])
def test_no_layer_is_sketched_at_a_higher_cost_than_the_exact_one(rank: int, n: int) -> None:
    """A sketch multiplies P twice by `rank` columns to make factors, and every row by both of them."""
    for d_in, d_out in ((8, 8), (64, 64), (512, 32)):
        making, scoring = 2 * rank * d_in * d_out, rank * n * (d_in + d_out)
        if making + scoring >= n * d_in * d_out:
            assert not Sketch(rank).pays(n, d_in, d_out)
    assert Sketch(1).pays(256, 512, 512)


@on_each_device
def test_each_validation_sample_has_a_basis_of_its_own(device: Any) -> None:
    net, train, valid = problem((40, 50, 30, 4), n=64, n_val=3)
    sketch = Sketch(2)
    context = context_for(net, pick_backend(device, "float64"))
    backend = context.backend
    zeros = [{k: backend.xp.zeros(s) for k, s in net.shapes.items()} for _ in "mv"]
    state = State(backend.reals(net.init(0)), *zeros, 1)
    batch = StepBatch(backend.real(train.x), backend.labels(train.y), backend.real(valid.x), backend.labels(valid.y))
    attribute_step(context, Adam(), state, batch, 1 / train.n, Estimator(per_validation=True), state, sketch=sketch)
    assert set(sketch.bases) == {(layer, v) for layer in range(3) for v in range(3)}


@on_each_device
@pytest.mark.parametrize("slope", ["frozen", "tangent"])
def test_no_eps_is_needed_where_the_gradient_is_not_0(device: Any, slope: Any) -> None:
    """At t = 1 v is 0 everywhere; √q |g| alone is the step's denominator, and A(0) is not needed."""
    net, train, valid = problem()
    params = net.init(0)
    step = Step(net, params, Adam(eps=0.0), AdamState.zeros(params), train, valid)
    got = engine.scores(step, slope, "start", device=device, dtype="float64")
    assert_scores(got, step, "float64", slope=slope, gradient="start")


@on_each_device
@in_each_dtype
@given(step=steps(max_n=16), size=st.integers(1, 16))
@settings(max_examples=15)
def test_micro_batches_take_the_same_step(device: Any, dtype: Any, step: Step, size: int) -> None:
    context = context_for(step.net, pick_backend(device, dtype))

    def state_after(micro_batch: int | None) -> State:
        backend = context.backend
        state = State(*(backend.reals(g) for g in (step.params, step.state.m, step.state.v)), step.state.step + 1)
        new = State(*({k: backend.xp.empty_like(a) for k, a in g.items()} for g in (state.theta, state.m, state.v)), 0)
        batch = StepBatch(
            *(
                backend.real(b.x) if which == "x" else backend.labels(b.y)
                for b in (step.train, step.valid)
                for which in "xy"
            )
        )
        attribute_step(context, step.adam, state, batch, 1.0, Estimator(), new, micro_batch=micro_batch)
        return new

    whole, parts = (arrays_of(context.backend, state_after(micro_batch)) for micro_batch in (None, size))
    close = bounds(dataclasses.replace(step, reduction="sum"), Query("update"), dtype)
    for name, array in parts.items():
        assert_within(array, whole[name], 2 * close[name], name)


def arrays_of(backend: Backend, state: State) -> Params:
    """Return the arrays of a state as the kit names them."""
    groups = {"params": state.theta, "m": state.m, "v": state.v}
    return {f"{group}.{key}": backend.host(array) for group, arrays in groups.items() for key, array in arrays.items()}


# --- memory and waiting


def test_no_per_sample_gradient_is_ever_stored() -> None:
    """784-1024-1024-10 at n = 1024: they would take 7.8 GB; the attributed step takes a few parameter-sized buffers."""
    net = Network((784, 1024, 1024, 10), "relu")
    n, n_val = 1024, 16
    generator = np.random.default_rng(0)
    backend = pick_backend("cpu", "float32")
    params = backend.reals(net.init(0))
    size = sum(p.nbytes for p in params.values())
    x, valid_x = (generator.standard_normal((k, 784), dtype=np.float32) for k in (n, n_val))
    y, valid_y = (generator.integers(0, 10, k) for k in (n, n_val))

    def peak(attributed: bool) -> int:
        zeros = [{k: np.zeros_like(p) for k, p in params.items()} for _ in range(2)]
        state = State({k: p.copy() for k, p in params.items()}, *zeros, 1)
        context = context_for(net, backend)
        tracemalloc.start()
        if attributed:
            batch = StepBatch(x, y, valid_x, valid_y)
            attribute_step(context, Adam(), state, batch, 1 / n, Estimator(variance="rank_one"), state, with_sgd=True)
        else:
            plain_step(context, Adam(), state, x, y, 1 / n, state)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(True)  # compiles
    few = 4  # S or P, the validation gradient, the point, and room for one temporary
    output = n * max(net.sizes) * 4  # what the contraction multiplies into
    assert peak(True) <= peak(False) + few * size + output


@on_each_device
def test_nothing_in_a_step_waits_for_the_device(device: Any) -> None:
    net, train, valid = problem()
    backend = pick_backend(device, "float32")
    context = context_for(net, backend)
    state = State(
        backend.reals(net.init(0)),
        *({k: backend.xp.zeros(s, "float32") for k, s in net.shapes.items()} for _ in "mv"),
        1,
    )
    batch = StepBatch(backend.real(train.x), backend.labels(train.y), backend.real(valid.x), backend.labels(valid.y))
    sketch = Sketch(2)

    def step(estimator: Estimator, sketch: Sketch | None) -> None:
        attribute_step(context, Adam(), state, batch, 1 / train.n, estimator, state, sketch=sketch, with_sgd=True)

    for estimator in (
        Estimator(variance="rank_one"),
        Estimator(slope="secant", gradient="path"),
        Estimator("sgd", "start"),
    ):
        step(estimator, sketch)  # allocates buffers, compiles kernels and draws the first basis
        with no_waiting(device):
            step(estimator, sketch)


def no_waiting(device: str) -> Any:
    if device == "cpu":
        return nullcontext()
    import cupyx

    return cupyx.allow_synchronize(False)


def test_a_full_device_names_the_buffer_and_says_where() -> None:
    class Full:
        def empty(self, size: int, dtype: Any) -> Any:
            raise MemoryError("none left")

    net = Network((100, 3))
    backend = Backend(Full(), np.dtype("float32"))
    context = context_for(net, pick_backend("cpu", "float32"))
    context = dataclasses.replace(context, backend=backend, buffers=Buffers(backend))
    with pytest.raises(MemoryError, match=r"'train inputs 0' of 4,000 bytes \(none left\).*micro_batch"):
        context.buffers.get("train inputs 0", (10, 100))
    context.now("forward pass", slice(3, 13))
    with (
        pytest.raises(MemoryError, match=r"of 4,000 bytes in the forward pass of samples 3 to 12 .*\(none left\)"),
        within_memory(context.place),
    ):
        context.buffers.get("train inputs 0", (10, 100))


def test_an_outgrown_buffer_is_given_up() -> None:
    buffers = Buffers(pick_backend("cpu", "float32"))
    small = weakref.ref(buffers.get("train inputs 0", (10, 8)).base)
    assert small() is not None
    buffers.get("train inputs 0", (20, 8))
    assert small() is None


WHAT = r"(a temporary array|buffer '[a-z 0-9]+' of [\d,]+ bytes)"


@on_each_device
@pytest.mark.parametrize(
    "where",
    [
        "forward pass of the validation samples",
        "forward pass of samples 20 to 39 of the batch",
        "gradient of samples 40 to 49 of the batch",
        "validation gradient of the validation samples",
        "sketch of the validation samples",
        "contraction of samples 40 to 49 of the batch",
    ],
)
def test_where_temporary_arrays_find_no_room(device: Any, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, train, valid = problem((64, 64, 4))
    params = net.init(0)
    step = Step(net, params, Adam(), AdamState.zeros(params), train, valid)
    now, full = EngineContext.now, False

    def note(context: EngineContext, phase: str, samples: Any = None) -> None:
        nonlocal full
        now(context, phase, samples)
        full = str(context.place) == f"the {where} at step 1"
        if full and device == "cpu":
            raise MemoryError("none left")  # NumPy's allocator cannot be made to fail

    monkeypatch.setattr(EngineContext, "now", note)
    with (
        pytest.raises(MemoryError, match=f"no room for {WHAT} in the {where} at step 1 .*micro_batch"),
        nullcontext() if device == "cpu" else allocator_that_fails_when(lambda: full),
    ):
        engine.scores(step, rank=2, micro_batch=20, device=device)


def allocator_that_fails_when(full: Any) -> Any:
    import cupy

    def allocate(size: int) -> Any:
        if full():
            raise cupy.cuda.memory.OutOfMemoryError(size, 0)
        return cupy.get_default_memory_pool().malloc(size)

    return cupy.cuda.using_allocator(allocate)


# --- inputs


def float32_step() -> Step:
    net, train, valid = problem()
    params = {name: p.astype(np.float32) for name, p in net.init(0).items()}
    train, valid = (Batch(b.x.astype(np.float32), b.y) for b in (train, valid))
    return Step(net, params, Adam(), AdamState.zeros(params), train, valid)


def test_arrays_of_the_right_kind_are_not_copied() -> None:
    step = float32_step()
    backend = pick_backend("cpu", "float32")
    for array in (*step.params.values(), step.train.x, step.train.y):
        convert = backend.labels if array.ndim == 1 and array.dtype.kind == "i" else backend.real
        assert np.shares_memory(convert(array), array)


def test_torch_tensors_are_taken_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    step = float32_step()
    params = {name: torch.from_numpy(np.array(p)) for name, p in step.params.items()}
    given_ = dataclasses.replace(
        step,
        params=params,
        train=Batch(torch.from_numpy(np.array(step.train.x)), torch.from_numpy(np.array(step.train.y))),
    )
    backend = pick_backend("cpu", "float32")
    assert np.shares_memory(backend.real(given_.params["0.weight"]), params["0.weight"].numpy())
    np.testing.assert_array_equal(engine.scores(given_, device="cpu"), engine.scores(step, device="cpu"))


@on_each_device
def test_device_arrays_come_in_and_go_out(device: Any) -> None:
    step = float32_step()
    held = {name: on_device(device, p) for name, p in step.params.items()}
    state = AdamState.zeros(held)
    batches = [Batch(on_device(device, b.x), on_device(device, b.y)) for b in (step.train, step.valid)]
    given_ = Step(step.net, held, step.adam, state, *batches)
    got = engine.scores(given_, device=device, device_arrays=True)
    assert type(got) is type(on_device(device, np.zeros(1)))
    params, _ = engine.update(given_, device=device, device_arrays=True)
    assert all(type(p) is type(got) for p in params.values())
    expected = engine.scores(step, device=device)
    assert type(expected) is np.ndarray
    np.testing.assert_array_equal(pick_backend(device, "float32").host(got), expected)


@on_each_device
def test_inputs_are_never_changed(device: Any) -> None:
    step = float32_step()
    before = [a.copy() for a in (*step.params.values(), *step.state.m.values(), step.train.x, step.valid.x)]
    engine.scores(step, "secant", "path", True, device=device)
    engine.update(step, device=device)
    engine.attribute(step.net, step.adam, step.train, step.valid, epochs=1, device=device)
    after = [*step.params.values(), *step.state.m.values(), step.train.x, step.valid.x]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


# --- refusals


@on_each_device
@pytest.mark.parametrize("slope", ["frozen", "linearized", "tangent", "secant", "random_order"])
def test_a_zero_denominator_is_refused_as_the_oracle_does(device: Any, slope: Any) -> None:
    net = Network((3, 4, 2), "relu")
    params = net.init(0)
    batches = [Batch(np.zeros((4, 3)), np.array([0, 1, 0, 1])) for _ in range(2)]
    step = Step(net, params, Adam(eps=0.0), AdamState.zeros(params), *batches)
    for implementation, options in ((oracle, {}), (engine, {"device": device})):
        with pytest.raises(
            ValueError,
            match=r"Adam.eps: got 0, or less than the dtype holds, with a denominator of 0 at \d+ coordinates",
        ):
            implementation.scores(step, slope, "start", **options)


def test_without_numba_numpy_does_the_same() -> None:
    """In a fresh interpreter in which Numba cannot be imported."""
    code = """
import sys
sys.modules["numba"] = None
import numpy as np
import adamshap.gpu as engine
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.kernels import kernels_for
from adamshap.gpu.ops import ops_for
from adamshap.reference import Adam, AdamState, Batch, Network, Step
assert kernels_for(pick_backend("cpu", "float32")).__name__ == "adamshap.gpu.kernels.numpy"
assert ops_for(pick_backend("cpu", "float32")).__name__ == "adamshap.gpu.ops.numpy"
net = Network((3, 5, 2), "gelu")
params = net.init(0)
batch = Batch(np.linspace(-1, 1, 12).reshape(4, 3), np.array([0, 1, 1, 0]))
step = Step(net, params, Adam(), AdamState.zeros(params), batch, batch)
print(*engine.scores(step, dtype="float64", device="cpu"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    net = Network((3, 5, 2), "gelu")
    params = net.init(0)
    batch = Batch(np.linspace(-1, 1, 12).reshape(4, 3), np.array([0, 1, 1, 0]))
    step = Step(net, params, Adam(), AdamState.zeros(params), batch, batch)
    assert_scores(np.array(done.stdout.split(), float), step, "float64")
