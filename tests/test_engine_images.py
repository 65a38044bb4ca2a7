"""The engine's convolutions and pools against the oracle's: steps, utilities, scores, influence and runs."""

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_devices import (
    DEVICES,
    assert_answers,
    assert_near,
    assert_scores,
    in_each_dtype,
    losses,
    moved_step,
    on_device,
    on_each_device,
)

from adamshap import gpu as engine
from adamshap import reference as oracle
from adamshap.gpu import windows as engine_windows
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.case import Case
from adamshap.gpu.layers import context_for
from adamshap.gpu.step import attribute_step, plain_step
from adamshap.gpu.windows import Windows
from adamshap.reference import (
    Activation,
    Adam,
    AvgPool2d,
    Batch,
    Conv2d,
    Flatten,
    LayerNorm,
    Linear,
    MaxPool2d,
    Residual,
    Sequential,
    Step,
    convnet,
)
from adamshap.reference.contract import GRADIENTS, MARGINAL_LOSSES, SCORE_SLOPES, Array, Estimator, Layer
from adamshap.verify.implementation import Query
from adamshap.verify.tolerance import assert_within

ADAM = Adam(0.01, eps=1e-3)
"""A large ε for runs: "carry" subtracts running sums, with terms of Γ η/ε before a first gradient (docs/engine.md)."""

CLASSES = 3
Data = Callable[[int, int], Batch]
Size = tuple[int, int, int]


def images(size: Size, targets: tuple[int, ...] | None) -> Data:
    def batch(n: int, seed: int) -> Batch:
        generator = np.random.default_rng(seed)
        x = generator.standard_normal((n, *size))
        return Batch(
            x, generator.integers(0, CLASSES, n) if targets is None else generator.standard_normal((n, *targets))
        )

    return batch


def classes(size: Size, *layers: Layer) -> tuple[Sequential, Data]:
    """Return a model whose last layer is linear, and its data."""
    (width,) = Sequential((*layers, Flatten()), loss="mse").out_shape("x", size)
    return Sequential((*layers, Flatten(), Linear(width, CLASSES))), images(size, None)


def targets(size: Size, *layers: Layer) -> tuple[Sequential, Data]:
    """Return a model whose outputs are images, and its data."""
    model = Sequential(layers, loss="mse")
    return model, images(size, model.out_shape("x", size))


def constructed(size: Size, **options: Any) -> tuple[Sequential, Data]:
    return convnet(image=size, outputs=CLASSES, **options), images(size, None)


