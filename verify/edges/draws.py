"""Hypothesis strategies for the steps at an edge and the calls with them. All that the edge leaves open is small."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from adamshap.reference.contract import (
    ACTIVATIONS,
    GRADIENTS,
    LOSSES,
    MARGINAL_LOSSES,
    MARGINALS,
    REDUCTIONS,
    SLOPES,
    TWO_TERM,
    Adam,
    AdamState,
    Model,
    Network,
    Step,
)
from adamshap.verify.edges.arrangements import ARRANGEMENTS
from adamshap.verify.edges.edge import Edge
from adamshap.verify.edges.stacks import stack_at
from adamshap.verify.implementation import Query
from adamshap.verify.models import PERCEPTRON, SEQUENTIAL, kind_of
from adamshap.verify.models.kind import EDGES as SIZES
from adamshap.verify.property import Case
from adamshap.verify.strategies import FARTHEST, seeds

__all__ = ["CALLS", "cases_at", "cases_at_any", "steps_at", "takes"]

MOST_MARGINALS = 129
"""Most samples of a call of `marginals`, which costs a forward pass for each of them."""


@st.composite
def steps_at(draw: Any, edge: Edge, layers: frozenset[str] | None = None) -> Step:
    """Return steps at `edge`: with ordinary moments and a common ε, unless the edge fixes others.

    Stacks consist of some kinds of `layers`, all by default.
    """
    net = draw(_models(edge, layers), label="network")
    params = net.init(draw(seeds, label="parameter seed"))
    generator = np.random.default_rng(draw(seeds, label="seed"))
    completed = edge.completed
    if completed is None:
        completed = draw(st.sampled_from((9, 300, 0, 2)), label="completed steps")
    drawn = {
        "lr": 0.01,
        "betas": draw(st.sampled_from(((0.9, 0.999), (0.5, 0.9))), label="betas"),
        "weight_decay": draw(st.sampled_from((0.0, 0.1)), label="weight decay"),
    }
    state = AdamState.zeros(params)
    if completed:
        m = {name: 0.01 * generator.standard_normal(p.shape) for name, p in params.items()}
        state = AdamState(completed, m, {name: 1e-4 * generator.chisquare(3, p.shape) for name, p in params.items()})
    sizes = [edge.sizes.get(name) or draw(st.integers(2, 4), label=name) for name in ("n", "n_val")]
    if "n" not in edge.sizes and draw(st.booleans(), label="six samples"):
        sizes[0] = 6
    train, valid = (kind_of(net).draws.ordinary_batch(net, size, generator) for size in sizes)
    reduction = draw(st.sampled_from(REDUCTIONS), label="reduction")
    step = Step(net, params, Adam(**{**drawn, **edge.adam}), state, train, valid, reduction)
    for name in edge.arrangements:
        step = ARRANGEMENTS[name](step, generator)
    if edge.model == PERCEPTRON and edge.group != "refused":  # the limit for stacks is far above what they reach here
        assume(kind_of(step.net).draws.reach(step) <= FARTHEST)
    return step


@st.composite
def _models(draw: Any, edge: Edge, layers: frozenset[str] | None) -> Model:
    """Return perceptrons whose open widths are 2 to 4, and whose open depth is 2 or less; or a stack of layers."""
    if edge.model == SEQUENTIAL:
        return stack_at(draw, edge, layers)
    depth = edge.sizes.get("depth") or (2 if "hidden" in edge.sizes else draw(st.integers(1, 2), label="depth"))
    width = st.integers(2, 4)
    ends = [edge.sizes.get(name) or draw(width, label=name) for name in ("input", "outputs")]
    hidden = [edge.sizes.get("hidden") or draw(width, label="hidden") for _ in range(depth - 1)]
    activations = tuple(name for name in ACTIVATIONS if name != "identity")
    fields = {
        "activation": edge.net.get("activation") or draw(st.sampled_from(activations), label="activation"),
        "loss": edge.net.get("loss") or draw(st.sampled_from(LOSSES), label="loss"),
        "bias": edge.net["bias"] if "bias" in edge.net else draw(st.sampled_from((True, False)), label="bias"),
    }
    return Network((ends[0], *hidden, ends[1]), **fields)


# --- the calls --------------------------------------------------------------------------------------------------------

Make = Callable[[Any, Step, Edge], Query]


def _utility(draw: Any, step: Step, edge: Edge) -> Query:
    """Return a utility of as many members as the edge fixes, else of some, one, all or none."""
    size = edge.sizes.get("coalition")
    if size is None:
        few = (max(step.n // 2, 1), 1, step.n, step.n - 1, 0)
        size = draw(st.sampled_from(few), label="size of the coalition")
    order = np.random.default_rng(draw(seeds, label="coalition seed")).permutation(step.n)
    return Query("utility", {"coalition": order < size})


def _marginals(draw: Any, step: Step, edge: Edge) -> Query:
    kinds = MARGINALS if step.n <= 5 else tuple(kind for kind in MARGINALS if kind != "shapley")
    options = {"kind": draw(st.sampled_from(kinds), label="kind")}
    return Query("marginals", options | {"loss": draw(st.sampled_from(MARGINAL_LOSSES), label="loss")})


def _scores(**options: Sequence[Any]) -> Make:
    """Return a call of `scores`, each option one of those given."""

    def make(draw: Any, step: Step, edge: Edge) -> Query:
        return Query("scores", {name: draw(st.sampled_from(some), label=name) for name, some in options.items()})

    return make


_WHERE = ("midpoint", *(gradient for gradient in GRADIENTS if gradient != "midpoint"))
_FLAGS = (False, True)

CALLS: dict[str, tuple[str, str, Make]] = {
    "update": ("update", "", lambda draw, step, edge: Query("update")),
    "utility": ("utility", "", _utility),
    "marginals": ("marginals", "", _marginals),
    "scores": ("scores", "", _scores(slope=SLOPES, gradient=_WHERE, per_validation=_FLAGS)),
    "random_order": ("scores", "", _scores(slope=("random_order",), gradient=_WHERE, efficient=_FLAGS)),
    "per_validation": ("scores", "", _scores(slope=("secant",), gradient=("path", "start"), per_validation=(True,))),
    "previous": ("scores", "", _scores(slope=("linearized",), denominator=("previous",))),
    "influence": ("influence", "", lambda draw, step, edge: Query("influence")),
    "two_term": ("scores", "kind", _scores(slope=(TWO_TERM,), kind=MARGINALS, gradient=_WHERE, per_validation=_FLAGS)),
    "micro_batch": ("scores", "micro_batch", _scores(slope=SLOPES, gradient=_WHERE, micro_batch=(1, *SIZES[1:]))),
}
"""The calls of each edge by name: the function, the extra of `implementation.EXTRAS` that it needs, and its options."""


def takes(edge: Edge, call: str) -> bool:
    """Return whether a call concerns an edge."""
    if call == "previous":  # at t = 1 it has no answer
        return "previous" in edge.calls
    if call == "marginals" and edge.sizes.get("n", 1) > MOST_MARGINALS:
        return False
    if edge.model == SEQUENTIAL and call in ("two_term", "micro_batch"):
        return False
    if call == "micro_batch" and edge.group not in ("n", "equal", "zero"):
        return False
    return not edge.calls or call in edge.calls


@st.composite
def cases_at(draw: Any, edge: Edge, call: str, layers: frozenset[str] | None = None) -> Case:
    """Return cases at `edge` with the call named `call`, stacks of some kinds of `layers`."""
    step = draw(steps_at(edge, layers), label=edge.name)
    query = CALLS[call][2](draw, step, edge)
    return Case(step, Query(query.function, query.options, edge.layout), draw(seeds, label="check seed"))


def cases_at_any(edges: tuple[Edge, ...], call: str, layers: frozenset[str] | None = None) -> st.SearchStrategy[Case]:
    """Return cases of one call at some of `edges`: first the group is drawn, then the edge in it.

    Of stacks those edges for which some kinds of `layers` are enough.
    """
    groups: dict[str, list[Edge]] = {}
    for edge in edges:
        if takes(edge, call) and (layers is None or edge.layers <= layers):
            groups.setdefault(edge.group, []).append(edge)
    some = st.sampled_from(list(groups.values())).flatmap(st.sampled_from)
    return some.flatmap(lambda edge: cases_at(edge, call, layers))
