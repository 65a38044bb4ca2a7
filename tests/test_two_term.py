"""The slope "two_term": exact facts, the engine against the oracle, and its distance from the truth."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from engine_devices import CUDA, assert_scores, in_each_dtype, on_device, on_each_device
from hypothesis import given, settings
from hypothesis import strategies as st

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu import kernels
from adamshap.gpu import two_term as engine_two_term
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.kernels import numpy as in_numpy
from adamshap.gpu.kernels.groups import GradientNorms, ParameterState, TwoTermOut
from adamshap.gpu.kernels.plan import adam_scalars
from adamshap.reference import models, two_term
from adamshap.reference.adam import coefficients, divided_difference, update_map
from adamshap.reference.contract import MARGINALS, Adam, AdamState, Array, Batch, Network, Step
from adamshap.verify.implementation import Query
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.strategies import adams, powers_of_ten, seeds, step_numbers, steps
from adamshap.verify.tolerance import assert_within, rounding

kinds = st.sampled_from(MARGINALS)
of_each_kind = pytest.mark.parametrize("kind", MARGINALS)


# --- the engine against the oracle -----------------------------------------------------------------------------------


@on_each_device
@in_each_dtype
@given(step=steps(max_n=16, max_width=6), size=st.integers(1, 16), kind=kinds)
@settings(max_examples=5)
def test_micro_batches_change_nothing(
    device: Any, dtype: Any, record_error: Any, step: Step, size: int, kind: Any
) -> None:
    """The kit has whole batches alone with this slope; its property of micro-batches draws the others."""
    got = engine.scores(step, "two_term", kind=kind, micro_batch=size, device=device, dtype=dtype)
    share = assert_scores(got, step, dtype, slope="two_term", kind=kind)
    record_error(f"micro-batches of two terms {dtype}, share of the bound", share)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9, 100, 10_000])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_places_of_arrival_by_two_routes(n: int, count: int) -> None:
    """Both rules are exact for polynomials of degree 2 count − 1 of the number of others that are there."""
    tau, weight = two_term.place_rule(n, count)
    theirs = dict.fromkeys((before / max(n - 1, 1) for before, _ in engine_two_term._number_nodes(n, count)), 0.0)
    others = np.arange(n) / max(n - 1, 1)
    for degree in range(2 * min(n, count)):
        exact = float((others**degree).mean())
        ours = float((weight * tau**degree).sum())
        engines = sum(w * (k / max(n - 1, 1)) ** degree for k, w in engine_two_term._number_nodes(n, count))
        assert_within(np.array([ours, engines]), np.full(2, exact), rounding(np.full(2, 1.0), 100 * n), "moment")
    assert len(tau) == len(theirs) == min(n, count)


# --- the pass, coordinate by coordinate ------------------------------------------------------------------------------

each_implementation = pytest.mark.parametrize(
    ("implementation", "device"),
    [
        pytest.param("arrays", "cpu", id="arrays"),
        pytest.param("device", "cpu", id="loop"),
        pytest.param("device", *CUDA.values, id=CUDA.id, marks=CUDA.marks),
    ],
)


def fit_of(implementation: str, backend: Any) -> Any:
    return (in_numpy if implementation == "arrays" else kernels.kernels_for(backend)).two_term_fit


def engines_fit(
    implementation: str,
    device: Any,
    dtype: Any,
    adam: Adam,
    t: int,
    kind: Any,
    nodes: Any,
    exact: bool,
    x: Array,
    *state: Array,
) -> tuple[Array, ...]:
    """Return the engine's S and R for contributions `x` (n, …) and m, v in `state`; Σ x² is of rank one, or `exact`."""
    backend, n = pick_backend(device, dtype), len(x)
    squares = (x**2).sum(axis=0)
    row, col = np.sqrt(squares.sum(axis=1)), np.sqrt(squares.sum(axis=0) / squares.sum())
    norms = (None, None, np.sqrt(squares)) if exact else (row, col, None)
    arrays = (x.sum(axis=0), *state, *norms)
    given_ = [None if a is None else on_device(device, np.array(a, dtype)) for a in arrays]
    g, m, v, row, col, root = given_
    slope, second = (backend.xp.full_like(g, np.nan) for _ in range(2))
    plan, before, held_norms = (
        engine_two_term.fit_plan(kind, n, nodes),
        ParameterState(g, m, v),
        GradientNorms(n, row, col, root),
    )
    fit_of(implementation, backend)(adam_scalars(adam, t), plan, g, before, held_norms, TwoTermOut(slope, second))
    return tuple(np.asarray(backend.host(a)) for a in (slope, second))


