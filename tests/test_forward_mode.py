"""Forward mode in the oracle: a second road to ⟨P, x_i⟩, which shares no derivative rule with the first."""

from dataclasses import replace
from typing import Any

import autograd.numpy as anp
import numpy as np
import pytest
from autograd.extend import defvjp, primitive
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_models import MODELS, NET, every_model, step_of

from adamshap import reference as oracle
from adamshap.reference import Adam, AdamState, Batch, Clipped, Function, Network, Step, forward_mode, models, scoring
from adamshap.reference.contract import ACTIVATIONS, GRADIENTS, SLOPES, Array, Estimator, Params
from adamshap.verify.checking import check
from adamshap.verify.faults import BY_NAME
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.models import SEQUENTIAL
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES
from adamshap.verify.strategies import steps
from adamshap.verify.tolerance import assert_within, parameter_count, rounding, score_bound, score_magnitude

PROPERTY = {one.name: one for one in (*PROPERTIES, *LAYER_PROPERTIES)}
NAMES = ("scores-forward-mode", "sequential-scores-forward-mode")


def random_direction(params: Params, seed: int = 5) -> Params:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(p.shape) for name, p in params.items()}


def by_gradients(step: Step, direction: Params) -> tuple[Array, Array]:
    """Return ⟨P, ∇ℓ_i⟩ from every sample's gradient, and the bound on its rounding."""
    x = models.each_gradient(step.net, step.params, step.train)
    P = {name: array[None] for name, array in direction.items()}
    sizes = ({name: np.abs(array) for name, array in group.items()} for group in (x, P))
    return scoring.dot_products(x, P)[:, 0], rounding(scoring.dot_products(*sizes)[:, 0], parameter_count(step))


@every_model
def test_derivatives_are_the_products_with_the_gradients(name: str) -> None:
    step = step_of(name)
    direction = random_direction(step.params)
    got = oracle.directional_derivatives(step.net, step.params, step.train, direction)
    assert_within(got, *by_gradients(step, direction), "derivative")


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_loss(activation: Any, loss: Any) -> None:
    net, generator = Network((3, 4, 4, 2), activation, loss=loss), np.random.default_rng(0)
    y = generator.integers(0, 2, 6) if loss == "cross_entropy" else generator.standard_normal((6, 2))
    params, batch = net.init(0), Batch(3 * generator.standard_normal((6, 3)), y)
    step = Step(net, params, Adam(), AdamState.zeros(params), batch, batch)
    direction = random_direction(params)
    got = oracle.directional_derivatives(net, params, batch, direction)
    assert_within(got, *by_gradients(step, direction), "derivative")


@given(steps() | steps(model=SEQUENTIAL), st.sampled_from(SLOPES), st.sampled_from(GRADIENTS), st.booleans())
@settings(max_examples=60)
def test_scores_by_both_contractions_agree(step: Step, slope: Any, gradient: Any, each: bool) -> None:
    ghost, forward = (
        oracle.scores(step, slope, gradient, per_validation=each, contraction=how)  # type: ignore[arg-type]
        for how in ("ghost", "forward")
    )
    bound = bound_of(step, slope, gradient, each)
    if (np.abs(forward - ghost) > bound).any():  # layers' parts of a tangent may cancel on the way to the loss
        bound = score_bound(step, slope, gradient, per_validation=each)
    assert_within(forward, ghost, bound, "score")


def bound_of(step: Step, slope: Any, gradient: Any, each: bool = False) -> Array:
    """Return the bound on the rounding of the dot product alone: P is the same for both, bit for bit."""
    return rounding(score_magnitude(step, slope, gradient, per_validation=each), parameter_count(step))  # type: ignore[no-any-return]


@every_model
@pytest.mark.parametrize("slope", ["sgd", "random_order"])
def test_clipping_and_reductions(name: str, slope: Any) -> None:
    for step in (step_of(name), step_of(name, adam=Clipped(Adam(0.01), 0.5)), step_of(name, reduction="sum")):
        ghost, forward = (
            oracle.scores(step, slope, "start", contraction=how)  # type: ignore[arg-type]
            for how in ("ghost", "forward")
        )
        assert_within(forward, ghost, bound_of(step, slope, "start"), "score")


def test_forward_mode_forms_no_sample_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of("tied transformer")
    monkeypatch.setattr(models, "each_gradient", lambda *_: pytest.fail("a sample's gradient"))
    assert np.isfinite(oracle.directional_derivatives(step.net, step.params, step.train, step.params)).all()


# --- the property ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_has_the_property(name: str) -> None:
    (outcome,) = check(ORACLE, [PROPERTY[name]], shrink_seconds=0)
    assert outcome.status == "passed", outcome.finding


