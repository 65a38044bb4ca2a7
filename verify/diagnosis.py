"""Diagnosis of a candidate's mistake: its wrong numbers are compared with those of every known fault on the same cases.

A fault explains a candidate if its answers equal the candidate's, within the bounds, on every case of the failed
properties, both those that the candidate gets wrong and those that it gets right. If no single fault does, a wrong
factor or a pair of faults may. An explanation is also checked on the properties that the candidate passes: if it breaks
one of them, it holds for a part of the answers only, and the diagnosis says so.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract import AUTO, TWO_TERM, Marginals, Step
from adamshap.verify.checking import Outcome, size_of
from adamshap.verify.faults import (
    AUTO_FAULTS,
    BY_NAME,
    FAULTS,
    FLOAT32,
    LATER_FAULTS,
    LAYER_FAULTS,
    LOOP_FAULTS,
    Fault,
    other_nodes,
)
from adamshap.verify.implementation import CAPTURES, Answer, Implementation, Misbehaviour, Query, Unsupported, answer
from adamshap.verify.layers.localisation import Answered, locate
from adamshap.verify.models import SEQUENTIAL
from adamshap.verify.optimisers import features_of
from adamshap.verify.oracle import ORACLE, bounds, digest, expected
from adamshap.verify.properties import Case, Disagreement, asker
from adamshap.verify.tolerance import unit_roundoff

CASES = 24
"""Number of small cases compared first: only explanations of these are compared on all others."""

REMEMBERED = 64
"""Number of answers kept of each known fault: all candidates that fail a property are compared on the same cases."""

NODES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)
"""Numbers of quadrature nodes that a candidate may use instead of those asked for."""

ROUNDINGS = 64
"""Size of a wrong answer's errors, in units of rounding, where the right answer is exactly 0."""


def _over_lr(step: Step) -> float:
    """Return 1/η; NaN, which explains nothing, for a step with several learning rates, or with η = 0."""
    rates = {step.settings(name).lr for name in step.params}
    rate = rates.pop()
    return math.nan if rates or rate == 0 else 1 / rate


FACTORS: tuple[tuple[str, Callable[[Step], float]], ...] = (
    ("−1 (the sign)", lambda step: -1.0),
    ("n (sum for mean)", lambda step: step.n),
    ("1/n (mean for sum)", lambda step: 1 / step.n),
    ("−n (sign, and sum for mean)", lambda step: -step.n),
    ("−1/n (sign, and mean for sum)", lambda step: -1 / step.n),
    ("n_val (the validation loss summed)", lambda step: step.n_val),
    ("1/n_val (the validation mean taken twice)", lambda step: 1 / step.n_val),
    ("−n_val (sign, and the validation loss summed)", lambda step: -step.n_val),
    ("1/η (the learning rate left out)", _over_lr),
    ("−1/η (sign, and the learning rate left out)", lambda step: -_over_lr(step)),
)
"""Named factors; any other factor must be the same number in all cases."""


@dataclass(frozen=True)
class Diagnosis:
    """The explanation of a candidate's failures, or that nothing known explains them.

    Parameters
    ----------
    sentence : str
        The diagnosis in words.
    faults : tuple of str
        Names of the faults that explain them: each alone, or all `together`.
    together : bool
        Whether the faults explain them only in combination.
    factor : str
        Factor by which the answers are off, besides the faults; empty for none.
    contradicted_by : str
        Name of a property that holds, but would fail if the mistake were everywhere; empty for none.
    layer : str
        The layer that the wrong answers point to, in words; empty if they point to none.
    """

    sentence: str
    faults: tuple[str, ...] = ()
    together: bool = False
    factor: str = ""
    contradicted_by: str = ""
    layer: str = ""


@dataclass(frozen=True)
class _Evidence:
    case: Case
    got: Answer
    right: Answer
    bound: Answer


@dataclass(frozen=True)
class _Explanation:
    """An implementation whose answers equal the candidate's in every case of the failed properties."""

    diagnosis: Diagnosis
    implementation: Implementation