def sizes_of_the_fit(
    kind: Any, adam: Adam, t: int, nodes: Any, x: Array, m: Array, v: Array, dtype: Any
) -> tuple[Array, Array]:
    """Return the sizes to which the rounding errors of S and R are relative.

    First their own: an error of s_j of u times its two parts, k's and μ's, is one of R of at most u ‖s‖/(2 √(δ Σωφ²)),
    by Cauchy and Schwarz, with the norm of the weights ω. Then their change with each contribution, with m and v,
    and with ς², which the engine computes as a difference, right to a part u of Σ x². And their change with each
    place of arrival: places are eigenvalues, computed in double precision, so that even the least is right to u of 1.
    """
    c, k_alone = coefficients(adam, t, m, v), coefficients(adam, t, np.zeros_like(m), v)
    spread = two_term.own_spread(x)
    own = np.stack([x.mean(axis=0) + h * spread for h in two_term.normal_rule(two_term.OWN_NODES)[0]])
    a = two_term.normal_rule(two_term.OWN_NODES)[1].reshape(-1, 1, 1)
    size = np.hypot(x.mean(axis=0), spread)
    z = np.abs(own) / size
    s, of_k = (
        np.stack([two_term.arrival_slope(kind, c_, x, x_j, spread, nodes) for x_j in own]) for c_ in (c, k_alone)
    )
    norm = np.sqrt((a * z**2 * (np.abs(of_k) + np.abs(s - of_k)) ** 2).sum(axis=0))
    magnified = norm / (2 * np.sqrt(two_term.RIDGE * (a * z).sum(axis=0)))
    known = [norm + magnified * (a * z**1.5).sum(axis=0), magnified * np.sqrt(size)]
    changed = [np.where(np.arange(len(x)) == i, 1 + STEP, 1.0).reshape(-1, 1, 1) for i in range(len(x))]
    near = [(x * factor, m, v) for factor in changed] + [(x, m * (1 + STEP), v), (x, m, v * (1 + STEP))]
    if len(x) > 1:
        near.append((x.mean(axis=0) + (x - x.mean(axis=0)) * (1 + STEP * (size / spread) ** 2), m, v))
    exact = two_term.two_coefficients(kind, c, x, nodes)
    for x_, m_, v_ in near:
        moved = two_term.two_coefficients(kind, coefficients(adam, t, m_, v_), x_, nodes)
        known = [k + np.abs(one - other) / STEP for k, one, other in zip(known, moved, exact, strict=True)]
    in_double = float(np.finfo(float).eps / np.finfo(dtype).eps)
    for moved in moved_by_places(kind, c, nodes, x):
        known = [k + in_double * np.abs(one - other) / STEP for k, one, other in zip(known, moved, exact, strict=True)]
    return known[0], known[1]


def moved_by_places(kind: Any, c: Any, nodes: Any, x: Array) -> Iterator[tuple[Array, Array]]:
    """Yield the oracle's S and R with one place of arrival after the other moved by `STEP`."""
    places, weights = two_term.place_rule(len(x), nodes[0])
    if kind != "shapley" or len(x) <= nodes[0]:  # no place is used, or all of them, which are exact
        return
    for moved in np.eye(len(places)) * STEP * np.where(places < 0.5, 1, -1):
        with patch.object(two_term, "place_rule", lambda *_, by=moved: (places + by, weights)):
            yield two_term.two_coefficients(kind, c, x, nodes)


STEP = 1e-6
"""Relative change of an input, for the derivative in it."""


