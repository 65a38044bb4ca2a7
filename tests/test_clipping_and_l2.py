"""Clipping by the global norm, and L2 decay in the gradient: PyTorch's steps, the game, and every estimator."""

import dataclasses
import re
from typing import Any

import autograd.numpy as anp
import numpy as np
import pytest

from adamshap import gpu, reference
from adamshap.reference import (
    Adam,
    AdamGroups,
    AdamState,
    Batch,
    Clipped,
    Function,
    Network,
    Schedule,
    Step,
    attribute,
    influence,
    marginals,
    metagradient,
    models,
    retrained,
    retraining,
    scores,
    slopes,
    update,
    utility,
)
from adamshap.reference.adam import apply_gradient, divided_difference, moved, step_coefficients, update_map
from adamshap.reference.contract import Params
from adamshap.reference.game import exact_game, shapley_values
from adamshap.reference.scoring import terms_of
from adamshap.verify.tolerance import assert_within, rounding, unit_roundoff

NET = Network((4, 5, 3))
ADAM = Adam(0.02, (0.9, 0.99), 1e-6, 1e-8, weight_decay=0.1)
L2 = Adam(0.02, (0.9, 0.99), 1e-6, 1e-8, l2=0.3)
GROUPED = AdamGroups((("*.bias", ADAM),), L2)
TIGHT = 0.05
"""A norm that every gradient here exceeds."""
EVERYBODY = np.ones(6, bool)


def data(n: int = 6) -> tuple[Batch, Batch]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n + 5, 4))
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    return Batch(x[:n], y[:n]), Batch(x[n:], y[n:])


def step(adam: Any, n: int = 6) -> Step:
    generator = np.random.default_rng(1)
    params = NET.init(2)
    m = {name: 0.1 * generator.standard_normal(p.shape) for name, p in params.items()}
    v = {name: 0.1 * generator.uniform(size=p.shape) for name, p in params.items()}
    return Step(NET, params, adam, AdamState(3, m, v), *data(n))


def clipped_by_torch(g: Params, norm: float) -> Params:
    torch = pytest.importorskip("torch", reason="extra `peers`: torch")
    tensors = [torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.float64)) for array in g.values()]
    for tensor, array in zip(tensors, g.values(), strict=True):
        tensor.grad = torch.tensor(array)
    torch.nn.utils.clip_grad_norm_(tensors, norm)
    return {name: tensor.grad.numpy() for name, tensor in zip(g, tensors, strict=True)}


def norm_of(g: Params) -> float:
    return float(np.sqrt(sum((array**2).sum() for array in g.values())))


# --- clipping


@pytest.mark.parametrize("norm", [1e-7, TIGHT, 1e3])
def test_the_gradient_is_clipped_as_by_torch(norm: float) -> None:
    plain, clipped = step(ADAM), step(Clipped(ADAM, norm))
    expected = clipped_by_torch(models.batch_gradient(plain), norm)
    got = models.batch_gradient(clipped)
    for name in got:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-13, atol=1e-18)
    params, state = update(clipped)
    by_torch, then = apply_gradient(plain, expected)
    for name in params:
        np.testing.assert_allclose(params[name], by_torch[name], rtol=1e-12)
        np.testing.assert_allclose(state.m[name], then.m[name], rtol=1e-12)
    assert np.array_equal(params["0.bias"], update(plain)[0]["0.bias"]) == (norm == 1e3)


def test_a_run_is_that_of_torchs_clipping_and_adam() -> None:
    """L2 decay is added after clipping, by Adam itself."""
    torch = pytest.importorskip("torch", reason="extra `peers`: torch")
    adam, norm = Adam(0.02, (0.9, 0.99), 1e-6, l2=0.3), 0.5
    params = NET.init(1)
    state, seen = AdamState.zeros(params), set()
    tensors = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    optimizer = torch.optim.Adam(tensors.values(), adam.lr, adam.betas, adam.eps, adam.l2)
    for _ in range(30):
        one = Step(NET, params, Clipped(adam, norm), state, *data())
        g = models.loss_gradient(NET, params, one.train)
        seen.add(norm_of(g) > norm)
        params, state = update(one)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(g[name])
        torch.nn.utils.clip_grad_norm_(tensors.values(), norm)
        optimizer.step()
        for name, tensor in tensors.items():
            np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=1e-11, atol=1e-12)
    assert seen == {True, False}


def test_without_eps_the_norm_is_exactly_that_of_clipping() -> None:
    g = models.batch_gradient(step(Clipped(ADAM, TIGHT, eps=0.0)))
    assert_within(norm_of(g), TIGHT, rounding(TIGHT, 50), "norm")


