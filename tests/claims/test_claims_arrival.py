"""Slopes made for one question: where the normal's sums are exact, they are the best slope; limits; two terms."""

import numpy as np
import pytest

from adamshap.reference import marginals, network, scores
from adamshap.reference.adam import coefficients, divided_difference, update_map
from adamshap.reference.network import sample_gradients
from adamshap.reference.problem import Adam, AdamState, Array, Batch, Network, Step
from adamshap.verify.claims.arrival import ARRIVALS, Arrival, Nodes, arrival_scores, coefficients_of
from adamshap.verify.claims.estimators import BEST, ITSELF, with_every_contribution
from adamshap.verify.claims.statistics import pearson
from adamshap.verify.tolerance import rounding

MAGNIFIED = 20
"""How much the two terms' equations magnify, for x of mean 0: 1/(1 − ρ²), with ρ² = (E|x|^1.5)²/(E x² E|x|) = 0.93 for
a normal x and the power ½, 2/π for the power 0."""

C = coefficients(Adam(), 3, np.full(2, 0.01), np.full(2, 0.002))


def near(got: Array, wanted: Array) -> bool:
    return bool(np.all(np.abs(got - wanted) <= rounding(np.abs(wanted), 100)))


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_two_samples_have_the_best_slope(arrival: Arrival) -> None:
    """Two nodes of the normal rule are its mean ± ς, and so are two samples: the expectation is their sum."""
    x = np.array([[0.3, 0.1], [-0.1, 0.2]])
    finds = {"first": (0 * x[::-1],), "last": (x[::-1],), "shapley": (0 * x, x[::-1])}[arrival]
    S, _ = coefficients_of(arrival, C, x, nodes=Nodes(own=2))
    changes = np.mean([x**2 * divided_difference(C, Y + x, Y) for Y in finds], axis=0)
    assert near(S, changes.sum(axis=0) / (x**2).sum(axis=0))


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_one_sample_alone_changes_the_step_by_all_of_it(arrival: Arrival) -> None:
    x = np.array([[0.3, -0.1]])
    S, _ = coefficients_of(arrival, C, x)
    wanted = divided_difference(C, x[0], 0 * x[0])
    assert near(S, wanted)


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_where_adam_is_linear_every_slope_is_its_rate(arrival: Arrival) -> None:
    """With a huge ε the update is linear in the gradient, whoever arrives when."""
    eps = 1e9
    c = coefficients(Adam(lr=eps, eps=eps, betas=(0.0, 0.5)), 1, np.zeros(3), np.zeros(3))
    half = np.random.default_rng(0).normal(size=(3, 3))
    x = np.concatenate([half, -half])
    for power in (None, 0.5):
        S, R = coefficients_of(arrival, c, x, power)
        # Short of linear by a part in ε of the gradients.
        allowed = MAGNIFIED * (np.abs(x).sum() / eps + rounding(1.0, 1000))
        assert np.all(np.abs(S - 1) <= allowed)
        assert np.all(np.abs(R) <= allowed)


def test_at_the_first_step_a_sign_is_the_whole_arrival() -> None:
    """A(x) = η x/(|x| + ε) is η sign(x) but for ε: the term sign(x)|x|⁰ is all there is."""
    c = coefficients(Adam(eps=1e-20), 1, np.zeros(2), np.zeros(2))
    x = np.array([[0.3, 0.2], [-0.3, -0.2], [0.1, -0.7], [-0.1, 0.7]])
    S, R = coefficients_of("first", c, x, power=0.0)
    got, wanted = S * x + R * np.sign(x), update_map(c, x)
    assert np.all(np.abs(got - wanted) <= MAGNIFIED * rounding(np.abs(wanted), 1000))


def test_nothing_comes_of_nothing() -> None:
    for arrival in ARRIVALS:
        for power in (None, 0.0, 0.5):
            S, R = coefficients_of(arrival, C, np.zeros((3, 2)), power)
            assert np.isfinite(S).all()
            assert np.isfinite(R).all()


def test_scores_of_a_whole_step() -> None:
    generator = np.random.default_rng(0)
    net = Network((6, 8, 3))
    train, valid = (Batch(generator.normal(size=(n, 6)), generator.integers(0, 3, n)) for n in (8, 20))
    params = net.init(0)
    state = AdamState(
        2,
        {name: 0.01 * generator.normal(size=p.shape) for name, p in params.items()},
        {name: 1e-4 * generator.uniform(size=p.shape) for name, p in params.items()},
    )
    step = Step(net, params, Adam(), state, train, valid)
    x = sample_gradients(step)
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    for arrival in ("first", "last"):
        known = with_every_contribution(step, x, g, arrival)  # type: ignore[arg-type]
        mine = arrival_scores(step, x, g, arrival)  # type: ignore[arg-type]
        two = arrival_scores(step, x, g, arrival, 0.5)  # type: ignore[arg-type]
        other = scores(step, "linearized", "midpoint")
        assert pearson(known[BEST], known[ITSELF]) > pearson(other, known[ITSELF])
        assert pearson(mine, known[ITSELF]) > pearson(other, known[ITSELF])
        assert pearson(two, known[ITSELF]) > pearson(other, known[ITSELF])


def test_gradients_are_taken_in_the_middle_of_an_arrival() -> None:
    """A quadratic loss and, by a huge ε, a linear update: the scores are the exact marginals of a long step."""
    generator = np.random.default_rng(1)
    net = Network((3, 1), "identity", "mse")
    x = generator.normal(size=(4, 3))
    train = Batch(np.repeat(x[:1], 4, axis=0), np.repeat(generator.normal(size=(1, 1)), 4, axis=0))  # of equal samples
    valid = Batch(generator.normal(size=(5, 3)), generator.normal(size=(5, 1)))
    params = net.init(0)
    eps = 1e9
    step = Step(net, params, Adam(lr=eps, eps=eps, betas=(0.0, 0.5)), AdamState.zeros(params), train, valid)
    own = sample_gradients(step)
    g = {name: x_i.sum(axis=0) for name, x_i in own.items()}
    reach = max(float(np.abs(x_i).sum(axis=0).max()) for x_i in own.values())
    for arrival in ARRIVALS:
        wanted = marginals(step, arrival)
        got = arrival_scores(step, own, g, arrival)
        terms = np.abs(wanted.values) + abs(wanted.total) + network.mean_loss(net, params, valid)
        assert np.all(np.abs(got - wanted.values) <= reach / eps * terms + rounding(terms, 1000))