@pytest.mark.parametrize("name", NAMES)
def test_the_property_detects_a_wrong_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that all x_i of the oracle share: g, Γ and P follow it, ⟨P, x_i⟩ in forward mode does not."""
    right = models.each_gradient

    def wrong(model: Any, params: Params, batch: Batch) -> Params:
        return {name: 1.001 * x if x.ndim == 2 else x for name, x in right(model, params, batch).items()}

    monkeypatch.setattr(models, "each_gradient", wrong)
    (outcome,) = check(ORACLE, [PROPERTY[name]], shrink_seconds=0)
    assert outcome.status == "failed"


def test_the_property_detects_a_known_mistake() -> None:
    (outcome,) = check(BY_NAME["momentum-per-sample"].implementation(), [PROPERTY[NAMES[0]]], shrink_seconds=0)
    assert outcome.status == "failed"


# --- functions -------------------------------------------------------------------------------------------------------


def with_gradients(losses: Any, gradients: Any) -> Function:
    return Function(NET.shapes, losses, NET.init, gradients)


def assert_by_differences(step: Step) -> None:
    """Assert that the derivatives are off by no more than roundings of losses that move by a quarter of `MOVE`."""
    direction = random_direction(step.params)
    got = oracle.directional_derivatives(step.net, step.params, step.train, direction)
    wanted, _ = by_gradients(step, direction)
    bound = rounding(np.abs(wanted).max(), 1) / (forward_mode.MOVE / 4)
    assert_within(got, wanted, bound, "derivative")
    assert (got != wanted).any()


def test_a_function_with_gradients_of_its_own_by_differences() -> None:
    step = step_of("function")
    losses = step.net.losses  # type: ignore[attr-defined]
    own = with_gradients(losses, lambda params, batch: models.each_gradient(NET, params, batch))
    assert_by_differences(replace(step, net=own))


def test_a_pytorch_module_by_differences() -> None:
    torch = pytest.importorskip("torch")

    def loss(params: Any, x: Any, y: Any) -> Any:
        hidden = torch.tanh(x @ params["0.weight"].T + params["0.bias"])
        return torch.nn.functional.cross_entropy(hidden @ params["1.weight"].T + params["1.bias"], y)

    def tensors(params: Params, batch: Batch) -> Any:
        p = {name: torch.tensor(np.asarray(array, np.float64)) for name, array in params.items()}
        return p, torch.tensor(np.asarray(batch.x, np.float64)), torch.tensor(np.asarray(batch.y, np.int64))

    def losses(params: Params, batch: Batch) -> Array:
        return torch.func.vmap(loss, (None, 0, 0))(*tensors(params, batch)).numpy()

    def gradients(params: Params, batch: Batch) -> Params:
        x = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(*tensors(params, batch))
        return {name: array.numpy() for name, array in x.items()}

    assert_by_differences(replace(step_of("function"), net=with_gradients(losses, gradients)))


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e9])
def test_differences_of_any_length_of_the_direction(scale: float) -> None:
    step = step_of("function")
    losses = step.net.losses  # type: ignore[attr-defined]
    own = with_gradients(losses, lambda params, batch: models.each_gradient(NET, params, batch))
    direction = {name: scale * p for name, p in random_direction(step.params).items()}
    got = oracle.directional_derivatives(own, step.params, step.train, direction)
    exact = oracle.directional_derivatives(step.net, step.params, step.train, direction)
    assert_within(got, exact, 64 * rounding(np.abs(exact).max(), 1) / forward_mode.MOVE, "derivative")


def test_an_operation_without_a_rule_is_refused() -> None:
    @primitive  # type: ignore[untyped-decorator]
    def twice(x: Any) -> Any:
        return 2 * x

    defvjp(twice, lambda ans, x: lambda g: 2 * g)
    model = Function({"w": (3,)}, lambda params, batch: twice(batch.x @ params["w"]), {"w": np.ones(3)})
    batch = Batch(np.ones((2, 3)), np.zeros((2, 1)))
    assert models.each_gradient(model, model.init(), batch)["w"].shape == (2, 3)
    with pytest.raises(ValueError, match=r"Function.losses: got an operation without one .*twice"):
        oracle.directional_derivatives(model, model.init(), batch, {"w": np.ones(3)})


def test_a_function_in_autograd_is_exact() -> None:
    model = Function({"w": (3,)}, lambda p, batch: anp.sin(batch.x @ p["w"]), {"w": np.ones(3)})
    batch = Batch(np.array([[0.1, 0.2, 0.3], [1.0, -1.0, 0.5]]), np.zeros((2, 1)))
    got = oracle.directional_derivatives(model, model.init(), batch, {"w": np.array([1.0, 2.0, 3.0])})
    wanted = np.cos(batch.x @ np.ones(3)) * (batch.x @ np.array([1.0, 2.0, 3.0]))
    assert_within(got, wanted, rounding(np.abs(wanted), 3), "derivative")


# --- runs ------------------------------------------------------------------------------------------------------------


def test_runs_by_both_contractions_agree() -> None:
    model, data = MODELS["tied transformer"]
    for options in ({}, {"per_validation": True, "slope": "secant"}):
        ghost, forward = (
            oracle.attribute(model, Adam(), data(6, 1), data(3, 2), epochs=1, batch_size=3, contraction=how, **options)
            for how in ("ghost", "forward")
        )
        for one, other in ((forward.scores, ghost.scores), (forward.sgd_scores, ghost.sgd_scores)):
            assert_within(one, other, rounding(np.abs(other).max(), parameter_count(step_of("tied transformer"))))
            assert (one != other).any()


def test_the_estimator_refuses_what_has_no_derivative() -> None:
    for options in ({"slope": "two_term"}, {"rank": 4}, {"score_dtype": "tf32"}):
        with pytest.raises(ValueError, match=r"contraction: got 'forward' with .*; needs 'ghost'"):
            Estimator(contraction="forward", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"contraction: got 'backward'; needs"):
        Estimator(contraction="backward")  # type: ignore[arg-type]
