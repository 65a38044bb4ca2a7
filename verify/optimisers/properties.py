"""The properties for optimisers as people use them: groups of parameters, schedules, clipping and L2 decay.

Each needs one or more features of `optimisers.FEATURES`, and is tried only for candidates that declare all of them, by
``SUPPORTS = ("groups", "clip")``. ``together-…`` needs all four.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import strategies as st

from adamshap.reference.contract import MARGINAL_LOSSES, MARGINALS, SLOPES, TWO_TERM, Step
from adamshap.verify.implementation import Query
from adamshap.verify.models import SEQUENTIAL
from adamshap.verify.optimisers import FEATURES, checks
from adamshap.verify.optimisers.draws import steps_with
from adamshap.verify.properties import PROPERTIES, Case, Property
from adamshap.verify.property import Check
from adamshap.verify.property_cases import score_cases, utility_cases
from adamshap.verify.strategies import seeds, steps, steps_with_null_samples

__all__ = ["OPTIMISER_PROPERTIES"]

_BY_NAME = {one.name: one for one in PROPERTIES}

_PLAIN = steps(at_edges=("depth", "n"), max_n=12, max_n_val=4)
_SMALL = steps(max_n=5, max_n_val=4)


@cache
def _stacks(layers: frozenset[str] | None) -> st.SearchStrategy[Step]:
    return steps(model=SEQUENTIAL, layers=layers, max_n=6, max_n_val=3)


_WORDS = {
    "groups": "groups of parameters",
    "schedule": "a schedule",
    "clip": "clipping by the global norm",
    "l2": "L2 decay",
    "together": "groups, a schedule, clipping and L2 decay",
}

_EQUATIONS = {
    "groups": "η, β1, β2, ε, λ of the parameter",
    "schedule": "η_t = η f(t)",
    "clip": "x_i = c w ∇ℓ_i, c = min(1, C/(‖g‖ + ε_c))",
    "l2": "A(d + g), d = λ₂ θ",
    "together": "A(d + c g), each parameter's own at t",
}


def _needs(feature: str) -> tuple[str, ...]:
    return FEATURES if feature == "together" else (feature,)


def _like(name: str, feature: str, cases: st.SearchStrategy[Case], new_name: str = "", **changes: Any) -> Property:
    """Return the property `name` for optimisers with `feature`, or with all of them "together"."""
    one = _BY_NAME[name]
    return replace(
        one,
        name=f"{feature}-{new_name or name}",
        sentence=f"{changes.pop('sentence', one.sentence)[:-1]}, with {_WORDS[feature]}.",
        equation=f"{changes.pop('equation', one.equation)}; {_EQUATIONS[feature]}",
        cases=cases,
        features=frozenset(_needs(feature)),
        **changes,
    )


def _of(feature: str, of: st.SearchStrategy[Step] = _PLAIN) -> st.SearchStrategy[Step]:
    return steps_with(of, _needs(feature))


def _asked(feature: str, query: Query, of: st.SearchStrategy[Step] = _PLAIN) -> st.SearchStrategy[Case]:
    return st.builds(Case, _of(feature, of), st.just(query), seeds)


def _marginals(feature: str) -> Property:
    query = st.builds(
        lambda kind, loss: Query("marginals", {"kind": kind, "loss": loss}),
        st.sampled_from(MARGINALS),
        st.sampled_from(MARGINAL_LOSSES),
    )
    return _like(
        "marginals-first-exact",
        feature,
        st.builds(Case, _of(feature, _SMALL), query, seeds),
        "marginals",
        sentence="Marginal utilities are the oracle's.",
        equation="U(S) = L(θ) − L(θ − A(g_S) − η λ θ)",
    )


def _scores(feature: str, slope: str = "", of: st.SearchStrategy[Step] = _PLAIN, **options: Any) -> Property:
    """Return the property that scores are the oracle's: for one slope, or for any."""
    drawn = {"slope": slope} if slope else {}
    return _like(
        f"scores-{slope or 'tangent'}-start",
        feature,
        score_cases(_of(feature, of), **drawn, **options),
        f"scores-{slope}" if slope else "scores",
        sentence=f"Scores with {f'slope {slope!r}' if slope else 'any slope'} are the oracle's.",
        **({} if slope else {"equation": "score_i = ⟨Γ ⊙ S, x_i⟩"}),
    )


def _agreement(feature: str) -> tuple[Property, ...]:
    return (
        _like("update", feature, _asked(feature, Query("update"))),
        _scores(feature),
        _like("influence", feature, _asked(feature, Query("influence"))),
        _marginals(feature),
    )


def _metamorphic(
    name: str, sentence: str, equation: str, feature: str, cases: st.SearchStrategy[Case], check: Check
) -> Property:
    return Property(
        f"{feature}-{name}",
        sentence,
        equation,
        "metamorphic",
        "scores",
        cases,
        check,
        features=frozenset(_needs(feature)),
    )


