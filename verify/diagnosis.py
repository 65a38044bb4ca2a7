"""Which mistake was made: a candidate's wrong numbers, compared with those of every known fault on the same cases.

A fault explains a candidate if its answers are the candidate's, within the bounds, on every case that is compared:
those that the candidate gets wrong and those that it gets right. Where none does alone, a factor may be off too, or two
mistakes were made at once.
"""

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adamshap.reference.problem import Step
from adamshap.verify.checking import Outcome, size_of
from adamshap.verify.faults import FAULTS, Fault
from adamshap.verify.implementation import Answer, Implementation, Misbehaviour, Unsupported, answer
from adamshap.verify.oracle import ORACLE, bounds
from adamshap.verify.properties import Case

CASES = 24
"""Cases compared at the most, small ones first."""

FACTORS: tuple[tuple[str, Callable[[Step], float]], ...] = (
    ("−1 (the sign)", lambda step: -1.0),
    ("n (sum for mean)", lambda step: step.n),
    ("1/n (mean for sum)", lambda step: 1 / step.n),
    ("−n (sign, and sum for mean)", lambda step: -step.n),
    ("−1/n (sign, and mean for sum)", lambda step: -1 / step.n),
    ("n_val (the validation loss summed)", lambda step: step.n_val),
    ("1/n_val (the validation mean taken twice)", lambda step: 1 / step.n_val),
    ("−n_val (sign, and the validation loss summed)", lambda step: -step.n_val),
    ("1/η (the learning rate left out)", lambda step: 1 / step.adam.lr),
    ("−1/η (sign, and the learning rate left out)", lambda step: -1 / step.adam.lr),
)
"""Factors that have a name; any other must be the same number in all cases."""


@dataclass(frozen=True)
class Diagnosis:
    """What explains a candidate's failures, or that nothing known does.

    Parameters
    ----------
    sentence : str
        For people.
    faults : tuple of str
        Names of the faults that explain them: each alone, or all `together`.
    together : bool
        Whether the faults are meant together.
    factor : str
        That the answers are off by, beside the faults; empty for none.
    """

    sentence: str
    faults: tuple[str, ...] = ()
    together: bool = False
    factor: str = ""


@dataclass(frozen=True)
class _Evidence:
    case: Case
    got: Answer
    right: Answer
    bound: Answer


def diagnose(
    candidate: Implementation,
    outcomes: Iterable[Outcome],
    *,
    dtype: npt.DTypeLike = np.float64,
    timeout: float | None = 60.0,
    seconds: float = 60.0,
) -> Diagnosis | None:
    """Return what explains the failed agreement properties among `outcomes`; None where there are none.

    Parameters
    ----------
    candidate : Implementation
    outcomes : iterable of Outcome
        As `check` returns them, for the same candidate and dtype.
    dtype : dtype
    timeout : float, optional
        Seconds that one call may take.
    seconds : float
        After which no more pairs of faults are tried.

    Returns
    -------
    Diagnosis or None
        None where no property of agreement with the oracle failed.
    """
    evidence = _gather(candidate, [o for o in outcomes if o.status == "failed"], dtype, timeout)
    if not any(_differs(one, one.right) for one in evidence):
        return None
    start = time.monotonic()
    single = [fault for fault in FAULTS if _explains(fault.implementation(), evidence)]
    if single:
        sentences = " or ".join(fault.sentence for fault in single)
        return Diagnosis(f"your answers equal the oracle's with {sentences}", tuple(fault.name for fault in single))
    factor = _common_factor(ORACLE, evidence)
    if factor:
        return Diagnosis(f"your answers are right but for the factor {factor}", factor=factor)
    for fault in FAULTS:
        factor = _common_factor(fault.implementation(), evidence)
        if factor:
            sentence = f"your answers equal the oracle's with {fault.sentence}, times {factor}"
            return Diagnosis(sentence, (fault.name,), factor=factor)
    for one, two in itertools.combinations(FAULTS, 2):
        if time.monotonic() - start > seconds:
            return Diagnosis(
                "no known mistake, alone or with a factor, explains your answers; not all pairs were tried"
            )
        if _explains(_both(one, two), evidence) or _explains(_both(two, one), evidence):
            sentence = f"your answers equal the oracle's with {one.sentence}, and {two.sentence}"
            return Diagnosis(sentence, (one.name, two.name), together=True)
    return Diagnosis("no known mistake, alone, with a factor or in pairs, explains your answers")