MODELS: dict[str, tuple[Sequential, Data]] = {
    "convolution": classes((2, 4, 5), Conv2d(2, 3, (3, 3))),
    "stride and padding": classes((2, 5, 4), Conv2d(2, 3, (3, 2), (2, 1), (1, 2))),
    "stride beyond the kernel, remainder": classes((1, 4, 7), Conv2d(1, 2, (1, 2), (2, 3))),
    "padding beyond the kernel": classes((2, 3, 2), Conv2d(2, 2, (2, 1), padding=(2, 1))),
    "groups": classes((4, 3, 4), Conv2d(4, 6, (2, 2), groups=2)),
    "by channel": classes((3, 3, 4), Conv2d(3, 3, (2, 3), (2, 1), (1, 1), groups=3, bias=False)),
    "two outputs a channel": classes((2, 3, 4), Conv2d(2, 4, (2, 2), groups=2), Activation("tanh")),
    "kernel of one pixel": classes((2, 3, 4), Conv2d(2, 3, (1, 1), (2, 1))),
    "kernel of the whole image": classes((2, 3, 4), Conv2d(2, 4, (3, 4))),
    "groups of whole images": classes((4, 2, 3), Conv2d(4, 4, (2, 3), groups=2)),
    "below another": classes(
        (2, 5, 4),
        Conv2d(2, 4, (3, 2), (2, 1), (1, 0)),
        Activation("relu"),
        Conv2d(4, 6, (3, 2), (1, 2), (2, 1), groups=2),
        Activation("gelu"),
    ),
    "below one with gaps": classes((2, 4, 5), Conv2d(2, 2, (2, 2)), Conv2d(2, 3, (1, 2), (2, 3), bias=False)),
    "in a residual": classes((2, 3, 4), Residual((Conv2d(2, 2, (3, 3), padding=(1, 1)), Activation("relu")))),
    "norm of rows": classes((2, 3, 4), Conv2d(2, 2, (1, 1)), LayerNorm(4)),
    "to targets": targets((2, 4, 3), Conv2d(2, 3, (2, 2))),
    "average pool": classes((2, 5, 6), Conv2d(2, 3, (2, 1)), AvgPool2d((2, 2))),
    "average pool, overlaps": classes((2, 4, 5), Conv2d(2, 2, (1, 1)), AvgPool2d((3, 2), (1, 2))),
    "max pool": classes((2, 5, 7), Conv2d(2, 3, (1, 1)), Activation("relu"), MaxPool2d((2, 3))),
    "max pool, overlaps": classes((2, 4, 5), Conv2d(2, 2, (1, 1)), MaxPool2d((3, 2), (1, 1))),
    "max pool, ties": classes((2, 4, 5), Conv2d(2, 2, (1, 1), bias=False), MaxPool2d((2, 2), (1, 2))),
    "max pool, gaps": classes((2, 5, 5), Conv2d(2, 2, (1, 1)), MaxPool2d((2, 1), (3, 2))),
    "max pool below a function": classes((2, 4, 4), Conv2d(2, 2, (1, 1)), MaxPool2d((2, 2)), Activation("tanh")),
    "max pool first": classes((2, 4, 4), MaxPool2d((2, 2)), AvgPool2d((2, 1)), Conv2d(2, 2, (1, 2))),
    "max pool last": targets((1, 5, 4), Conv2d(1, 2, (2, 2)), MaxPool2d((2, 2))),
    "convnet": constructed((2, 4, 5), channels=(2, 3)),
    "convnet, averages": constructed(
        (1, 4, 2), channels=(2, 2, 2), kernel=1, pool="avg", activation="silu", bias=False
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)
SOME = ("below another", "max pool, ties", "convnet")
some_models = pytest.mark.parametrize("name", SOME)


def step_of(name: str, n: int = 4, **changes: Any) -> Step:
    """Return a step; for ties the first channel is 0, so that all elements of its windows are equal."""
    model, data = MODELS[name]
    step = moved_step(model, data(n, 2), data(3, 3))
    if "ties" in name:
        weight = step.params["0.weight"].copy()
        weight[0] = 0
        changes["params"] = {**step.params, "0.weight": weight}
    return replace(step, **changes)


@on_each_device
@in_each_dtype
@every_model
def test_the_step_and_utilities(device: Any, dtype: Any, name: str) -> None:
    step = step_of(name)
    params, state = engine.update(step, device=device, dtype=dtype)
    wanted_params, wanted = oracle.update(step)
    for key, p in wanted_params.items():
        assert params[key].shape == p.shape
        assert_near(params[key], p, np.abs(p).max(), dtype)
        assert_near(state.m[key], wanted.m[key], np.abs(wanted.m[key]).max(), dtype)
        assert_near(state.v[key], wanted.v[key], np.abs(wanted.v[key]).max(), dtype)
    mask = np.array([True, False, True, True])
    got = engine.utility(step, mask, device=device, dtype=dtype)
    assert_near(got, oracle.utility(step, mask), losses(step), dtype)


@on_each_device
@in_each_dtype
@every_model
@pytest.mark.parametrize(
    "options",
    [{}, {"slope": "sgd", "gradient": "start", "per_validation": True}],
    ids=lambda options: " ".join(map(str, options.values())) or "default",
)
def test_scores(device: Any, dtype: Any, name: str, options: dict[str, Any]) -> None:
    step = step_of(name)
    assert_scores(engine.scores(step, **options, device=device, dtype=dtype), step, dtype, **options)


@on_each_device
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("slope", [slope for slope in SCORE_SLOPES if slope != "two_term"])
def test_every_slope_with_every_gradient(device: Any, slope: Any, gradient: Any) -> None:
    how = {"slope": slope, "gradient": gradient}
    step = step_of("two outputs a channel")
    assert_answers(step, device, *(Query("scores", {**how, "per_validation": flag}) for flag in (False, True)))


@on_each_device
@some_models
def test_influence_marginals_and_efficient_scores(device: Any, name: str) -> None:
    step = step_of(name)
    assert_answers(step, device, Query("influence"), Query("scores", {"efficient": True}))
    assert_answers(step, device, *(Query("marginals", {"kind": "first", "loss": loss}) for loss in MARGINAL_LOSSES))


@on_each_device
@pytest.mark.parametrize("name", [*SOME, "by channel", "kernel of the whole image"])
def test_batches_in_chunks_and_the_rank_one_variance(device: Any, name: str) -> None:
    """Chunks leave scores as they are; of rank one, σ² is near enough for scores that point the same way."""
    step = step_of(name)
    how: dict[str, Any] = {"device": device, "dtype": "float64"}
    assert_scores(engine.scores(step, micro_batch=3, **how), step, "float64")
    whole = engine.scores(step, variance="rank_one", **how)
    np.testing.assert_allclose(
        engine.scores(step, variance="rank_one", micro_batch=3, **how), whole, rtol=1e-9, atol=1e-15
    )
    assert np.corrcoef(whole, oracle.scores(step))[0, 1] > 0.999


@on_each_device
@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_samples(device: Any, n: int) -> None:
    step = step_of("convnet", n)
    assert_scores(engine.scores(step, device=device, dtype="float64"), step, "float64")


@on_each_device
@pytest.mark.parametrize("name", ["to targets", "max pool last"])
def test_images_of_other_sizes_than_the_validation_images(device: Any, name: str) -> None:
    """One pass may have one place of the window and the other several."""
    model, _ = MODELS[name]
    size = {"to targets": (2, 2, 2), "max pool last": (1, 3, 3)}[name]
    step = step_of(name, valid=images(size, model.out_shape("x", size))(3, 3))
    for options in ({}, {"slope": "sgd", "gradient": "start"}, {"gradient": "start"}, {"per_validation": True}):
        assert_scores(engine.scores(step, **options, device=device, dtype="float64"), step, "float64", **options)


@on_each_device
@in_each_dtype
@every_model
def test_forward_mode_takes_no_differences(device: Any, dtype: Any, name: str) -> None:
    step = step_of(name)
    for options in ({"slope": "secant"}, {"slope": "sgd", "gradient": "start", "per_validation": True}):
        got = engine.scores(step, **options, contraction="forward", device=device, dtype=dtype)  # type: ignore[arg-type]
        assert_scores(got, step, dtype, **options)


@on_each_device
def test_factors_count_the_places_of_the_window(device: Any) -> None:
    """At 49 places they pay for few samples; of the full rank they leave scores as they are, of a low rank not."""
    model, data = classes((4, 8, 8), Conv2d(4, 20, (2, 2)), Activation("tanh"))
    step = moved_step(model, data(3, 2), data(20, 3))
    how: dict[str, Any] = {"device": device, "dtype": "float64", "slope": "frozen"}
    exact = engine.scores(step, **how)
    low = engine.scores(step, rank=4, **how)
    assert (exact != low).any()
    assert np.corrcoef(exact, low)[0, 1] > 0.9


@on_each_device
@in_each_dtype
def test_two_terms_only_at_one_place(device: Any, dtype: Any) -> None:
    how: dict[str, Any] = {"device": device, "dtype": dtype}
    with pytest.raises(ValueError, match=r"slope: got 'two_term' for samples of 6 positions, .* needs another slope"):
        engine.scores(step_of("convolution"), "two_term", **how)
    for name in ("kernel of the whole image", "groups of whole images"):
        step = step_of(name)
        assert_scores(engine.scores(step, "two_term", **how), step, dtype, slope="two_term")


@on_each_device
@pytest.mark.parametrize("name", ["below another", "two outputs a channel", "convnet"])
def test_windows_of_one_image_unfolded_at_a_time(device: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("UNFOLDED_ON_HOST", "UNFOLDED_ON_DEVICE"):
        monkeypatch.setattr(engine_windows, limit, 1)
    step = step_of(name)
    for options in ({}, {"slope": "sgd", "gradient": "start", "per_validation": True}):
        assert_scores(engine.scores(step, **options, device=device, dtype="float64"), step, "float64", **options)


# --- windows ---------------------------------------------------------------------------------------------------------

WINDOWS = (
    (Windows((2, 3), (1, 1)), (3, 4)),
    (Windows((3, 1), (2, 3), (1, 2)), (4, 5)),
    (Windows((2, 2), (3, 2)), (6, 5)),
    (Windows((1, 2), (1, 1), (0, 3)), (1, 1)),
)


@on_each_device
@pytest.mark.parametrize(("windows", "size"), WINDOWS)
def test_windows_and_their_transpose(device: Any, windows: Windows, size: tuple[int, int]) -> None:
    """Unfolding against a loop, and folding by ⟨unfolded(x), y⟩ = ⟨x, folded(y)⟩, in integers."""
    xp, generator = pick_backend(device, "float64").xp, np.random.default_rng(0)
    x = generator.integers(-9, 9, (2, 3, *size)).astype(float)
    padded = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in windows.padding)))
    (kh, kw), (down, across) = windows.kernel, windows.stride
    tops, lefts = range(0, padded.shape[2] - kh + 1, down), range(0, padded.shape[3] - kw + 1, across)
    wanted = np.array([[image[:, i : i + kh, j : j + kw].ravel() for i in tops for j in lefts] for image in padded])
    assert windows.places(x) == (len(tops), len(lefts))
    columns = windows.unfolded(xp, on_device(device, x))
    host = pick_backend(device, "float64").host
    np.testing.assert_array_equal(host(columns), wanted.reshape(-1, 3 * kh * kw).T)
    y = generator.integers(-9, 9, columns.shape).astype(float)
    folded = xp.full(x.shape, math.nan)
    windows.fold(xp, on_device(device, y), folded)
    other = generator.integers(-9, 9, x.shape).astype(float)
    unfolded = host(windows.unfolded(xp, on_device(device, other)))
    assert (unfolded * y).sum() == (other * host(folded)).sum()


