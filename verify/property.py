"""Properties: a name, a sentence, an equation, random cases, and a check of a candidate's answers to them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from adamshap.reference.contract import Step
from adamshap.verify.implementation import Answer, Implementation, Query, answer
from adamshap.verify.models import PERCEPTRON, SEQUENTIAL
from adamshap.verify.models.random_stacks import inputs_of
from adamshap.verify.models.sequential import LAYERS
from adamshap.verify.tolerance import CLOSE, DRAWS_BEYOND

Kind = Literal["agreement", "metamorphic"]


ANY = "any"
"""The `function` of a property that concerns all of them."""


@dataclass(frozen=True)
class Case:
    """One problem for a property: the step, the call, and a seed for the property's own random choices."""

    step: Step
    query: Query
    seed: int = 0


AMPLE = 0.5
"""An error below this share of a partial bound is accepted at once, since the full bound is larger still. So a reported
share is exact above this value, and an upper limit below it."""


class Disagreement(AssertionError):
    """A property does not hold for a case: the wrong number, the right one, and the bound."""

    def __init__(self, case: Case, what: str, got: float, wanted: float, bound: float, where: str = "") -> None:
        self.case, self.what, self.got, self.wanted, self.bound = case, what, got, wanted, bound
        super().__init__(
            f"{case.query}: {what} is {got!r}, should be {wanted!r}; off by {abs(got - wanted):.3g}, "
            f"where rounding and conditioning explain {bound:.3g}{where and f'; {where}'}"
        )


Asker = Callable[[Step, Query], Answer]


Check = Callable[[Asker, Case, npt.DTypeLike], float]
"""Returns the largest share of its bound that an error took; raises `Disagreement` if that is more than 1."""


@dataclass(frozen=True)
class Property:
    """A property of a correct implementation.

    Parameters
    ----------
    name, sentence, equation : str
    kind : {"agreement", "metamorphic"}
    function : str
        The function of the contract that it concerns; `ANY` for all that a candidate offers.
    cases : strategy of Case
    check : callable
        ``check(ask, case, dtype)``, which raises `Disagreement`, or returns the largest share of its bound that an
        error took; `ask` returns a candidate's answer.
    extra : str
        The one of `implementation.EXTRAS` that it needs, if any.
    cost : int
        Cost of a case relative to an ordinary one; divides the number of cases.
    model : str
        The kind of its models, which a candidate has to support.
    of_layers : callable, optional
        Function from some kinds of layers to the property's cases with stacks of these; None for other models.
    needs : frozenset of str
        The kinds of layers that each of its cases has.
    features : frozenset of str
        The features of its optimisers, some of `optimisers.FEATURES`, and "auto" for that slope, which a candidate has
        to support.
    group : str
        Name of the group of properties to which it belongs, if any: a report has one row for those of a group that
        pass, and only the first of its failures is shrunk.
    """

    name: str
    sentence: str
    equation: str
    kind: Kind
    function: str
    cases: st.SearchStrategy[Case]
    check: Check
    extra: str = ""
    cost: int = 1
    model: str = PERCEPTRON
    of_layers: "Callable[[frozenset[str]], st.SearchStrategy[Case]] | None" = None
    needs: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    group: str = ""

    def is_about(self, candidate: Implementation) -> bool:
        """Return whether the candidate offers the function and the extra of the property."""
        offered = self.function in candidate.offers or (self.function == ANY and bool(candidate.offers))
        return offered and (not self.extra or self.extra in candidate.extras)

    def takes_models_of(self, candidate: Implementation) -> bool:
        """Return whether the candidate supports the kind of models of the property."""
        stacks = self.model == SEQUENTIAL and bool(candidate.layers)
        return stacks or self.model == PERCEPTRON or self.model in candidate.supports

    def within(self, layers: frozenset[str]) -> "Property | None":
        """Return the property with cases that have some kinds of `layers` only; None if there are none."""
        if self.of_layers is None or layers == frozenset(LAYERS):
            return self
        if not inputs_of(layers) or not self.needs <= layers:
            return None
        return replace(self, cases=self.of_layers(layers))

    def takes_optimisers_of(self, candidate: Implementation) -> bool:
        """Return whether the candidate supports the features of the property's optimisers."""
        return self.features <= candidate.supports

    def is_declared_by(self, candidate: Implementation) -> bool:
        """Return whether the candidate supports the models and the optimisers of the property."""
        return self.takes_models_of(candidate) and self.takes_optimisers_of(candidate)


def asker(candidate: Implementation, timeout: float | None = None) -> Asker:
    """Return the candidate as a function from a call to a validated answer."""
    return lambda step, query: answer(candidate, step, query, timeout)


def compare(case: Case, got: Answer, wanted: Answer, bound: Answer) -> float:
    """Return the largest share of its bound that an error takes; arrays that `got` lacks are not compared.

    Raises
    ------
    Disagreement
        It is more than 1; the error names the element that exceeds its bound most.
    """
    worst = _worst(got, wanted, bound)
    if worst[0] > 1:
        raise Disagreement(case, *worst[1:])
    return worst[0]


def _worst(got: Answer, wanted: Answer, bound: Answer) -> tuple[float, str, float, float, float]:
    """Return the largest share of its bound that an error takes; the element's name, got, wanted, and the bound."""
    worst = (0.0, "", 0.0, 0.0, 0.0)
    for name in sorted(wanted.keys() & got.keys()):
        error, limit = np.abs(got[name] - wanted[name]), np.broadcast_to(bound[name], got[name].shape)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # No error is a share of 0, also of a bound of 0.
            ratio = np.where((error == 0) & (limit >= 0), 0.0, np.nan_to_num(error / limit, nan=np.inf, posinf=np.inf))
        place = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        label = name + (str(list(map(int, place))) if place else "")
        found = (float(ratio[place]), label, float(got[name][place]), float(wanted[name][place]), float(limit[place]))
        worst = max(worst, found)
    return worst


def compare_widening(
    case: Case,
    got: Answer,
    wanted: Answer,
    widening: Iterable[tuple[int, Answer]],
    enough: int,
    more: Callable[[], Any] = lambda: 0.0,
) -> float:
    """Return the largest share of its bound that an error takes, like `compare`, for bounds that grow with their draws.

    An error clearly within a bound needs no further draws; one within it, none after `enough`; one beyond `CLOSE`
    bounds, none after `DRAWS_BEYOND` more. If it is beyond the last bound, ``more()`` is added to that of ``values``
    (`slope_rounding`).
    """
    bound: Answer = {}
    share = 0.0
    for draws, bound in widening:
        share = _worst(got, wanted, bound)[0]
        within, beyond = draws >= enough and share <= 1, draws >= enough + DRAWS_BEYOND and share > CLOSE
        if share <= AMPLE or within or beyond:
            break
    if share > 1 and "values" in bound:
        bound = {**bound, "values": bound["values"] + more()}
    return compare(case, got, wanted, bound)
