"""The properties for stacks of layers: those of perceptrons, on random stacks of all kinds of layers.

They are tried only for candidates that declare support for these models, by ``SUPPORTS = ("sequential",)``.
"""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from adamshap.reference.contract import GRADIENTS, MARGINALS, SLOPES, TWO_TERM
from adamshap.verify.implementation import Query
from adamshap.verify.models import SEQUENTIAL
from adamshap.verify.properties import PROPERTIES, Case, Property
from adamshap.verify.property_cases import cases, score_cases, utility_cases
from adamshap.verify.strategies import dimensions, steps, steps_with_null_samples

__all__ = ["LAYER_PROPERTIES"]

_BY_NAME = {one.name: one for one in PROPERTIES}

_STEPS = steps(model=SEQUENTIAL, at_edges=dimensions(SEQUENTIAL), max_n=12)


def _of_stacks(name: str, drawn: st.SearchStrategy[Case], new_name: str = "", **changes: Any) -> Property:
    """Return the property `name` for cases of stacks of layers."""
    one = _BY_NAME[name]
    sentence = f"{one.sentence[:-1]}, also for a stack of layers."
    new_name = f"{SEQUENTIAL}-{new_name or name}"
    return replace(one, name=new_name, sentence=sentence, cases=drawn, model=SEQUENTIAL, **changes)


def _asked(function: str, max_n: int = 12, **options: Any) -> st.SearchStrategy[Case]:
    return cases(Query(function, options), SEQUENTIAL, max_n=max_n)


def _scored(of: st.SearchStrategy[Any] = _STEPS, **options: Any) -> st.SearchStrategy[Case]:
    return score_cases(of, **options)


LAYER_PROPERTIES: tuple[Property, ...] = (
    _of_stacks("update", _asked("update")),
    _of_stacks("utility", utility_cases(_STEPS)),
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
    _of_stacks("null-sample", _scored(steps_with_null_samples(_STEPS), per_validation=st.booleans())),
)
"""All properties for stacks of layers."""
