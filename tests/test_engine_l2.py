"""L2 decay in the engine: kernels, scores and runs against the oracle's."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from engine_devices import assert_scores, in_each_dtype, on_device, on_each_device
from layer_models import MODELS
from test_engine_clipping import NET, RUN, data, step

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.case import Case
from adamshap.gpu.hyperparameters import Hyperparameters, refuse_division_by_zero
from adamshap.gpu.kernels import kernels_for
from adamshap.gpu.kernels import numpy as in_numpy
from adamshap.gpu.kernels.groups import FusedStepOut, GradientNorms, OwedSum, ParameterState
from adamshap.gpu.kernels.plan import SPLIT_SLOPES, adam_scalars, slope_plan, split_plan
from adamshap.reference import carry as reference
from adamshap.reference.adam import bias_correction, coefficients, update_map
from adamshap.reference.contract import (
    SCORE_SLOPES,
    SLOPES,
    Adam,
    AdamGroups,
    AdamState,
    Array,
    Batch,
    Clipped,
    Network,
    Schedule,
    Step,
)
from adamshap.reference.slopes import SLOPE_FUNCTIONS, SlopeInput
from adamshap.verify.implementation import Query
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.tolerance import assert_within, rounding

L2 = Adam(0.02, (0.9, 0.99), 1e-4, 1e-8, l2=0.3)
GROUPS = AdamGroups((("*.bias", Adam(0.05, (0.6, 0.9), 1e-3, weight_decay=0.2)), ("1.weight", L2)), Adam(l2=0.05))
ALL = Clipped(Schedule(GROUPS, "cosine", warmup=2, steps=40), 0.3)

each_implementation = pytest.mark.parametrize("implementation", ["arrays", "device"])

# --- the kernels

T, SAMPLES, STEP = 3, 6, 1e-6
NODES = (2, 4)
FIELDS = ("x", "theta", "m", "v")


@dataclasses.dataclass(frozen=True)
class Point:
    """Coordinates with their samples' contributions."""

    x: Array
    theta: Array
    m: Array
    v: Array

    @classmethod
    def of(cls, dtype: Any) -> "Point":
        """Return two rows, wider than a block of the loops."""
        generator = np.random.default_rng(0)
        x, theta, m, v = (
            np.asarray(generator.standard_normal(shape), dtype).astype(float)
            for shape in ((SAMPLES, 2, 300), (2, 300), (2, 300), (2, 300))
        )
        return cls(x, theta, 0.1 * m, 0.1 * v**2)

    def given(self) -> SlopeInput:
        c = coefficients(L2, T, self.m, self.v)  # type: ignore[arg-type]
        return SlopeInput(dataclasses.replace(c, shift=L2.l2 * self.theta), self.x, self.x.sum(axis=0), NODES)

    def slope(self, slope: str) -> list[Array]:
        """Return the oracle's S, and the midpoint of the step."""
        given, zero = self.given(), np.zeros_like(self.theta)
        middle = (update_map(given.c, zero) + update_map(given.c, given.g)) / 2
        return [SLOPE_FUNCTIONS[slope](given), self.theta - middle]

    def split(self, slope: str) -> list[Array]:
        """Return the oracle's S and M."""
        given = reference.with_decay(self.given(), L2.l2 * self.theta)
        split = reference.SPLITS[slope](given)
        return [split.slope, L2.lr * L2.betas[0] / bias_correction(L2.betas[0], T) * split.inverse]

    def known(self, function: str, slope: str) -> list[Array]:
        """Return the sizes of the results, plus their change with each relative change of an input."""
        values = getattr(self, function)(slope)
        found = [np.abs(value) for value in values]
        for name in FIELDS:
            near = getattr(dataclasses.replace(self, **{name: getattr(self, name) * (1 + STEP)}), function)(slope)
            found = [size + np.abs(a - b) / STEP for size, a, b in zip(found, near, values, strict=True)]
        return found

    def on(self, device: Any, dtype: Any) -> tuple[Any, ParameterState, GradientNorms]:
        arrays = (self.x.sum(axis=0), self.theta, self.m, self.v, np.sqrt((self.x**2).sum(axis=0)))
        g, theta, m, v, root = (on_device(device, np.array(a, dtype)) for a in arrays)
        return g, ParameterState(theta, m, v), GradientNorms(SAMPLES, root=root)


def kernels_of(implementation: str, backend: Any) -> Any:
    return in_numpy if implementation == "arrays" and not backend.on_cuda else kernels_for(backend)