@each_implementation
@in_each_dtype
@of_each_kind
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 2), st.sampled_from([1, 7, 300])),
    n=st.sampled_from([1, 2, 6, 9]),
    nodes=st.sampled_from([(1, 2), (4, 3), (8, 2)]),
    exact=st.booleans(),
    scale=powers_of_ten(-12, 2),
    common=st.sampled_from([0.0, 1.0, 10.0]),
    old=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    t=step_numbers,
    adam=adams(),
)
@settings(max_examples=8)
def test_both_slopes_are_the_oracles(
    implementation: Any,
    device: Any,
    dtype: Any,
    kind: Any,
    seed: int,
    shape: tuple[int, int],
    n: int,
    nodes: Any,
    exact: bool,
    scale: float,
    common: float,
    old: float,
    t: int,
    adam: Adam,
) -> None:
    """Over blocks and their ends, for momentum of both signs, large, small or zero compared with the gradients."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, *shape)) + common
    if not exact:
        x = np.sign(x) * np.abs(x[:1, :, :1] * x[:1, :1, :])
        x[1:2] = -x[:1]  # samples that are all equal have no ς, but for √u
    m, v = generator.standard_normal((2, *shape))
    x, m, v = (np.asarray(a, dtype).astype(float) for a in (scale * x, old * scale * m, (old * scale * v) ** 2))
    S, R = two_term.two_coefficients(kind, coefficients(adam, t, m, v), x, nodes)
    about = sizes_of_the_fit(kind, adam, t, nodes, x, m, v, dtype)
    got = engines_fit(implementation, device, dtype, adam, t, kind, nodes, exact, x, m, v)
    terms = two_term.OWN_NODES * nodes[0] * nodes[1]
    for name, ours, theirs, size in zip("SR", got, (S, R), about, strict=True):
        assert_within(ours, theirs, rounding(size, terms, dtype), name)


@each_implementation
@in_each_dtype
def test_a_sample_of_0_that_comes_first_keeps_the_slopes_finite(implementation: Any, device: Any, dtype: Any) -> None:
    """Where σ is 1 to the last digit, a node of a sample's own x is 0; with v = 0, so is every radicand."""
    backend, h = pick_backend(device, dtype), np.asarray(engine_two_term.OWN[2][0], dtype)
    root = np.full((1, 64), np.sqrt((1 + h * h) / 2), dtype)
    root *= 1 + np.finfo(dtype).eps * np.arange(-32, 32, dtype=dtype)
    arrays = (np.broadcast_to(a, root.shape) for a in (h, np.zeros_like(h), np.zeros_like(h)))
    held, of_squares = [on_device(device, np.array(a, dtype)) for a in arrays], on_device(device, root)
    scalars, plan = adam_scalars(Adam(betas=(0.0, 0.0), eps=1e-30), 1), engine_two_term.fit_plan("first", 2, (1, 2))
    slope, second = (backend.xp.empty_like(of_squares) for _ in range(2))
    state, norms, out = ParameterState(*held), GradientNorms(2, root=of_squares), TwoTermOut(slope, second)
    fit_of(implementation, backend)(scalars, plan, held[0], state, norms, out)
    assert np.isfinite(backend.host(slope)).all()
    assert np.isfinite(backend.host(second)).all()


X = [0.1257302210933933, -0.1321048632913019, 0.6404226504432821, 0.10490011715303971, -0.535669373161111]
X += [0.36159505490948474, 1.3040000451301372, 0.9470809631292422, -0.7037352358069926]
WEIGHTS = [0.2739233746429086, -0.4604265724722594, -0.9180529521276106, -0.9669447289429418, 0.6265404784005448]
WEIGHTS += [0.8255111575126648]


def first_step() -> Step:
    """Nine samples for eight places of arrival, with v = 0.

    At the first place, τ = 4e-5, the sum before a sample is nearly 0; one node is near g, so that g − x is small too.
    """
    net, params = Network((1, 6), "relu", "cross_entropy", bias=False), {"0.weight": np.array([WEIGHTS]).T}
    train, valid = (
        Batch(np.array([X]).T, np.array([3, 5, 1, 4, 4, 0, 2, 5, 3])),
        Batch(np.array([X[:1]]), np.array([3])),
    )
    return Step(net, params, Adam(lr=0.1), AdamState.zeros(params), train, valid)


