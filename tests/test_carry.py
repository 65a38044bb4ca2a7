"""Whole-run accounting: the split of Adam's map, and scores that add up to the whole change of the validation loss."""

import dataclasses
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap.reference import Adam, AdamState, Batch, Network, Step, attribute, carry, scoring, slopes, update
from adamshap.reference.adam import Coefficients, coefficients, denominator, divided_difference, update_map
from adamshap.reference.contract import GRADIENTS, RunConfig
from adamshap.reference.models import mean_loss, sample_losses
from adamshap.verify.run_tolerance import account_bound
from adamshap.verify.strategies import powers_of_ten, run_configs
from adamshap.verify.tolerance import assert_within, rounding

# --- the split


def exact_excess(c: Coefficients, g: float) -> float:
    """Return N = (∫₀¹ dτ / D(τ g) − 1/D(g)) / g, the integral in closed form, with 700 digits against cancellation."""
    with mpmath.workdps(700):
        kappa, q, eps, g_ = (mpmath.mpf(float(number)) for number in (c.kappa[0], c.q, c.eps, g))
        rho, s = mpmath.sqrt(kappa), mpmath.sqrt(q) * abs(g_)
        R = mpmath.sqrt(kappa + s * s)
        if rho == 0:
            mean = mpmath.log1p(s / eps) / s
        else:
            y = s / (R + rho)  # tanh(u/2), sinh u = s/ρ
            root = mpmath.sqrt(mpmath.mpc((rho - eps) / (rho + eps)))
            inner = 2 * (mpmath.atan(root * y) / root).real / (rho + eps)  # ∫ du / (ε + ρ cosh u)
            mean = (2 * mpmath.atanh(y) - eps * inner) / s
        return float((mean - 1 / (R + eps)) / g_)


@given(
    kappa=st.just(0.0) | powers_of_ten(-60, 20),
    g=powers_of_ten(-6, 2) | powers_of_ten(-100, 20),
    sign=st.sampled_from([-1.0, 1.0]),
    eps=powers_of_ten(-12, -1),
    q=powers_of_ten(-4, 0),
)
def test_the_momentums_mean_denominator(kappa: float, g: float, sign: float, eps: float, q: float) -> None:
    c = Coefficients(mu=np.zeros(1), k=0.1, kappa=np.array([kappa]), q=q, eps=eps, lr=1.0)
    expected = exact_excess(c, sign * g)
    farthest = np.arcsinh(np.sqrt(q) * g / max(np.sqrt(kappa), min(np.sqrt(q) * g, eps) / carry.FARTHEST_RATIO))
    terms = carry.PANEL_NODES * int(1 + farthest / carry.PANEL)
    assert_within(carry.excess(c, np.array([sign * g])), [expected], rounding(abs(expected), terms), "N")


def split_input(eps: float, n: int = 6, nodes: tuple[int, int] = (24, 24)) -> slopes.SlopeInput:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n, 5)) / n
    m, v = generator.standard_normal(5), generator.chisquare(3, 5)
    return slopes.SlopeInput(coefficients(Adam(lr=0.1, eps=eps), 7, m, v), x, x.sum(axis=0), nodes)


@pytest.mark.parametrize("slope", ["secant", "frozen"])
@pytest.mark.parametrize("eps", [1e-12, 1e-3, 10.0])
def test_the_two_parts_sum_to_the_update(slope: str, eps: float) -> None:
    given_ = split_input(eps)
    split, c = carry.SPLITS[slope](given_), given_.c
    parts = [c.lr * c.mu * split.inverse, split.slope * given_.g]
    assert_within(sum(parts), update_map(c, given_.g), rounding(np.abs(parts).sum(axis=0), 2), "A(g)")


def test_random_order_is_the_mean_over_a_normal_prefix() -> None:
    """For a smooth map (ε = 10), S and the inverse equal the means of the derivative and of 1/D, by other nodes."""
    given_ = split_input(eps=10.0, nodes=(24, 25))
    split, c, g = carry.in_random_order(given_), given_.c, given_.g
    sigma = slopes.partial_sum_deviation(given_.x, g)
    slope, inverse = np.zeros(5), np.zeros(5)
    h, a = np.polynomial.hermite_e.hermegauss(40)
    for tau, w in zip(*slopes.unit_interval_rule(30), strict=True):
        for h_j, a_j in zip(h, a / a.sum(), strict=True):
            y = tau * g + h_j * np.sqrt(tau * (1 - tau)) * sigma
            slope += w * a_j * divided_difference(dataclasses.replace(c, mu=tau * c.mu), y, y)
            inverse += w * a_j / denominator(c, y)
    assert_within(split.slope, slope, rounding(np.abs(slope), 30 * 40), "S")
    assert_within(split.inverse, inverse, rounding(inverse, 30 * 40), "1/D")


