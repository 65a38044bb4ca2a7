"""An ε or a learning rate that a dtype cannot represent: refused alike by oracle and engine, never a NaN."""

from typing import Any

import numpy as np
import pytest
from engine_devices import on_each_device
from hypothesis import given
from hypothesis import strategies as st

from adamshap import gpu, reference
from adamshap.reference import Adam, AdamState, Batch, Network, Step
from adamshap.reference.contract import GRADIENTS, MARGINALS, SCORE_SLOPES
from adamshap.verify.implementation import Query
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.properties import in_dtype
from adamshap.verify.tolerance import assert_within

NET = Network((3, 4, 2))
SHAPES = NET.shapes
LEAST = {dtype: float(np.finfo(dtype).smallest_normal) for dtype in ("float32", "float64")}
MOST = {dtype: float(np.finfo(dtype).max) for dtype in ("float32", "float64")}


def step(adam: Adam, dtype: str = "float64", v: float = 0.0, t: int = 0) -> Step:
    """Return a step whose second input is always 0, so that its gradients and v are 0 too."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(5, 3)) * [1, 0, 1]
    state = AdamState(t, *({name: np.full(shape, value) for name, shape in SHAPES.items()} for value in (0.0, v)))
    batch = Batch(x, np.array([0, 1, 0, 1, 1]))
    return in_dtype(Step(NET, NET.init(0), adam, state, batch, Batch(x + 1, batch.y)), dtype)


CALLS = {
    "scores": lambda who, given, **how: who.scores(given, **how),
    "per_validation": lambda who, given, **how: who.scores(given, per_validation=True, **how),
    "efficient": lambda who, given, **how: who.scores(given, "sgd", "start", True, **how),
    "previous": lambda who, given, **how: who.scores(given, "linearized", denominator="previous", **how),
    "two_term": lambda who, given, **how: who.scores(given, "two_term", **how),
    "influence": lambda who, given, **how: who.influence(given, **how),
    "marginals": lambda who, given, **how: who.marginals(given, **how),
    "first_order": lambda who, given, **how: who.marginals(given, loss="first_order", **how),
    "utility": lambda who, given, **how: who.utility(given, [True] * 5, **how),
    "update": lambda who, given, **how: who.update(given, **how),
}


def settings_below(dtype: str) -> list[Adam]:
    """Return settings with a positive ε that `dtype` cannot represent with full precision."""
    small = [np.nextafter(LEAST[dtype], 0)] + ([1e-46] if dtype == "float32" else [5e-324])
    return [Adam(eps=eps) for eps in small] + [Adam(eps=0.0, eps_root=eps) for eps in small]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("call", CALLS)
@on_each_device
def test_an_eps_below_the_dtype_is_refused_like_0(device: Any, call: str, dtype: str) -> None:
    for adam in (Adam(eps=0.0), *settings_below(dtype)):
        given = step(adam, dtype, t=1)
        for who, how in (
            (reference, {}),
            (gpu, {"device": device, "dtype": dtype}),
            (gpu, {"device": device, "dtype": "float64"}),  # the step itself is in float32
        ):
            with pytest.raises(ValueError, match=r"^Adam\.eps: got 0, or less than the dtype holds, with a denom"):
                CALLS[call](who, given, **how)
    with pytest.raises(ValueError, match=r"^Adam\.eps: got 0, or less"):  # the dtype of the computation counts too
        CALLS[call](gpu, step(Adam(eps=1e-46), "float64", t=1), device=device, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("credit", ["step", "carry"])
@on_each_device
def test_a_run_with_such_an_eps_is_refused(device: Any, credit: str, dtype: str) -> None:
    given = step(Adam())
    for adam in (Adam(eps=0.0), *settings_below(dtype)):
        trainers: list[Any] = [(gpu, {"device": device, "dtype": dtype})]
        trainers += [(reference, {})] if dtype == "float64" else []
        for who, how in trainers:
            with pytest.raises(ValueError, match=r"^Adam\.eps: got 0, or less than the dtype holds"):
                who.attribute(NET, adam, given.train, given.valid, epochs=1, credit=credit, **how)


def test_retraining_has_the_runs_eps() -> None:
    given = step(Adam())
    config = reference.RunConfig(NET, Adam(eps=5e-324), given.train, given.valid, 1, 5, 0)
    run = reference.Run({}, {}, given.state, *(np.zeros(5) for _ in range(3)), {}, config)
    for function, more in ((reference.metagradient, ()), (reference.retrained, ([0],))):
        with pytest.raises(ValueError, match=r"^Adam\.eps: got 0, or less than the dtype holds"):
            function(run, *more)


@pytest.mark.parametrize("slope", SCORE_SLOPES)
@pytest.mark.parametrize("gradient", GRADIENTS)
@on_each_device
def test_both_refuse_the_same_denominators(device: Any, slope: Any, gradient: Any) -> None:
    """ε is 0, with v = 0 everywhere or nowhere, and with gradients that are 0 or not."""
    for v in (0.0, 1e-6):
        for idle in (False, True):
            given = step(Adam(eps=0.0), v=v)
            x = given.train.x.copy()
            if not idle:
                x[:, 1] = [1.0, -2.0, 0.5, 0.3, 2.0]
            given = Step(NET, given.params, given.adam, given.state, Batch(x, given.train.y), given.valid)
            for kind in MARGINALS if slope == "two_term" else ("shapley",):
                outcomes = []
                for who, how in ((reference, {}), (gpu, {"device": device, "dtype": "float64"})):
                    try:
                        found = who.scores(given, slope, gradient, kind=kind, **how)
                        outcomes.append("a number")
                        assert np.isfinite(found).all()
                    except ValueError as error:
                        outcomes.append(str(error).split(":")[0])
                assert outcomes[0] == outcomes[1], (v, idle, kind)


@given(st.floats(LEAST["float32"], 1e-8), st.sampled_from(SCORE_SLOPES), st.sampled_from(GRADIENTS))
def test_every_eps_within_the_dtype_gives_finite_scores(eps: float, slope: Any, gradient: Any) -> None:
    given = in_dtype(step(Adam(eps=eps)), "float32")
    assert np.isfinite(reference.scores(given, slope, gradient)).all()
    assert np.isfinite(gpu.scores(given, slope, gradient, device="cpu")).all()


@pytest.mark.parametrize("field", ["lr", "eps", "eps_root", "weight_decay"])
@pytest.mark.parametrize("call", CALLS)
def test_settings_beyond_the_dtype_are_refused(call: str, field: str) -> None:
    adam = Adam(**{field: 2 * MOST["float32"]})
    says = rf"^Adam\.{field}: got 6\.8\d*e\+38; needs at most 3\.4e\+38, the largest number of float32"
    calls: list[Any] = [
        lambda: CALLS[call](reference, step(adam, "float32", t=1)),
        lambda: CALLS[call](gpu, step(adam, "float32", t=1), device="cpu", dtype="float64"),
        lambda: CALLS[call](gpu, step(adam, "float64", t=1), device="cpu", dtype="float32"),
        lambda: gpu.attribute(NET, adam, *(step(adam).train,) * 2, device="cpu"),
        lambda: gpu.attribute(NET, adam, *(step(adam).train,) * 2, device="cpu", credit="carry"),
    ]
    for one in calls:
        with pytest.raises(ValueError, match=says):
            one()


def test_a_weight_decay_whose_product_with_lr_is_beyond_the_dtype_is_refused() -> None:
    adam = Adam(lr=1e3, weight_decay=1e37)
    for one in (lambda: reference.update(step(adam, "float32")), lambda: gpu.update(step(adam), device="cpu")):
        with pytest.raises(ValueError, match=r"^Adam\.weight_decay: got 1e\+37 with lr 1000\.0; needs a product"):
            one()


@pytest.mark.parametrize("betas", [(0.0, 1 - 1e-9), (1 - 1e-9, 0.0), (1 - 1e-9, 1 - 1e-9), (1 - 2**-53,) * 2])
@pytest.mark.parametrize("t", [0, 10**6])
def test_betas_next_to_1_need_no_refusal(betas: Any, t: int) -> None:
    """1 − β and 1 − β^t are computed in double precision, even if β is 1 in float32."""
    given, query = step(Adam(betas=betas), "float32", v=1e-6, t=t), Query("scores", {})
    found = gpu.scores(given, device="cpu")
    assert_within(found, expected(given, query)["values"], bounds(given, query, "float32")["values"], "scores")


@on_each_device
def test_a_learning_rate_that_underflows_is_0(device: Any) -> None:
    found = gpu.scores(step(Adam(lr=1e-50), v=1e-6), device=device)
    np.testing.assert_array_equal(found, gpu.scores(step(Adam(lr=0.0), v=1e-6), device=device))


@pytest.mark.parametrize("slope", ["secant", "tangent", "random_order"])
@on_each_device
def test_an_eps_that_vanishes_beside_the_gradient_still_divides(device: Any, slope: Any) -> None:
    """ε over the largest number under the root underflows, although ε itself is representable."""
    base = step(Adam(eps=1e-33))
    x = 1e15 * np.random.default_rng(1).normal(size=(5, 3))
    net = Network((3, 2))
    params = net.init(0)
    data = Batch(x, base.train.y)
    given = Step(net, params, base.adam, AdamState.zeros(params), data, Batch(x / 1e15, data.y))
    given, query = in_dtype(given, "float32"), Query("scores", {"slope": slope, "gradient": "start"})
    found = gpu.scores(given, slope, "start", device=device)
    assert_within(found, expected(given, query)["values"], bounds(given, query, "float32")["values"], "scores")