# --- runs ------------------------------------------------------------------------------------------------------------


def run(name: str, device: str, trainer: Any = engine.attribute, adam: Adam = ADAM, **options: Any) -> Any:
    model, data = MODELS[name]
    how = {"device": device, "dtype": "float64"} if trainer is engine.attribute else {}
    return trainer(model, adam, data(7, 4), data(3, 5), epochs=2, batch_size=3, seed=1, **how, **options)


@on_each_device
@pytest.mark.parametrize("name", ["below another", "max pool last", "convnet"])
@pytest.mark.parametrize(
    "options",
    [{}, {"per_validation": True}, {"credit": "carry"}, {"credit": "carry", "slope": "secant", "gradient": "start"}],
    ids=lambda options: " ".join(map(str, options.values())) or "step",
)
def test_runs(device: Any, name: str, options: dict[str, Any]) -> None:
    """Six steps from fresh parameters: rounding grows by less than 10⁵, as Adam's first steps divide by |g|."""
    got, wanted = run(name, device, **options), run(name, device, oracle.attribute, **options)
    for one, other in ((got.scores, wanted.scores), (got.sgd_scores, wanted.sgd_scores)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10 * np.abs(other).max())
    for key, p in wanted.params.items():
        np.testing.assert_allclose(got.params[key], p, rtol=0, atol=1e-9 * np.abs(p).max())
    assert (got.seen == wanted.seen).all()