def diagnose(
    candidate: Implementation,
    outcomes: Iterable[Outcome],
    *,
    dtype: npt.DTypeLike = np.float64,
    timeout: float | None = 60.0,
    seconds: float = 60.0,
) -> Diagnosis | None:
    """Return the explanation of the failed agreement properties among `outcomes`; None if none failed.

    Parameters
    ----------
    candidate : Implementation
    outcomes : iterable of Outcome
        Results of `check` for the same candidate and dtype; properties that passed rule out explanations that would
        break them.
    dtype : dtype
        Dtype of the candidate's inputs.
    timeout : float, optional
        Time limit of a call, in seconds.
    seconds : float
        Time limit of the search, after which no more pairs of faults are tried.

    Returns
    -------
    Diagnosis or None
        None if no property of agreement with the oracle failed.
    """
    outcomes = list(outcomes)
    failed = [one for one in outcomes if one.status == "failed" and one.property.kind == "agreement" and one.finding]
    evidence = _gather(candidate, failed, dtype, timeout)
    if not any(_differs(one, one.right) for one in evidence):
        return None
    found = _explained(evidence, outcomes, failed, dtype, seconds)
    return replace(found, layer=_layer(evidence, outcomes))


def _layer(evidence: list[_Evidence], outcomes: list[Outcome]) -> str:
    """Return the layer that the wrong answers point to, in words."""
    answered = (
        Answered(one.case.step, one.case.query, one.got, one.right, one.bound, _differs(one, one.right))
        for one in evidence
    )
    found = locate(answered)
    of_captures = [one.status for one in outcomes if one.property.function == CAPTURES]
    if found and "passed" in of_captures and "failed" not in of_captures:
        return f"{found}, but the captures of every layer tried are right"
    return found


def _explained(
    evidence: list[_Evidence],
    outcomes: list[Outcome],
    failed: list[Outcome],
    dtype: npt.DTypeLike,
    seconds: float,
) -> Diagnosis:
    start, functions = time.monotonic(), {one.property.function for one in failed}
    passed = [one for one in outcomes if one.status == "passed" and one.property.function in functions]
    in_part: Diagnosis | None = None
    for explanations in (
        _single_faults(evidence),
        _float32(evidence, dtype),
        _other_nodes(evidence),
        _factor(evidence),
        _fault_and_factor(evidence),
    ):
        tried = [(one.diagnosis, _contradiction(one.implementation, passed, dtype)) for one in explanations]
        whole = [diagnosis for diagnosis, broken in tried if not broken]
        if whole:
            return _either(whole)
        if tried and in_part is None:
            in_part = _in_part(*tried[0], failed)
    return in_part or _pair(evidence, passed, dtype, start + seconds)


def _either(found: list[Diagnosis]) -> Diagnosis:
    """Return one diagnosis for alternative faults, each of which explains all."""
    if len(found) == 1:
        return found[0]
    every = (*FAULTS, *LATER_FAULTS, *LAYER_FAULTS, *LOOP_FAULTS, *AUTO_FAULTS)
    sentence_of = {fault.name: fault.sentence for fault in every}
    sentences = " or ".join(sentence_of[one.faults[0]] for one in found)
    return Diagnosis(f"your answers equal the oracle's with {sentences}", tuple(one.faults[0] for one in found))


def _in_part(found: Diagnosis, broken: str, failed: list[Outcome]) -> Diagnosis:
    names = ", ".join(one.property.name for one in failed)
    sentence = f"{found.sentence}, but only in {names}: were it so everywhere, {broken} would fail, and it holds"
    return replace(found, sentence=sentence, contradicted_by=broken)


def _contradiction(explanation: Implementation, passed: list[Outcome], dtype: npt.DTypeLike) -> str:
    """Return the name of a property that the candidate passes and `explanation` breaks on the same cases, or ""."""
    ask = asker(explanation)
    for outcome in passed:
        if not outcome.property.is_about(explanation):  # the oracle has no micro-batches
            continue
        try:
            for case in outcome.evidence:
                outcome.property.check(ask, case, dtype)
        except (Disagreement, Misbehaviour):
            return outcome.property.name
    return ""


# --- explanations -----------------------------------------------------------------------------------------------------


def _single_faults(evidence: list[_Evidence]) -> Iterator[_Explanation]:
    # Some mistakes of a loop show with plain Adam too: decoupled decay as L2 decay.
    for fault in dict.fromkeys((*_known(evidence), *LOOP_FAULTS)):
        if _explains(_faulty(fault), evidence):
            yield _of_fault(fault)


@cache
def _faulty(fault: Fault) -> Implementation:
    """Return the oracle with a known mistake, which keeps its latest answers."""
    made = fault.implementation()
    if made.guard is not None:  # a mistake with the memory of inputs and results shows only in a call
        return made
    kept: dict[bytes, Any] = {}

    def ask(step: Step, query: Query) -> Any:
        key = digest(step, query, step.dtype, made)
        if key not in kept:
            result = made.ask(step, query)
            if len(kept) >= REMEMBERED:
                del kept[next(iter(kept))]
            kept[key] = result
        return kept[key]

    return replace(made, ask=ask)


