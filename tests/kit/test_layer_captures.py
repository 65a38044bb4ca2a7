"""Stacks of layers: captures of each parameter by itself, layers declared by name, and reports that name the layer."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from adamshap.reference import (
    Activation,
    Adam,
    AdamState,
    Batch,
    LayerNorm,
    Linear,
    Network,
    Residual,
    RMSNorm,
    Sequential,
    Step,
)
from adamshap.reference.contract import Array
from adamshap.verify.cases import CaseError, case_from_json, case_to_json, dumps, loads
from adamshap.verify.checking import Outcome, check
from adamshap.verify.diagnosis import Diagnosis, diagnose
from adamshap.verify.edges.properties import EDGE_PROPERTIES
from adamshap.verify.faults import LAYER_FAULTS
from adamshap.verify.implementation import (
    CAPTURED,
    CAPTURES,
    Implementation,
    Misbehaviour,
    Query,
    answer,
    implementation,
)
from adamshap.verify.isolation import isolated
from adamshap.verify.layers.captures import captures, random_directions
from adamshap.verify.layers.checks import as_stack
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.models.places import kinds_in_order, places_of
from adamshap.verify.models.sequential import LAYERS, declared_layers, each_layer
from adamshap.verify.oracle import ORACLE, bounds
from adamshap.verify.process import check_command
from adamshap.verify.property import Case, Disagreement, Property, asker
from adamshap.verify.random_cases import random_cases
from adamshap.verify.report import Report, layers_tried, omissions, to_json
from adamshap.verify.reproduction import snippet
from adamshap.verify.tolerance import assert_within

BY_NAME = {one.name: one for one in LAYER_PROPERTIES}
OF_CAPTURES = [BY_NAME[f"sequential-captures-{what}"] for what in CAPTURED]
FAULTS = {fault.name: fault for fault in LAYER_FAULTS}


def a_step(net: Sequential, x: Array, y: Array) -> Step:
    params = net.init(0)
    batch = Batch(x, y)
    return Step(net, params, Adam(), AdamState.zeros(params), batch, batch)


def a_stack() -> Step:
    inner = Residual((RMSNorm(3), Linear(3, 3, bias=False)))
    net = Sequential((Linear(2, 3), inner, Activation("tanh"), Linear(3, 2)), loss="mse")
    generator = np.random.default_rng(0)
    return a_step(net, generator.standard_normal((4, 2)), generator.standard_normal((4, 2)))


def asked(step: Step) -> Query:
    return Query(CAPTURES, {"directions": random_directions(step.params, 3)})


# --- the oracle's captures -------------------------------------------------------------------------------------------


def test_captures_are_sums_over_samples_of_their_own_losses() -> None:
    """One sample at a time: sums add up, a dot product is that of the sum, squares are those of the sum."""
    step = a_stack()
    query = asked(step)
    whole = answer(ORACLE, step, query)
    each = [answer(ORACLE, replace(step, train=step.train.take(np.array([i]))), query) for i in range(step.n)]
    limit = bounds(step, query, np.float64)
    for name in step.params:
        total, squares, dot = (f"{what}.{name}" for what in ("sum", "squares", "dot"))
        assert_within(whole[total], sum(one[total] for one in each), limit[total])
        assert_within(whole[squares], sum(one[total] ** 2 for one in each), limit[squares])
        direction = query.options["directions"][name]
        assert_within(whole[dot], [np.vdot(direction, one[total]) for one in each], limit[dot])


def test_captures_do_not_depend_on_the_reduction() -> None:
    step = a_stack()
    query = asked(step)
    one, other = (answer(ORACLE, replace(step, reduction=kind), query) for kind in ("mean", "sum"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_place_has_the_layer_s_kind_and_number() -> None:
    places = places_of(a_stack().net)
    assert str(places["0.weight"]) == "'0.weight' (linear, layer 1 of 6)"
    assert str(places["1.1.weight"]) == "'1.1.weight' (linear, layer 4 of 6 in a residual)"
    assert list(places) == ["0.weight", "0.bias", "1.0.weight", "1.1.weight", "3.weight", "3.bias"]
    assert kinds_in_order(a_stack().net) == ["linear", "residual", "rms_norm", "linear", "activation", "linear"]
    assert places_of(Network((2, 2))) == {}


# --- the engine ------------------------------------------------------------------------------------------------------


def test_the_engine_s_layers_are_all_tried() -> None:
    with isolated("adamshap.verify.candidates.engine") as candidate:
        outcomes = check(candidate, [*OF_CAPTURES, BY_NAME["sequential-update"]], shrink_seconds=0, timeout=None)
    assert {one.status for one in outcomes} == {"passed"}
    assert max(one.share for one in outcomes) > 0  # it computes by itself
    tried = layers_tried(Report("engine", "quick", "float64", 0, outcomes, None))
    assert tried.keys() == candidate.layers
    assert min(tried.values()) > 0


# --- mistakes planted in one layer -----------------------------------------------------------------------------------

Change = Callable[[str, str, Array, Step], Array]
"""Function from "sum", "dot" or "squares", a parameter's name, the right numbers and the step to wrong ones."""


