"""The layer that a candidate's wrong answers point to.

Each kind of layers is tried as the culprit in four ways, the most specific first; the first that fits every wrong
answer is reported. A kind that also occurs in many right answers is the less likely one. So 3 comes before 1 if fewer
right answers speak against it.

1. `captures`: only parameters of this kind are wrong.
2. Scores: the error is a multiple of the part that this kind's parameters contribute, such as −1 times it where that
   is left out. This needs no `captures`.
3. `captures`: the parameters of all layers before some layer are wrong, and those after it are right: a layer of this
   kind stands there, whose backward pass is wrong.
4. Every wrong answer is of a stack with this kind.

If none fits, the wrong captures of several kinds are listed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from adamshap.reference import adam, models, scoring, validation
from adamshap.reference.contract import TWO_TERM, Array, Attention, Params, Sequential, Step
from adamshap.verify.implementation import CAPTURES, Answer, Query
from adamshap.verify.models.places import Place, kinds_in_order, places_of

__all__ = ["Answered", "locate"]

ATTENTION = Attention(1).kind
"""The kind of layers whose backward pass leads to parameters of its own."""

SAME = 1e-3
"""Relative difference of multiples that count as the same in all cases."""


@dataclass(frozen=True)
class Answered:
    """A step and a call, the candidate's answer, the right one, the bound, and whether the answer is wrong."""

    step: Step
    query: Query
    got: Answer
    right: Answer
    bound: Answer
    wrong: bool


def locate(answered: Iterable[Answered]) -> str:
    """Return which layer the wrong answers for stacks point to, as a phrase; "" if to none.

    Parameters
    ----------
    answered : iterable of Answered
        The cases of all properties that failed, right answers among them.
    """
    stacks = [one for one in answered if isinstance(one.step.net, Sequential)]
    of_captures = [one for one in stacks if one.query.function == CAPTURES]
    of_scores = [one for one in stacks if one.query.function in ("scores", "influence")]
    own, below = _single_captures(of_captures), _backward_pass(of_captures)
    # An error from above also shows in a single layer's captures, where no other layer below has parameters.
    surest = own if own and (not below or own.against <= below.against) else None
    found = [
        surest.phrase if surest else "",
        _single_contribution(of_scores),
        below.phrase if below else "",
        _in_every_wrong_stack(stacks),
        _several_captures(of_captures),
    ]
    return next(filter(None, found), "")


@dataclass(frozen=True)
class _Suspicion:
    """What points to a layer, and the number of right answers that speak against it."""

    phrase: str
    against: int


def _least(suspects: Sequence[frozenset[str]], counts: Counter[str]) -> tuple[list[str], int]:
    """Return those kinds that are suspects in every wrong case against which the fewest right cases speak."""
    common = frozenset.intersection(*suspects) if suspects else frozenset()
    least = min((counts[kind] for kind in common), default=0)
    return sorted(kind for kind in common if counts[kind] == least), least


def _common(suspects: Sequence[frozenset[str]], right: Iterable[Answered]) -> dict[str, int]:
    """Return the kinds that are suspects in every wrong case, each with the number of right cases, the fewest first."""
    common = frozenset.intersection(*suspects) if suspects else frozenset()
    counts = _stacks_with(right)
    return {kind: counts[kind] for kind in sorted(common, key=lambda kind: (counts[kind], kind))}


def _stacks_with(answered: Iterable[Answered]) -> Counter[str]:
    return Counter(kind for one in answered for kind in frozenset(kinds_in_order(one.step.net)))


def _split(answered: Sequence[Answered]) -> tuple[list[Answered], list[Answered]]:
    return [one for one in answered if one.wrong], [one for one in answered if not one.wrong]


# --- captures --------------------------------------------------------------------------------------------------------


def _wrong_places(one: Answered) -> dict[Place, list[str]]:
    """Return the places of the parameters with wrong captures, and which of their numbers are wrong."""
    found: dict[Place, list[str]] = {}
    places = places_of(one.step.net)
    for name, array in one.got.items():
        what, _, parameter = name.partition(".")
        if not (np.abs(array - one.right[name]) <= one.bound[name]).all():
            found.setdefault(places[parameter], []).append(what)
    return found


def _kinds(one: Answered, place: Place) -> frozenset[str]:
    """Return the kinds of the layers that use a parameter."""
    net = one.step.net
    tied = isinstance(net, Sequential) and place.parameter in net.ties.values()
    return frozenset({place.layer} | ({"tied_linear"} if tied else set()))


def _single_captures(answered: Sequence[Answered]) -> _Suspicion | None:
    wrong, right = _split(answered)
    places = [(one, _wrong_places(one)) for one in wrong]
    suspects = [frozenset.intersection(*(_kinds(one, place) for place in found)) for one, found in places if found]
    kinds, against = _least(suspects, _stacks_with(right))
    if not kinds:
        return None
    whats = Counter((place.field, what) for _, found in places for place, names in found.items() for what in names)
    fields = sorted({field for field, _ in whats})
    parts = "; ".join(f"{field}: {', '.join(what for name, what in whats if name == field)}" for field in fields)
    where = next(iter(places[0][1]))
    return _Suspicion(
        f"the captures of {_either(kinds)} are wrong ({parts}), those of all other layers right; for instance {where}",
        against,
    )