def _known(evidence: list[_Evidence]) -> tuple[Fault, ...]:
    """Return the faults that the evidence can show: those of layers need stacks, those of "auto" its calls."""
    stacks = any(one.case.step.net.kind == SEQUENTIAL for one in evidence)
    loops = any(features_of(one.case.step.adam) for one in evidence)
    auto = any(one.case.query.options.get("slope") == AUTO for one in evidence)
    some = ((LOOP_FAULTS, loops), (LAYER_FAULTS, stacks), (AUTO_FAULTS, auto), ((*FAULTS, *LATER_FAULTS), True))
    return tuple(fault for faults, shown in some if shown for fault in faults)


def _of_fault(fault: Fault) -> _Explanation:
    sentence = f"your answers equal the oracle's with {fault.sentence}"
    return _Explanation(Diagnosis(sentence, (fault.name,)), fault.implementation())


def _float32(evidence: list[_Evidence], dtype: npt.DTypeLike) -> Iterator[_Explanation]:
    """Yield float32 as an explanation if float64 was asked for and all errors are of the size of float32's rounding."""
    single = np.float32
    if np.dtype(dtype) == single:
        return
    wrong = [one for one in evidence if _differs(one, one.right)]
    relative = [
        max(
            float(np.abs(got - one.right[name]).max(initial=0)) / _size(one.right[name])
            for name, got in one.got.items()
        )
        for one in wrong
    ]
    if not unit_roundoff(single) / 16 < np.median(relative):
        return
    # Float32 shows in every answer that float32 rounds visibly: one with more correct digits rules it out.
    if all(
        (_differs(one, one.right) or not _differs(replace(one, got=_rounded_to(single, one.right)), one.right))
        and not _differs(replace(one, bound=bounds(one.case.step, one.case.query, single)), one.right)
        for one in evidence
    ):
        sentence = "your answers are the oracle's up to the rounding of float32: they are computed or returned in it"
        yield _Explanation(Diagnosis(sentence, (FLOAT32,)), BY_NAME[FLOAT32].implementation())


def _rounded_to(dtype: npt.DTypeLike, answer: Answer) -> Answer:
    with np.errstate(over="ignore"):
        return {name: array.astype(dtype).astype(np.float64) for name, array in answer.items()}


def _other_nodes(evidence: list[_Evidence]) -> Iterator[_Explanation]:
    """Yield the first numbers of quadrature nodes that explain all; none if a wrong answer does not depend on them."""
    if not all(_takes_nodes(one.case.query) for one in evidence if _differs(one, one.right)):
        return
    for path, normal in itertools.product(NODES, NODES[1:]):
        fault = other_nodes(path, normal)
        if _explains(fault.implementation(), evidence):
            yield _of_fault(fault)
            return


def _takes_nodes(query: Query) -> bool:
    return query.options.get("slope") in ("random_order", AUTO, TWO_TERM) or query.options.get("gradient") == "path"


def _factor(evidence: list[_Evidence]) -> Iterator[_Explanation]:
    for name, factor in _common_factors(ORACLE, evidence):
        yield _Explanation(
            Diagnosis(f"your answers are right but for the factor {name}", factor=name), _times(ORACLE, factor)
        )


def _fault_and_factor(evidence: list[_Evidence]) -> Iterator[_Explanation]:
    for fault in _known(evidence):
        for name, factor in _common_factors(_faulty(fault), evidence):
            sentence = f"your answers equal the oracle's with {fault.sentence}, times {name}"
            yield _Explanation(Diagnosis(sentence, (fault.name,), factor=name), _times(fault.implementation(), factor))
            return


def _times(one: Implementation, factor: Callable[[Step], float]) -> Implementation:
    def ask(step: Step, query: Query) -> Any:
        result = one.ask(step, query)
        if isinstance(result, Marginals):
            by = factor(step)
            return replace(result, values=by * result.values, empty=by * result.empty, total=by * result.total)
        return result if query.function == "update" else factor(step) * result

    return replace(one, name=f"{one.name}, times a factor", ask=ask)


def _pair(evidence: list[_Evidence], passed: list[Outcome], dtype: npt.DTypeLike, deadline: float) -> Diagnosis:
    for one, two in itertools.combinations(_known(evidence), 2):
        if time.monotonic() > deadline:
            return Diagnosis(
                "no known mistake, alone or with a factor, explains your answers; not all pairs were tried"
            )
        for both in (_both(one, two), _both(two, one)):
            if _explains(both, evidence) and not _contradiction(both, passed, dtype):
                sentence = f"your answers equal the oracle's with {one.sentence}, and {two.sentence}"
                return Diagnosis(sentence, (one.name, two.name), together=True)
    return Diagnosis("no known mistake, alone, with a factor or in pairs, explains your answers")