@on_each_device
@pytest.mark.parametrize("name", ["groups", "convnet"])
@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"credit": "carry"}], ids=lambda options: str(options))
def test_a_run_is_resumed_with_the_same_bits(device: Any, name: str, options: dict[str, Any]) -> None:
    snapshots: list[dict[str, Array]] = []
    whole = run(name, device, on_checkpoint=lambda _, take: snapshots.append(take()), **options)
    for snapshot in snapshots[:-1:2]:
        again = run(name, device, resume=snapshot, **options)
        np.testing.assert_array_equal(again.scores, whole.scores)
        for key, p in whole.params.items():
            np.testing.assert_array_equal(again.params[key], p)


@on_each_device
def test_a_window_shorter_than_the_run_bounds_what_it_loses(device: Any) -> None:
    adam = Adam(0.01, betas=(0.5, 0.99), eps=1e-3)
    part = run("below another", device, adam=adam, credit="carry", carry_window=1)
    whole = run("below another", device, oracle.attribute, adam=adam, credit="carry")
    assert (part.truncated > 0).any()
    shared = part.truncated.sum() * part.seen / part.seen.sum()
    assert_within(part.scores, whole.scores, part.truncated + shared + 1e-12, "score")


def test_the_window_of_carry_keeps_no_inputs_of_the_model_and_nothing_unfolded() -> None:
    context = context_for(MODELS["convnet"][0], pick_backend("cpu", "float64"))
    kept = context.stack.workspace(context, "kept", np.zeros((2, 2, 4, 5))).captures.kept()
    assert {name: array.shape[1:] for name, array in kept.items()} == {
        "a/1": (2, 2, 2),
        "a/2": (3,),
        "b/0": (2, 20),
        "b/1": (3, 4),
        "b/2": (3,),
    }


