"""Properties at the edges: one for each edge and call, and one for each call that draws its edges.

All of the former run by ``adamshap verify --edges``. The latter belong to the usual properties: each seed takes some of
the edges.
"""

from adamshap.verify.edges.draws import CALLS, cases_at, cases_at_any, takes
from adamshap.verify.edges.edge import Edge
from adamshap.verify.edges.table import EDGES
from adamshap.verify.property import Property
from adamshap.verify.property_checks import agrees, micro_batches_change_nothing

__all__ = ["DRAWN_EDGES", "EDGE_PROPERTIES"]

FEW = 7
"""Cost of an edge: two cases of the quick profile. Hypothesis draws the simplest first, and then a random one."""


def _property(name: str, where: str, call: str, cases: object, cost: int) -> Property:
    function, extra, _ = CALLS[call]
    kind, check = ("metamorphic", micro_batches_change_nothing) if extra == "micro_batch" else ("agreement", agrees)
    what = "changes nothing by the size of micro-batches" if extra == "micro_batch" else "is the oracle's"
    sentence = f"The answer to {call} {what} {where}."
    return Property(name, sentence, "docs/verify.md, Edges", kind, function, cases, check, extra, cost)  # type: ignore[arg-type]


def _at(edge: Edge, call: str) -> Property:
    return _property(f"edge-{edge.name}-{call}", f"at the edge {edge.group} {edge.label}", call, cases_at(edge, call), FEW)


EDGE_PROPERTIES: tuple[Property, ...] = tuple(
    _at(edge, call) for edge in EDGES for call in CALLS if takes(edge, call)
)
"""A property for each edge and call."""

DRAWN_EDGES: tuple[Property, ...] = tuple(
    _property(f"edges-{call}", "at some of the edges", call, cases_at_any(EDGES, call), 1) for call in CALLS
)
"""A property for each call, which draws its edges."""
