"""Forward mode in the engine: scores without captures, against its own captures and the oracle."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import autograd.numpy as anp
import numpy as np
import pytest
from engine_devices import assert_scores, in_each_dtype, on_each_device
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_layers import MODELS, reals, some_models, step_of

from adamshap import gpu as engine
from adamshap import reference as oracle
from adamshap.gpu.captures import Capture, Summed
from adamshap.gpu.forward_mode import FARTHEST, best_move, central_difference
from adamshap.gpu.layers import sequential
from adamshap.gpu.layers.perceptron import Perceptron
from adamshap.gpu.layers.sequential import SequentialStack
from adamshap.gpu.layers.stage import Planned, Room, Stage, TangentLayer
from adamshap.reference import (
    Adam,
    AdamState,
    Batch,
    Linear,
    MeanOverPositions,
    Network,
    Sequential,
    Step,
    layers,
    models,
    scoring,
)
from adamshap.reference.contract import ACTIVATIONS, GRADIENTS, SLOPES, Array, Estimator
from adamshap.reference.contract.layer import Layer, Shape
from adamshap.verify.strategies import steps
from adamshap.verify.tolerance import assert_within, difference_bound, rounding

OPTIONS: list[dict[str, Any]] = [
    {},
    {"per_validation": True},
    {"slope": "sgd", "gradient": "start"},
    {"slope": "sgd", "gradient": "start", "per_validation": True},
    {"slope": "secant", "gradient": "path", "micro_batch": 3},
    {"efficient": True},
]
with_options = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options)) or "default")


def asked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that change the answer."""
    return {name: value for name, value in options.items() if name != "micro_batch"}


def forward(step: Step, device: Any = "cpu", dtype: Any = "float64", **options: Any) -> Any:
    return engine.scores(step, contraction="forward", device=device, dtype=dtype, **options)


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("name", MODELS)
def test_every_layer(device: Any, dtype: Any, name: str) -> None:
    step = step_of(name)
    assert_scores(forward(step, device, dtype, slope="secant"), step, dtype, slope="secant")


@on_each_device
@some_models
@with_options
def test_scores(device: Any, name: str, options: dict[str, Any]) -> None:
    step = step_of(name)
    assert_scores(forward(step, device, **options), step, "float64", **asked(options))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_loss_of_a_perceptron(activation: Any, loss: Any) -> None:
    net, generator = Network((3, 5, 4, 2), activation, loss=loss, bias=activation != "silu"), np.random.default_rng(0)
    params = net.init(0)
    train, valid = (
        Batch(
            generator.standard_normal((n, 3)),
            generator.integers(0, 2, n) if loss == "cross_entropy" else generator.standard_normal((n, 2)),
        )
        for n in (5, 3)
    )
    step = Step(net, params, Adam(), AdamState.zeros(params), train, valid)
    for options in OPTIONS[:2]:
        assert_scores(forward(step, **options), step, "float64", **options)


@given(steps(), st.sampled_from(SLOPES), st.sampled_from(GRADIENTS), st.sampled_from(["float32", "float64"]))
@settings(max_examples=30)
def test_random_steps(step: Step, slope: Any, gradient: Any, dtype: Any) -> None:
    options = {"slope": slope, "gradient": gradient}
    if step.dtype == np.float32:
        dtype = "float32"
    assert_scores(forward(step, "cpu", dtype, **options), step, dtype, **options)


@on_each_device
@pytest.mark.parametrize("n", [1, 200])
def test_a_batch_of_one_sample_and_one_divided_among_threads(device: Any, n: int) -> None:
    net, generator = Network((40, 60, 60, 3)), np.random.default_rng(0)
    params = net.init(0)
    train, valid = (Batch(generator.standard_normal((k, 40)), generator.integers(0, 3, k)) for k in (n, 3))
    step = Step(net, params, Adam(), AdamState.zeros(params), train, valid)
    for options in ({"slope": "frozen"}, {"slope": "frozen", "micro_batch": 64}):
        assert_scores(forward(step, device, **options), step, "float64", slope="frozen")


