"""The slope "auto": the random order where it differs from the secant, in the oracle and in the engine."""

from typing import Any

import numpy as np
import pytest
from engine_devices import assert_scores, in_each_dtype, on_device, on_each_device
from hypothesis import given
from hypothesis import strategies as st

import adamshap.gpu as engine
from adamshap.gpu import forward
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.kernels import kernels_for
from adamshap.gpu.kernels import numpy as in_numpy
from adamshap.gpu.kernels.plan import adam_scalars, slope_plan
from adamshap.reference import adam, models, scores, slopes, update
from adamshap.reference.contract import Adam, AdamState, Array, Batch, Network, Step, StepNumber
from adamshap.verify.steps import in_dtype
from adamshap.verify.strategies import steps
from adamshap.verify.tolerance import assert_within, rounding

NET = Network((6, 8, 3))


def walked(count: int, n: int = 12) -> Step:
    """Return a step after `count` others."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((400, 6)), generator.integers(0, 3, 400)
    params, valid = NET.init(seed=0), Batch(x[:10], y[:10])
    state = AdamState.zeros(params)
    for _ in range(count + 1):
        some = generator.choice(np.arange(10, 400), n, replace=False)
        step = Step(NET, params, Adam(), state, Batch(x[some], y[some]), valid)
        params, state = update(step)
    return step


def weights(step: Step) -> dict[str, float]:
    """Return λ of each parameter."""
    c, g = adam.step_coefficients(step), models.batch_gradient(step)
    return {name: slopes.random_order_weight(c[name], g[name]) for name in g}


def coefficients(v: Array, eps: float = 1e-8) -> adam.Coefficients:
    return adam.coefficients(Adam(eps=eps), StepNumber(20), 0 * v, v)


def test_the_first_step_is_the_random_order_and_a_late_one_the_secant() -> None:
    first, late = walked(0), walked(60)
    np.testing.assert_array_equal(scores(first, "auto"), scores(first, "random_order"))
    np.testing.assert_array_equal(scores(late, "auto"), scores(late, "secant"))
    assert set(weights(first).values()) == {1.0}
    assert set(weights(late).values()) == {0.0}


def test_one_sample_has_the_secant() -> None:
    step = walked(0, n=1)
    np.testing.assert_array_equal(scores(step, "auto"), scores(step, "secant"))


def test_the_weight_rises_with_the_mean_squared_own_share() -> None:
    """A share z of all coordinates alike has Q = z²."""
    c = coefficients(np.ones((3, 4)))
    for square, wanted in ((1 / 8, 0.0), (13 / 64, 0.5), (1 / 4, 1.0)):
        z = np.sqrt(square)
        g = np.full((3, 4), np.sqrt(z / (1 - z) * c.kappa[0, 0] / c.q))
        assert_within(slopes.random_order_weight(c, g), wanted, rounding(10.0, 12), "weight")


def test_coordinates_count_by_their_part_of_the_step() -> None:
    """A coordinate with v = 0 has a share of 1; one whose gradient is far below ε counts for nothing."""
    v, g = np.ones((1, 20)), np.full((1, 20), 1e-3)
    v[0, 0], g[0, 0] = 0.0, 1e-15
    assert slopes.random_order_weight(coefficients(v), g) == 0
    g[0, 0] = 1e-3
    assert slopes.random_order_weight(coefficients(v), g) == 1
    assert slopes.random_order_weight(coefficients(v), 0 * g) == 1  # the one with v = 0 decides, as for g near 0
    assert slopes.random_order_weight(coefficients(v + 1), 0 * g) == 0


@given(st.floats(-3, 3), st.floats(0, 0.2), st.floats(-2.1, 2.1), st.sampled_from([0.0, 1e-3, 0.1, 1.0, 30.0]))
def test_the_two_slopes_differ_by_no_more_than_the_derived_bound(y: float, u: float, alpha: float, e: float) -> None:
    """For κ = q = η = k = 1 and μ = α: g = y, ε = e, σ² = u (docs/method.md 4)."""
    c = adam.Coefficients(np.array([alpha]), 1.0, np.ones(1), 1.0, e, 1.0)
    g = np.array([y])
    x = np.array([[y / 2 + np.sqrt(u / 4)], [y / 2 - np.sqrt(u / 4)]])  # n/(n − 1) Σ (x − g/n)² = u
    both = [f(slopes.SlopeInput(c, x, g, (40, 40))) for f in (slopes.random_order, slopes.secant)]
    bound = u * (1 / 4 + abs(alpha) / 6) / (1 + e)
    assert abs(both[0] - both[1]) <= bound + rounding(1 + abs(alpha), 500)


# --- the engine -------------------------------------------------------------------------------------------------------


def blend_of(implementation: str, device: Any, dtype: str, c: Adam, t: int, g: Array, v: Array) -> float:
    """Return λ in the engine's plan of one parameter."""
    backend = pick_backend(device, dtype)
    kernels = in_numpy if implementation == "numpy" and not backend.on_cuda else kernels_for(backend)
    order = slope_plan("auto", (3, 4), 8)
    scalars, arrays = {"one": adam_scalars(c, StepNumber(t))}, (on_device(device, a.astype(dtype)) for a in (g, v))
    plan = kernels.auto_plans(scalars, order, *({"one": array} for array in arrays))["one"]
    if plan.table is not None:
        assert len(plan.nodes) == 1 + len(order.nodes)
        return 1 - float(backend.host(plan.table)[3])
    if not plan.needs_spread:
        return 0.0
    return 1.0 if len(plan.nodes) == len(order.nodes) else 1 - plan.nodes[0][3]