@each_implementation
@on_each_device
@in_each_dtype
@pytest.mark.parametrize("slope", SLOPES)
def test_the_fused_step_starts_at_the_decay(implementation: Any, device: Any, dtype: Any, slope: str) -> None:
    backend, point = pick_backend(device, dtype), Point.of(dtype)
    g, state, norms = point.on(device, dtype)
    new = ParameterState(*(backend.xp.empty_like(g) for _ in range(3)))
    out = FusedStepOut(new, backend.xp.empty_like(g), backend.xp.empty_like(g))
    plan = slope_plan(slope, NODES, SAMPLES).with_decay(L2.l2)
    kernels_of(implementation, backend).fused_step(adam_scalars(L2, T), plan, g, state, norms, None, 0.5, out)
    for name, ours, theirs, about in zip(
        ("S", "point"), (out.slope, out.point), point.slope(slope), point.known("slope", slope), strict=True
    ):
        assert_within(backend.host(ours), theirs, rounding(about, 100, dtype), name)
    received = point.x.sum(axis=0) + L2.l2 * point.theta
    size = np.abs(point.x).sum(axis=0) + L2.l2 * np.abs(point.theta)
    m = 0.9 * point.m + 0.1 * received
    assert_within(backend.host(new.m), m, rounding(np.abs(point.m) + size, 4, dtype), "m")
    v = 0.99 * point.v + 0.01 * received**2
    assert_within(backend.host(new.v), v, rounding(point.v + size**2, 8, dtype), "v")


@each_implementation
@on_each_device
@in_each_dtype
@pytest.mark.parametrize("slope", SPLIT_SLOPES)
def test_decay_arrives_with_the_samples(implementation: Any, device: Any, dtype: Any, slope: str) -> None:
    backend, point = pick_backend(device, dtype), Point.of(dtype)
    g, state, norms = point.on(device, dtype)
    gamma, owed = (on_device(device, np.full(g.shape, number, dtype)) for number in (2.0, 0.0))
    product = backend.xp.empty_like(g)
    sums = kernels_of(implementation, backend).momentum_split(
        adam_scalars(L2, T), split_plan(slope, NODES, SAMPLES), g, state, norms, gamma, OwedSum(owed, 1.0, 0.0), product
    )
    (S, M), (about_S, about_M) = point.split(slope), point.known("split", slope)
    assert_within(backend.host(product), 2 * S, rounding(2 * about_S, 100, dtype), "Γ ⊙ S")
    assert_within(backend.host(owed), 2 * M, rounding(2 * about_M, 100, dtype), "Γ ⊙ M")
    g = point.x.sum(axis=0)
    for number, other in ((0, g), (3, point.theta)):
        about = (2 * about_S * np.abs(other)).sum()
        assert_within(backend.host(sums)[number], (2 * S * other).sum(), rounding(about, 100, dtype), f"sum {number}")


@each_implementation
@on_each_device
def test_a_decay_far_below_the_gradient_keeps_its_digits(implementation: Any, device: Any) -> None:
    """At t = 1 and without ε the slope from d to d + g is 1/g − …, in which d must not be rounded to g's digits."""
    backend, dtype, adam = pick_backend(device, "float32"), np.float32, Adam(1.0, (0.0, 0.0), 1e-30, l2=1.0)
    g, theta, zero = (on_device(device, np.full((1, 1), number, dtype)) for number in (1.0, -1e-9, 0.0))
    new = ParameterState(*(backend.xp.empty_like(g) for _ in range(3)))
    out = FusedStepOut(new, None, backend.xp.empty_like(g))
    plan, norms = slope_plan("secant", NODES, 2), GradientNorms(2)
    state = ParameterState(theta, zero, zero)
    kernels_of(implementation, backend).fused_step(adam_scalars(adam, 1), plan, g, state, norms, None, 0.5, out)
    assert_within(float(backend.host(out.slope)[0, 0]), 2.0, rounding(2.0, 4, "float32"), "slope")  # sign(g) − sign(d)


# --- scores and runs


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("slope", SCORE_SLOPES)
def test_scores_are_the_oracles(device: Any, dtype: Any, slope: Any) -> None:
    for adam, gradient in ((L2, "midpoint"), (ALL, "path")):
        one = step(adam)
        got = engine.scores(one, slope, gradient, device=device, dtype=dtype)
        assert_scores(got, one, dtype, slope=slope, gradient=gradient)


