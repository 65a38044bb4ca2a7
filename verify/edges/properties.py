"""Properties at the edges: one for each edge and call, and one for each call that draws its edges.

All of the former run by ``adamshap verify --edges``. The latter belong to the usual properties: each seed takes some of
the edges.
"""

from collections.abc import Callable
from dataclasses import replace

from hypothesis import strategies as st

from adamshap.verify.edges.checks import answers_forget_earlier_calls, refuses
from adamshap.verify.edges.draws import CALLS, cases_at, cases_at_any, takes
from adamshap.verify.edges.edge import Edge
from adamshap.verify.edges.table import BEYOND, EDGES, REFUSED, STACK_EDGES
from adamshap.verify.models import PERCEPTRON, SEQUENTIAL
from adamshap.verify.property import Case, Property
from adamshap.verify.property_checks import agrees, micro_batches_change_nothing

__all__ = ["DRAWN_EDGES", "DRAWN_STACK_EDGES", "EDGE_PROPERTIES"]

FEW = 7
"""Cost of an edge: two cases of the quick profile. Hypothesis draws the simplest first, and then a random one."""

REFUSING = ("update", "utility", "random_order", "influence")
"""The calls that have to refuse a step without an answer."""

EQUATION = "docs/verify.md, Edges"


CasesOf = Callable[[frozenset[str] | None], st.SearchStrategy[Case]]
"""Cases with stacks of some kinds of layers; None for all."""


def _property(name: str, where: str, call: str, cases_of: CasesOf, cost: int, model: str) -> Property:
    cases, (function, extra, _) = cases_of(None), CALLS[call]
    if extra == "micro_batch":
        sentence = f"The size of micro-batches changes nothing {where}."
        return Property(
            *(name, sentence, EQUATION, "metamorphic", function, cases, micro_batches_change_nothing, extra),
            cost=cost,
            model=model,
        )
    sentence = f"The answer to {call} is the oracle's {where}."
    one = Property(name, sentence, EQUATION, "agreement", function, cases, agrees, extra, cost, model)
    return one if model == PERCEPTRON else replace(one, of_layers=cases_of)


def _at(edge: Edge, call: str) -> Property:
    where = f"at the edge {edge.group} {edge.label}"
    one = _property(
        f"edge-{edge.name}-{call}", where, call, lambda layers: cases_at(edge, call, layers), FEW, edge.model
    )
    return replace(one, group=f"edge-{edge.group}", needs=edge.layers)


def _drawn(edges: tuple[Edge, ...], call: str, model: str) -> Property:
    kind = "" if model == PERCEPTRON else f"{model}-"
    where = "at some of the edges" + ("" if model == PERCEPTRON else " of stacks of layers")
    return _property(f"{kind}edges-{call}", where, call, lambda layers: cases_at_any(edges, call, layers), 1, model)


def _refused(edge: Edge, call: str) -> Property:
    sentence = f"A step without an answer is refused: {edge.label}."
    cases = cases_at(edge, call)
    return Property(
        *(f"edge-{edge.name}-{call}", sentence, EQUATION, "metamorphic", CALLS[call][0], cases, refuses),
        cost=FEW,
        group=f"edge-{edge.group}",
    )


def _remembering(call: str) -> Property:
    one = _drawn(EDGES, call, PERCEPTRON)
    sentence = "No answer depends on earlier calls, also on those with arrays of the same shapes."
    return replace(one, name=f"memory-{call}", sentence=sentence, check=answers_forget_earlier_calls, cost=2)


_USUAL = tuple(call for call in CALLS if call != "previous")

EDGE_PROPERTIES: tuple[Property, ...] = (
    *(_at(edge, call) for edge in (*EDGES, *STACK_EDGES) for call in _USUAL if takes(edge, call)),
    *(_refused(edge, call) for edge in (*REFUSED, *BEYOND) for call in edge.calls or REFUSING),
)
"""A property for each edge and call."""

DRAWN_EDGES: tuple[Property, ...] = (
    *(_drawn(EDGES, call, PERCEPTRON) for call in _USUAL),
    *(_remembering(call) for call in ("update", "random_order")),
    *(
        replace(_refused(edge, call), name=f"refused-{edge.label}-{call}", group="")
        for edge in REFUSED
        for call in edge.calls or ("update", "random_order")
    ),
)
"""The properties that draw their edges, those of earlier calls, and those of steps without an answer."""

DRAWN_STACK_EDGES: tuple[Property, ...] = tuple(
    _drawn(STACK_EDGES, call, SEQUENTIAL) for call in _USUAL if takes(STACK_EDGES[0], call)
)
"""The same for stacks of layers."""
