"""The properties for stacks of layers: those of perceptrons, on random stacks, and those of single layers.

They are tried only for candidates that declare the layers that they take, as in ``SUPPORTS = ("linear", "embedding")``,
and only on stacks of these layers.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import strategies as st

from adamshap.reference.contract import GRADIENTS, MARGINALS, SLOPES, TWO_TERM, Step
from adamshap.verify.edges.properties import DRAWN_STACK_EDGES
from adamshap.verify.implementation import CAPTURED, CAPTURES, Query
from adamshap.verify.layers.captures import random_directions
from adamshap.verify.layers.checks import a_perceptron_is_a_stack, captures_agree
from adamshap.verify.models import SEQUENTIAL
from adamshap.verify.properties import PROPERTIES, Case, Property
from adamshap.verify.property_cases import STEPS, cases, score_cases, utility_cases
from adamshap.verify.strategies import dimensions, seeds, steps, steps_with_null_samples

__all__ = ["LAYER_PROPERTIES"]

Layers = frozenset[str] | None
"""The kinds of layers in a stack; None for all."""

Cases = st.SearchStrategy[Case]
DrawnOf = Callable[[Layers], Cases]

_BY_NAME = {one.name: one for one in PROPERTIES}


@cache
def _steps(layers: Layers) -> st.SearchStrategy[Step]:
    return steps(model=SEQUENTIAL, layers=layers, at_edges=dimensions(SEQUENTIAL, layers), max_n=12)


def _asked(function: str, max_n: int = 12, **options: Any) -> DrawnOf:
    return lambda layers: cases(Query(function, options), SEQUENTIAL, layers, max_n=max_n)


def _scored(**options: Any) -> DrawnOf:
    return lambda layers: score_cases(_steps(layers), **options)


def _nulls_scored(layers: Layers) -> Cases:
    return score_cases(steps_with_null_samples(_steps(layers)), per_validation=st.booleans())


def _captured(layers: Layers) -> Cases:
    def case(step: Step, seed: int) -> Case:
        return Case(step, Query(CAPTURES, {"directions": random_directions(step.params, seed)}), seed)

    return st.builds(case, _steps(layers), seeds)


def _drawn(one: Property, drawn: DrawnOf) -> Property:
    """Return the property with cases of stacks of layers."""
    once = cache(drawn)
    return replace(one, cases=once(None), of_layers=once, model=SEQUENTIAL)


def _of_stacks(name: str, drawn: DrawnOf, new_name: str = "", **changes: Any) -> Property:
    """Return the property `name` for cases of stacks of layers."""
    one = _BY_NAME[name]
    sentence = f"{one.sentence[:-1]}, also for a stack of layers."
    new_name = f"{SEQUENTIAL}-{new_name or name}"
    return _drawn(replace(one, name=new_name, sentence=sentence, **changes), drawn)


_SINGLE = {
    "sum": ("The gradient of each parameter by itself is the oracle's.", "Σ_i x_i"),
    "dot": ("Each sample's dot product, with each parameter by itself, is the oracle's.", "⟨P, x_i⟩"),
    "squares": ("The squares of each parameter by itself are the oracle's.", "Σ_i x_i²"),
}


def _of_captures(what: str) -> Property:
    """Return the property of the captures' "sum", "dot" or "squares"."""
    name, (sentence, equation) = f"{SEQUENTIAL}-captures-{what}", _SINGLE[what]
    one = Property(name, sentence, equation, "agreement", CAPTURES, st.nothing(), captures_agree(what))
    return _drawn(one, _captured)


def _perceptrons_scored(layers: Layers) -> Cases:
    return score_cases(STEPS)


LAYER_PROPERTIES: tuple[Property, ...] = (
    *map(_of_captures, CAPTURED),
    _of_stacks("update", _asked("update")),
    _of_stacks("utility", lambda layers: utility_cases(_steps(layers))),
    *(
        _of_stacks(f"marginals-{kind}-{loss}", _asked("marginals", 4 if kind == "shapley" else 8, kind=kind, loss=loss))
        for kind, loss in (("first", "exact"), ("last", "first_order"), ("shapley", "exact"))
    ),
    *(
        _of_stacks(
            f"scores-{slope}-start",
            _scored(slope=slope, gradient=st.sampled_from(GRADIENTS)),
            f"scores-{slope}",
            equation=f"{_BY_NAME[f'scores-{slope}-start'].equation}, Γ at any place",
        )
        for slope in SLOPES
    ),
    _of_stacks("scores-per-validation", _scored(per_validation=True)),
    _of_stacks("scores-forward-mode", _scored(per_validation=st.booleans())),
    _of_stacks(
        f"scores-{TWO_TERM}-first",
        _scored(slope=TWO_TERM, kind=st.sampled_from(MARGINALS), per_validation=st.booleans()),
        f"scores-{TWO_TERM}",
    ),
    _of_stacks("influence", _asked("influence")),
    _of_stacks("equivariance", _scored()),
    _of_stacks("additivity", _scored()),
    _of_stacks("null-sample", _nulls_scored, needs=frozenset({"linear"})),
    _drawn(
        Property(
            f"{SEQUENTIAL}-perceptron",
            "A stack of linear layers and activations scores as the perceptron of the same parameters.",
            "score(Sequential(linear, activation, …)) = score(Network)",
            "metamorphic",
            "scores",
            st.nothing(),
            a_perceptron_is_a_stack,
            needs=frozenset({"linear", "activation"}),
        ),
        _perceptrons_scored,
    ),
    *DRAWN_STACK_EDGES,
)
"""All properties for stacks of layers."""
