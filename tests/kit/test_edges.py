"""Random cases include sizes at tile edges, deep networks, zeros and late steps, and lost remainders are found."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamshap import reference
from adamshap.reference import Network, Step, adam, losses, models, scoring
from adamshap.reference.contract import AdamState, Array, Params
from adamshap.verify.checking import PROFILES, check
from adamshap.verify.edges.draws import CALLS, takes
from adamshap.verify.edges.properties import DRAWN_EDGES, EDGE_PROPERTIES
from adamshap.verify.edges.table import BEYOND, REFUSED, STACK_EDGES
from adamshap.verify.edges.table import EDGES as ALL_EDGES
from adamshap.verify.implementation import FUNCTIONS, Implementation, Query, implementation
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES, Case
from adamshap.verify.random_cases import random_cases
from adamshap.verify.replacing import replaced

BY_NAME = {one.name: one for one in (*PROPERTIES, *EDGE_PROPERTIES)}


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


# --- the table of edges -----------------------------------------------------------------------------------------------


def step_at(name: str) -> Step:
    """Return the last of a few steps of an edge's property."""
    return random_cases(BY_NAME[name], 3, 0)[-1].step


def test_each_edge_has_a_property_for_each_call_that_concerns_it() -> None:
    everywhere = (*ALL_EDGES, *STACK_EDGES, *REFUSED, *BEYOND)
    assert len({edge.name for edge in everywhere}) == len(everywhere)
    assert len({one.name for one in EDGE_PROPERTIES}) == len(EDGE_PROPERTIES)
    calls = {one.name.removeprefix("edge-n-17-") for one in EDGE_PROPERTIES if one.name.startswith("edge-n-17-")}
    assert calls == {call for call in CALLS if call != "previous"}
    assert all(any(takes(edge, call) for call in CALLS) for edge in ALL_EDGES)


def test_a_size_at_an_edge_is_the_only_large_one() -> None:
    for dimension, sizes in (("input", (257, 4)), ("outputs", (4, 257))):
        step = step_at(f"edge-{dimension}-257-update")
        assert step.net.sizes[0] <= sizes[0]
        assert step.net.sizes[-1] <= sizes[1]
        assert 257 in (step.net.sizes[0], step.net.sizes[-1])
        assert step.n <= 6
    assert step_at("edge-n-65537-update").n == 65537
    assert step_at("edge-depth-101-update").net.depth == 101
    assert step_at("edge-t-1099511627776-beta2-near-1-update").state.next_step == 2**40


def test_opposite_samples_cancel_exactly() -> None:
    step = step_at("edge-opposite-samples-cancel-update")
    x = models.sample_gradients(step)
    assert all(x_i.any() for x_i in x.values())
    assert not any(g.any() for g in models.batch_gradient(step).values())


def test_momentum_cancels_the_gradient_exactly() -> None:
    step = step_at("edge-opposite-momentum-cancels-the-gradient-update")
    assert any(g.any() for g in models.batch_gradient(step).values())
    params, state = adam.update(step)
    assert not any(m.any() for m in state.m.values())
    assert all(np.array_equal(params[name], start) for name, start in adam.decayed(step).items())


def test_a_kink_decides_about_gradients() -> None:
    """Units at exactly 0 receive gradients from above: with ReLU's derivative 1 there, the batch's gradient differs."""
    step = step_at("edge-kink-2-layers-update")
    first = models.batch_gradient(step)["0.weight"]
    right = models.perceptron.ACTIVATION_FUNCTIONS["relu"]
    with replaced("relu", right, lambda z: right(z) + (z == 0) * z):
        assert not np.array_equal(models.batch_gradient(step)["0.weight"], first)


def of(**functions: Any) -> Implementation:
    return implementation(type("Mine", (), {name: staticmethod(f) for name, f in functions.items()}), "mine")


def test_an_update_in_place_is_found_where_inputs_are_writeable() -> None:
    def update(step: Step) -> Any:
        result = reference.update(step)
        for name, p in step.params.items():
            if p.flags.writeable:
                p[...] = result[0][name]
        return result

    properties = [BY_NAME[f"edge-layout-{layout}-update"] for layout in ("writeable", "int32-labels")]
    writeable, read_only = check(of(update=update), properties, shrink_seconds=0)
    assert read_only.status == "passed"
    assert writeable.finding is not None
    assert "changed its input: step.params['0.weight']" in writeable.finding.sentence


def test_results_that_a_later_call_overwrites_are_found() -> None:
    buffers: dict[int, Array] = {}

    def influence(step: Step) -> Array:
        buffer = buffers.setdefault(step.n, np.empty(step.n))
        buffer[:] = reference.influence(step)
        return buffer

    (outcome,) = check(of(influence=influence), [BY_NAME["influence"]], shrink_seconds=0)
    assert outcome.finding is not None
    assert "changed the result of an earlier call" in outcome.finding.sentence


def test_answers_from_a_cache_are_found() -> None:
    seen: dict[Any, AdamState] = {}

    def update(step: Step) -> Any:
        key = (step.state.step, *((name, p.shape) for name, p in step.params.items()))
        params, state = reference.update(step)
        return params, seen.setdefault(key, state)

    (outcome,) = check(of(update=update), [BY_NAME["memory-update"]], shrink_seconds=0)
    assert outcome.status == "failed"


@pytest.mark.parametrize("edge", [*REFUSED, *BEYOND], ids=lambda edge: edge.label)
def test_an_answer_where_none_exists_is_found(edge: Any) -> None:
    def zeros(step: Step, query: Query) -> Array:
        return np.zeros(step.n)

    mine = Implementation("mine", frozenset({"scores"}), zeros)
    name = f"edge-{edge.name}-{'previous' if 'previous' in edge.calls else 'random_order'}"
    (outcome,) = check(mine, [BY_NAME[name]], shrink_seconds=0)
    assert outcome.finding is not None
    assert "it has to refuse" in outcome.finding.sentence
    (right,) = check(ORACLE, [BY_NAME[name]], shrink_seconds=0)
    assert right.status == "passed"


def test_a_failure_at_an_edge_names_it_and_shrinks_around_it() -> None:
    def ask(step: Step, query: Query) -> Any:
        return ORACLE.ask(step, query) * (1 + (step.n == 33))

    mine = Implementation("mine", frozenset(FUNCTIONS) - {"update", "marginals"}, ask)
    (outcome,) = check(mine, [BY_NAME["edge-n-33-influence"]], shrink_seconds=20)
    assert outcome.finding is not None
    step = outcome.finding.case.step
    assert step.n == 33
    assert sum(p.size for p in step.params.values()) <= 8


def test_the_command_checks_edges_and_reports_a_group_in_one_row(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    program = [sys.executable, "-P", "-c", "from adamshap.reference.command.main import main; main()", "verify"]
    arguments = ["reference", "--in-process", "--edges", "--json", str(file), "--only", "edge-layout"]
    done = subprocess.run([*program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("edge-layout ") == 1
    names = [one["name"] for one in json.loads(file.read_text(encoding="utf-8"))["properties"]]
    assert len(names) > 30
    assert all(name.startswith("edge-layout-") for name in names)


def test_the_usual_properties_draw_edges() -> None:
    assert {one.name for one in DRAWN_EDGES} <= {one.name for one in PROPERTIES}