def with_captures(change: Change) -> Implementation:
    """Return the oracle with other captures."""

    def ask(step: Step, query: Query) -> Any:
        right = ORACLE.ask(step, query)
        if query.function != CAPTURES:
            return right
        return {name: {what: change(what, name, a, step) for what, a in one.items()} for name, one in right.items()}

    return replace(ORACLE, name="wrong captures", ask=ask)


def found_in(candidate: Implementation, properties: list[Property]) -> tuple[list[Outcome], Diagnosis]:
    outcomes = check(candidate, properties, shrink_seconds=0)
    diagnosis = diagnose(candidate, outcomes, seconds=0.0)
    assert diagnosis is not None
    return outcomes, diagnosis


@pytest.mark.parametrize("what", CAPTURED)
@pytest.mark.parametrize(("layer", "field"), [("attention", "in_proj_weight"), ("conv2d", "weight")])
def test_a_wrong_capture_is_reported_with_its_layer_and_parameter(what: str, layer: str, field: str) -> None:
    def change(kind: str, name: str, right: Array, step: Step) -> Array:
        place = places_of(step.net)[name]
        return 1.5 * right if (kind, place.layer, place.field) == (what, layer, field) else right

    outcomes, diagnosis = found_in(with_captures(change), OF_CAPTURES)
    assert {one.property.name for one in outcomes if one.status == "failed"} == {f"sequential-captures-{what}"}
    assert diagnosis.layer.startswith(f"the captures of {layer} are wrong ({field}: {what}), those of all other layers")
    (finding,) = (one.finding for one in outcomes if one.finding is not None)
    assert finding.what.startswith(f"{what}.")
    assert f"({layer}, layer " in finding.sentence
    assert f": {what}" in finding.sentence


def test_a_wrong_backward_pass_is_found_between_wrong_and_right_captures() -> None:
    def change(kind: str, name: str, right: Array, step: Step) -> Array:
        last = max((i for i, one in enumerate(kinds_in_order(step.net), start=1) if one == "layer_norm"), default=0)
        return 2 * right if places_of(step.net)[name].number < last else right

    _, diagnosis = found_in(with_captures(change), OF_CAPTURES)
    assert diagnosis.layer.startswith("the backward pass of ")
    assert "layer_norm" in diagnosis.layer


def test_a_backward_pass_is_found_within_the_last_layer() -> None:
    """As where attention confuses the gradients of key and value: its output projection's own captures are right."""

    def change(kind: str, name: str, right: Array, step: Step) -> Array:
        last = max((i for i, one in enumerate(kinds_in_order(step.net), start=1) if one == "attention"), default=0)
        place = places_of(step.net)[name]
        inside = place.number == last and place.field.startswith("in_proj")
        return 2 * right if inside or place.number < last else right

    _, diagnosis = found_in(with_captures(change), OF_CAPTURES)
    assert diagnosis.layer.startswith("the backward pass of attention is wrong")