def _both(inner: Fault, outer: Fault) -> Implementation:
    return Implementation(f"{inner.name} and {outer.name}", ORACLE.offers, outer.wrap(inner.wrap(ORACLE.ask)))


def _gather(
    candidate: Implementation, failed: list[Outcome], dtype: npt.DTypeLike, timeout: float | None
) -> list[_Evidence]:
    """Return cases of the failed agreement properties with the candidate's answers; wrong ones first, small first."""
    evidence = []
    for outcome in failed:
        if outcome.property.kind != "agreement" or outcome.finding is None:
            continue
        for case in (outcome.finding.case, *outcome.evidence):
            try:
                got = answer(candidate, case.step, case.query, timeout)
            except (Misbehaviour, Unsupported):
                continue
            right = answer(ORACLE, case.step, case.query)
            evidence.append(_Evidence(case, got, right, bounds(case.step, case.query, dtype)))
    evidence.sort(key=lambda one: (not _differs(one, one.right), size_of(one.case.step)))
    wrong = sum(_differs(one, one.right) for one in evidence)
    # Most of the places to wrong answers, some to right ones, which a fault must leave right.
    return evidence[: min(wrong, CASES - CASES // 4)] + evidence[wrong:][: CASES // 4]


def _differs(one: _Evidence, other: Answer, factor: float = 1.0) -> bool:
    """Whether `other`, times `factor`, is not what the candidate answered."""
    for name, got in one.got.items():
        if name not in other:
            continue
        # A mistake can make the numbers larger than the right ones, and their rounding errors with them.
        growth = np.maximum(1.0, np.abs(factor * other[name]).max(initial=0) / _size(one.right[name]))
        if not (np.abs(got - factor * other[name]) <= 2 * one.bound[name] * growth).all():
            return True
    return False


def _size(array: npt.NDArray[np.float64]) -> float:
    return float(np.abs(array).max(initial=0)) or 1.0


def _explains(faulty: Implementation, evidence: list[_Evidence]) -> bool:
    return all(_answers_as(faulty, one, lambda step: 1.0) for one in evidence)


def _answers_as(faulty: Implementation, one: _Evidence, factor: Callable[[Step], float]) -> bool:
    try:
        other = answer(faulty, one.case.step, one.case.query)
    except Misbehaviour:
        return False
    return not _differs(one, other, factor(one.case.step))


def _common_factor(faulty: Implementation, evidence: list[_Evidence]) -> str:
    """Return the factor that makes the answers of `faulty` the candidate's in all cases, as a phrase; "" for none."""
    useful = [one for one in evidence if "values" in one.got and np.abs(one.got["values"]).max(initial=0) > 0]
    if not useful or len(useful) < len(evidence) / 2:
        return ""
    for name, factor in FACTORS:
        if all(_answers_as(faulty, one, factor) for one in useful):
            return name
    try:
        first = answer(faulty, useful[0].case.step, useful[0].case.query)["values"]
    except Misbehaviour:
        return ""
    square = float(np.vdot(first, first))
    if square == 0 or not np.isfinite(square):
        return ""
    ratio = float(np.vdot(first, useful[0].got["values"]) / square)
    # A single case of a single number fits every factor.
    if len(useful) > 1 and all(_answers_as(faulty, one, lambda step: ratio) for one in useful):
        return f"{ratio:.6g}"
    return ""
