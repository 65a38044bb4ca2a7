"""Checks of the properties on a candidate: random cases, the smallest failing one, and the outcome of each property."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import hypothesis
import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, Phase

from adamshap.reference.contract import Step
from adamshap.verify.acceptable import Acceptable, variants_in
from adamshap.verify.foreign.insulation import kept_random_state
from adamshap.verify.implementation import Hung, Implementation, KitError, Lost, Misbehaviour, Unsupported
from adamshap.verify.models.sequential import LAYERS, kinds_of_layers
from adamshap.verify.properties import PROPERTIES, Asker, Case, Disagreement, Property, asker, in_dtype
from adamshap.verify.property_checks import WITH_THE_ORACLE
from adamshap.verify.random_cases import no_files, random_cases, seed_of

PROFILES = {"once": 1, "quick": 15, "ci": 60, "thorough": 600}
"""Random cases for each property of cost 1; "once" is for dry runs."""

EVIDENCE = 15
"""Random cases of a property that the diagnosis uses."""

MOST_HANGS = 3
"""Calls of one run that may exceed their time limit before the remaining properties are skipped."""

MOST_LOST = 3
"""Failures without an answer that are shrunk: each further case costs the candidate a new process."""

Status = Literal["passed", "acceptable", "failed", "not offered", "not supported", "not tried"]


@dataclass
class Patience:
    """Number of times that a candidate gave no answer in one run, which may consist of several calls of `check`.

    Parameters
    ----------
    hangs : int
        Calls that exceeded their time limit.
    lost : int
        Properties that failed without an answer, by a hang or the end of the candidate's process.
    shrunk : set of str
        Groups of properties of which a failure was shrunk.
    """

    hangs: int = 0
    lost: int = 0
    shrunk: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Finding:
    """A candidate's violation of a property.

    Parameters
    ----------
    sentence : str
        The message.
    case : Case
        The step and the call that show it.
    what : str
        Name of the wrong element, if the failure is about numbers.
    got, wanted, bound : float
        The candidate's number, the oracle's, and the largest difference allowed; NaN if the failure is not about
        numbers.
    lost : bool
        Whether the candidate gave no answer: it hung, or its process ended.
    """

    sentence: str
    case: Case
    what: str = ""
    got: float = float("nan")
    wanted: float = float("nan")
    bound: float = float("nan")
    lost: bool = False


@dataclass(frozen=True)
class Outcome:
    """The outcome of one property.

    Parameters
    ----------
    property : Property
    status : {"passed", "acceptable", "failed", "not offered", "not supported", "not tried"}
        "acceptable" if the answers agree with an acceptable variant of the method instead; "not tried" after
        `MOST_HANGS` hangs, and for models and optimisers that the candidate does not declare.
    examples : int
        Number of cases tried, up to the first failure.
    seconds : float
        Duration.
    finding : Finding, optional
        The failure, on the smallest case found; of an acceptable variant, its first difference from the method.
    unsupported : tuple of (str, int)
        Reasons for skipped cases, each with the number of cases.
    evidence : tuple of Case
        Up to `EVIDENCE` random cases of the property, failing or not; none if it failed without an answer.
    share : float
        The largest share of its bound that an error took in the cases that passed.
    undeclared : bool
        Whether it was not tried because the candidate does not declare its kind of models, layers that it needs, or its
        optimisers.
    layers : tuple of (str, int)
        The kinds of layers in the cases tried, each with the number of cases.
    undeclared_layers : tuple of str
        The kinds of layers that were not drawn, because the candidate does not declare them.
    variant : Acceptable, optional
        The acceptable variant that the answers agree with.
    """

    property: Property
    status: Status
    examples: int
    seconds: float
    finding: Finding | None = None
    unsupported: tuple[tuple[str, int], ...] = ()
    evidence: tuple[Case, ...] = ()
    share: float = 0.0
    undeclared: bool = False
    layers: tuple[tuple[str, int], ...] = ()
    undeclared_layers: tuple[str, ...] = ()
    variant: Acceptable | None = None


class _Enough(BaseException):
    """Ends Hypothesis's search for a smaller case."""


