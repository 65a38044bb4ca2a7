"""Properties of the oracle's scores for any network, batch, state and β/ε."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap.reference import influence, marginals, models, scores, slopes, update, utility
from adamshap.reference.adam import Coefficients, apply_gradient, divided_difference, step_coefficients, update_map
from adamshap.reference.contract import (
    GRADIENTS,
    SLOPES,
    Adam,
    AdamState,
    Array,
    Batch,
    Gradient,
    Network,
    Slope,
    Step,
)
from adamshap.verify.strategies import seeds, steps
from adamshap.verify.tolerance import (
    assert_within,
    conditioning,
    parameter_count,
    rounding,
    score_bound,
    score_magnitude,
    unit_roundoff,
)

slope_names = st.sampled_from(SLOPES)
gradients = st.sampled_from(GRADIENTS)
any_step = steps()


def replace(step: Step, **changes: object) -> Step:
    return dataclasses.replace(step, **changes)  # type: ignore[arg-type]


def to_mse(step: Step) -> Step:
    """Return the same step with squared error, for which a sample's gradient can be exactly 0."""
    net = Network(step.net.sizes, step.net.activation, "mse", step.net.bias)
    batches = {}
    for name in ("train", "valid"):
        batch = getattr(step, name)
        width = net.sizes[-1]
        batches[name] = Batch(batch.x, np.sin(np.arange(float(batch.n * width))).reshape(batch.n, width))
    return replace(step, net=net, **batches)


def own_outputs(step: Step) -> Array:
    """Return the network's outputs on the training batch, by the operations of the per-sample gradients."""
    copies = {name: np.repeat(p[None], step.n, axis=0) for name, p in step.params.items()}
    return models.outputs(step.net, copies, step.train.x)


# --- efficiency


@given(steps())
def test_secant_scores_sum_to_the_first_order_gain(step: Step) -> None:
    """Σ_i ⟨Γ ⊙ A[g, 0], x_i⟩ = ⟨Γ, A(g) − A(0)⟩, without remainder."""
    gain = marginals(step, "first", "first_order")
    magnitude = score_magnitude(step, "secant", "start").sum() + abs(gain.total) + abs(gain.empty)
    cancelling = absolute_first_order(step)
    bound = rounding(magnitude + cancelling, step.n * parameter_count(step))
    moved = conditioning(lambda s: scores(s, "secant", "start").sum() - first_order_gain(s), step)
    assert_within(scores(step, "secant", "start").sum(), gain.total - gain.empty, bound + moved, "Σ score")


def first_order_gain(step: Step) -> Array:
    result = marginals(step, "first", "first_order")
    return np.array(result.total - result.empty)


def absolute_first_order(step: Step) -> float:
    """Return Σ |∂L| (|A(g)| + |A(0)|): the terms of U₁(B) and U₁(∅)."""
    gamma, g = models.loss_gradient(step.net, step.params, step.valid), models.batch_gradient(step)
    size = 0.0
    for name, c in step_coefficients(step).items():
        full, empty = update_map(c, g[name]), update_map(c, np.zeros_like(g[name]))
        size += float((np.abs(gamma[name]) * (np.abs(full) + np.abs(empty))).sum())
    return size


@given(any_step, slope_names, gradients, st.booleans())
def test_efficient_scores_sum_to_the_utility(
    step: Step, slope: Slope, gradient: Gradient, per_validation: bool
) -> None:
    got = scores(step, slope, gradient, efficient=True, per_validation=per_validation)
    plain = scores(step, slope, gradient, per_validation=per_validation)
    everybody = np.ones(step.n, bool)
    if per_validation:
        singles = [replace(step, valid=step.valid.take(np.array([j]))) for j in range(step.n_val)]
        gain = np.array([utility(s, everybody) - utility(s, ~everybody) for s in singles])
    else:
        gain = np.array(utility(step, everybody) - utility(step, ~everybody))
    scale = loss_scale(step) + np.abs(plain).sum(axis=0)
    assert_within(got.sum(axis=0), gain, rounding(scale, step.n), "Σ score")
    # The remainder is spread equally.
    spread = got - plain
    assert_within(spread, np.broadcast_to(spread.mean(axis=0), spread.shape), rounding(scale, step.n), "share")


def loss_scale(step: Step) -> float:
    ends = (utility(step, np.ones(step.n, bool)), utility(step, np.zeros(step.n, bool)))
    losses = models.sample_losses(step.net, step.params, step.valid)
    logits = np.abs(models.outputs(step.net, step.params, step.valid.x)).max()
    return float(step.n_val * np.abs(losses).max() + sum(map(abs, ends)) + logits + 1)


def test_secant_on_the_path_sums_to_the_loss_change_as_nodes_grow() -> None:
    """The fundamental theorem of calculus, up to a quadrature error that more nodes shrink."""
    errors = []
    step = smooth_step()
    everybody = np.ones(step.n, bool)
    gain = utility(step, everybody) - utility(step, ~everybody)
    for count in (1, 2, 4, 8):
        errors.append(abs(scores(step, "secant", "path", nodes=(count, 4)).sum() - gain))
    assert errors[0] > errors[1] > errors[2] > 0
    assert_within(errors[3], 0.0, rounding(loss_scale(step), parameter_count(step)), "Σ score − gain")