def _names_no_others(step: Any) -> bool:
    return not {"tied_linear", "residual"} & {layer.kind for layer in step.net.layers}


def _renamed(layers: frozenset[str] | None) -> st.SearchStrategy[Case]:
    """Return cases of stacks whose layers name no others."""
    return score_cases(steps_with(_stacks(layers).filter(_names_no_others), ("groups",)))


def _of_layers(one: Property, drawn: Callable[[frozenset[str] | None], st.SearchStrategy[Case]]) -> Property:
    """Return the property with cases of stacks of layers."""
    once = cache(drawn)
    return replace(one, cases=once(None), of_layers=once, model=SEQUENTIAL)


_METAMORPHIC: tuple[Property, ...] = (
    _metamorphic(
        "of-one",
        "One group of all parameters is no group.",
        "Adam for {all} = Adam",
        "groups",
        score_cases(_PLAIN),
        checks.one_group_is_no_group,
    ),
    _metamorphic(
        "split",
        "Splitting and reordering groups changes nothing.",
        "Adam for {a, b} = Adam for {b}, Adam for {a}",
        "groups",
        score_cases(_of("groups")),
        checks.groups_may_be_split_and_reordered,
    ),
    _metamorphic(
        "factor",
        "A schedule is the learning rate of the step.",
        "schedule at t = Adam with η_t",
        "schedule",
        score_cases(_of("schedule")),
        checks.only_the_schedules_factor_counts,
    ),
    _metamorphic(
        "beyond-the-norm",
        "Clipping beyond the norm changes nothing.",
        "‖g‖ + ε_c ≤ C ⇒ c = 1",
        "clip",
        score_cases(_PLAIN),
        checks.clipping_beyond_the_norm_changes_nothing,
    ),
    _metamorphic(
        "scales",
        "Clipping multiplies every gradient by c.",
        "A_{m, v, ε}(c g) = A_{m/c, v/c², ε/c}(g)",
        "clip",
        score_cases(_of("clip")),
        checks.clipping_scales_the_gradient,
    ),
    _metamorphic(
        "sgd",
        "L2 decay leaves the scores of SGD.",
        "S = η: ⟨∇L, η x_i⟩ without d",
        "l2",
        score_cases(_of("l2")),
        checks.l2_leaves_sgd,
    ),
    _like("null-sample", "l2", score_cases(steps_with_null_samples(_of("l2")), per_validation=st.booleans())),
    _metamorphic(
        "rescaling",
        "A common factor of loss, m, √v, ε, λ₂ and the largest norm changes nothing.",
        "A_{n m, n² v, n ε}(n (d + c g)) = A_{m, v, ε}(d + c g)",
        "together",
        score_cases(_of("together"), slope=st.sampled_from([slope for slope in SLOPES if slope != "sgd"])),
        checks.rescaling_the_optimiser_changes_nothing,
    ),
    _like("equivariance", "together", score_cases(_of("together"))),
    _like("efficiency", "together", score_cases(_of("together"), efficient=True)),
    _of_layers(
        _metamorphic(
            "renamed",
            "The names of layers mean nothing: groups follow their parameters.",
            "score for (a, b) = score for (z, y)",
            "groups",
            _renamed(None),
            checks.names_mean_nothing,
        ),
        _renamed,
    ),
)


_BY_FEATURE = {one.name: one for one in _agreement("together")}


OPTIMISER_PROPERTIES: tuple[Property, ...] = (
    *_agreement("groups"),
    *_agreement("schedule"),
    *_agreement("clip"),
    _scores("clip", "random_order"),
    *_agreement("l2"),
    *_BY_FEATURE.values(),
    *(_scores("together", slope) for slope in SLOPES),
    _like("utility", "together", utility_cases(_of("together"))),
    _like("scores-per-validation", "together", score_cases(_of("together"), per_validation=True)),
    _like(
        f"scores-{TWO_TERM}-first",
        "together",
        score_cases(_of("together", _SMALL), slope=TWO_TERM, kind=st.sampled_from(MARGINALS)),
        f"scores-{TWO_TERM}",
    ),
    *_METAMORPHIC,
    *(
        _of_layers(replace(_BY_FEATURE[name], name=f"{SEQUENTIAL}-{name}"), drawn)
        for name, drawn in (
            ("together-update", lambda layers: _asked("together", Query("update"), _stacks(layers))),
            ("together-scores", lambda layers: score_cases(_of("together", _stacks(layers)))),
            ("together-influence", lambda layers: _asked("together", Query("influence"), _stacks(layers))),
        )
    ),
)
"""All properties for optimisers with features."""