# --- runs ------------------------------------------------------------------------------------------------------------


def run(trainer: Any, model: Any, data: Any, device: Any = "cpu", **options: Any) -> Any:
    how = {"device": device, "dtype": "float64"} if trainer is engine.attribute else {}
    return trainer(model, Adam(0.01), data(7, 4), data(3, 5), epochs=2, batch_size=3, seed=1, **how, **options)


def assert_runs_alike(got: Any, wanted: Any) -> None:
    """Six steps from fresh parameters: rounding grows by less than 10⁵, as Adam's first steps divide by |g|."""
    for one, other in ((got.scores, wanted.scores), (got.sgd_scores, wanted.sgd_scores)):
        assert_within(one, other, 1e5 * rounding(np.abs(other).max(), 1), "score")


@on_each_device
@pytest.mark.parametrize("options", [{}, {"per_validation": True, "slope": "secant"}, {"micro_batch": 2}], ids=str)
def test_runs(device: Any, options: dict[str, Any]) -> None:
    model, data = MODELS["transformer"]
    got = run(engine.attribute, model, data, device, contraction="forward", **options)
    assert_runs_alike(got, run(oracle.attribute, model, data, **options))


def test_a_run_is_resumed_with_the_same_bits() -> None:
    model, data = MODELS["residual in a residual"]
    snapshots: list[Any] = []
    whole = run(
        engine.attribute,
        model,
        data,
        contraction="forward",
        on_checkpoint=lambda _, take: snapshots.append(take()),
    )
    again = run(engine.attribute, model, data, contraction="forward", resume=snapshots[2])
    np.testing.assert_array_equal(again.scores, whole.scores)
    with pytest.raises(ValueError, match="resume"):
        run(engine.attribute, model, data, resume=snapshots[2])


# --- differences, for a layer without a tangent ----------------------------------------------------------------------


@pytest.fixture
def without_tangents(monkeypatch: pytest.MonkeyPatch) -> None:
    for stack in (Perceptron, SequentialStack):
        monkeypatch.setattr(stack, "has_tangents", False)


def assert_differences(got: Any, step: Step, dtype: Any, **options: Any) -> None:
    """Assert that scores are within the bound of a central difference along the oracle's P."""
    step = step.as_float64()
    estimator, x = Estimator(**options), models.sample_gradients(step)
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    ((_, P),) = scoring.score_matrices(step, estimator, x, g)
    exact = scoring.dot_products(x, P)
    weight = 1 / step.n if step.reduction == "mean" else 1.0
    bounds = np.empty_like(exact)
    for j in range(exact.shape[1]):
        direction = {name: matrix[j] for name, matrix in P.items()}

        def losses(h: float, direction: Any = direction) -> Array:
            moved = {name: p + h * direction[name] for name, p in step.params.items()}
            return weight * models.sample_losses(step.net, moved, step.train)

        lengths = (np.sqrt(sum((p**2).sum() for p in group.values())) for group in (step.params, direction))
        farthest = FARTHEST * np.divide(*lengths)
        bounds[:, j] = difference_bound(losses, exact[:, j], farthest, best_move(dtype), dtype)
    got = np.asarray(got)
    assert_within(got if got.ndim == 2 else got[:, None], exact, bounds, "score")


@on_each_device
@in_each_dtype
@pytest.mark.usefixtures("without_tangents")
@pytest.mark.parametrize(
    "options",
    [{"slope": "secant", "gradient": "start"}, {"slope": "sgd", "gradient": "start", "per_validation": True}],
    ids=["secant", "sgd"],
)
@pytest.mark.parametrize("name", ["transformer", "residual in a residual", "tanh"])
def test_differences(device: Any, dtype: Any, name: str, options: dict[str, Any]) -> None:
    step = step_of(name)
    for micro_batch in (None, 3):
        got = forward(step, device, dtype, micro_batch=micro_batch, **options)
        assert_differences(got, step, dtype, **options)
        ghost = engine.scores(step, device=device, dtype=dtype, **options)
        assert (got != ghost).any()
        assert np.corrcoef(np.ravel(got), np.ravel(ghost))[0, 1] > 0.999999


