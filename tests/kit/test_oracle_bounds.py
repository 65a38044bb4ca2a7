"""Bounds are cached, and only for the same call."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from adamshap.reference import Adam, AdamState, Batch, Network, Step
from adamshap.verify import oracle
from adamshap.verify.implementation import Query
from adamshap.verify.tolerance import DRAWS, MORE_DRAWS

QUERY = Query("scores", {"slope": "secant", "gradient": "start"})


def small_step() -> Step:
    generator = np.random.default_rng(0)
    net = Network((2, 3, 2))
    params = net.init(0)
    moments = [{name: 0.1 + generator.random(p.shape) for name, p in params.items()} for _ in range(2)]
    train, valid = (Batch(generator.standard_normal((n, 2)), generator.integers(0, 2, n)) for n in (3, 2))
    return Step(net, params, Adam(), AdamState(3, *moments), train, valid)


def changed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: 1.5 * array for name, array in arrays.items()}


STEP = small_step()
OTHERS = {
    "params": replace(STEP, params=changed(STEP.params)),
    "m": replace(STEP, state=AdamState(3, changed(STEP.state.m), STEP.state.v)),
    "v": replace(STEP, state=AdamState(3, STEP.state.m, changed(STEP.state.v))),
    "t": replace(STEP, state=AdamState(4, STEP.state.m, STEP.state.v)),
    "adam": replace(STEP, adam=Adam(eps=1e-3)),
    "train": replace(STEP, train=Batch(2 * STEP.train.x, STEP.train.y)),
    "labels": replace(STEP, train=Batch(STEP.train.x, 1 - STEP.train.y)),
    "valid": replace(STEP, valid=Batch(2 * STEP.valid.x, STEP.valid.y)),
    "reduction": replace(STEP, reduction="sum"),
    "activation": replace(STEP, net=Network((2, 3, 2), activation="gelu")),
}


def test_the_same_call_is_answered_from_the_cache() -> None:
    (first,) = oracle.bounds(STEP, QUERY, np.float64).values()
    (again,) = oracle.bounds(STEP, QUERY, np.float64).values()
    assert again is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0.0


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_any_other_call_is_not(other: Step) -> None:
    before = oracle.bounds(STEP, QUERY, np.float64)["values"]
    after = oracle.bounds(other, QUERY, np.float64)["values"]
    assert not np.array_equal(after, before)


def test_nor_are_another_query_dtype_or_number_of_draws() -> None:
    base = oracle.bounds(STEP, QUERY, np.float64)["values"]
    tangent = Query("scores", {"slope": "tangent", "gradient": "start"})
    others = (
        oracle.bounds(STEP, tangent, np.float64),
        oracle.bounds(STEP, QUERY, np.float32),
        oracle.bounds(STEP, QUERY, np.float64, draws=1),
    )
    assert all(not np.array_equal(other["values"], base) for other in others)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "REMEMBERED", 2)
    monkeypatch.setattr(oracle, "_remembered", {})
    for eps in (1e-3, 1e-4, 1e-5, 1e-6):
        oracle.bounds(replace(STEP, adam=Adam(eps=eps)), QUERY, np.float64)
    assert len(oracle._remembered) == 2


def test_bounds_widen_with_every_draw_up_to_the_whole() -> None:
    wanted, widening = oracle.expected_and_bounds(STEP, QUERY, np.float64)
    found = [bound["values"] for bound in widening]
    assert len(found) == MORE_DRAWS + 2
    assert all(np.all(later >= earlier) for earlier, later in itertools.pairwise(found))
    assert np.all(found[-1] > found[0])
    np.testing.assert_array_equal(found[DRAWS + 1], oracle.bounds(STEP, QUERY, np.float64)["values"])
    np.testing.assert_array_equal(wanted["values"], oracle.expected(STEP, QUERY)["values"])


def test_later_changes_of_the_step_have_no_effect() -> None:
    params = {name: p.copy() for name, p in STEP.params.items()}
    own = replace(STEP, params=params, adam=Adam(eps=1e-7))
    before = oracle.bounds(own, QUERY, np.float64, draws=3)["values"]
    _, widening = oracle.expected_and_bounds(own, QUERY, np.float64)
    next(widening)
    for array in params.values():
        array[...] = 0.0
    assert not any(array.any() for array in own.params.values())
    *_, last = itertools.islice(widening, 4)
    np.testing.assert_array_equal(last["values"], before)
