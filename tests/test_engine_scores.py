"""The engine against the oracle: every function of a step, on random problems, in both dtypes, on every device."""

from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_each_device
from engine_tolerance import (
    SIGMAS,
    bound,
    first_order_bound,
    influence_bound,
    share,
    spread,
    update_bounds,
    utility_bound,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.reference.contract import GRADIENTS, MARGINAL_LOSSES, MARGINALS, SLOPES, Step
from adamshap.verify.oracle import previous_ratio
from adamshap.verify.strategies import seeds, steps
from adamshap.verify.tolerance import assert_within

node_pairs = st.sampled_from([(4, 4), (2, 4), (1, 2), (3, 5)])


@on_each_device
@in_each_dtype
@given(step=steps(), data=st.data())
@settings(max_examples=60)
def test_scores_are_the_oracles(device: Any, dtype: Any, record_error: Any, step: Step, data: st.DataObject) -> None:
    slope = data.draw(st.sampled_from(SLOPES), label="slope")
    gradient = data.draw(st.sampled_from(GRADIENTS), label="gradient")
    each, nodes = data.draw(st.booleans(), label="per_validation"), data.draw(node_pairs, label="nodes")
    micro_batch = data.draw(st.none() | st.integers(1, 40), label="micro_batch")
    got = engine.scores(
        step, slope, gradient, per_validation=each, nodes=nodes, micro_batch=micro_batch, device=device, dtype=dtype
    )
    assert got.dtype == dtype
    expected = oracle.scores(step, slope, gradient, per_validation=each, nodes=nodes)
    close = bound(step, slope, gradient, nodes, dtype, per_validation=each)
    record_error(f"scores {dtype}, share of the bound", share(got, expected, close))
    assert_within(got, expected, close, "score")


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("gradient", GRADIENTS)
@given(step=steps(max_n=6, max_n_val=3, max_width=6))
@settings(max_examples=3)
def test_every_slope_with_every_gradient(device: Any, dtype: Any, slope: Any, gradient: Any, step: Step) -> None:
    got = engine.scores(step, slope, gradient, device=device, dtype=dtype)
    assert_within(got, oracle.scores(step, slope, gradient), bound(step, slope, gradient, (4, 4), dtype), "score")


@on_each_device
@in_each_dtype
@given(step=steps(max_n=8), slope=st.sampled_from(SLOPES), gradient=st.sampled_from(GRADIENTS), each=st.booleans())
@settings(max_examples=15)
def test_efficient_scores(device: Any, dtype: Any, step: Step, slope: Any, gradient: Any, each: bool) -> None:
    got = engine.scores(step, slope, gradient, True, each, device=device, dtype=dtype)
    close = bound(step, slope, gradient, (4, 4), dtype, per_validation=each)
    everyone = np.ones(step.n, bool)
    total = utility_bound(step, everyone, dtype, each=each) + utility_bound(step, ~everyone, dtype, each=each)
    close = close + (close.sum(axis=0) + total) / step.n
    assert_within(got, oracle.scores(step, slope, gradient, True, each), close, "score")


@on_each_device
@in_each_dtype
@given(step=steps(kinds=("ordinary", "adversarial")))
@settings(max_examples=15)
def test_the_previous_denominator(device: Any, dtype: Any, step: Step) -> None:
    got = engine.scores(step, "linearized", denominator="previous", device=device, dtype=dtype)
    # The denominator has the same parts: what the exact one earns, times the largest ratio of the two.
    close = bound(step, "linearized", "midpoint", (4, 4), dtype) * max(1.0, previous_ratio(step))
    assert_within(got, oracle.scores(step, "linearized", denominator="previous"), close, "score")


@on_each_device
@in_each_dtype
@given(step=steps())
@settings(max_examples=30)
def test_update(device: Any, dtype: Any, record_error: Any, step: Step) -> None:
    got, state = engine.update(step, device=device, dtype=dtype)
    expected, expected_state = oracle.update(step)
    assert state.step == expected_state.step
    for name, parts in zip(("θ", "m", "v"), update_bounds(step, dtype), strict=True):
        ours, theirs = {
            "θ": (got, expected),
            "m": (state.m, expected_state.m),
            "v": (state.v, expected_state.v),
        }[name]
        assert list(ours) == list(theirs)
        for key, array in ours.items():
            assert array.dtype == dtype
            record_error(f"update {dtype}, share of the bound", share(array, theirs[key], parts[key]))
            assert_within(array, theirs[key], parts[key], f"{name}⁺ {key}")


@on_each_device
@in_each_dtype
@given(step=steps(max_n=8))
@settings(max_examples=30)
def test_influence(device: Any, dtype: Any, record_error: Any, step: Step) -> None:
    got = engine.influence(step, device=device, dtype=dtype)
    expected, close = oracle.influence(step), influence_bound(step, dtype)
    record_error(f"influence {dtype}, share of the bound", share(got, expected, close))
    assert_within(got, expected, close, "influence")


@on_each_device
@in_each_dtype
@given(step=steps(), seed=seeds)
@settings(max_examples=15)
def test_utility(device: Any, dtype: Any, step: Step, seed: int) -> None:
    coalition = np.random.default_rng(seed).random(step.n) < 0.5
    got = engine.utility(step, coalition, device=device, dtype=dtype)
    assert_within(got, oracle.utility(step, coalition), utility_bound(step, coalition, dtype), "U(S)")


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("kind", MARGINALS)
@pytest.mark.parametrize("loss", MARGINAL_LOSSES)
@given(step=steps(max_n=4, max_width=6))
@settings(max_examples=3)
def test_marginals(device: Any, dtype: Any, kind: Any, loss: Any, step: Step) -> None:
    got, expected = engine.marginals(step, kind, loss, device=device, dtype=dtype), oracle.marginals(step, kind, loss)
    every = [(np.arange(step.n) == i) == alone for i in range(step.n) for alone in (True, False)]
    masks = [*every, np.ones(step.n, bool), np.zeros(step.n, bool)]
    if kind == "shapley":
        masks = [(number >> np.arange(step.n)) & 1 == 1 for number in range(2**step.n)]
    if loss == "exact":
        one = np.max([utility_bound(step, mask, dtype) for mask in masks])
    else:
        one = first_order_bound(step, masks, dtype)
        one = one + spread(lambda s: oracle.marginals(s, kind, loss).values, step, dtype).max()
        one = one + spread(lambda s: oracle.marginals(s, kind, loss).total, step, dtype)
        one = one + spread(lambda s: oracle.marginals(s, kind, loss).empty, step, dtype)
    assert_within(got.values, expected.values, 2 * one, "marginal")
    assert_within(got.empty, expected.empty, one, "U(∅)")
    assert_within(got.total, expected.total, one, "U(B)")
    assert_within(got.standard_error, np.zeros(step.n), np.zeros(step.n), "standard error")


@on_each_device
def test_sampled_shapley_values_agree_within_their_standard_errors(device: Any) -> None:
    """The permutations are each implementation's own; the sum is U(B) − U(∅) for every one of them."""
    generator = np.random.default_rng(0)
    net = oracle.Network((3, 4, 2))
    params = net.init(0)
    train, valid = (oracle.Batch(generator.standard_normal((n, 3)), generator.integers(0, 2, n)) for n in (13, 4))
    step = Step(net, params, oracle.Adam(), oracle.AdamState.zeros(params), train, valid)
    got = engine.marginals(step, "shapley", permutations=64, device=device, dtype="float64")
    expected = oracle.marginals(step, "shapley", permutations=64)
    error = np.hypot(got.standard_error, expected.standard_error)
    assert (got.standard_error > 0).all()
    assert_within(got.values, expected.values, SIGMAS * error, "Shapley value")
    everyone = np.ones(step.n, bool)
    total = utility_bound(step, everyone, "float64") + utility_bound(step, ~everyone, "float64")
    assert_within(got.values.sum(), got.total - got.empty, total, "Σ Shapley value")