def test_an_extreme_gradient_is_clipped_without_overflow() -> None:
    """The squares of these numbers are beyond float64."""
    for size in (1e-200, 1e200):
        g = {"a": np.array([3 * size]), "b": np.array([[4 * size]])}
        clipped = Clipped(ADAM, 0.5 * size, eps=0.0)
        assert_within(models.clip_factor(clipped, g), 0.1, rounding(0.1, 4), "factor")


@pytest.mark.parametrize("slope", ["sgd", "frozen", "linearized", "tangent", "secant", "random_order", "two_term"])
@pytest.mark.parametrize("gradient", ["start", "midpoint", "path"])
def test_scores_with_clipping_are_those_of_a_loss_that_is_c_times_as_large(slope: Any, gradient: Any) -> None:
    """At c held, a clipped step is the unclipped step of samples whose losses count c times."""
    plain, clipped = step(ADAM), step(Clipped(ADAM, TIGHT))
    c = models.clip_factor(Clipped(ADAM, TIGHT), models.batch_gradient(plain))
    assert c < 0.5

    def losses(params: Any, batch: Any) -> Any:
        """Return c ℓ for the training samples, whose labels are raised by 3, and ℓ for the others."""
        each = models.sample_losses(NET, params, Batch(batch.x, batch.y % 3))
        return anp.where(batch.y >= 3, c, 1.0) * each

    raised = Batch(plain.train.x, plain.train.y + 3)
    scaled = dataclasses.replace(plain, net=Function(NET.shapes, losses), train=raised)
    got, expected = scores(clipped, slope, gradient), scores(scaled, slope, gradient)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13 * np.abs(expected).max())
    np.testing.assert_allclose(influence(clipped), influence(scaled), rtol=1e-9)
    np.testing.assert_allclose(marginals(clipped, "first").values, marginals(scaled, "first").values, rtol=1e-8)


def test_the_game_holds_the_factor_of_the_whole_batch_or_clips_each_coalition() -> None:
    one, plain = step(Clipped(ADAM, TIGHT)), step(ADAM)
    x = models.sample_gradients(plain)
    before = models.mean_loss(NET, one.params, one.valid)
    whole_factor = models.clip_factor(one.adam, {name: x_i.sum(axis=0) for name, x_i in x.items()})
    for bits in ([1, 0, 0, 1, 1, 0], [0] * 6, [1] * 6):
        coalition = np.array(bits, bool)
        g = {name: x_i[coalition].sum(axis=0) for name, x_i in x.items()}
        own = {name: array * min(1.0, TIGHT / (norm_of(g) + 1e-6)) for name, array in g.items()}
        held = {name: array * whole_factor for name, array in g.items()}
        for received, clip_each in ((held, False), (own, True)):
            after, _, _ = moved(plain, received)
            expected = before - models.mean_loss(NET, after, one.valid)
            got = utility(one, coalition, clip_each=clip_each)
            assert_within(got, expected, rounding(before, 43 * 16), f"{bits} {clip_each}")
    values = marginals(one, "shapley", clip_each=True)
    np.testing.assert_allclose(values.values, shapley_values(exact_game(one, clip_each=True), 6), rtol=1e-12)
    assert_within(values.values.sum(), utility(one, EVERYBODY) - utility(one, ~EVERYBODY), rounding(before, 900), "sum")
    assert np.abs(values.values - marginals(one, "shapley").values).max() > 1e-6
    first = marginals(one, "first", "first_order", clip_each=True).values
    assert np.abs(first - marginals(one, "first", "first_order").values).max() > 1e-6
    np.testing.assert_array_equal(marginals(plain, clip_each=True).values, marginals(plain).values)


@pytest.mark.parametrize(("kind", "R", "part"), [("first", 1.0, 0.5), ("last", 0.99, 0.27), ("shapley", 1.0, 0.3)])
def test_what_holding_the_factor_leaves_out_is_what_the_page_says(kind: Any, R: float, part: float) -> None:
    """docs/method.md 9: correlation with the values of the game that clips each coalition, and relative difference."""
    found = []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        net = Network((4, 6, 3))
        x, y = generator.standard_normal((16, 4)), generator.integers(0, 3, 16)
        params = net.init(seed)
        m = {name: 0.02 * generator.standard_normal(p.shape) for name, p in params.items()}
        v = {name: 0.01 * generator.uniform(size=p.shape) for name, p in params.items()}
        one = Step(net, params, Adam(0.01), AdamState(20, m, v), Batch(x[:8], y[:8]), Batch(x[8:], y[8:]))
        half = Clipped(Adam(0.01), norm_of(models.batch_gradient(one)) / 2)
        clipped = dataclasses.replace(one, adam=half)
        held, each = (marginals(clipped, kind, clip_each=clip_each).values for clip_each in (False, True))
        found.append((np.corrcoef(held, each)[0, 1], np.linalg.norm(held - each) / np.linalg.norm(each)))
    np.testing.assert_allclose(np.median(found, axis=0), (R, part), atol=0.006)