@pytest.mark.parametrize("device", [DEVICES[1]])
@some_models
@pytest.mark.parametrize("options", [{}, {"variance": "rank_one"}, {"slope": "sgd", "gradient": "start"}])
def test_a_step_waits_for_no_device(device: Any, name: str, options: dict[str, Any]) -> None:
    import cupyx

    case = Case.of(step_of(name), device, "float32")
    context, estimator = case.context, Estimator(**options)
    with context.at_work():
        for may_wait in (True, False):  # the first step compiles
            with cupyx.allow_synchronize(may_wait):
                attribute_step(context, case.adam, case.state, case.batch, case.weight, estimator, case.fresh())


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_step_takes_less_memory_than_its_unfolded_windows_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_windows, "UNFOLDED_ON_HOST", 1)
    size, c, n = (4, 16, 16), 4, 24
    convolution = Conv2d(c, c, (3, 3), padding=(1, 1))
    model, data = classes(size, convolution, Activation("relu"), convolution, MaxPool2d((2, 2)))
    case = Case.of(moved_step(model, data(n, 2), data(4, 3)), "cpu", "float64")
    context, peaks = case.context, []

    def plain() -> None:
        plain_step(context, case.adam, case.state, case.batch.x, case.batch.y, case.weight, case.fresh())

    def attributed() -> None:
        attribute_step(context, case.adam, case.state, case.batch, case.weight, Estimator(), case.fresh())

    for step in (plain, attributed):
        step()  # Numba's loops are compiled
        context.buffers.kept.clear()
        context.buffers.views.clear()
        tracemalloc.start()
        step()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    unfolded = 2 * n * math.prod(size) * 9 * 8
    assert peaks[0] < unfolded / 2
    assert peaks[1] < 1.6 * peaks[0]
