"""What a property is: a name, a sentence, an equation, random cases, and a check of a candidate's answers to them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from adamshap.reference.contract import Step
from adamshap.verify.implementation import Answer, Implementation, Query, answer
from adamshap.verify.tolerance import CLOSE

Kind = Literal["agreement", "metamorphic"]


ANY = "any"
"""The function of a property that is about all of them."""


@dataclass(frozen=True)
class Case:
    """One problem for a property: the step, what is asked about it, and a seed for what the property draws itself."""

    step: Step
    query: Query
    seed: int = 0


AMPLE = 0.5
"""An error below this share of a bound that is only partly known is not looked at further: the whole is larger still.
So a share that is reported is exact above this, and below it an upper limit."""


class Disagreement(AssertionError):
    """A property does not hold for a case: which number, what it should be, how far it may be off."""

    def __init__(self, case: Case, what: str, got: float, wanted: float, bound: float) -> None:
        self.case, self.what, self.got, self.wanted, self.bound = case, what, got, wanted, bound
        super().__init__(
            f"{case.query}: {what} is {got!r}, should be {wanted!r}; off by {abs(got - wanted):.3g}, "
            f"where rounding and conditioning explain {bound:.3g}"
        )


Asker = Callable[[Step, Query], Answer]


Check = Callable[[Asker, Case, npt.DTypeLike], float]
"""Returns the largest share of its bound that an error took; raises `Disagreement` where that is more than 1."""


@dataclass(frozen=True)
class Property:
    """Something that must hold.

    Parameters
    ----------
    name, sentence, equation : str
    kind : {"agreement", "metamorphic"}
    function : str
        The function of the contract that it is about; `ANY` for all that a candidate offers.
    cases : strategy of Case
    check : callable
        ``check(ask, case, dtype)``, which raises `Disagreement`, or returns the largest share of its bound that an
        error took; `ask` returns a candidate's answer.
    extra : str
        The one of `implementation.EXTRAS` that it is about, if any.
    cost : int
        How many ordinary cases one of its cases stands for: a profile tries as many fewer.
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

    def is_about(self, candidate: Implementation) -> bool:
        """Whether the candidate offers what the property is about."""
        offered = self.function in candidate.offers or (self.function == ANY and bool(candidate.offers))
        return offered and (not self.extra or self.extra in candidate.extras)


def asker(candidate: Implementation, timeout: float | None = None) -> Asker:
    """Return the candidate as a function that puts a call and returns a checked answer."""
    return lambda step, query: answer(candidate, step, query, timeout)


def compare(case: Case, got: Answer, wanted: Answer, bound: Answer) -> float:
    """Return the largest share of its bound that an error takes; arrays that `got` lacks are not compared.

    Raises
    ------
    Disagreement
        Where it is more than 1, for the element whose error exceeds its bound most.
    """
    worst = _worst(got, wanted, bound)
    if worst[0] > 1:
        raise Disagreement(case, *worst[1:])
    return worst[0]


def _worst(got: Answer, wanted: Answer, bound: Answer) -> tuple[float, str, float, float, float]:
    """Return the largest share of its bound that an error takes; of which number, got, wanted, and the bound."""
    worst = (0.0, "", 0.0, 0.0, 0.0)
    for name in sorted(wanted.keys() & got.keys()):
        error, limit = np.abs(got[name] - wanted[name]), np.broadcast_to(bound[name], got[name].shape)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # Nothing is off by nothing, also where nothing may be off.
            ratio = np.where((error == 0) & (limit >= 0), 0.0, np.nan_to_num(error / limit, nan=np.inf, posinf=np.inf))
        place = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        label = name + (str(list(map(int, place))) if place else "")
        found = (float(ratio[place]), label, float(got[name][place]), float(wanted[name][place]), float(limit[place]))
        worst = max(worst, found)
    return worst


def compare_widening(
    case: Case, got: Answer, wanted: Answer, widening: Iterable[tuple[int, Answer]], enough: int
) -> float:
    """Return the largest share of its bound that an error takes, as `compare`, for bounds that grow with their draws.

    An error that is plainly within a bound, or beyond `CLOSE` bounds with `enough` draws, needs no more of them.
    """
    bound: Answer = {}
    for draws, bound in widening:
        share = _worst(got, wanted, bound)[0]
        if share <= AMPLE or (draws >= enough and not 1 < share <= CLOSE):
            break
    return compare(case, got, wanted, bound)