def test_momentum_holds_clipped_gradients_and_the_account_balances() -> None:
    adam = Clipped(Schedule(ADAM, warmup=2), 0.2)
    for slope in ("secant", "random_order", "linearized"):
        run = attribute(NET, adam, *data(9), epochs=3, batch_size=4, credit="carry", slope=slope, gradient="path")
        losses = [models.mean_loss(NET, p, data(9)[1]) for p in (run.initial_params, run.params)]
        bound = rounding(sum(losses) + np.abs(run.scores).sum(), 43 * 16 * 9)
        assert_within(run.scores.sum() + run.decay.sum(), losses[0] - losses[1], bound, slope)
        if slope == "secant":  # without remainder up to quadrature, so momentum's part is that of clipped gradients
            assert np.abs(run.closed).max() < 1e-7


def test_the_metagradient_differentiates_through_the_factor() -> None:
    """With one step it is the influence plus the change of c; over a run, the limit of central differences."""
    adam = Clipped(GROUPED, TIGHT)
    one = Step(NET, NET.init(2), adam, AdamState.zeros(NET.init(2)), *data())
    run = attribute(NET, adam, *data(), epochs=1, batch_size=6, seed=2)
    x = models.unclipped_gradients(one)
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    norm, c = norm_of(g), models.clip_factor(adam, g)
    gamma, coefficients = models.loss_gradient(NET, update(one)[0], one.valid), step_coefficients(one)
    expected = influence(one)
    inner = sum(x_i.reshape(6, -1) @ g[name].ravel() for name, x_i in x.items())
    for name, array in g.items():
        slope = divided_difference(coefficients[name], c * array, c * array)
        expected = expected - c * np.vdot(gamma[name] * slope, array) * inner / (norm * (norm + 1e-6))
    np.testing.assert_allclose(metagradient(run), expected, rtol=1e-8, atol=1e-12)
    assert np.abs(expected - influence(one)).max() > 1e-5

    longer = attribute(NET, Clipped(GROUPED, 0.3), *data(9), epochs=2, batch_size=4, seed=3)
    config, found, h = retraining.config_of(longer), metagradient(longer), unit_roundoff("float64") ** (1 / 3)
    for sample in (0, 5):
        change = np.arange(9) == sample
        wide, narrow = (
            (retraining.final_loss(config, 1 - k * h * change) - retraining.final_loss(config, 1 + k * h * change))
            / (2 * k * h)
            for k in (2, 1)
        )
        bound = abs(wide - narrow) + rounding(retraining.final_loss(config, np.ones(9)), 43 * 16 * 6) / h
        assert_within(found[sample], narrow, bound, f"sample {sample}")
        assert abs(found[sample]) > bound


def test_retraining_clips_anew() -> None:
    """A run of one step without a sample is the coalition of the others, clipped by its own norm."""
    adam = Clipped(L2, TIGHT)
    one = Step(NET, NET.init(2), adam, AdamState.zeros(NET.init(2)), *data())
    run = attribute(NET, adam, *data(), epochs=1, batch_size=6, seed=2)
    bound = rounding(2 * models.mean_loss(NET, one.params, one.valid), 43 * 16)
    assert_within(retrained(run, range(6)), marginals(one, "last", clip_each=True).values, bound, "retrained")


# --- L2 decay


@pytest.mark.parametrize("adam", [Adam(l2=0.1), Adam(0.03, (0.5, 0.9), 1e-3, l2=0.5), Adam(betas=(0.0, 0.0), l2=2.0)])
def test_a_trajectory_is_that_of_torchs_adam_with_weight_decay(adam: Adam) -> None:
    torch = pytest.importorskip("torch", reason="extra `peers`: torch")
    params, generator = NET.init(1), np.random.default_rng(3)
    state = AdamState.zeros(params)
    tensors = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    optimizer = torch.optim.Adam(tensors.values(), adam.lr, adam.betas, adam.eps, adam.l2)
    for _ in range(40):
        g = {name: generator.standard_normal(p.shape) for name, p in params.items()}
        params, state = apply_gradient(Step(NET, params, adam, state, *data()), g)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(g[name])
        optimizer.step()
        for name, tensor in tensors.items():
            np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=1e-10, atol=1e-12)