@pytest.mark.usefixtures("without_tangents")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_differences_of_losses_of_any_size(scale: float) -> None:
    """The step moves losses by a part of their size; with a fixed move, large ones would be lost in rounding."""
    net, generator = Network((3, 5, 2), "tanh", loss="mse"), np.random.default_rng(0)
    params = net.init(0)
    train, valid = (Batch(generator.standard_normal((n, 3)), scale * generator.standard_normal((n, 2))) for n in (5, 3))
    step = Step(net, params, Adam(), AdamState.zeros(params), train, valid)
    options: dict[str, Any] = {"slope": "sgd", "gradient": "start"}
    for dtype in ("float32", "float64"):
        assert_differences(forward(step, "cpu", dtype, **options), step, dtype, **options)


@pytest.mark.usefixtures("without_tangents")
def test_a_step_that_moves_nothing_has_scores_of_0() -> None:
    step = step_of("transformer", adam=Adam(0.0))
    assert not forward(step).any()


# --- a layer without a capture ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate(Layer):
    """x ⊙ tanh(weight): a layer that only this test knows."""

    width: int = 4
    kind: str = field(default="gate", init=False, repr=False)

    @property
    def shapes(self) -> dict[str, Shape]:
        return {"weight": (self.width,)}

    def _fresh(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        return np.ones(shape)


@dataclass(frozen=True)
class EngineGate:
    """Its forward and backward pass, and Σ_i x_i; no capture, no tangent."""

    weight: str

    def plan(self, x: Any, free: bool, room: Room) -> tuple[Stage, Planned]:
        stage = Stage(self, {"x": x, "out": room("out", x.shape[1:])})
        return stage, (stage["out"], True)

    def plan_back(self, stage: Stage, b: Any, free: bool, wanted: bool, room: Room) -> Planned:
        stage.arrays["b"] = b
        stage.arrays["slope"] = room("slope", stage["x"].shape[-1:])
        stage.arrays["below"] = room("below", b.shape[1:])
        return stage["below"], True

    def forward(self, context: Any, params: Mapping[str, Any], stage: Stage) -> None:
        stage["out"][...] = stage["x"] * context.backend.xp.tanh(params[self.weight])

    def backward(self, context: Any, params: Mapping[str, Any], stage: Stage) -> None:
        gate = context.backend.xp.tanh(params[self.weight])
        stage["below"][...] = stage["b"] * gate
        stage["slope"][...] = 1 - gate**2

    def captures(self, stage: Stage) -> tuple[Capture, ...]:
        def total(arrays: Mapping[str, Any]) -> dict[str, Any]:
            each = (arrays["b"] * arrays["x"]).sum(axis=1) * arrays["slope"]
            return {self.weight: each.sum(axis=0)}

        return (Summed((self.weight,), {name: stage[name] for name in ("b", "x", "slope")}, total),)


def gated(width: int) -> Sequential:
    return Sequential((Linear(3, width), Gate(width), Linear(width, width), MeanOverPositions(), Linear(width, 3)))


GATED = gated(4)


@pytest.fixture
def with_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    def gate(layer: Gate, params: Any, name: str, x: Any) -> Any:
        return x * anp.tanh(params[f"{name}.weight"]).reshape(-1, *(1,) * (x.ndim - 2), layer.width)

    monkeypatch.setitem(layers.FORWARD, "gate", gate)
    monkeypatch.setitem(sequential.BUILDERS, "gate", lambda _, name, __: EngineGate(f"{name}.weight"))  # type: ignore[misc]


def gated_step(width: int = 4, positions: int = 4, n_val: int = 3) -> Step:
    generator, params = np.random.default_rng(1), gated(width).init(0)
    state = AdamState(3, *({name: 0.1 + 0.1 * generator.random(p.shape) for name, p in params.items()} for _ in "mv"))
    data = reals((positions, 3), None)
    return Step(gated(width), params, Adam(0.01), state, data(4, 2), data(n_val, 3))


@on_each_device
@in_each_dtype
@pytest.mark.usefixtures("with_gates")
@pytest.mark.parametrize(
    "options",
    [
        {"slope": "secant", "gradient": "midpoint"},
        {"slope": "sgd", "gradient": "start"},
        {"slope": "tangent", "gradient": "path", "per_validation": True},
    ],
    ids=lambda options: options["slope"],
)
def test_a_layer_without_a_capture(device: Any, dtype: Any, options: dict[str, Any]) -> None:
    assert not isinstance(EngineGate("weight"), TangentLayer)
    step = gated_step()
    for micro_batch in (None, 3):
        got = forward(step, device, dtype, micro_batch=micro_batch, **options)
        assert_differences(got, step, dtype, **options)


@pytest.mark.usefixtures("with_gates")
def test_scores_of_sgd_where_pairs_would_be_cheaper() -> None:
    """Pairs of samples need captures too."""
    step, options = gated_step(40, 1, 1), {"slope": "sgd", "gradient": "start"}
    assert_differences(forward(step, **options), step, "float64", **options)


@pytest.mark.usefixtures("with_gates")
def test_a_run_with_a_layer_without_a_capture() -> None:
    got, wanted = (
        run(trainer, GATED, reals((4, 3), None), slope="secant", contraction="forward")
        for trainer in (engine.attribute, oracle.attribute)
    )
    for one, other in ((got.scores, wanted.scores), (got.sgd_scores, wanted.sgd_scores)):
        # The largest rounding of a difference is 64 u of the largest score of a step, over δ.
        assert_within(one, other, 6 * 64 * rounding(np.abs(other).max(), 1) / best_move("float64"), "score")
    for name, p in wanted.params.items():
        assert_within(got.params[name], p, 1e5 * rounding(np.abs(p).max(), 1), name)


@pytest.mark.usefixtures("with_gates")
def test_what_needs_the_samples_apart_is_refused_for_a_layer_without_a_capture() -> None:
    step, how = gated_step(), {"device": "cpu", "dtype": "float64"}
    alone = r"model.layers: got one without a capture of 1.weight; needs layers with captures, or .* 'forward'"
    for call in (
        lambda: engine.scores(step, "secant", **how),
        lambda: engine.scores(step, "sgd", "start", **how),
        lambda: engine.influence(step, **how),
        lambda: engine.marginals(step, **how),
        lambda: run(engine.attribute, GATED, reals((4, 3), None), slope="secant"),
    ):
        with pytest.raises(ValueError, match=alone):
            call()
    with pytest.raises(ValueError, match=r"slope: got one that needs Σ x_i² of 1.weight, .*; needs 'sgd'"):
        forward(step)


@pytest.mark.usefixtures("with_gates")
def test_the_step_itself_needs_no_capture() -> None:
    step = gated_step()
    params, _ = engine.update(step, device="cpu", dtype="float64")
    wanted, _ = oracle.update(step)
    for name, p in wanted.items():
        assert_within(params[name], p, 1000 * rounding(np.abs(p).max(), 1), name)


def test_a_step_is_found_between_one_that_does_nothing_and_one_that_does_too_much() -> None:
    """Losses that begin to change at h = 0.01: proportion alone would go from one to the other and back."""

    def losses_at(h: float) -> Array:
        return np.array([1 + np.sign(h) * max(abs(h) - 0.01, 0)])

    slope, h = central_difference(losses_at, 1.0, 1e-3)
    assert 1e-3 / 4 <= h * slope[0] <= 2e-3