def _several_captures(answered: Sequence[Answered]) -> str:
    wrong, _ = _split(answered)
    found: dict[tuple[str, str], dict[str, None]] = {}
    for one in wrong:
        for place, whats in _wrong_places(one).items():
            for kind in _kinds(one, place):
                found.setdefault((kind, place.field), {}).update(dict.fromkeys(whats))
    parts = (f"{field} of {kind} ({', '.join(whats)})" for (kind, field), whats in sorted(found.items()))
    return f"several: wrong are {'; '.join(parts)}" if found else ""


def _backward_pass(answered: Sequence[Answered]) -> _Suspicion | None:
    wrong, right = _split(answered)
    passed = Counter(kind for one in right for kind in _passed_through(one))
    kinds, against = _least([_between(one) for one in wrong], passed)
    if not kinds:
        return None
    phrase = f"the backward pass of {_either(kinds)} is wrong: captures before it are wrong, those after it right"
    return _Suspicion(phrase, against)


def _passed_through(one: Answered) -> frozenset[str]:
    """Return the kinds of the layers through which a gradient passes to a parameter below, or to their own."""
    kinds = kinds_in_order(one.step.net)
    first = min((place.number for place in places_of(one.step.net).values()), default=len(kinds))
    return frozenset(kinds[first:]) | ({ATTENTION} & frozenset(kinds))


def _between(one: Answered) -> frozenset[str]:
    """Return the kinds of layers after the last with wrong captures, up to the first right one after it.

    None if all captures are wrong: then a forward pass may be. Attention is a suspect itself if it is the last wrong
    layer, and the captures of its output projection are right.
    """
    places, wrong = places_of(one.step.net), _wrong_places(one)
    last = max((place.number for place in wrong), default=0)
    kinds = kinds_in_order(one.step.net)
    after = [place.number for place in places.values() if place.number > last]
    partly_right = any(place.number == last and place not in wrong for place in places.values())
    own = {ATTENTION} & set(kinds[last - 1 : last]) if partly_right else set()
    return frozenset([*own, *(kinds[last : min(after)] if after else ())])


# --- scores ----------------------------------------------------------------------------------------------------------


def _single_contribution(answered: Sequence[Answered]) -> str:
    """Return the parameter whose contribution the errors of all wrong scores are the same multiple of."""
    wrong, _ = _split(answered)
    if len(wrong) < 2 or any(one.query.function != "scores" and one.query.function != "influence" for one in wrong):
        return ""
    multiples: list[dict[tuple[str, str], float]] = []
    for one in wrong:
        multiples.append(_multiples(one))
        if not multiples[-1]:
            return ""
    first, *others = multiples
    for key, factor in first.items():
        if all(key in other and abs(other[key] - factor) <= SAME * abs(factor) for other in others):
            return _described(*key, factor)
    return ""


def _described(layer: str, field: str, factor: float) -> str:
    how = {-1.0: "is left out", 1.0: "is counted twice"}.get(round(factor, 3), f"is off by {factor:.4g} of it")
    return f"the contribution of {field} of {layer} to each score {how}"


def _multiples(one: Answered) -> dict[tuple[str, str], float]:
    """Return, by kind of layer and field, the factor between its contribution and the errors of all scores."""
    parts = _contributions(one.step.as_float64(), one.query)
    error, found = one.got["values"] - one.right["values"], {}
    for key, part in parts.items():
        square = float(np.vdot(part, part))
        factor = float(np.vdot(part, error)) / square if square > 0 and np.isfinite(square) else 0.0
        if factor and (np.abs(error - factor * part) <= one.bound["values"]).all():
            found[key] = factor
    return found


def _contributions(step: Step, query: Query) -> dict[tuple[str, str], Array]:
    """Return the part of each score from the parameters of one field of one kind of layers, by both names.

    None for calls whose answers are not sums over parameters of one term.
    """
    x = models.sample_gradients(step)
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    each = False
    if query.function == "influence":
        after, _, _ = adam.moved(step, g)
        gamma = {name: array[None] for name, array in models.loss_gradient(step.net, after, step.valid).items()}
        c = adam.step_coefficients(step)
        slope: Params = {name: adam.divided_difference(c[name], g[name], g[name]) for name in g}
    else:
        estimator = query.estimator
        if estimator.slope == TWO_TERM or estimator.efficient or estimator.denominator == "previous":
            return {}
        each = estimator.per_validation
        gamma = validation.validation_gradients(step, estimator.gradient, g, estimator.nodes, each=each)
        ((_, slope),) = scoring.terms_of(step, estimator.slope, x, g, estimator.nodes, estimator.kind)
    found: dict[tuple[str, str], Array] = {}
    for name, place in places_of(step.net).items():
        part = scoring.dot_products({name: x[name]}, {name: gamma[name] * slope[name]})
        key = (place.layer, place.field)
        found[key] = found.get(key, 0.0) + (part if each else part[:, 0])
    return found


# --- any answer ------------------------------------------------------------------------------------------------------


def _in_every_wrong_stack(answered: Sequence[Answered]) -> str:
    wrong, right = _split(answered)
    common = _common([frozenset(kinds_in_order(one.step.net)) for one in wrong], right)
    if not common or (not right and len(common) > 1):
        return ""
    shares = [f"{kind} ({count} of {len(right)} right ones are too)" for kind, count in common.items()]
    return f"every wrong answer is for a stack with {_either(shares)}"


def _either(kinds: Sequence[str]) -> str:
    return " or ".join(kinds)
