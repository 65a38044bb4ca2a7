"""The slope "two_term": facts that pin it down, the engine against the oracle, and how near it comes to the truth."""

from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_each_device
from engine_tolerance import bound, share, utility_bound
from hypothesis import given, settings
from hypothesis import strategies as st

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu import two_term as engine_two_term
from adamshap.reference import two_term
from adamshap.reference.adam import coefficients
from adamshap.reference.problem import GRADIENTS, MARGINALS, Adam, Array, Step
from adamshap.verify.strategies import steps
from adamshap.verify.tolerance import assert_within, rounding

kinds = st.sampled_from(MARGINALS)
of_each_kind = pytest.mark.parametrize("kind", MARGINALS)


# --- the engine against the oracle -----------------------------------------------------------------------------------


@on_each_device
@in_each_dtype
@given(step=steps(), data=st.data())
@settings(max_examples=40)
def test_scores_are_the_oracles(device: Any, dtype: Any, record_error: Any, step: Step, data: st.DataObject) -> None:
    kind, gradient = data.draw(kinds, label="kind"), data.draw(st.sampled_from(GRADIENTS), label="gradient")
    nodes = data.draw(st.sampled_from([(4, 4), (2, 3), (1, 2), (8, 5)]), label="nodes")
    each = data.draw(st.booleans(), label="per_validation")
    micro_batch = data.draw(st.none() | st.integers(1, 40), label="micro_batch")
    options: Any = {"per_validation": each, "nodes": nodes, "kind": kind}
    got = engine.scores(step, "two_term", gradient, micro_batch=micro_batch, device=device, dtype=dtype, **options)
    assert got.dtype == dtype
    expected = oracle.scores(step, "two_term", gradient, **options)
    close = bound(step, "two_term", gradient, nodes, dtype, per_validation=each, kind=kind)
    record_error(f"scores of two terms {dtype}, share of the bound", share(got, expected, close))
    assert_within(got, expected, close, "score")


@on_each_device
@in_each_dtype
@given(step=steps(max_n=8), kind=kinds, each=st.booleans())
@settings(max_examples=10)
def test_efficient_scores(device: Any, dtype: Any, step: Step, kind: Any, each: bool) -> None:
    got = engine.scores(step, "two_term", efficient=True, per_validation=each, kind=kind, device=device, dtype=dtype)
    close = bound(step, "two_term", "midpoint", (4, 4), dtype, per_validation=each, kind=kind)
    everyone = np.ones(step.n, bool)
    total = utility_bound(step, everyone, dtype, each=each) + utility_bound(step, ~everyone, dtype, each=each)
    close = close + (close.sum(axis=0) + total) / step.n
    expected = oracle.scores(step, "two_term", efficient=True, per_validation=each, kind=kind)
    assert_within(got, expected, close, "score")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9, 100, 10_000])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_places_of_arrival_by_two_routes(n: int, count: int) -> None:
    """Both rules are exact for polynomials of degree 2 count − 1 of the number of others that are there."""
    tau, weight = two_term.place_rule(n, count)
    theirs = dict.fromkeys((there / max(n - 1, 1) for there, _ in engine_two_term._numbers_there(n, count)), 0.0)
    others = np.arange(n) / max(n - 1, 1)
    for degree in range(2 * min(n, count)):
        exact = float((others**degree).mean())
        ours = float((weight * tau**degree).sum())
        engines = sum(w * (k / max(n - 1, 1)) ** degree for k, w in engine_two_term._numbers_there(n, count))
        assert_within(np.array([ours, engines]), np.full(2, exact), rounding(np.full(2, 1.0), 100 * n), "moment")
    assert len(tau) == len(theirs) == min(n, count)


# --- exact facts -----------------------------------------------------------------------------------------------------


def case(n: int, *, eps: float = 1e-8, t: int = 3) -> tuple[Any, Array]:
    """Return Adam's coefficients of five coordinates, and contributions of `n` samples to them."""
    generator = np.random.default_rng(n)
    m, v = 0.01 * generator.normal(size=5), 1e-3 * generator.uniform(size=5)
    return coefficients(Adam(eps=eps), t, m, v), 0.1 * generator.normal(size=(n, 5))