def _both(inner: Fault, outer: Fault) -> Implementation:
    ask = outer.wrap(inner.wrap(ORACLE.ask))
    return replace(ORACLE, name=f"{inner.name} and {outer.name}", ask=ask)


# --- evidence ---------------------------------------------------------------------------------------------------------


def _gather(
    candidate: Implementation, failed: list[Outcome], dtype: npt.DTypeLike, timeout: float | None
) -> list[_Evidence]:
    """Return every case of the failed properties with the candidate's answer, small right and wrong ones first."""
    evidence = []
    for outcome in failed:
        cases = outcome.evidence if outcome.finding is None else (outcome.finding.case, *outcome.evidence)
        for case in cases:
            try:
                got = answer(candidate, case.step, case.query, timeout)
            except (Misbehaviour, Unsupported):
                continue
            right = expected(case.step, case.query)
            evidence.append(_Evidence(case, got, right, bounds(case.step, case.query, dtype)))
    evidence.sort(key=lambda one: size_of(one.case.step))
    wrong, right_ones = ([one for one in evidence if _differs(one, one.right) is kind] for kind in (True, False))
    # First mostly wrong answers, and some right ones, which a fault must leave right.
    some = CASES // 4
    return wrong[: CASES - some] + right_ones[:some] + wrong[CASES - some :] + right_ones[some:]


def _differs(one: _Evidence, other: Answer, factor: float = 1.0) -> bool:
    """Return whether `other`, times `factor`, differs from the candidate's answer."""
    for name, got in one.got.items():
        if name not in other:
            continue
        # A mistake can enlarge the numbers, and with them their rounding errors.
        size = np.abs(factor * other[name]).max(initial=0)
        allowed = 2 * one.bound[name] * np.maximum(1.0, size / _size(one.right[name]))
        if not one.right[name].any():  # a bound near 0 knows nothing about errors of numbers that should be 0
            allowed = np.maximum(allowed, ROUNDINGS * unit_roundoff(one.case.step.dtype) * size)
        if not (np.abs(got - factor * other[name]) <= allowed).all():
            return True
    return False


def _size(array: npt.NDArray[np.float64]) -> float:
    return float(np.abs(array).max(initial=0)) or 1.0


def _explains(faulty: Implementation, evidence: list[_Evidence]) -> bool:
    answers = ((one, _answer_or_none(faulty, one)) for one in evidence)
    return all(other is not None and not _differs(one, other) for one, other in answers)


def _answer_or_none(faulty: Implementation, one: _Evidence) -> Answer | None:
    try:
        return answer(faulty, one.case.step, one.case.query)
    except Misbehaviour:
        return None


def _common_factors(faulty: Implementation, evidence: list[_Evidence]) -> Iterator[tuple[str, Callable[[Step], float]]]:
    """Yield name and value of the factor, if any, between the answers of `faulty` and the candidate's in every case.

    It is never 1, since the answers of `faulty` alone do not match.
    """
    if any("values" not in one.got for one in evidence):
        return
    answers: dict[int, Answer | None] = {}

    def explained_by(factor: Callable[[Step], float]) -> bool:
        return all(fits(place, one, factor(one.case.step)) for place, one in enumerate(evidence))

    def fits(place: int, one: _Evidence, factor: float) -> bool:
        if place not in answers:
            answers[place] = _answer_or_none(faulty, one)
        other = answers[place]
        return other is not None and not _differs(one, other, factor)

    for name, factor in FACTORS:
        if explained_by(factor):
            yield name, factor
            return
    wrong = [place for place, one in enumerate(evidence) if one.got["values"].any() and _differs(one, one.right)]
    if len(wrong) < 2:  # some factor fits any single number
        return
    first = _answer_or_none(faulty, evidence[wrong[0]])
    square = 0.0 if first is None else float(np.vdot(first["values"], first["values"]))
    if first is None or square == 0 or not np.isfinite(square):
        return
    ratio = float(np.vdot(first["values"], evidence[wrong[0]].got["values"]) / square)
    # A factor of 1 is none, and −1 has a name: factors close to them are written with more digits.
    name = next((text for digits in (6, 12) if (text := f"{ratio:.{digits}g}") not in ("1", "-1")), "")
    if name and explained_by(lambda step: ratio):
        yield name, lambda step: ratio