@pytest.mark.parametrize(
    "options", [{"efficient": True}, {"per_validation": True}, {"kind": "last"}, {"kind": "first"}]
)
def test_options_of_scores_are_the_oracles(options: dict[str, Any]) -> None:
    slope = "two_term" if "kind" in options else "linearized"
    got = engine.scores(step(ALL), slope, **options, device="cpu", dtype="float32")  # type: ignore[arg-type]
    assert_scores(got, step(ALL), "float32", slope=slope, **options)


@on_each_device
@in_each_dtype
def test_steps_influence_and_games_are_the_oracles(device: Any, dtype: Any) -> None:
    one, query = step(ALL), Query("update")
    params, state = engine.update(one, device=device, dtype=dtype)
    wanted, close = expected(one, query), bounds(one, query, dtype)
    for group, arrays in (("params", params), ("m", state.m), ("v", state.v)):
        for name, array in arrays.items():
            assert_within(array, wanted[f"{group}.{name}"], close[f"{group}.{name}"], f"{group} {name}")
    influence = Query("influence")
    values = engine.influence(one, device=device, dtype=dtype)
    assert_within(values, expected(one, influence)["values"], bounds(one, influence, dtype)["values"], "influence")
    for loss in ("exact", "first_order"):
        query = Query("marginals", {"kind": "first", "loss": loss})
        wanted, close = expected(one, query), bounds(one, query, dtype)
        got = engine.marginals(one, "first", loss, device=device, dtype=dtype)  # type: ignore[arg-type]
        for name in ("values", "empty", "total"):
            assert_within(getattr(got, name), wanted[name], close[name], f"{loss} {name}")


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("slope", SPLIT_SLOPES)
def test_runs_are_the_oracles(device: Any, dtype: Any, slope: Any) -> None:
    """Decay of each step is credited at its own step, whatever later step its part of the momentum moves."""
    for credit in ("carry", "step") if slope == "secant" else ("carry",):
        options = RUN | {"slope": slope, "credit": credit, "gradient": "midpoint"}
        wanted = oracle.attribute(NET, ALL, *data(), **options)
        if credit == "carry":
            options["carry_window"] = 20
        got = engine.attribute(NET, ALL, *data(), **options, device=device, dtype=dtype)
        for name in ("scores", "sgd_scores", "decay", "closed"):
            ours, theirs = getattr(got, name), getattr(wanted, name)
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                scale = max(np.abs(theirs).max(), np.abs(wanted.scores).max())
                assert_within(ours, theirs, rounding(scale, 300, dtype), name)


@on_each_device
@pytest.mark.parametrize("credit", ["step", "carry"])
@pytest.mark.parametrize("name", ["tied transformer", "convnet"])
def test_runs_of_layers_are_the_oracles(device: Any, name: str, credit: Any) -> None:
    """Biases have another β1 than their weights, which have L2 decay: kernels, the tied embedding, gains."""
    model, batch = MODELS[name]
    adam = Clipped(AdamGroups((("*bias", Adam(0.02, (0.6, 0.99), 1e-3)),), Adam(0.01, eps=1e-3, l2=0.1)), 0.5)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 3, "slope": "secant", "credit": credit}
    wanted = oracle.attribute(model, adam, batch(7, 4), batch(3, 5), **options)
    how: dict[str, Any] = {"device": device, "dtype": "float64"}
    got = engine.attribute(
        model, adam, batch(7, 4), batch(3, 5), **options, **how, carry_window=6 if credit == "carry" else None
    )
    for array in ("scores", "sgd_scores", "decay"):
        ours, theirs = getattr(got, array), getattr(wanted, array)
        if theirs is not None:
            assert_within(ours, theirs, rounding(np.abs(theirs).max(), 10_000), array)
    if credit == "carry":
        part = engine.attribute(model, adam, batch(7, 4), batch(3, 5), **options, **how, carry_window=1)
        total = wanted.scores.sum() + wanted.decay.sum()
        assert_within(part.scores.sum() + part.decay.sum(), total, rounding(np.abs(wanted.scores).sum(), 10_000), "sum")
        assert part.truncated.min() > 0


@pytest.mark.parametrize("window", [1, 2, 5, None])
def test_the_account_balances_whatever_the_window(window: Any) -> None:
    options = RUN | {"credit": "carry", "slope": "secant", "epochs": 8}
    wanted = oracle.attribute(NET, ALL, *data(), **options)
    got = engine.attribute(NET, ALL, *data(), **options, carry_window=window, device="cpu", dtype="float64")
    total = wanted.scores.sum() + wanted.decay.sum()
    assert_within(got.scores.sum() + got.decay.sum(), total, rounding(np.abs(wanted.scores).sum(), 1000), "account")
    assert got.truncated.max() > 0
    if window is None:
        assert np.abs(got.scores - wanted.scores).max() < 1e-3 * np.abs(wanted.scores).max()


