"""Edges of stacks of layers for candidates that declare a part of the layers."""

from dataclasses import replace
from typing import Any

import pytest

from adamshap.reference import Embedding, Linear, Sequential, Step
from adamshap.verify.checking import Outcome, check
from adamshap.verify.edges.properties import DRAWN_STACK_EDGES, EDGE_PROPERTIES
from adamshap.verify.edges.table import STACK_EDGES
from adamshap.verify.implementation import Query
from adamshap.verify.models.sequential import each_layer
from adamshap.verify.oracle import ORACLE
from adamshap.verify.property import Property

UPDATES = [one for one in EDGE_PROPERTIES if one.name.startswith("edge-stack-") and one.name.endswith("-update")]


def asked(layers: set[str], properties: list[Property]) -> tuple[list[Outcome], list[Step]]:
    """Return the outcomes of the oracle that declares some layers, and the steps that it was asked for."""
    steps: list[Step] = []

    def ask(step: Step, query: Query) -> Any:
        steps.append(step)
        return ORACLE.ask(step, query)

    candidate = replace(ORACLE, ask=ask, supports=frozenset(layers))
    return check(candidate, properties, profile="once", shrink_seconds=0), steps


DECLARED = [
    {"linear", "embedding"},
    {"linear"},
    {"embedding", "tied_linear", "rms_norm"},
    {"attention"},
    {"layer_norm", "residual"},
    {"conv2d"},
]


@pytest.mark.parametrize("layers", DECLARED, ids=lambda layers: "-".join(sorted(layers)))
def test_edges_are_drawn_from_declared_layers(layers: set[str]) -> None:
    some = UPDATES[::5]
    outcomes, steps = asked(layers, some)
    tried = [one.property.name for one in outcomes if one.status == "passed"]
    assert tried == [one.name for one in some if one.needs <= layers]
    assert len(tried) > len(some) / 3
    assert {layer.kind for step in steps for layer in each_layer(step.net)} <= layers  # type: ignore[arg-type]
    outcomes, steps = asked(layers, list(DRAWN_STACK_EDGES))
    assert {one.status for one in outcomes} == {"passed"}
    assert {layer.kind for step in steps for layer in each_layer(step.net)} == layers  # type: ignore[arg-type]


def test_linear_and_embedding_have_the_edges_of_their_sizes() -> None:
    names = [f"edge-stack-{edge}-update" for edge in ("vocab-257", "width-33", "outputs-17", "depth-97", "n_val-65")]
    outcomes, steps = asked({"linear", "embedding"}, [one for one in UPDATES if one.name in names])
    assert [one.status for one in outcomes] == ["passed"] * len(names)
    found = {one.property.name.split("-")[2]: step for one, step in zip(outcomes, steps, strict=True)}
    assert found["vocab"].net.layers[0] == Embedding(257, 2)
    assert found["width"].net.layers[:2] == (Embedding(3, 33), Linear(33, 33))
    assert found["outputs"].net == Sequential((Embedding(3, 2), Linear(2, 2), Linear(2, 17)))
    assert len(found["depth"].net.layers) == 99
    assert found["n_val"].n_val == 65


def test_an_edge_needs_the_layer_whose_size_it_is() -> None:
    needs = {(edge.group, *sorted(edge.layers)) for edge in STACK_EDGES if edge.group in ("stack-heads", "stack-n")}
    assert needs == {("stack-heads", "attention"), ("stack-n",)}
    outcomes, _ = asked({"embedding"}, [one for one in UPDATES if one.name.startswith("edge-stack-heads-")])
    assert {(one.status, one.undeclared) for one in outcomes} == {("not tried", True)}
