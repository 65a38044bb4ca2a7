"""Every known mistake is caught on the quick profile and named by the diagnosis."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adamshap import gpu
from adamshap.reference import Adam, AdamState, Batch, Network, Step, adam
from adamshap.reference.contract import Array
from adamshap.verify import diagnosis as diagnosing
from adamshap.verify.checking import check
from adamshap.verify.diagnosis import Diagnosis, diagnose
from adamshap.verify.faults import BY_NAME, FAULTS, FLOAT32, LATER_FAULTS, Fault, other_nodes
from adamshap.verify.implementation import FUNCTIONS, Implementation, Query
from adamshap.verify.mutation import first_catch
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES, in_dtype
from adamshap.verify.tolerance import assert_within, rounding


@pytest.mark.parametrize("fault", [*FAULTS, *LATER_FAULTS], ids=lambda fault: fault.name)
def test_every_fault_is_caught_and_named(fault: Fault) -> None:
    catch = first_catch(fault)
    assert catch.outcome is not None, f"{fault.name} passes every property"
    assert catch.outcome.finding is not None
    diagnosis = diagnose(fault.implementation(), [catch.outcome])
    assert diagnosis is not None
    assert fault.name in diagnosis.faults, diagnosis.sentence
    assert not diagnosis.together


def test_the_catalogue_is_well_formed() -> None:
    assert len(BY_NAME) == len(FAULTS) >= 40
    assert all(fault.sentence and fault.source for fault in FAULTS)
    assert len({fault.sentence for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(
    ("one", "two"), [("betas-swapped", "bias-dropped"), ("no-bias-correction", "first-layer-skipped")]
)
def test_two_mistakes_at_once_are_both_named(one: str, two: str) -> None:
    ask = BY_NAME[two].wrap(BY_NAME[one].wrap(ORACLE.ask))
    candidate = Implementation("both", frozenset(FUNCTIONS), ask)
    properties = [p for p in PROPERTIES if p.name in ("scores-secant-start", "scores-tangent-midpoint")]
    diagnosis = diagnose(candidate, check(candidate, properties, shrink_seconds=0))
    assert diagnosis is not None
    assert diagnosis.together
    assert set(diagnosis.faults) == {one, two}, diagnosis.sentence


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (lambda step: -step.n, "−n (sign, and sum for mean)"),
        (lambda step: 1 / step.n, "1/n (mean for sum)"),
        (lambda step: 0.25, "0.25"),
    ],
)
def test_a_global_factor_is_named(factor: object, says: str) -> None:
    candidate = Implementation(
        "scaled", frozenset({"scores"}), lambda step, query: factor(step) * ORACLE.ask(step, query)
    )
    properties = [p for p in PROPERTIES if p.name.startswith("scores-secant")]
    diagnosis = diagnose(candidate, check(candidate, properties, shrink_seconds=0))
    assert diagnosis is not None
    assert says in diagnosis.sentence


def wrong_where(name: str, when: Callable[[Step, Query], bool]) -> Implementation:
    """Return the oracle with a fault in some calls only."""
    wrong = BY_NAME[name].wrap(ORACLE.ask)
    return Implementation(
        "in part",
        frozenset(FUNCTIONS),
        lambda step, query: wrong(step, query) if when(step, query) else ORACLE.ask(step, query),
    )


def diagnosed(candidate: Implementation, *names: str, profile: str = "quick") -> Diagnosis:
    properties = [p for p in PROPERTIES if p.name in names]
    assert len(properties) == len(names)
    diagnosis = diagnose(candidate, check(candidate, properties, profile=profile, shrink_seconds=0), seconds=0)
    assert diagnosis is not None
    return diagnosis


@pytest.mark.parametrize("when", [lambda step, query: step.n == 2, lambda step, query: step.n > 16])
def test_a_mistake_at_some_sizes_only_is_not_one_at_all_sizes(when: Callable[[Step, Query], bool]) -> None:
    # The longer profile has batches of both sizes.
    wrong = wrong_where("variance-with-replacement", when)
    diagnosis = diagnosed(wrong, "scores-random_order-start", profile="ci")
    assert diagnosis.faults == ()
    assert not diagnosis.factor
    assert "no known mistake" in diagnosis.sentence


def test_a_mistake_in_one_of_several_slopes_is_named_with_the_property_that_holds() -> None:
    candidate = wrong_where("bias-dropped", lambda step, query: query.options.get("slope") == "tangent")
    diagnosis = diagnosed(candidate, "scores-tangent-start", "scores-secant-start")
    assert diagnosis.faults == ("bias-dropped",)
    assert diagnosis.contradicted_by == "scores-secant-start"
    assert "but only in scores-tangent-start: were it so everywhere, scores-secant-start" in diagnosis.sentence


def test_a_passed_property_of_another_function_rules_nothing_out() -> None:
    candidate = wrong_where("no-bias-correction", lambda step, query: query.function == "scores")
    diagnosis = diagnosed(candidate, "update", "scores-secant-start")
    assert diagnosis.faults == ("no-bias-correction",)
    assert diagnosis.contradicted_by == ""


def test_micro_batches_which_the_oracle_lacks_rule_nothing_out() -> None:
    wrong = BY_NAME["bias-dropped"].wrap(ORACLE.ask)

    def ask(step: Step, query: Query) -> Array:
        options = {name: value for name, value in query.options.items() if name != "micro_batch"}
        return wrong(step, Query(query.function, options))

    candidate = Implementation("in micro-batches", frozenset({"scores"}), ask, frozenset({"micro_batch"}))
    diagnosis = diagnosed(candidate, "scores-secant-start", "micro-batch")
    assert diagnosis.faults == ("bias-dropped",)
    assert diagnosis.contradicted_by == ""


def test_answers_of_0_for_some_cases_are_no_factor() -> None:
    assert diagnosed(BY_NAME["nothing-for-nobody"].implementation(), "utility").factor == ""
    forgetful = Implementation(
        "0 for one sample", frozenset({"scores"}), lambda step, query: ORACLE.ask(step, query) * (step.n > 4)
    )
    diagnosis = diagnosed(forgetful, "scores-secant-start")
    assert diagnosis.factor == ""
    assert "no known mistake" in diagnosis.sentence


def test_a_factor_near_1_is_not_called_1() -> None:
    candidate = Implementation(
        "a little more", frozenset({"scores"}), lambda step, query: (1 + 1e-9) * ORACLE.ask(step, query)
    )
    assert diagnosed(candidate, "scores-secant-start").factor == "1.000000001"


def test_other_numbers_of_nodes_are_named() -> None:
    diagnosis = diagnosed(other_nodes(6, 5).implementation(), "scores-random_order-start", "scores-nodes")
    assert diagnosis.faults == ("nodes-6-5",)
    assert "(6, 5) quadrature nodes" in diagnosis.sentence


def test_computations_in_float32_are_named() -> None:
    candidate = Implementation(
        "single",
        frozenset({"scores"}),
        lambda step, query: gpu.scores(in_dtype(step, "float32"), **query.options, device="cpu", dtype="float32"),
    )
    assert diagnosed(candidate, "scores-secant-start", "scores-tangent-midpoint").faults == (FLOAT32,)


def test_a_mistake_smaller_than_float32_is_not_called_so() -> None:
    candidate = Implementation(
        "a little", frozenset({"influence"}), lambda step, query: ORACLE.ask(step, query) * (1 + 1e-9 * (step.n % 3))
    )
    assert diagnosed(candidate, "influence").faults == ()


def test_a_mistake_in_some_cases_that_is_small_there_is_not_called_float32() -> None:
    """A utility is a small difference of losses: its error is often within their float32 rounding."""

    def ask(step: Step, query: Query) -> Any:
        return ORACLE.ask(step, Query(query.function, {"coalition": np.sort(query.options["coalition"])}))

    diagnosis = diagnosed(Implementation("sorted", frozenset({"utility"}), ask), "utility")
    assert diagnosis.faults == ()
    assert "no known mistake" in diagnosis.sentence


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.3), (0.3, -0.2), (1e-4, 0.5), (2e-4, -1e-4), (0.0, 0.0)])
def test_the_fault_of_a_floor_has_the_slopes_of_its_map(a: float, b: float) -> None:
    """A[a, b] of max(√, ε) equals difference quotients of the faulty A, of nearby points where a = b."""
    net = Network((1, 1), "identity", "mse", bias=False)
    one, zero = {"0.weight": np.ones((1, 1))}, {"0.weight": np.zeros((1, 1))}
    adam_settings, state = Adam(eps=1e-3, betas=(0.9, 0.0)), AdamState(5, one, zero)
    batch = Batch(np.ones((1, 1)), np.ones((1, 1)))
    step = Step(net, one, adam_settings, state, batch, batch)
    c = adam.step_coefficients(step)["0.weight"]
    found: list[Array] = []

    def look(step: Step, query: Query) -> Array:
        apart = 1e-7 * (a == b)
        ends = [np.array([[a + apart]]), np.array([[b - apart]])]
        slope = (adam.update_map(c, ends[0]) - adam.update_map(c, ends[1])) / (ends[0] - ends[1])
        found.extend((adam.divided_difference(c, np.array([[a]]), np.array([[b]])), slope))
        return np.zeros(1)

    BY_NAME["eps-as-floor"].wrap(look)(step, Query("scores"))
    assert_within(found[0], found[1], rounding(np.abs(found[1]) / 1e-7, 1))


def test_the_kept_answers_of_a_fault_are_those_of_the_same_call_only() -> None:
    fault = BY_NAME["bias-dropped"]
    generator, net = np.random.default_rng(0), Network((3, 4, 2))
    params = net.init(0)
    train, valid = (Batch(generator.standard_normal((n, 3)), generator.integers(0, 2, n)) for n in (5, 4))
    step = Step(net, params, Adam(), AdamState.zeros(params), train, valid)
    query = Query("scores", {"slope": "secant", "gradient": "start"})
    kept = diagnosing._faulty(fault)
    first = kept.ask(step, query)
    assert kept.ask(replace(step), query) is first
    moved = {name: 2 * p for name, p in params.items()}
    state = replace(step.state, m={name: m + 1 for name, m in step.state.m.items()})
    others = [
        (replace(step, params=moved), query),
        (replace(step, state=state), query),
        (replace(step, adam=Adam(0.5)), query),
        (replace(step, valid=train), query),
        (step, Query("scores", {**query.options, "slope": "sgd"})),
        (step, Query("influence")),
    ]
    for other in others:
        assert not np.array_equal(kept.ask(*other), first)
        assert np.array_equal(kept.ask(*other), fault.implementation().ask(*other))


def test_an_unknown_mistake_is_not_given_a_name() -> None:
    candidate = Implementation("odd", frozenset({"influence"}), lambda step, query: ORACLE.ask(step, query) ** 3 + 1)
    properties = [p for p in PROPERTIES if p.name == "influence"]
    diagnosis = diagnose(candidate, check(candidate, properties, shrink_seconds=0), seconds=1)
    assert diagnosis is not None
    assert diagnosis.faults == ()
    assert "no known mistake" in diagnosis.sentence