def check(
    candidate: Implementation,
    properties: Iterable[Property] = PROPERTIES,
    *,
    profile: str = "quick",
    dtype: npt.DTypeLike = np.float64,
    seed: int = 0,
    timeout: float | None = 60.0,
    shrink_seconds: float = 10.0,
    patience: Patience | None = None,
) -> list[Outcome]:
    """Return the outcome of each property; the candidate runs in this process, unless it comes from `isolated`.

    Parameters
    ----------
    candidate : Implementation
    properties : iterable of Property
    profile : {"quick", "ci", "thorough"}
        Number of random cases for each property, divided by the cost of a case (`Property.cost`).
    dtype : dtype
        Dtype of the candidate's inputs, which sets the rounding allowed.
    seed : int
        Seed of the random cases.
    timeout : float, optional
        Time limit of a call, in seconds.
    shrink_seconds : float
        Time limit, for each failing property, of the search for a smaller case; 0 for no search.
    patience : Patience, optional
        Counts of earlier calls for the same candidate, to which this call adds.

    Returns
    -------
    list of Outcome
        One outcome per property, in order.
    """
    examples = PROFILES[profile]
    patience = Patience() if patience is None else patience
    with kept_random_state():
        return [
            _check_one(candidate, one, examples, np.dtype(dtype), seed, timeout, shrink_seconds, patience)
            for one in properties
        ]


