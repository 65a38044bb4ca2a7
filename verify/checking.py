"""Running the properties over a candidate: random cases, the smallest failing one, and what became of each property."""

import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import hypothesis
import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, Phase

from adamshap.reference.problem import Step
from adamshap.verify.implementation import Implementation, Misbehaviour, Unsupported
from adamshap.verify.properties import PROPERTIES, Case, Disagreement, Property, asker, in_dtype

PROFILES = {"quick": 15, "ci": 60, "thorough": 600}
"""Random cases for each property."""

EVIDENCE = 10
"""Random cases of a failed property that the diagnosis is made from."""

Status = Literal["passed", "failed", "not offered", "not supported"]


@dataclass(frozen=True)
class Finding:
    """How a candidate breaks a property.

    Parameters
    ----------
    sentence : str
        What went wrong.
    case : Case
        The step and the call that show it.
    what : str
        Which element is wrong, where there are numbers.
    got, wanted, bound : float
        The candidate's number, the oracle's, and how far apart they may be; NaN where there are none.
    """

    sentence: str
    case: Case
    what: str = ""
    got: float = float("nan")
    wanted: float = float("nan")
    bound: float = float("nan")


@dataclass(frozen=True)
class Outcome:
    """What became of one property.

    Parameters
    ----------
    property : Property
    status : {"passed", "failed", "not offered", "not supported"}
    examples : int
        Cases tried; of a failed property, until the first that fails.
    seconds : float
        Time taken.
    finding : Finding, optional
        Of a failed property, on the smallest case found.
    unsupported : tuple of (str, int)
        Reasons why cases were left out, and how many.
    evidence : tuple of Case
        Random cases, failing or not, of a property that failed.
    """

    property: Property
    status: Status
    examples: int
    seconds: float
    finding: Finding | None = None
    unsupported: tuple[tuple[str, int], ...] = ()
    evidence: tuple[Case, ...] = ()


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
) -> list[Outcome]:
    """Return the outcome of each property.

    Parameters
    ----------
    candidate : Implementation
    properties : iterable of Property
    profile : {"quick", "ci", "thorough"}
        How many random cases each property is tried on.
    dtype : dtype
        Of the arrays that the candidate is given, and of the rounding that it is allowed.
    seed : int
        Of the random cases.
    timeout : float, optional
        Seconds that one call may take.
    shrink_seconds : float
        Seconds spent, for each failing property, on finding a smaller case; 0 for none.

    Returns
    -------
    list of Outcome
        In the properties' order.
    """
    examples = PROFILES[profile]
    return [
        _check_one(candidate, one, examples, np.dtype(dtype), seed, timeout=timeout, shrink_seconds=shrink_seconds)
        for one in properties
    ]


def _check_one(
    candidate: Implementation,
    one: Property,
    examples: int,
    dtype: np.dtype[Any],
    seed: int,
    *,
    timeout: float | None,
    shrink_seconds: float,
) -> Outcome:
    if one.function not in candidate.offers:
        return Outcome(one, "not offered", 0, 0.0)
    ask = asker(candidate, timeout)
    start, tried, reasons = time.monotonic(), 0, Counter[str]()
    found: list[Finding] = []
    first_failure = [0.0, 0.0]  # when, and after how many cases

    def once(case: Case) -> None:
        nonlocal tried
        if found and time.monotonic() - first_failure[0] > shrink_seconds:
            raise _Enough
        tried += 1
        case = Case(in_dtype(case.step, dtype), case.query, case.seed)
        try:
            one.check(ask, case, dtype)
        except Unsupported as reason:
            reasons[str(reason)] += 1
        except (Disagreement, Misbehaviour) as error:
            if not found:
                first_failure[:] = time.monotonic(), tried
            found.append(_finding(case, error))
            raise

    phases = (Phase.generate, Phase.shrink) if shrink_seconds > 0 else (Phase.generate,)
    run = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )(hypothesis.seed(seed)(hypothesis.given(one.cases)(once)))
    try:
        with warnings.catch_warnings():
            # Hypothesis describes a failing case to itself, and complains of the description's length.
            warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)
            run()
    except (_Enough, Disagreement, Misbehaviour):
        pass
    except BaseExceptionGroup as group:
        if group.split((Disagreement, Misbehaviour))[1] is not None:
            raise
    seconds = time.monotonic() - start
    unsupported = tuple(reasons.most_common())
    if found:
        smallest = min(found, key=lambda finding: size_of(finding.case.step))
        return Outcome(
            one, "failed", int(first_failure[1]), seconds, smallest, unsupported, _evidence(one, dtype, seed)
        )
    if tried and reasons.total() == tried:
        return Outcome(one, "not supported", tried, seconds, None, unsupported)
    return Outcome(one, "passed", tried, seconds, None, unsupported)


def _evidence(one: Property, dtype: np.dtype[Any], seed: int) -> tuple[Case, ...]:
    """Return random cases of a property that failed, whether they fail or not: what an explanation must explain."""
    cases: list[Case] = []

    def keep(case: Case) -> None:
        cases.append(Case(in_dtype(case.step, dtype), case.query, case.seed))

    hypothesis.settings(
        max_examples=EVIDENCE,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )(hypothesis.seed(seed)(hypothesis.given(one.cases)(keep)))()
    return tuple(cases)


def _finding(case: Case, error: Disagreement | Misbehaviour) -> Finding:
    if isinstance(error, Disagreement):
        return Finding(str(error), case, error.what, error.got, error.wanted, error.bound)
    return Finding(f"{case.query}: the candidate {error}", case)


def size_of(step: Step) -> int:
    """Return how much a reader has to look at.

    Parameters
    ----------
    step : Step

    Returns
    -------
    int
        The numbers in the step.
    """
    return (
        sum(p.size for p in step.params.values()) + step.train.x.size + step.valid.x.size + step.state.step.bit_length()
    )
