"""Answers planned vectors with the oracle, and finds the known mistakes that each of them exposes."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version as version_of
from typing import Any

import numpy as np

from adamshap.reference.contract import Step
from adamshap.verify.faults import FAULTS, LAYER_FAULTS, Fault
from adamshap.verify.implementation import Answer, Misbehaviour, Query, answer
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.vectors import plan_v1, plan_v2
from adamshap.verify.vectors.edition import EDITIONS, Edition
from adamshap.verify.vectors.folder import Folder, read
from adamshap.verify.vectors.plan import Planned
from adamshap.verify.vectors.refusals import refusals
from adamshap.verify.vectors.vector import Vector

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
    return Folder(edition, vectors, list(refusals()), explained, {})


def exposed(vector: Vector, faults: Iterable[Fault]) -> tuple[str, ...]:
    """Return the names of the faults that clearly fail a vector."""
    case = vector.step, vector.query, vector.expected, vector.bound
    return tuple(fault.name for fault in faults if misses(fault, *case, CLEARLY))


def known_faults(version: int) -> tuple[Fault, ...]:
    """Return the faults that the vectors of a version explain and expose: version 1 has perceptrons only."""
    return FAULTS if version == 1 else (*FAULTS, *LAYER_FAULTS)


def answered(plans: Iterable[Planned], faults: Iterable[Fault]) -> Iterator[Vector]:
    """Yield planned vectors with the installed oracle's answers."""
    faults = tuple(faults)
    for plan in plans:
        case = plan.step, plan.query
        right = expected(*case)
        bound = {name: _rounded_up(array) for name, array in bounds(*case, np.float64, DRAWS).items()}
        vector = Vector(plan.name, plan.seed, version_of("adamshap"), *case, right, bound, ())
        yield replace(vector, exposes=exposed(vector, faults))


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