def with_answers(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes that a diagnosis can use.

    Parameters
    ----------
    outcomes : iterable of Outcome

    Returns
    -------
    list of Outcome
        Those whose cases the candidate can be called with again: it neither hung nor lost its process.
    """
    return [outcome for outcome in outcomes if outcome.finding is None or not outcome.finding.lost]


def first_of_groups(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes that a diagnosis can use, of each group of properties only the first failure.

    Parameters
    ----------
    outcomes : iterable of Outcome

    Returns
    -------
    list of Outcome
        The failures and passed properties outside of groups, and the first failure of each group.
    """
    found: list[Outcome] = []
    seen: set[str] = set()
    for outcome in with_answers(outcomes):
        group = outcome.property.group
        if not group or (outcome.status == "failed" and group not in seen):
            found.append(outcome)
            seen.add(group)
    return found


def _check_one(
    candidate: Implementation,
    one: Property,
    examples: int,
    dtype: np.dtype[Any],
    seed: int,
    timeout: float | None,
    shrink_seconds: float,
    patience: Patience,
) -> Outcome:
    if not one.is_about(candidate):
        return Outcome(one, "not offered", 0, 0.0)
    left_out: tuple[str, ...] = ()
    if one.of_layers is not None:
        left_out = tuple(kind for kind in LAYERS if kind not in candidate.layers)
        within = one.within(candidate.layers)
        if within is None:
            return Outcome(one, "not tried", 0, 0.0, undeclared=True, undeclared_layers=left_out)
        one = within
    if not one.is_declared_by(candidate):
        return Outcome(one, "not tried", 0, 0.0, undeclared=True)
    if patience.hangs >= MOST_HANGS:
        return Outcome(one, "not tried", 0, 0.0)
    ask = asker(candidate, timeout)
    start, share, reasons, supported = time.monotonic(), 0.0, Counter[str](), list[Case]()
    layers = Counter[str]()
    examples = max(1, examples // one.cost)
    cases = random_cases(one, examples, seed)
    for number, drawn in enumerate(cases, start=1):
        case = _in_dtype(drawn, dtype)
        try:
            share = max(share, one.check(ask, case, dtype))
            supported.append(case)
            layers.update(kinds_of_layers(case.step.net))
        except Unsupported as reason:
            reasons[str(reason)] += 1
        except (Disagreement, Misbehaviour) as error:
            finding = _finding(case, error)
            if isinstance(error, Disagreement):
                variant, share = _variant(ask, one, [case, *(_in_dtype(other, dtype) for other in cases)], dtype)
                if variant is not None:
                    seconds = time.monotonic() - start
                    reported = tuple(reasons.most_common())
                    return Outcome(
                        one, "acceptable", len(cases), seconds, finding, reported, share=share, variant=variant
                    )
            evidence: tuple[Case, ...] = ()
            patience.hangs += isinstance(error, Hung)
            patience.lost += finding.lost
            worthwhile = not isinstance(error, Hung) and patience.lost <= MOST_LOST and one.group not in patience.shrunk
            if shrink_seconds > 0 and worthwhile:
                patience.shrunk |= {one.group} - {""}
                finding = _smallest(ask, one, examples, dtype, seed, finding, shrink_seconds, patience)
            if not finding.lost:
                drawn_again = random_cases(one, max(1, EVIDENCE // one.cost), seed)
                evidence = tuple(_in_dtype(other, dtype) for other in drawn_again)
            layers.update(kinds_of_layers(case.step.net))
            return Outcome(
                one,
                "failed",
                number,
                time.monotonic() - start,
                finding,
                tuple(reasons.most_common()),
                evidence,
                share,
                layers=tuple(layers.items()),
                undeclared_layers=left_out,
            )
    status: Status = "not supported" if cases and reasons.total() == len(cases) else "passed"
    return Outcome(
        one,
        status,
        len(cases),
        time.monotonic() - start,
        None,
        tuple(reasons.most_common()),
        tuple(supported[:EVIDENCE]),
        share,
        layers=tuple(layers.items()),
        undeclared_layers=left_out,
    )


def _variant(ask: Asker, one: Property, cases: list[Case], dtype: np.dtype[Any]) -> tuple[Acceptable | None, float]:
    """Return the acceptable variant that agrees in all cases, and the largest share of its bounds; None without one.

    Only comparisons with the oracle have variants.
    """
    if one.check not in WITH_THE_ORACLE:
        return None, 0.0
    for variant in variants_in(dtype):
        try:
            return variant, max(_share(one, ask, case, dtype, variant.implementation()) for case in cases)
        except (Disagreement, Misbehaviour, KitError):  # a variant may refuse settings that it cannot represent
            continue
    return None, 0.0


def _share(one: Property, ask: Asker, case: Case, dtype: np.dtype[Any], oracle: Implementation) -> float:
    check_against: Callable[..., float] = one.check
    try:
        return check_against(ask, case, dtype, oracle)
    except Unsupported:
        return 0.0


def _smallest(
    ask: Asker,
    one: Property,
    examples: int,
    dtype: np.dtype[Any],
    seed: int,
    first: Finding,
    seconds: float,
    patience: Patience,
) -> Finding:
    """Return the smallest failing case that Hypothesis finds within `seconds` of the first failure, `first`."""
    found, deadline = [first], 0.0

    def once(drawn: Case) -> None:
        nonlocal deadline
        if deadline and time.monotonic() > deadline:
            raise _Enough
        case = _in_dtype(drawn, dtype)
        try:
            one.check(ask, case, dtype)
        except Unsupported:
            pass
        except Hung:
            patience.hangs += 1
            raise _Enough from None
        except (Disagreement, Misbehaviour) as error:
            deadline = deadline or time.monotonic() + seconds
            found.append(_finding(case, error))
            raise

    search = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )(hypothesis.seed(seed_of(one, seed))(hypothesis.given(one.cases)(once)))
    try:
        with warnings.catch_warnings():
            # Hypothesis warns about the length of its own description of a failing case.
            warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)
            with no_files():
                search()
    except (_Enough, Disagreement, Misbehaviour):
        pass
    except BaseExceptionGroup as group:
        if group.split((Disagreement, Misbehaviour))[1] is not None:
            raise
    return min(found, key=lambda finding: size_of(finding.case.step))


def _in_dtype(case: Case, dtype: np.dtype[Any]) -> Case:
    return Case(in_dtype(case.step, dtype), case.query.in_dtype(dtype), case.seed)


def _finding(case: Case, error: Disagreement | Misbehaviour) -> Finding:
    if isinstance(error, Disagreement):
        return Finding(str(error), case, error.what, error.got, error.wanted, error.bound)
    return Finding(f"{case.query}: the candidate {error}", case, lost=isinstance(error, Lost))


def size_of(step: Step) -> int:
    """Return the size of a case, for shrinking.

    Parameters
    ----------
    step : Step

    Returns
    -------
    int
        Count of the numbers in the step.
    """
    return (
        sum(p.size for p in step.params.values()) + step.train.x.size + step.valid.x.size + step.state.step.bit_length()
    )
