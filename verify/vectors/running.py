"""Tries test vectors on a candidate, and says of each what came of it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from adamshap.reference.contract import TWO_TERM, Step
from adamshap.verify.cases import CaseError, case_from_json, dumps
from adamshap.verify.implementation import (
    CAPTURES,
    Answer,
    Hung,
    Implementation,
    Misbehaviour,
    Query,
    Unsupported,
    answer,
)
from adamshap.verify.models import PERCEPTRON
from adamshap.verify.vectors.vector import Refusal, Vector

__all__ = ["Result", "asked", "likely_faults", "run_refusals", "run_refusals_of_command", "run_vectors"]

SAMPLING = ("permutations", "seed")
"""Options of `marginals` for more samples than any vector has."""

Status = Literal["passed", "failed", "not supported", "not asked"]


@dataclass(frozen=True)
class Result:
    """The result of one vector.

    Parameters
    ----------
    name : str
        The vector's.
    status : {"passed", "failed", "not supported", "not asked"}
        "not asked" where the contract refuses the case before a Python candidate can see it.
    sentence : str
        What is wrong, or why it is not supported.
    variant : str
        The accepted variant that the answer follows; empty for the oracle's own.
    exposes : tuple of str
        The vector's faults; none where there was no answer to compare with theirs.
    """

    name: str
    status: Status
    sentence: str = ""
    variant: str = ""
    exposes: tuple[str, ...] = ()


def run_vectors(candidate: Implementation, vectors: Iterable[Vector], timeout: float | None = None) -> Iterator[Result]:
    """Yield the result of each vector."""
    for vector in vectors:
        if lacking := _lacking(candidate, vector):
            yield Result(vector.name, "not supported", f"{lacking} is not declared")
            continue
        try:
            got = answer(candidate, vector.step, _as_asked(vector.query), timeout)
        except Unsupported as reason:
            yield Result(vector.name, "not supported", str(reason))
            continue
        except Misbehaviour as error:
            yield Result(vector.name, "failed", f"{vector.query.function}: {error}")
            continue
        yield _compared(vector, got)


def asked(candidate: Implementation, vectors: Iterable[Vector]) -> list[tuple[Step, Query]]:
    """Return the cases of the vectors whose needs a candidate declares."""
    return [(one.step, _as_asked(one.query)) for one in vectors if not _lacking(candidate, one)]


def _lacking(candidate: Implementation, vector: Vector) -> str:
    """Return the first need of a vector that a candidate does not declare; perceptrons need no declaration."""
    two_term = {TWO_TERM} if "kind" in candidate.extras else set()
    declared = candidate.layers | candidate.supports | two_term | {PERCEPTRON}
    needs = (*vector.needs, *((CAPTURES,) if vector.query.function == CAPTURES else ()))
    return next((need for need in needs if need not in declared | candidate.offers), "")


def _as_asked(query: Query) -> Query:
    """Return a call without the options of sampling, which the vectors write out and which play no part in them."""
    return Query(query.function, {name: value for name, value in query.options.items() if name not in SAMPLING})


def _compared(vector: Vector, got: Answer) -> Result:
    sentence = _first_difference(got, vector.expected, vector.bound)
    if not sentence:
        return Result(vector.name, "passed", exposes=vector.exposes)
    for variant in vector.variants:
        if not _first_difference(got, variant.expected, variant.bound):
            return Result(vector.name, "passed", variant=variant.name, exposes=vector.exposes)
    return Result(vector.name, "failed", sentence, exposes=vector.exposes)


def _first_difference(got: Answer, expected: Answer, bound: Answer) -> str:
    """Return a sentence about the number that exceeds its bound most, or an empty text."""
    for name, wanted in expected.items():
        if name not in got or got[name].shape != wanted.shape:
            return f"{name}: got {'nothing' if name not in got else f'shape {got[name].shape}'}, not {wanted.shape}"
        excess = np.abs(got[name] - wanted) - bound[name]
        if not (excess <= 0).all():
            place = np.unravel_index(int(np.argmax(np.where(np.isnan(excess), np.inf, excess))), wanted.shape)
            where = name + "".join(f"[{i}]" for i in place)
            number, right, limit = (float(array[place]) for array in (got[name], wanted, bound[name]))
            return f"{where}: got {number!r}, expected {right!r}, bound {limit:.2g}"
    return ""


def run_refusals(
    candidate: Implementation, refusals: Iterable[Refusal], timeout: float | None = None
) -> Iterator[Result]:
    """Yield the result of each case that a Python candidate must refuse, by an exception."""
    for one in refusals:
        try:
            step, query = case_from_json(one.case)
        except CaseError:
            yield Result(one.name, "not asked", "the contract refuses it")
            continue
        yield _refused(one, lambda step=step, query=query: answer(candidate, step, query, timeout))  # type: ignore[misc]


def run_refusals_of_command(replies: Callable[[list[str]], list[Any]], refusals: Iterable[Refusal]) -> Iterator[Result]:
    """Yield the result of each case that a command must refuse, by a reply with ``error``, or by ending with an error.

    Parameters
    ----------
    replies : callable
        Function from cases, as JSON texts, to the replies of one process of the command.
    refusals : iterable of Refusal
    """
    for one in refusals:
        yield _refused(one, lambda one=one: _answered(replies([dumps(one.case)])[0]))  # type: ignore[misc]


def _answered(reply: Any) -> Any:
    names = set(reply) if isinstance(reply, dict) else set()
    if names == {"unsupported"}:
        raise Unsupported(str(reply["unsupported"]))
    if names == {"error"}:
        raise Misbehaviour(str(reply["error"]))
    return reply


def _refused(one: Refusal, call: Callable[[], Any]) -> Result:
    try:
        call()
    except Unsupported as reason:
        return Result(one.name, "not supported", str(reason))
    except Hung as error:
        return Result(one.name, "failed", str(error))
    except Misbehaviour:
        return Result(one.name, "passed")
    return Result(one.name, "failed", f"{one.field}: answered, although {one.reason}")


def likely_faults(results: Sequence[Result]) -> list[str]:
    """Return the known mistakes that fit: every failed vector exposes them, and no passed one does.

    Where no mistake is exposed by all failures, return those that no passed vector exposes and most failures do.
    """
    counts = Counter(name for one in results if one.status == "failed" for name in one.exposes)
    for one in results:
        if one.status == "passed" and not one.variant:
            for name in one.exposes:
                counts.pop(name, None)
    most = max(counts.values(), default=0)
    return [name for name, count in counts.items() if count == most]