def smooth_step() -> Step:
    """Return a step long enough to leave the linear regime, in a network without kinks."""
    generator = np.random.default_rng(11)
    net = Network((6, 8, 4), "tanh")
    params = net.init(4)
    state = AdamState(
        5,
        {name: 0.1 * generator.standard_normal(p.shape) for name, p in params.items()},
        {name: 0.01 * generator.chisquare(3, p.shape) for name, p in params.items()},
    )
    train = Batch(generator.standard_normal((9, 6)), generator.integers(0, 4, 9))
    valid = Batch(generator.standard_normal((7, 6)), generator.integers(0, 4, 7))
    return Step(net, params, Adam(lr=0.3, weight_decay=0.1), state, train, valid)


# --- symmetry


@given(any_step, slope_names, gradients, seeds)
def test_scores_follow_their_samples(step: Step, slope: Slope, gradient: Gradient, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(step.n)
    bound = score_bound(step, slope, gradient)
    shuffled = scores(replace(step, train=step.train.take(order)), slope, gradient)
    assert_within(shuffled, scores(step, slope, gradient)[order], bound[order], "score")


@given(any_step, slope_names, gradients)
def test_equal_samples_score_equally(step: Step, slope: Slope, gradient: Gradient) -> None:
    twice = replace(step, train=step.train.take(np.concatenate([np.arange(step.n), [0]])))
    got = scores(twice, slope, gradient)
    bound = rounding(score_magnitude(twice, slope, gradient)[0], parameter_count(step))
    assert_within(got[0], got[-1], bound, "score")


@given(any_step, slope_names, gradients)
def test_a_sample_without_gradient_scores_zero(step: Step, slope: Slope, gradient: Gradient) -> None:
    step = to_mse(step)
    targets = step.train.y.copy()
    targets[0] = own_outputs(step)[0]
    step = replace(step, train=Batch(step.train.x, targets))
    assert not any(x[0].any() for x in models.sample_gradients(step).values())
    assert scores(step, slope, gradient)[0] == 0
    assert influence(step)[0] == 0
    for kind in ("first", "last"):
        assert marginals(step, kind).values[0] == 0  # type: ignore[arg-type]


# --- additivity over validation


@given(any_step, slope_names, gradients)
def test_validation_samples_add_up(step: Step, slope: Slope, gradient: Gradient) -> None:
    """Each column is the score against that sample alone, and their mean is the score."""
    matrix = scores(step, slope, gradient, per_validation=True)
    assert matrix.shape == (step.n, step.n_val)
    bound = score_bound(step, slope, gradient, per_validation=True)
    for j in range(step.n_val):
        alone = replace(step, valid=step.valid.take(np.array([j])))
        assert_within(matrix[:, j], scores(alone, slope, gradient), bound[:, j], f"column {j}")
    assert_within(matrix.mean(axis=1), scores(step, slope, gradient), bound.sum(axis=1), "mean")


# --- limits and invariances


@given(any_step, slope_names.filter(lambda slope: slope != "sgd"))
def test_a_large_eps_leaves_sgd(step: Step, slope: Slope) -> None:
    """D(g) → ε: Adam becomes SGD with momentum, with the slope η k / ε everywhere."""
    eps = 1e30  # so large that every gradient's root vanishes beside it in float64
    step = replace(step, adam=dataclasses.replace(step.adam, eps=eps))
    k = step_coefficients(step)["0.weight"].k
    bound = rounding(score_magnitude(step, "sgd", "start") * k, parameter_count(step))
    assert_within(scores(step, slope, "start") * eps, k * scores(step, "sgd", "start"), bound, "ε score")


@given(any_step, slope_names.filter(lambda slope: slope != "sgd"), gradients)
def test_rescaling_loss_and_state_changes_nothing(step: Step, slope: Slope, gradient: Gradient) -> None:
    """Adam is scale-invariant: n times the training loss with matching (m, v, ε) gives the same step and scores."""
    n, adam = step.n, step.adam
    mean = replace(step, reduction="mean")
    state = AdamState(
        step.state.step,
        {name: n * m for name, m in step.state.m.items()},
        {name: n**2 * v for name, v in step.state.v.items()},
    )
    scaled_adam = dataclasses.replace(adam, eps=n * adam.eps, eps_root=n**2 * adam.eps_root)
    scaled = replace(step, reduction="sum", state=state, adam=scaled_adam)
    bound = score_bound(mean, slope, gradient)
    assert_within(scores(scaled, slope, gradient), scores(mean, slope, gradient), bound, "score")
    everybody = np.ones(n, bool)
    moved = conditioning(lambda s: np.array(utility(s, everybody)), mean)
    bound = rounding(loss_scale(mean), 4) + moved
    assert_within(utility(scaled, everybody), utility(mean, everybody), bound, "U(B)")


@given(any_step)
def test_linearized_is_the_tangent_where_the_gradient_is_zero(step: Step) -> None:
    x = models.sample_gradients(step)
    for name, c in step_coefficients(step).items():
        at_zero = slopes.SlopeInput(c, x[name], np.zeros_like(step.params[name]), (4, 4))
        expected = slopes.linearized(at_zero)
        assert_within(slopes.tangent(at_zero), expected, rounding(np.abs(expected), 1), name)
        assert_within(slopes.secant(at_zero), expected, rounding(np.abs(expected), 1), name)


@given(seeds, st.integers(2, 6))
@settings(max_examples=20)
def test_equal_samples_make_random_order_the_secant(seed: int, n: int) -> None:
    """With equal samples a random prefix is deterministic: E[A'(Y)] = ∫ A'(τ g) dτ, with enough nodes."""
    generator = np.random.default_rng(seed)
    c = Coefficients(
        mu=generator.standard_normal(50), k=0.1, kappa=1 + generator.chisquare(3, 50), q=0.01, eps=1e-8, lr=0.1
    )
    g = generator.standard_normal(50)
    given = slopes.SlopeInput(c, np.repeat(g[None] / n, n, axis=0), g, (16, 4))
    size = divided_difference(dataclasses.replace(c, mu=-np.abs(c.mu) * np.sign(g)), g, np.zeros(50))
    assert_within(slopes.random_order(given), slopes.secant(given), rounding(np.abs(size), 16), "slope")


def test_one_sample_alone_has_the_secant() -> None:
    step = smooth_step()
    alone = replace(step, train=step.train.take(np.array([3])))
    np.testing.assert_array_equal(scores(alone, "random_order"), scores(alone, "secant"))


# --- influence


@given(steps(max_depth=3, max_width=6, max_n=5, max_n_val=4, kinds=("ordinary",)))
@settings(max_examples=50)
def test_influence_is_the_derivative_in_a_samples_weight(step: Step) -> None:
    if step.net.activation == "relu":
        step = replace(step, net=Network(step.net.sizes, "silu", step.net.loss, step.net.bias))
    x, g = models.sample_gradients(step), models.batch_gradient(step)
    stride = unit_roundoff(np.float64) ** (1 / 3)

    def loss(i: int, change: float) -> float:
        moved = {name: g[name] + change * x[name][i] for name in g}
        params, _ = apply_gradient(step, moved)
        return float(models.mean_loss(step.net, params, step.valid))

    got = influence(step)
    for i in range(step.n):
        fine, coarse = ((loss(i, -s) - loss(i, s)) / (2 * s) for s in (stride, 2 * stride))
        noise = rounding(loss_scale(step), step.n_val) / stride
        assert_within(got[i], fine, abs(fine - coarse) + noise, "influence")


# --- the paper's variant, purity


@given(steps(max_n=6, kinds=("ordinary",)))
@settings(max_examples=30)
def test_previous_denominator_is_the_states_own(step: Step) -> None:
    """The slope is η k / (√(v̂_{t−1} + ε_root) + ε), written out."""
    got = scores(step, "linearized", "start", denominator="previous")
    beta2 = step.adam.betas[1]
    gamma, x = models.loss_gradient(step.net, step.params, step.valid), models.sample_gradients(step)
    beta1, t = step.adam.betas[0], step.state.step + 1
    expected, size = np.zeros(step.n), np.zeros(step.n)
    for name in x:
        v_hat = step.state.v[name] / (1 - beta2 ** (t - 1))
        slope = step.adam.lr * (1 - beta1) / (1 - beta1**t) / (np.sqrt(v_hat + step.adam.eps_root) + step.adam.eps)
        products = (gamma[name] * slope * x[name]).reshape(step.n, -1)
        expected, size = expected + products.sum(axis=1), size + np.abs(products).sum(axis=1)
    # A naive 1 − β^t loses a factor of 1/(1 − β) in precision.
    naive = 1 + sum(beta / (1 - beta) for beta in step.adam.betas)
    assert_within(got, expected, rounding(size * naive, parameter_count(step)), "score")


def test_previous_denominator_is_undefined_at_the_first_step() -> None:
    step = smooth_step()
    fresh = replace(step, state=AdamState.zeros(step.params))
    with pytest.raises(ValueError, match=r"denominator: got 'previous' at t = 1"):
        scores(fresh, "linearized", denominator="previous")
    with pytest.raises(ValueError, match=r"denominator: got 'previous' with slope 'secant'"):
        scores(step, "secant", denominator="previous")


@given(any_step)
@settings(max_examples=25)
def test_answers_are_repeatable_and_leave_their_inputs_alone(step: Step) -> None:
    arrays = [*step.params.values(), *step.state.m.values(), *step.state.v.values()]
    arrays += [step.train.x, step.train.y, step.valid.x, step.valid.y]
    before = [a.copy() for a in arrays]
    first = [scores(step), influence(step), marginals(step, "last").values, update(step)[0]["0.weight"]]
    again = [scores(step), influence(step), marginals(step, "last").values, update(step)[0]["0.weight"]]
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.dtype == np.float64
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