def test_a_known_mistake_is_named_where_the_right_answer_is_0() -> None:
    """A norm of one number has no gradient before it. The mistake gives one, with errors of its own size."""
    fault = FAULTS["norm-statistics-fixed"].implementation()

    def ask(step: Step, query: Query) -> Any:
        rounded = {name: dict(one) for name, one in fault.ask(step, query).items()}
        for one in rounded.values():
            one["squares"] = one["squares"] * (1 + 2**-50)
        return rounded

    generator = np.random.default_rng(0)
    net = Sequential((Linear(2, 1), LayerNorm(1), Linear(1, 1)), loss="mse")
    step = a_step(net, generator.standard_normal((3, 2)), generator.standard_normal((3, 1)))
    case = Case(step, asked(step))
    assert not ORACLE.ask(case.step, case.query)["0.weight"]["squares"].any()
    only = replace(BY_NAME["sequential-captures-squares"], cases=st.just(case), of_layers=None)
    outcomes = check(replace(ORACLE, ask=ask), [only], shrink_seconds=0)
    assert outcomes[0].status == "failed"
    diagnosis = diagnose(replace(ORACLE, ask=ask), outcomes, seconds=0.0)
    assert diagnosis is not None
    assert diagnosis.faults == ("norm-statistics-fixed",)


def test_without_captures_the_layer_follows_from_the_scores() -> None:
    """The gains of RMSNorm are left out of the dot products, and the candidate offers scores alone."""

    def ask(step: Step, query: Query) -> Any:
        from adamshap.reference import models, scoring, validation

        x = models.sample_gradients(step)
        g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
        estimator = query.estimator
        ((_, slope),) = scoring.terms_of(step, estimator.slope, x, g, estimator.nodes, estimator.kind)
        gamma = validation.validation_gradients(step, estimator.gradient, g, estimator.nodes, each=False)
        kept = [name for name, place in places_of(step.net).items() if place.layer != "rms_norm"]
        products = [scoring.dot_products({name: x[name]}, {name: gamma[name] * slope[name]}) for name in kept]
        return np.sum(products, axis=0)[:, 0] if kept else np.zeros(step.n)

    wrong = Implementation("no gains", frozenset({"scores"}), ask, supports=frozenset({"sequential"}), guard=None)
    _, diagnosis = found_in(wrong, [BY_NAME["sequential-scores-secant"]])
    assert diagnosis.layer == "the contribution of weight of rms_norm to each score is left out"


def test_right_captures_speak_against_a_mistake_in_a_layer() -> None:
    def ask(step: Step, query: Query) -> Any:
        right = ORACLE.ask(step, query)
        doubled = query.function == "scores" and "embedding" in kinds_in_order(step.net)
        return 2 * right if doubled else right

    _, diagnosis = found_in(replace(ORACLE, name="twice", ask=ask), [*OF_CAPTURES, BY_NAME["sequential-scores-secant"]])
    assert "embedding" in diagnosis.layer
    assert diagnosis.layer.endswith("but the captures of every layer tried are right")


# --- layers declared by name -----------------------------------------------------------------------------------------


def test_declared_layers() -> None:
    assert declared_layers(("sequential",)) == LAYERS.keys()
    assert declared_layers(("linear", "clip")) == {"linear"}
    assert declared_layers(("sequential", "linear")) == {"linear"}
    assert declared_layers(("clip",)) == frozenset()


DECLARED = [
    {"linear"},
    {"embedding"},
    {"conv2d"},
    {"attention", "residual"},
    {"linear", "activation"},
    {"embedding", "positions", "layer_norm", "attention", "residual", "linear", "activation", "tied_linear"},
    {"rms_norm", "mean_over_positions", "flatten", "avg_pool2d"},
]


