"""An error of a few bounds may be one that few draws missed: more draws follow before it is reported.

`saturated-tanh.json` is a step of a network with saturated tanh units whose optimiser has almost no second moment. In
every library 1 − tanh² has an absolute error of u, which dominates here. Six draws show a fifth of the error that forty
show.
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

from adamshap.reference import Batch, Step
from adamshap.reference.contract import Array, Params
from adamshap.verify.cases import case_from_json
from adamshap.verify.checking import check
from adamshap.verify.implementation import Answer, Implementation, Query
from adamshap.verify.oracle import ORACLE, bounds, expected, expected_and_bounds
from adamshap.verify.properties import PROPERTIES, Case, Disagreement, asker
from adamshap.verify.tolerance import DRAWS, MORE_DRAWS

(PROPERTY,) = (one for one in PROPERTIES if one.name == "marginals-first-first_order")
QUERY = Query("marginals", {"kind": "first", "loss": "first_order"})
SINGLE = np.float32


@cache
def saturated() -> Step:
    text = Path(__file__).with_name("saturated-tanh.json").read_text(encoding="utf-8")
    return case_from_json(json.loads(text))[0]


# --- marginals in float32, as libraries compute them ------------------------------------------------------------------


def fused(a: Array, b: Array) -> Array:
    """Return a b, adding each product to the sum before rounding it, like an FMA."""
    total = np.zeros((len(a), b.shape[1]), SINGLE)
    for k in range(a.shape[1]):
        total = (total.astype(np.float64) + a[:, k : k + 1].astype(np.float64) * b[k : k + 1]).astype(SINGLE)
    return total


PRODUCTS: dict[str, Callable[[Array, Array], Array]] = {
    "library": lambda a, b: a @ b,
    "reversed": lambda a, b: a[:, ::-1] @ b[::-1],
    "fused": fused,
}
DERIVATIVES: dict[str, Callable[[Array], Array]] = {
    "1 − a²": lambda a: SINGLE(1) - a * a,
    "(1 − a)(1 + a)": lambda a: (SINGLE(1) - a) * (SINGLE(1) + a),
    "1 − a² fused": lambda a: (1 - a.astype(np.float64) ** 2).astype(SINGLE),
}


class InFloat32:
    """Marginals "first" with loss "first_order" of a network of two layers with tanh and squared errors."""

    def __init__(self, product: str, derivative: str, factor: float = 1.0) -> None:
        self.product, self.derivative, self.factor = PRODUCTS[product], DERIVATIVES[derivative], factor

    def gradients(self, params: Params, batch: Batch) -> Params:
        """Return each sample's gradient."""
        a = np.tanh(self.product(batch.x, params["0.weight"].T) + params["0.bias"])
        outputs = self.product(a, params["1.weight"].T) + params["1.bias"]
        last = (outputs - batch.y) * SINGLE(2 / outputs.shape[1])
        first = self.product(last, params["1.weight"]) * self.derivative(a)
        weights = {"0.weight": np.einsum("no,ni->noi", first, batch.x), "1.weight": np.einsum("no,ni->noi", last, a)}
        return weights | {"0.bias": first, "1.bias": last}

    def marginals(self, step: Step, kind: str, loss: str) -> Array:
        (beta1, beta2), t = step.adam.betas, step.state.step + 1
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        weight = SINGLE(1 / step.n if step.reduction == "mean" else 1)
        x = {name: weight * each for name, each in self.gradients(step.params, step.train).items()}
        gamma = {name: each.mean(axis=0) for name, each in self.gradients(step.params, step.valid).items()}

        def utility(g: Params) -> float:
            total = SINGLE(0)
            for name, gradient in gamma.items():
                squares = SINGLE(beta2 / c2) * step.state.v[name] + SINGLE((1 - beta2) / c2) * g[name] ** 2
                up = SINGLE(beta1 / c1) * step.state.m[name] + SINGLE((1 - beta1) / c1) * g[name]
                down = np.sqrt(squares + SINGLE(step.adam.eps_root)) + SINGLE(step.adam.eps)
                total += (gradient * (SINGLE(step.adam.lr) * up / down)).sum(dtype=SINGLE)
            return float(total)

        alone = [utility({name: each[i] for name, each in x.items()}) for i in range(step.n)]
        return self.factor * (np.array(alone) - utility({name: np.zeros_like(gamma[name]) for name in gamma}))

    @classmethod
    def implementation(cls, *arguments: Any) -> Implementation:
        candidate = cls(*arguments)
        return Implementation(
            "float32", frozenset({"marginals"}), lambda step, query: candidate.marginals(step, **query.options)
        )


RIGHT = list(itertools.product(PRODUCTS, DERIVATIVES))


@pytest.mark.parametrize(("product", "derivative"), RIGHT)
def test_a_right_implementation_is_no_alarm(product: str, derivative: str) -> None:
    ask = asker(InFloat32.implementation(product, derivative))
    assert PROPERTY.check(ask, Case(saturated(), QUERY), SINGLE) < 1


def test_few_draws_alone_would_raise_an_alarm() -> None:
    wanted, few = expected(saturated(), QUERY)["values"], bounds(saturated(), QUERY, SINGLE, DRAWS)["values"]
    for product, derivative in RIGHT:
        got = InFloat32(product, derivative).marginals(saturated(), **QUERY.options)
        assert (np.abs(got - wanted) > few).any()


def test_a_mistake_of_a_part_in_a_hundred_shows_even_there() -> None:
    ask = asker(InFloat32.implementation("library", "1 − a²", 1.01))
    with pytest.raises(Disagreement):
        PROPERTY.check(ask, Case(saturated(), QUERY), SINGLE)


def test_a_mistake_as_large_as_that_error_shows_elsewhere() -> None:
    """The mistake is a relative error of 1/3000."""
    wrong = Implementation(
        "scaled", frozenset({"marginals"}), lambda step, query: (1 + 1 / 3000) * ORACLE.ask(step, query).values
    )
    (outcome,) = check(wrong, [PROPERTY], dtype=SINGLE, shrink_seconds=0)
    assert outcome.status == "failed"


@pytest.mark.parametrize(("times", "draws"), [(0.9, DRAWS), (2.0, MORE_DRAWS), (100.0, DRAWS)])
def test_more_is_drawn_only_for_an_error_of_a_few_bounds(
    times: float, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def ordinary() -> Case:
    """Return a step whose numbers are all of order 1."""
    step = saturated().as_float64()
    generator = np.random.default_rng(0)

    def drawn(arrays: Params) -> Params:
        return {name: 0.5 + generator.random(array.shape) for name, array in arrays.items()}

    state = replace(step.state, m=drawn(step.state.m), v=drawn(step.state.v))
    return Case(replace(step, params=step.net.init(0), state=state), QUERY)