@in_each_dtype
@pytest.mark.parametrize("window", [1, 3])
def test_a_run_resumes_with_the_same_bits(dtype: Any, window: int) -> None:
    kept: list[Any] = []
    options: dict[str, Any] = RUN | {"credit": "carry", "device": "cpu", "dtype": dtype, "carry_window": window}
    whole = engine.attribute(NET, ALL, *data(), **options, on_checkpoint=lambda done, take: kept.append(take()))
    shapes = {name: array.shape for name, array in kept[0].items() if name.startswith("window/")}
    assert "window/decay/0.weight" in shapes
    assert "window/decay/0.bias" not in shapes
    assert all({name: s[name].shape for name in shapes} == shapes for s in kept)
    for snapshot in kept[:-1]:
        resumed = engine.attribute(NET, ALL, *data(), **options, resume=snapshot)
        for name in ("scores", "sgd_scores", "decay", "closed", "truncated"):
            np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))


# --- refusals


def test_what_has_no_meaning_is_refused() -> None:
    for module in (engine, oracle):
        with pytest.raises(ValueError, match=r"denominator: got 'previous' with Adam.l2 0.3; needs 'exact', or an l2"):
            module.scores(step(L2), "linearized", denominator="previous")


@dataclasses.dataclass(frozen=True)
class Rising:
    """L2 decay from the third step on."""

    name: str = "Adam.l2"

    def at(self, t: int, name: str) -> Adam:
        return dataclasses.replace(L2, l2=0.0 if t < 3 else 0.3)


def test_carry_refuses_decay_that_begins_later() -> None:
    with pytest.raises(ValueError, match=r"Adam.l2: got 0.3 at step 3 with credit 'carry'; needs 0, as at the first"):
        engine.attribute(NET, Rising(), *data(), **RUN, credit="carry", device="cpu")


@on_each_device
@pytest.mark.parametrize("slope", ["secant", "frozen"])
def test_a_zero_denominator_is_refused_where_decay_does_not_prevent_it(device: Any, slope: Any) -> None:
    """With ε = 0 and v = 0, D(d) is 0 where the decay is, and D(d + g) where decay and gradient are, or cancel."""
    one = step(dataclasses.replace(L2, eps=0.0, eps_root=0.0))
    v = {name: np.zeros_like(p) for name, p in one.params.items()}
    one = dataclasses.replace(one, state=dataclasses.replace(one.state, v=v))
    # The first weights have no gradient.
    one = dataclasses.replace(one, train=Batch(np.zeros_like(one.train.x), one.train.y))
    assert np.isfinite(engine.scores(one, slope, "start", device=device)).all()
    params = {name: np.where(np.arange(p.size).reshape(p.shape) == 0, 0.0, p) for name, p in one.params.items()}
    for module, options in ((oracle, {}), (engine, {"device": device})):
        with pytest.raises(ValueError, match=r"denominator of 0 at \d+ coordinates where v and the gradient are 0"):
            module.scores(dataclasses.replace(one, params=params), slope, "start", **options)
    case = Case.of(one, device, "float64")
    zeros, half = ({name: factor * p for name, p in case.state.theta.items()} for factor in (0.0, -0.5))
    opposite = Hyperparameters.at(case.context, dataclasses.replace(L2, eps=0.0, eps_root=0.0, l2=0.5), case.state.t)
    refuse_division_by_zero(case.context, opposite, zeros, None, case.state.theta)
    with pytest.raises(ValueError, match="denominator of 0 at 51 coordinates"):
        refuse_division_by_zero(case.context, opposite, zeros, half, case.state.theta)


@on_each_device
@in_each_dtype
def test_the_derivative_at_a_parameter_of_0_keeps_its_digits(device: Any, dtype: Any) -> None:
    """Without gradients before, and without decay, A'(0) is η k/ε, whatever the gradient of this step."""
    net = Network((1, 2), "relu", "cross_entropy", bias=False)
    params = {"0.weight": np.array([[0.3], [0.0]])}
    batch = Batch(np.array([[0.125]]), np.array([1]))
    at_0 = Step(net, params, Adam(0.1, l2=0.1), AdamState.zeros(params), batch, batch)
    how: Any = {"slope": "linearized", "gradient": "start"}
    got, wanted = engine.scores(at_0, dtype=dtype, device=device, **how), oracle.scores(at_0, **how)
    bound = bounds(at_0, Query("scores", how), dtype)["values"]
    assert_within(got, wanted, bound, "score")