@pytest.mark.parametrize("layers", DECLARED, ids=lambda layers: "-".join(sorted(layers))[:40])
def test_only_declared_layers_are_drawn(layers: set[str]) -> None:
    seen: set[str] = set()

    def ask(step: Step, query: Query) -> Any:
        seen.update(layer.kind for layer in each_layer(step.net))  # type: ignore[arg-type]
        return ORACLE.ask(step, query)

    chosen = [BY_NAME[f"sequential-{name}"] for name in ("update", "captures-dot", "null-sample")]
    outcomes = check(replace(ORACLE, ask=ask, supports=frozenset(layers)), chosen, shrink_seconds=0)
    update, dot, null = outcomes
    assert update.status == dot.status == "passed"
    assert null.status == ("passed" if "linear" in layers else "not tried")
    usable = layers - ({"avg_pool2d"} if "conv2d" not in layers else set())
    assert seen - {"linear", "conv2d"} == usable - {"linear", "conv2d"}
    assert seen <= layers | {"linear", "conv2d"}  # null samples have a layer of their own
    tried = layers_tried(Report("mine", "quick", "float64", 0, outcomes, None))
    assert tried.keys() == layers
    assert tried[sorted(usable)[0]] > 0
    assert update.undeclared_layers == tuple(kind for kind in LAYERS if kind not in layers)


def test_without_a_layer_that_can_be_first_nothing_is_tried() -> None:
    outcomes = check(replace(ORACLE, supports=frozenset({"activation"})), LAYER_PROPERTIES)
    assert {(one.status, one.undeclared) for one in outcomes} == {("not tried", True)}


def test_the_report_names_the_missing_layers() -> None:
    """A stack at an edge has the layer whose size it is."""
    (heads,) = (one for one in EDGE_PROPERTIES if one.name == "edge-stack-heads-7-update")
    chosen = [BY_NAME["sequential-perceptron"], heads, BY_NAME["sequential-update"]]

    def lines(*layers: str) -> list[str]:
        outcomes = check(replace(ORACLE, supports=frozenset(layers)), chosen[: 2 if "embedding" in layers else 3])
        return [line for line in omissions(Report("mine", "quick", "float64", 0, outcomes, None)) if "SUPPORTS" in line]

    assert lines("embedding", "positions", "linear")[:2] == [
        "Not tried, as SUPPORTS does not name activation: sequential-perceptron",
        "Not tried, as SUPPORTS does not name attention: edge-stack-heads",
    ]
    assert "Not tried, as SUPPORTS names no layer that a stack can begin with: sequential-update" in lines("flatten")


def test_a_class_declares_its_layers() -> None:
    class Mine:
        SUPPORTS = ("linear", "rms_norm")

        def captures(self, params: Any, batch: Batch, *, model: Any, directions: Mapping[str, Array]) -> Any:
            return captures(params, batch, model=model, directions=directions)

    candidate = implementation(Mine(), "mine")
    assert (candidate.offers, candidate.layers) == ({"captures"}, {"linear", "rms_norm"})
    assert {one.status for one in check(candidate, OF_CAPTURES)} == {"passed"}


# --- bad answers, JSON, commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda right: {**right, "other": right["0.weight"]}, "without exactly the names"),
        (
            lambda right: {**right, "0.weight": {"sum": right["0.weight"]["sum"]}},
            "captures of 0.weight without exactly",
        ),
        (lambda right: right | {"0.bias": right["0.bias"] | {"dot": np.zeros(3)}}, r"dot.0.bias of shape \(3,\)"),
    ],
)
def test_an_invalid_answer_is_a_finding(change: Callable[[Any], Any], says: str) -> None:
    step = a_stack()
    wrong = replace(ORACLE, ask=lambda step, query: change(ORACLE.ask(step, query)))
    with pytest.raises(Misbehaviour, match=says):
        answer(wrong, step, asked(step))