def derivative(function: Any, at: Any, h: float = 1e-5) -> Any:
    """Return a central difference of fourth order."""
    return (8 * (function(at + h) - function(at - h)) - (function(at + 2 * h) - function(at - 2 * h))) / (12 * h)


def test_the_map_starts_at_the_decay() -> None:
    """Slopes against the map by hand, at fixed θ: its value at d + g, its derivative at d, and differences from d."""
    one = step(L2)
    x, g = models.sample_gradients(one), models.batch_gradient(one)
    for name, c in step_coefficients(one).items():
        d = 0.3 * one.params[name]
        plain = dataclasses.replace(c, shift=None)
        np.testing.assert_array_equal(update_map(c, g[name]), update_map(plain, d + g[name]))
        given = slopes.SlopeInput(c, x[name], g[name], (4, 4))
        zero, full = update_map(plain, d), update_map(plain, d + g[name])
        np.testing.assert_allclose(slopes.secant(given) * g[name], full - zero, rtol=1e-7, atol=1e-13)
        by_hand = derivative(lambda a, plain=plain: update_map(plain, a), d)
        np.testing.assert_allclose(slopes.linearized(given), by_hand, rtol=1e-6, atol=1e-9)
        by_hand = derivative(lambda a, plain=plain: update_map(plain, a), d + g[name])
        np.testing.assert_allclose(slopes.tangent(given), by_hand, rtol=1e-6, atol=1e-9)
        root = np.hypot(np.sqrt(c.kappa), np.sqrt(c.q) * (d + g[name]))
        np.testing.assert_allclose(slopes.frozen(given), c.lr * c.k / (root + c.eps), rtol=1e-13)
        assert (slopes.sgd(given) == c.lr).all()
        sigma = slopes.partial_sum_deviation(x[name], g[name])
        tau, w = slopes.unit_interval_rule(4)
        h, a = slopes.positive_normal_rule(4)
        by_hand = np.zeros_like(d)
        for t, w_t in zip(tau, w, strict=True):
            s = np.sqrt(t * (1 - t)) * sigma
            for h_k, a_k in zip(h, a, strict=True):
                rise = update_map(plain, d + t * g[name] + h_k * s) - update_map(plain, d + t * g[name] - h_k * s)
                by_hand += w_t * a_k * h_k * rise / s
        np.testing.assert_allclose(slopes.random_order(given), by_hand, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("adam", [L2, Clipped(GROUPED, TIGHT)])
def test_scores_of_the_secant_sum_to_the_gain_of_the_data(adam: Any) -> None:
    """In first order Σ score = ⟨∇L, A(d + g) − A(d)⟩; along the path, U(B) − U(∅)."""
    one = step(adam)
    first_order = marginals(one, "first", "first_order")
    total = first_order.total - first_order.empty
    assert_within(scores(one, "secant", "start").sum(), total, rounding(abs(first_order.total) + 1, 43 * 16), "start")
    gain = utility(one, EVERYBODY) - utility(one, ~EVERYBODY)
    assert_within(scores(one, "secant", "path", nodes=(16, 4)).sum(), gain, 1e-5 * abs(gain), "path")
    assert_within(scores(one, "frozen", "midpoint", efficient=True).sum(), gain, rounding(3.0, 43 * 16), "efficient")
    before, after = (models.mean_loss(NET, p, one.valid) for p in (one.params, update(one)[0]))
    assert_within(utility(one, EVERYBODY), before - after, rounding(before + after, 43 * 16), "utility")


@pytest.mark.parametrize("kind", ["first", "last"])
def test_two_term_of_equal_samples_is_the_marginal_from_the_decay(kind: Any) -> None:
    """Where all samples are equal, S x + R f(x) is the difference of the map itself: A(d + x) − A(d) for the first."""
    one = step(L2)
    same = dataclasses.replace(one, train=Batch(np.repeat(one.train.x[:1], 6, axis=0), np.repeat(one.train.y[:1], 6)))
    x, g = models.sample_gradients(same), models.batch_gradient(same)
    terms = terms_of(same, "two_term", x, g, (8, 2), kind)
    for name, c in step_coefficients(same).items():
        own = x[name][0]
        below = np.zeros_like(own) if kind == "first" else g[name] - own
        expected = update_map(c, below + own) - update_map(c, below)
        got = sum(f[name][0] * coefficient[name] for f, coefficient in terms)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("kind", ["first", "last", "shapley"])
def test_two_term_follows_the_marginals(kind: Any) -> None:
    one = step(L2)
    exact = marginals(one, kind, "first_order").values
    found = scores(one, "two_term", "start", kind=kind)
    assert np.corrcoef(exact, found)[0, 1] > 0.99
    assert np.abs(found - exact).max() < 0.15 * np.abs(exact).max()


def test_influence_and_metagradient_agree_with_l2() -> None:
    one = Step(NET, NET.init(2), L2, AdamState.zeros(NET.init(2)), *data())
    run = attribute(NET, L2, *data(), epochs=1, batch_size=6, seed=2)
    np.testing.assert_allclose(metagradient(run), influence(one), rtol=1e-7, atol=1e-12)
    bound = rounding(2 * models.mean_loss(NET, one.params, one.valid), 43 * 16)
    assert_within(retrained(run, range(6)), marginals(one, "last").values, bound, "retrained")


@pytest.mark.parametrize("slope", ["secant", "frozen", "random_order"])
def test_in_the_account_of_a_run_l2_decay_is_one_more_sample(slope: Any) -> None:
    """A sample with the loss λ₂/2 ‖θ‖² in every batch has the gradient of the decay, and is credited with its part."""
    train, valid = data()
    sizes = {name: float(0.3 if adam.l2 else 0) for name in NET.shapes for adam in [GROUPED.at(1, name)]}  # type: ignore[arg-type]

    def losses(params: Any, batch: Any) -> Any:
        """Return ℓ for samples with a label, and the decay for one whose label is 3."""
        each = models.sample_losses(NET, params, Batch(batch.x, batch.y % 3))
        axes = {name: tuple(range(-len(shape), 0)) for name, shape in NET.shapes.items()}
        decay = sum(0.5 * sizes[name] * anp.sum(p**2, axis=axes[name]) for name, p in params.items())
        return anp.where(batch.y == 3, decay, each)

    joined = Batch(np.concatenate([train.x, train.x[:1]]), np.append(train.y, 3))
    plain = AdamGroups((("*.bias", ADAM),), dataclasses.replace(L2, l2=0.0))
    options: dict[str, Any] = {"epochs": 5, "credit": "carry", "slope": slope, "gradient": "path", "nodes": (16, 6)}
    got = attribute(NET, GROUPED, train, valid, reduction="sum", **options)
    expected = attribute(Function(NET.shapes, losses, NET.init), plain, joined, valid, reduction="sum", **options)
    for name, p in got.params.items():
        np.testing.assert_allclose(p, expected.params[name], rtol=1e-10, atol=1e-13)
    if slope != "random_order":  # in which the decay, not one more sample, arrives evenly
        np.testing.assert_allclose(got.scores, expected.scores[:-1], rtol=1e-5, atol=1e-8)
        whole = expected.scores[-1] + expected.decay.sum()
        np.testing.assert_allclose(got.decay.sum(), whole, rtol=1e-5, atol=1e-8)
        assert abs(expected.scores[-1]) > 1e-3
    falls = [models.mean_loss(NET, p, valid) for p in (got.initial_params, got.params)]
    bound = rounding(sum(falls) + np.abs(got.scores).sum() + np.abs(got.decay).sum(), 43 * 16 * 5)
    assert_within(got.scores.sum() + got.decay.sum(), falls[0] - falls[1], bound, "account")
    assert np.abs(got.closed).sum() < 0.05 * np.abs(got.scores).sum()


def test_an_account_with_l2_and_clipping_resumes() -> None:
    adam, kept = Clipped(GROUPED, 0.3), []
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "credit": "carry"}
    whole = attribute(NET, adam, *data(), **options, on_checkpoint=lambda done, take: kept.append(take()))
    resumed = attribute(NET, adam, *data(), **options, resume=kept[1])
    for name in ("scores", "decay", "closed"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    losses = [models.mean_loss(NET, p, data()[1]) for p in (whole.initial_params, whole.params)]
    bound = rounding(sum(losses) + np.abs(whole.scores).sum(), 43 * 16 * 4)
    assert_within(whole.scores.sum() + whole.decay.sum(), losses[0] - losses[1], bound, "account")


# --- refusals


def test_the_oracle_names_the_combinations_that_it_lacks() -> None:
    with pytest.raises(ValueError, match=re.escape("denominator: got 'previous' with Adam.l2 0.3; needs 'exact'")):
        scores(step(GROUPED), "linearized", denominator="previous")
    for module in (reference, gpu):
        assert module.utility(step(ADAM), EVERYBODY, clip_each=True) == module.utility(step(ADAM), EVERYBODY)
    with pytest.raises(TypeError, match=re.escape("clip_each: got 1; needs True or False")):
        utility(step(ADAM), EVERYBODY, clip_each=1)  # type: ignore[arg-type]
