"""An error of a few bounds may be one that few draws missed: more draws follow before it is reported.

`saturated-tanh.json` is a step of a network with saturated tanh units whose optimiser has almost no second moment. In
every library 1 − tanh² has an absolute error of u, which dominates here. Six draws show a fifth of the error that forty
show: their errors, all of one size, move the terms of all such units at once, and these cancel.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamshap.reference import Step
from adamshap.reference.contract import Params
from adamshap.verify.candidates.variants.arithmetic import Arithmetic
from adamshap.verify.candidates.variants.variant import Variant
from adamshap.verify.cases import case_from_json
from adamshap.verify.checking import check
from adamshap.verify.implementation import Answer, Implementation, Query, answer, implementation
from adamshap.verify.oracle import ORACLE, bounds, expected, expected_and_bounds
from adamshap.verify.properties import PROPERTIES, Case, Disagreement, asker
from adamshap.verify.property import compare_widening
from adamshap.verify.steps import perturbed
from adamshap.verify.tolerance import (
    DRAWN,
    DRAWS,
    DRAWS_BEYOND,
    MORE_DRAWS,
    SAFETY,
    Uneven,
    assert_within,
    unit_roundoff,
)
from adamshap.verify.usual_rounding import usual_rounding

(PROPERTY,) = (one for one in PROPERTIES if one.name == "marginals-first-first_order")
QUERY = Query("marginals", {"kind": "first", "loss": "first_order"})
SINGLE = np.float32


@cache
def saturated() -> Step:
    text = Path(__file__).with_name("saturated-tanh.json").read_text(encoding="utf-8")
    return case_from_json(json.loads(text))[0]


PRODUCTS = ("library", "reversed", "fused")
DERIVATIVES = ("square", "factors", "fused")


def in_float32(product: Any, derivative: Any) -> Implementation:
    return implementation(Variant(Arithmetic(product=product, tanh_slope=derivative)), f"{product}, {derivative}")


RIGHT = list(itertools.product(PRODUCTS, DERIVATIVES))


@pytest.mark.parametrize(("product", "derivative"), RIGHT)
def test_a_right_implementation_is_no_alarm(product: str, derivative: str) -> None:
    ask = asker(in_float32(product, derivative))
    assert PROPERTY.check(ask, Case(saturated(), QUERY), SINGLE) < 1


def test_few_draws_alone_would_raise_an_alarm() -> None:
    wanted, few = expected(saturated(), QUERY)["values"], bounds(saturated(), QUERY, SINGLE, DRAWS)["values"]
    for product, derivative in RIGHT:
        got = answer(in_float32(product, derivative), saturated(), QUERY)["values"]
        assert (np.abs(got - wanted) > few).any()


def test_a_mistake_of_a_part_in_a_hundred_shows_even_there() -> None:
    right = in_float32("library", "square")
    wrong = replace(right, ask=lambda step, query: 1.01 * right.ask(step, query).values)
    with pytest.raises(Disagreement):
        PROPERTY.check(asker(wrong), Case(saturated(), QUERY), SINGLE)


def test_uneven_errors_show_what_even_ones_hide() -> None:
    """A unit's own rounding moves its terms to a limit; errors of one size move those of all units, which cancel."""
    right = expected(saturated(), QUERY)["values"]
    off = np.abs(answer(in_float32("library", "square"), saturated(), QUERY)["values"] - right)[8]
    size, single = DRAWN * unit_roundoff(SINGLE), saturated().as_float64()

    def moved(errors: Any) -> float:
        with usual_rounding(size, errors):
            return float(abs(expected(perturbed(single, size, errors), QUERY)["values"][8] - right[8]))

    def median_of_the_largest(make: Callable[[np.random.Generator], Any]) -> float:
        largest = [max(moved(make(np.random.default_rng((seed, draw)))) for draw in range(DRAWS)) for seed in range(7)]
        return SAFETY / DRAWN * float(np.median(largest))

    even, uneven = median_of_the_largest(lambda generator: generator), median_of_the_largest(Uneven)
    assert uneven > 2 * even
    assert off < 0.6 * uneven


def test_uneven_errors_have_the_variance_of_even_ones() -> None:
    """Where an answer is linear in the errors, its bound stays what it was."""
    errors = Uneven(np.random.default_rng(0)).standard_normal((1_000_000,))
    assert_within(errors.std(), 1.0, 0.01)
    assert_within(np.median(np.abs(errors)), 0.0, 0.3)  # of a standard normal number: 0.67


def test_a_mistake_as_large_as_that_error_shows_elsewhere() -> None:
    """The mistake is a relative error of 1/3000."""
    wrong = Implementation(
        "scaled", frozenset({"marginals"}), lambda step, query: (1 + 1 / 3000) * ORACLE.ask(step, query).values
    )
    (outcome,) = check(wrong, [PROPERTY], dtype=SINGLE, shrink_seconds=0)
    assert outcome.status == "failed"


@pytest.mark.parametrize(("times", "draws"), [(0.9, DRAWS), (2.0, MORE_DRAWS), (100.0, DRAWS + DRAWS_BEYOND)])
def test_most_is_drawn_for_an_error_of_a_few_bounds(times: float, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is ordinary: 40 draws hardly widen its bounds."""
    case = ordinary()
    wanted, bound = expected(case.step, QUERY)["values"], bounds(case.step, QUERY, np.float64)["values"]
    used = []

    def counted(*arguments: Any) -> tuple[Answer, Iterator[Answer]]:
        right, widening = expected_and_bounds(*arguments)

        def each() -> Iterator[Answer]:
            for one in widening:
                used.append(one)
                yield one

        return right, each()

    monkeypatch.setattr("adamshap.verify.property_checks.expected_and_bounds", counted)
    off = Implementation("off", frozenset({"marginals"}), lambda step, query: wanted + times * bound)
    if times < 1:
        assert PROPERTY.check(asker(off), case, np.float64) < 1
    else:
        with pytest.raises(Disagreement):
            PROPERTY.check(asker(off), case, np.float64)
    assert len(used) == draws + 2


def test_a_change_that_few_draws_show_is_found_for_an_error_of_many_bounds() -> None:
    """Where Adam's map is nearly a sign, the sixth draw may be the first in which a contribution changes its own."""

    def bounds_with_a_jump(after: int) -> Iterator[tuple[int, Answer]]:
        return ((draws, {"values": np.full(1, 1.0 if draws > after else 1e-9)}) for draws in itertools.count(-1))

    answers = {"values": np.full(1, 0.5)}, {"values": np.zeros(1)}
    assert compare_widening(ordinary(), *answers, bounds_with_a_jump(DRAWS + 1), DRAWS) == 0.5
    with pytest.raises(Disagreement):
        compare_widening(ordinary(), *answers, bounds_with_a_jump(DRAWS + DRAWS_BEYOND), DRAWS)


def ordinary() -> Case:
    """Return a step whose numbers are all of order 1."""
    step = saturated().as_float64()
    generator = np.random.default_rng(0)

    def drawn(arrays: Params) -> Params:
        return {name: 0.5 + generator.random(array.shape) for name, array in arrays.items()}

    state = replace(step.state, m=drawn(step.state.m), v=drawn(step.state.v))
    return Case(replace(step, params=step.net.init(0), state=state), QUERY)