def test_a_change_of_the_directions_is_a_finding() -> None:
    class Rude:
        SUPPORTS = "sequential"

        def captures(self, params: Any, batch: Batch, *, model: Any, directions: Any) -> Any:
            found = captures(params, batch, model=model, directions=directions)
            directions["0.weight"] = directions["0.weight"] + 1
            return found

    step = a_stack()
    with pytest.raises(Misbehaviour, match=r"changed its input: options\['directions'\]"):
        answer(implementation(Rude(), "rude"), step, asked(step))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_case_of_captures_comes_back_from_json(dtype: str) -> None:
    step = a_stack()
    query = asked(step).in_dtype(dtype)
    cast = {name: p.astype(dtype) for name, p in step.params.items()}
    batch = Batch(*(part.astype(dtype) for part in (step.train.x, step.train.y)))
    step = Step(step.net, cast, step.adam, AdamState.zeros(cast), batch, batch)
    written = case_to_json(step, query)
    back, again = case_from_json(loads(dumps(written), "text"))
    assert dumps(case_to_json(back, again)) == dumps(written)
    for name, direction in query.options["directions"].items():
        assert again.options["directions"][name].dtype == dtype
        assert np.array_equal(again.options["directions"][name], direction)
    with pytest.raises(CaseError, match=r"options.directions: got the names 0.weight; needs exactly the names"):
        case_from_json(written | {"options": {"directions": {"0.weight": [[0.0]]}}})


def test_the_code_of_a_failing_case_runs() -> None:
    def change(kind: str, name: str, right: Array, step: Step) -> Array:
        return right + 1

    (outcome,) = check(with_captures(change), [BY_NAME["sequential-captures-sum"]], shrink_seconds=2)
    assert outcome.finding is not None
    code = snippet(outcome.finding.case, "adamshap.verify.layers.captures")
    printed: list[Any] = []
    exec(compile(code, "snippet", "exec"), {"print": printed.append})
    assert len(printed) == 2
    assert repr(printed[0]) == repr(printed[1])


PROGRAM = """
import json, sys
from adamshap.verify.cases import answer_to_json, case_from_json
from adamshap.verify.oracle import expected

with open(sys.argv[1], encoding="utf-8") as cases, open(sys.argv[2], "w", encoding="utf-8") as answers:
    given = json.load(cases)
    kinds = {layer["kind"] for case in given for layer in case["network"].get("layers", ())}
    with open("kinds", "a") as file:
        print(*kinds, file=file)
    json.dump([answer_to_json(expected(*case_from_json(case))) for case in given], answers)
"""


def test_a_command_declares_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = f"{shlex.quote(sys.executable)} program.py {{case}} {{result}}"
    chosen = [BY_NAME["sequential-captures-dot"], BY_NAME["sequential-influence"], BY_NAME["sequential-null-sample"]]
    layers = frozenset({"embedding", "rms_norm"})
    _, outcomes = check_command(command, chosen, shrink_seconds=0, supports=layers, captures=True)
    assert [one.status for one in outcomes] == ["passed", "passed", "not tried"]
    assert set((tmp_path / "kinds").read_text().split()) == layers
    report = to_json(Report(command, "quick", "float64", 0, outcomes, None))
    assert json.loads(json.dumps(report))["layers"].keys() == layers
    _, silent = check_command(command, chosen, shrink_seconds=0, supports=layers)
    assert [one.status for one in silent] == ["not offered", "passed", "not tried"]


# --- a perceptron as a stack -----------------------------------------------------------------------------------------


def test_a_perceptron_as_a_stack_has_the_same_parameters() -> None:
    network = Network((3, 4, 2, 2), "gelu", bias=False)
    assert as_stack(network).shapes == network.shapes


def test_a_mistake_in_stacks_alone_shows_against_the_perceptron() -> None:
    """It needs no oracle: the candidate disagrees with itself."""
    one = BY_NAME["sequential-perceptron"]

    def ask(step: Step, query: Query) -> Any:
        right = ORACLE.ask(step, query)
        return right * (1 + 1e-6) if step.net.kind == "sequential" else right

    case = random_cases(one, 15, 0)[-1]
    with pytest.raises(Disagreement):
        one.check(asker(replace(ORACLE, ask=ask)), case, np.float64)