def test_one_sample_has_no_order() -> None:
    given_ = split_input(1e-8, n=1)
    for ours, theirs in zip(*(vars(f(given_)).values() for f in (carry.in_random_order, carry.even)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- the account


def carried(config: RunConfig, **options: Any) -> Any:
    given_ = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return attribute(**given_, credit="carry", **options)


@given(
    config=run_configs(),
    slope=st.sampled_from(sorted(carry.SPLITS)),
    gradient=st.sampled_from(GRADIENTS),
    nodes=st.tuples(st.integers(1, 4), st.integers(2, 5)),
)
@settings(max_examples=80)
def test_scores_and_weight_decay_add_up_to_the_change_of_the_loss(
    config: RunConfig, slope: Any, gradient: Any, nodes: tuple[int, int]
) -> None:
    """The sum holds for any network, batches, Adam settings, slope and validation gradient."""
    run = carried(config, slope=slope, gradient=gradient, nodes=nodes)
    change = mean_loss(config.network, run.initial_params, config.valid) - mean_loss(
        config.network, run.params, config.valid
    )
    bound = account_bound(config, slope, gradient, nodes)
    assert_within(run.scores.sum() + run.decay.sum(), change, bound, "account")
    steps = len(run.history["epoch"])
    assert run.decay.shape == run.closed.shape == (steps,)
    if config.adam.weight_decay == 0:
        np.testing.assert_array_equal(run.decay, 0)


@given(config=run_configs())
@settings(max_examples=10)
def test_each_validation_samples_own_loss_has_its_account(config: RunConfig) -> None:
    run = carried(config, per_validation=True)
    before, after = (sample_losses(config.network, p, config.valid) for p in (run.initial_params, run.params))
    # One sample's terms are at most n_val times the mean's.
    bound = config.valid.n * account_bound(config)
    assert run.scores.shape == (config.train.n, config.valid.n)
    assert run.decay.shape == run.closed.shape == (len(run.history["epoch"]), config.valid.n)
    assert_within(run.scores.sum(axis=0) + run.decay.sum(axis=0), before - after, bound, "account")
    mean = carried(config)
    for name in ("scores", "decay", "closed"):
        assert_within(getattr(run, name).mean(axis=1), getattr(mean, name), bound, name)


@given(config=run_configs())
@settings(max_examples=10)
def test_secant_and_frozen_leave_only_the_curvature_open(config: RunConfig) -> None:
    """The remainder is 0 if the validation gradient is its mean over the path: identity network, mse."""
    sizes = config.network.sizes
    net = Network((sizes[0], sizes[-1]), "identity", "mse", config.network.bias)
    targets = [
        np.random.default_rng(config.seed).standard_normal((b.n, sizes[-1])) for b in (config.train, config.valid)
    ]
    train, valid = (Batch(b.x, y) for b, y in zip((config.train, config.valid), targets, strict=True))
    quadratic = dataclasses.replace(config, network=net, train=train, valid=valid)
    for slope in ("secant", "frozen"):
        run = carried(quadratic, slope=slope, gradient="midpoint")
        assert_within(run.closed, np.zeros_like(run.closed), account_bound(quadratic, slope), f"closed ({slope})")


@given(config=run_configs())
@settings(max_examples=10)
def test_without_momentum_and_decay_there_is_nothing_to_carry(config: RunConfig) -> None:
    """With β1 = 0 the segment is the data's, and a step's account is `scores` with "secant", "path", efficient."""
    adam = dataclasses.replace(config.adam, betas=(0.0, config.adam.betas[1]), weight_decay=0.0)
    config = dataclasses.replace(config, adam=adam, epochs=1)
    run = carried(config, slope="secant", gradient="path")
    params = config.network.init(config.seed)
    state, expected = AdamState.zeros(params), np.zeros(config.train.n)
    for _, index in config.order():
        step = Step(config.network, params, adam, state, config.train.take(index), config.valid, config.reduction)
        expected[index] = scoring.scores(step, "secant", "path", efficient=True)
        params, state = update(step)
    assert_within(run.scores, expected, account_bound(config, "secant", "path"), "score")


def test_two_steps_by_hand() -> None:
    """With one weight w, loss (w x − y)² and batches of one, the second step's momentum credits the first sample."""
    net, adam = Network((1, 1), "identity", "mse", bias=False), Adam(0.1, (0.5, 0.75), 0.01, weight_decay=0.3)
    data, valid = Batch([[1.0], [2.0]], [[3.0], [-1.0]]), Batch([[1.5]], [[0.5]])
    run = attribute(
        net, adam, data, valid, epochs=1, batch_size=1, seed=4, slope="frozen", gradient="midpoint", credit="carry"
    )
    (_, [first]), (_, [second]) = RunConfig(net, adam, data, valid, 1, 1, 4).order()

    def gradient(w: float, x: float, y: float) -> float:
        return 2 * x * (w * x - y)

    w0 = float(net.init(4)["0.weight"][0, 0])
    g1 = gradient(w0, data.x[first, 0], data.y[first, 0])
    D1 = abs(g1) + 0.01  # m̂ = g, v̂ = g²
    w1 = w0 - 0.1 * g1 / D1 - 0.03 * w0
    g2 = gradient(w1, data.x[second, 0], data.y[second, 0])
    D2 = ((0.25 * 0.75 * g1**2 + 0.25 * g2**2) / (1 - 0.75**2)) ** 0.5 + 0.01
    m_hat = (0.25 * g1 + 0.5 * g2) / 0.75
    w2 = w1 - 0.1 * m_hat / D2 - 0.03 * w1
    judge1, judge2 = (gradient((a + b) / 2, 1.5, 0.5) for a, b in ((w0, w1), (w1, w2)))
    by_first = [judge1 * 0.1 * g1 / D1, judge2 * 0.1 * 0.25 * g1 / 0.75 / D2]
    by_second = judge2 * 0.1 * 0.5 * g2 / 0.75 / D2
    decay = [judge1 * 0.03 * w0, judge2 * 0.03 * w1]
    scale = np.abs([*by_first, by_second, *decay]).sum() + sum((1.5 * w - 0.5) ** 2 for w in (w0, w1, w2))
    bound = rounding(scale, 30)
    assert_within(run.scores[[first, second]], [sum(by_first), by_second], bound, "score")
    assert_within(run.decay, decay, bound, "decay")
    assert_within(run.closed, [0, 0], bound, "closed")


# --- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"slope": "sgd"}, ValueError, "slope: got 'sgd' with credit 'carry'; needs one of frozen, .*do not split"),
        ({"slope": "steep"}, ValueError, "slope: got 'steep'; needs one of sgd"),
        ({"gradient": "end"}, ValueError, "gradient: got 'end'"),
        ({"credit": "loan"}, ValueError, "credit: got 'loan'; needs one of step, carry"),
        ({"per_validation": 1}, TypeError, "per_validation: got 1; needs True or False"),
        ({"nodes": (0, 2)}, ValueError, r"nodes\[0\]: got 0"),
    ],
)
def test_meaningless_options_are_refused(options: Any, error: Any, message: str) -> None:
    net = Network((2, 2))
    batch = Batch(np.eye(2), np.array([0, 1]))
    with pytest.raises(error, match=message):
        attribute(net, Adam(), batch, batch, **{"credit": "carry", **options})


def test_a_zero_denominator_is_refused() -> None:
    batch = Batch(np.zeros((2, 2)), np.array([0, 1]))
    with pytest.raises(
        ValueError, match=r"Adam.eps: got 0, or less than the dtype holds, with a denominator of 0 at \d+ coordinates"
    ):
        attribute(Network((2, 2)), Adam(eps=0.0), batch, batch, slope="secant", credit="carry")


def test_step_credit_has_no_account() -> None:
    batch = Batch(np.eye(2), np.array([0, 1]))
    run = attribute(Network((2, 2)), Adam(), batch, batch, epochs=1)
    assert run.credit == "step"
    assert run.decay is None
    assert run.closed is None