@in_each_dtype
@on_each_device
@pytest.mark.parametrize("implementation", ["device's own", "numpy"])
def test_the_engine_weighs_as_the_oracle_does(implementation: str, device: Any, dtype: str) -> None:
    """Also over more elements than a block of the loops has."""
    generator, found = np.random.default_rng(0), set()
    for shape in ((3, 5), (300, 400)):
        for scale in 10 ** np.linspace(-3, 1, 60):
            g, v = scale * generator.standard_normal(shape), generator.chisquare(1, shape)
            g, v = g.astype(dtype).astype(float), v.astype(dtype).astype(float)
            settings = Adam(eps=1e-3, betas=(0.9, 0.9))
            wanted = slopes.random_order_weight(adam.coefficients(settings, StepNumber(9), 0 * v, v), g)
            got = blend_of(implementation, device, dtype, settings, 9, g, v)
            assert_within(got, wanted, rounding(4.0, 30, dtype), "weight")
            found.add((wanted > 0) + (wanted == 1))
    assert found == {0, 1, 2}


@in_each_dtype
@on_each_device
def test_the_engine_weighs_numbers_that_its_dtype_cannot_square(device: Any, dtype: str) -> None:
    large = float(np.finfo(dtype).max) / 16
    for g, v, wanted in ((large, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1e-30, 1.0, 0.0), (1e-30, 0.0, 1.0)):
        arrays = (np.full((1, 3), number) for number in (g, v))
        assert blend_of("device's own", device, dtype, Adam(), 5, *arrays) == wanted


@on_each_device
@pytest.mark.parametrize("options", [{}, {"per_validation": True}, {"micro_batch": 5}])
@pytest.mark.parametrize("count", [0, 4, 60])
def test_the_engine_scores_as_the_oracle_does(count: int, options: Any, device: Any) -> None:
    step, each = walked(count), {name: options[name] for name in options if name == "per_validation"}
    got = engine.scores(step, "auto", device=device, dtype="float64", **options)
    assert_scores(got, step, "float64", slope="auto", **each)


@given(steps(max_depth=2, max_width=4, max_n=5, max_n_val=3), st.sampled_from(["float32", "float64"]))
def test_the_engine_scores_random_steps_as_the_oracle_does(step: Step, dtype: str) -> None:
    step = in_dtype(step, dtype)
    assert_scores(engine.scores(step, "auto", device="cpu", dtype=dtype), step, dtype, slope="auto")


def test_norms_are_computed_where_the_random_order_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[set[str]] = []

    def noted(context: Any, norms: Any, captures: Any, variance: str) -> None:
        add_norms(context, norms, captures, variance)
        found.append(set(norms))

    add_norms = forward.add_norms
    monkeypatch.setattr(forward, "add_norms", noted)
    seen = set()
    for count in range(8):
        step = walked(count)
        wanted = {name for name, weight in weights(step).items() if weight > 0}
        found.clear()
        engine.scores(step, "auto", device="cpu", dtype="float64")
        assert found == ([wanted] if wanted else [])
        seen.add((bool(wanted), len(wanted) < len(step.params)))
    assert seen == {(True, False), (True, True), (False, True)}
