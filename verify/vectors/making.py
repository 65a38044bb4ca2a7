"""Answers planned vectors with the oracle, and finds the known mistakes that each of them exposes."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version as version_of
from typing import Any

import numpy as np

from adamshap.reference.contract import Step
from adamshap.verify.faults import AUTO_FAULTS, FAULTS, LATER_FAULTS, LAYER_FAULTS, LOOP_FAULTS, Fault
from adamshap.verify.implementation import Answer, Misbehaviour, Query, answer
from adamshap.verify.oracle import bounds, expected, without_memory
from adamshap.verify.vectors import plan_v1, plan_v2
from adamshap.verify.vectors.conventions import CONVENTIONS, Convention
from adamshap.verify.vectors.edition import EDITIONS, Edition
from adamshap.verify.vectors.folder import Folder, read
from adamshap.verify.vectors.plan import Planned
from adamshap.verify.vectors.refusals import refusals
from adamshap.verify.vectors.vector import Variant, Vector

__all__ = ["CLEARLY", "DRAWS", "answered", "exposed", "known_faults", "made", "misses"]

CLEARLY = 16.0
"""A vector names a fault whose error exceeds the bound this many times, so that it does so on any machine."""

DRAWS = 32
"""Number of perturbed answers for each spread in a bound, which is measured once for all machines."""


def made(edition: Edition) -> Folder:
    """Return all vectors of a version, answered by the installed oracle.

    Version 2 takes over the cases and answers of version 1 as they are installed, and finds anew what they expose.
    """
    faults = known_faults(edition.version)
    explained = {fault.name: {"sentence": fault.sentence, "source": fault.source} for fault in faults}
    if edition.version == 1:
        return Folder(edition, list(answered(plan_v1.planned(), faults)), [], explained, {})
    older = [replace(one, exposes=exposed(one, faults)) for one in read(EDITIONS[1].folder).vectors]
    vectors = [*older, *answered(plan_v2.planned(), faults)]
    variants = {one.name: {"sentence": one.sentence, "source": one.source} for one in CONVENTIONS}
    return Folder(edition, vectors, list(refusals()), explained, variants)


def exposed(vector: Vector, faults: Iterable[Fault]) -> tuple[str, ...]:
    """Return the names of the faults that clearly fail a vector."""
    case = vector.step, vector.query, vector.expected, vector.bound
    return tuple(fault.name for fault in faults if misses(fault, *case, CLEARLY))


def known_faults(version: int) -> tuple[Fault, ...]:
    """Return the faults that the vectors of a version explain and expose.

    Version 1 has perceptrons and plain Adam only. No version has those of edges, whose cases are large.
    """
    return FAULTS if version == 1 else (*FAULTS, *LATER_FAULTS, *LAYER_FAULTS, *LOOP_FAULTS, *AUTO_FAULTS)


def answered(plans: Iterable[Planned], faults: Iterable[Fault]) -> Iterator[Vector]:
    """Yield planned vectors with the installed oracle's answers."""
    faults = tuple(faults)
    for plan in plans:
        case = plan.step, plan.query
        answers = _answers(*case)
        variants = tuple(_variant(convention, *case) for convention in plan.conventions)
        vector = Vector(plan.name, plan.seed, version_of("adamshap"), *case, *answers, (), variants)
        yield replace(vector, exposes=exposed(vector, faults))


def _answers(step: Step, query: Query) -> tuple[Answer, Answer]:
    """Return the oracle's answer, and its bound."""
    bound = bounds(step, query, np.float64, DRAWS)
    return expected(step, query), {name: _rounded_up(array) for name, array in bound.items()}


def _variant(convention: Convention, step: Step, query: Query) -> Variant:
    """Return the oracle's answer by another convention, and its bound."""
    with convention.within(), without_memory():
        return Variant(convention.name, *_answers(convention.change(step), query))


def misses(fault: Fault, step: Step, query: Query, right: Answer, bound: Answer, times: float = 1.0) -> bool:
    """Return whether `fault` raises an error, or exceeds the bound more than `times` times."""
    try:
        with np.errstate(all="ignore"):
            wrong = answer(fault.implementation(), step, query)
    except Misbehaviour:
        return True
    return any(bool((np.abs(wrong[name] - array) > times * bound[name]).any()) for name, array in right.items())


def _rounded_up(array: Any) -> Any:
    """Return `array` rounded up to three digits (by at most 2 %): enough for a bound, and the files stay small."""
    return np.array([float(f"{1.01 * x:.2e}") for x in np.ravel(array)]).reshape(np.shape(array))