def second_step() -> Step:
    """The same for two classes, with a small v."""
    net, params = Network((1, 2), "relu", "cross_entropy", bias=False), {"0.weight": np.array([WEIGHTS[:2]]).T}
    m = {"0.weight": np.array([[1.257302210933933e-06], [-1.321048632913019e-06]])}
    v = {"0.weight": np.array([[4.008245109412008e-10], [1.3569086466461502e-10]])}
    train, valid = (
        Batch(10 * np.array([X]).T, np.array([1, 1, 0, 1, 1, 0, 0, 1, 1])),
        Batch(np.array([X[:1]]), np.array([1])),
    )
    return Step(net, params, Adam(lr=0.1), AdamState(1, m, v), train, valid, "sum")


SMALL_SUMS = Query("scores", {"slope": "two_term", "kind": "shapley", "gradient": "start", "nodes": (8, 2)})


@pytest.mark.parametrize("implementation", ["arrays", "loop"])
@pytest.mark.parametrize("step", [first_step(), second_step()], ids=["first", "second"])
@in_each_dtype
def test_small_sums_of_others_keep_their_digits(implementation: str, step: Step, dtype: Any, monkeypatch: Any) -> None:
    if implementation == "arrays":
        monkeypatch.setattr(kernels, "_host_kernels", lambda: in_numpy)
    got = engine.scores(step, "two_term", "start", kind="shapley", nodes=(8, 2), device="cpu", dtype=dtype)
    wanted, close = expected(step, SMALL_SUMS)["values"], bounds(step, SMALL_SUMS, dtype)["values"]
    assert_within(got, wanted, close, "score")


# --- exact facts -----------------------------------------------------------------------------------------------------


def case(n: int) -> tuple[Any, Array]:
    """Return Adam's coefficients of five coordinates, and contributions of `n` samples to them."""
    generator = np.random.default_rng(n)
    m, v = 0.01 * generator.normal(size=5), 1e-3 * generator.uniform(size=5)
    return coefficients(Adam(), 3, m, v), 0.1 * generator.normal(size=(n, 5))


@of_each_kind
def test_one_sample_alone_changes_the_step_by_all_of_it(kind: Any) -> None:
    c, x = case(1)
    S, R = two_term.two_coefficients(kind, c, x, (4, 4))
    wanted, empty = update_map(c, x[0]), update_map(c, np.zeros(5))
    terms = np.abs(wanted) + np.abs(empty) + np.abs(S * x[0])
    assert_within(S * x[0] + R * two_term.signed_root(x[0]), wanted - empty, rounding(terms, 1000), "change")
    assert_within(R, np.zeros(5), rounding(np.abs(S) / two_term.RIDGE * np.sqrt(np.abs(x[0])), 100), "R")


@of_each_kind
def test_equal_samples_share_one_slope(kind: Any) -> None:
    """Then every x is x̄: S x is the exact change if only one sum is possible, and R is 0."""
    c, x = case(1)
    equal = np.repeat(x, 6, axis=0)
    S, R = two_term.two_coefficients(kind, c, equal, (6, 4))
    found = {"first": [0], "last": [5], "shapley": range(6)}[kind]
    wanted = np.mean([divided_difference(c, (k + 1) * x[0], k * x[0]) for k in found], axis=0)
    assert_within(S, wanted, rounding(np.abs(wanted) / two_term.RIDGE, 100), "S")
    assert_within(R, np.zeros(5), rounding(np.abs(wanted) / two_term.RIDGE * np.sqrt(np.abs(x[0])), 100), "R")


@of_each_kind
def test_where_adam_is_linear_the_slope_is_its_rate(kind: Any) -> None:
    """With a huge ε the update is linear in the gradient, in any order of arrival."""
    eps = 1e9
    c = coefficients(Adam(lr=eps, eps=eps, betas=(0.0, 0.5)), 1, np.zeros(5), np.zeros(5))
    _, x = case(7)
    S, R = two_term.two_coefficients(kind, c, x, (4, 4))
    # It deviates from linear by a part in ε of the gradients, which the fit magnifies by at most 1/δ.
    allowed = (np.abs(x).sum() / eps + rounding(1.0, 1000)) / two_term.RIDGE
    assert_within(S, np.ones(5), np.full(5, allowed), "S")
    assert_within(R, np.zeros(5), np.full(5, allowed), "R")


