"""Random cases include sizes at tile edges, deep networks, zeros and late steps, and lost remainders are found."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from adamshap.reference import Network, Step, losses, models, scoring
from adamshap.reference.contract import Array, Params
from adamshap.verify.checking import PROFILES, check
from adamshap.verify.implementation import Implementation, Query
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES, Case
from adamshap.verify.random_cases import random_cases
from adamshap.verify.replacing import replaced

BY_NAME = {one.name: one for one in PROPERTIES}


@cache
def quick_cases() -> tuple[Case, ...]:
    """Return all cases of the quick profile."""
    count = PROFILES["quick"]
    return tuple(case for one in PROPERTIES for case in random_cases(one, max(1, count // one.cost), 0))


def exactly_0_before_an_activation(step: Step) -> bool:
    """Return whether a hidden unit with a nonzero input sums to 0."""
    first = models.outputs(
        Network(step.net.sizes[:2]), {"0.bias": np.zeros(step.net.sizes[1]), **step.params}, step.train.x
    )
    return step.net.depth > 1 and bool((first[step.train.x.any(axis=1)] == 0).any())


def leaves(case: Case, rest: int) -> bool:
    size = case.query.options.get("micro_batch", 0)
    return size > 1 and case.step.n > size and case.step.n % size == rest % size


EDGES: dict[str, Callable[[Case], bool]] = {
    "an input between 17 and 257": lambda case: 17 < case.step.net.sizes[0] < 257,
    "a hidden layer between 17 and 257": lambda case: any(17 < size < 257 for size in case.step.net.sizes[1:-1]),
    "an output between 17 and 257": lambda case: 17 < case.step.net.sizes[-1] < 257,
    "more than 128 classes": lambda case: case.step.net.loss == "cross_entropy" and case.step.net.sizes[-1] > 128,
    "more than ten layers": lambda case: case.step.net.depth > 10,
    "n between 32 and 257": lambda case: 32 < case.step.n < 257,
    "n_val beyond 8": lambda case: case.step.n_val > 8,
    "t beyond 10⁴": lambda case: case.step.state.step > 10**4,
    "ε = 0": lambda case: case.step.adam.eps == 0,
    "a pre-activation of 0": lambda case: exactly_0_before_an_activation(case.step),
    "one sample over": lambda case: leaves(case, 1),
    "one sample short": lambda case: leaves(case, -1),
    "nobody of a large batch": lambda case: (
        case.query.function == "utility" and case.step.n > 4 and not case.query.options["coalition"].any()
    ),
}


@pytest.mark.parametrize("edge", EDGES)
def test_the_quick_profile_draws(edge: str) -> None:
    assert any(EDGES[edge](case) for case in quick_cases())


def kept(size: int, tile: int) -> int:
    """Return a size without its last, partial tile; a size within one tile is unchanged."""
    return size - size % tile if size > tile else size


AXES = {
    "input": ("first", 2),
    "hidden": ("middle", 1),
    "outputs": ("last", 1),
    "bias": ("last bias", 1),
    "n": ("each", 0),
}


def losing(dimension: str, tile: int) -> Implementation:
    """Return the oracle without the remainder of one dimension."""

    def ask(step: Step, query: Query) -> Array:
        if query.options.get("per_validation") or query.options.get("efficient"):
            raise NotImplementedError("only plain scores")
        if dimension == "n_val":
            few = Step(
                step.net,
                step.params,
                step.adam,
                step.state,
                step.train,
                step.valid.take(np.arange(kept(step.n_val, tile))),
                step.reduction,
            )
            return ORACLE.ask(few, query)
        right, (where, axis) = scoring.dot_products, AXES[dimension]
        last = step.net.depth - 1
        of = {"first": "0.weight", "middle": "1.weight", "last": f"{last}.weight", "last bias": f"{last}.bias"}

        def dot_products(x: Params, P: Params) -> Array:
            cut = {}
            for name, each in x.items():
                lost = each.copy()
                if of.get(where, name) == name:
                    np.moveaxis(lost, axis, 0)[kept(each.shape[axis], tile) :] = 0.0
                cut[name] = lost
            return right(cut, P)

        with replaced("dot_products", right, dot_products):
            return ORACLE.ask(step, query)

    return Implementation("without the rest", frozenset({"scores"}), ask)


@pytest.mark.parametrize("tile", [2, 8, 16, 32, 64, 100, 128, 256])
@pytest.mark.parametrize("dimension", [*AXES, "n_val"])
def test_a_lost_remainder_of_any_dimension_is_found(dimension: str, tile: int) -> None:
    (outcome,) = check(losing(dimension, tile), [BY_NAME["large-scores"]], shrink_seconds=0)
    assert outcome.status == "failed"


def test_targets_broadcast_over_the_batch_are_found() -> None:
    """Outputs (n, 1) minus targets (n,) are (n, n): every sample is compared with every target."""

    def ask(step: Step, query: Query) -> Array:
        def wrong(outputs: Any, targets: Array) -> Any:
            if targets.shape[1] > 1:
                return right(outputs, targets)
            return ((outputs - targets[:, 0]) ** 2).mean(axis=1)

        right = losses.squared_error
        with replaced("squared_error", right, wrong):
            return ORACLE.ask(step, query)

    candidate = Implementation("broadcast", frozenset({"scores"}), ask)
    properties = [one for one in PROPERTIES if one.name.startswith("scores-") and not one.extra]
    statuses = [outcome.status for outcome in check(candidate, properties, shrink_seconds=0)]
    assert statuses.count("failed") > len(properties) / 2