def test_the_first_step_in_closed_form() -> None:
    """At t = 1 with ε → 0, A(x) = η sign(x), so that s = η/|x|; of two samples ±c the nodes are c √(3 ± √6), twice.

    The regression then has two points of weight ½, s = (η/c) φ² at φ = (3 ± √6)^(−1/4).
    """
    eta, c = 0.001, np.array([0.3, 1e-5])
    adam = coefficients(Adam(lr=eta, eps=1e-30), 1, np.zeros(2), np.zeros(2))
    S, R = two_term.two_coefficients("first", adam, np.stack([c, -c]), (4, 4))
    one, other = (3 + 6**0.5) ** -0.25, (3 - 6**0.5) ** -0.25
    variance, square = ((one - other) / 2) ** 2, (one**2 + other**2) / 2
    ratio = variance / (variance + two_term.RIDGE * square) * (one + other)
    wanted_R, wanted_S = ratio * eta / np.sqrt(c), (square - ratio * (one + other) / 2) * eta / c
    magnified = rounding(np.array([1.0, 1.0]) / two_term.RIDGE, 100)
    assert_within(R / wanted_R, np.ones(2), magnified, "R")
    assert_within(S / wanted_S, np.ones(2), magnified, "S")


@of_each_kind
def test_coefficients_of_samples_without_a_gradient_are_finite(kind: Any) -> None:
    c, _ = case(1)
    S, R = two_term.two_coefficients(kind, c, np.zeros((3, 5)), (4, 4))
    assert np.isfinite(S).all()
    assert np.isfinite(R).all()


@of_each_kind
@pytest.mark.parametrize("gradient", ["midpoint", "path"])
def test_the_gradient_is_taken_where_the_sample_moves(kind: Any, gradient: Any) -> None:
    """A quadratic loss, a linear update (huge ε) and equal samples: the scores are the exact marginals."""
    generator = np.random.default_rng(1)
    net = Network((3, 1), "identity", "mse")
    train = Batch(*(np.repeat(generator.normal(size=(1, size)), 4, axis=0) for size in (3, 1)))
    valid = Batch(generator.normal(size=(5, 3)), generator.normal(size=(5, 1)))
    params, eps = net.init(0), 1e9
    step = Step(net, params, Adam(lr=eps, eps=eps, betas=(0.0, 0.5)), AdamState.zeros(params), train, valid)
    exact = oracle.marginals(step, kind)
    reach = max(float(np.abs(x_i).sum(axis=0).max()) for x_i in models.sample_gradients(step).values())
    terms = np.abs(exact.values) + abs(exact.total) + models.mean_loss(net, params, valid)
    close = reach / eps / two_term.RIDGE * terms + rounding(terms, 1000)
    assert_within(oracle.scores(step, "two_term", gradient, kind=kind), exact.values, close, "score")


# --- distance from the truth -----------------------------------------------------------------------------------------


@of_each_kind
def test_it_is_nearer_to_the_marginals_than_random_order(kind: Any) -> None:
    """Diabetes, six samples, the first three steps of three runs: its mean Pearson's R is the larger one."""
    from sklearn.datasets import load_diabetes  # here, as the tests of a device also run on machines without it

    x, y = load_diabetes(return_X_y=True)
    x, y = x / x.std(axis=0), ((y - y.mean()) / y.std())[:, None]
    near: dict[str, list[float]] = {"two_term": [], "random_order": []}
    for seed in range(3):
        valid, *batches = np.split(np.random.default_rng(seed).permutation(len(x)), [30, 36, 42, 48])[:4]
        net = Network((10, 8, 1), "tanh", "mse")
        params = net.init(seed)
        state = AdamState.zeros(params)
        for some in batches:
            step = Step(net, params, Adam(), state, Batch(x[some], y[some]), Batch(x[valid], y[valid]))
            exact = oracle.marginals(step, kind).values
            ours = {"two_term": oracle.scores(step, "two_term", kind=kind), "random_order": oracle.scores(step)}
            for slope, values in ours.items():
                near[slope].append(float(np.corrcoef(values, exact)[0, 1]))
            params, state = oracle.update(step)
    assert np.mean(near["two_term"]) > np.mean(near["random_order"])
