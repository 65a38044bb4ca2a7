"""Checks that the installed oracle still gives the answers of the test vectors."""

from collections.abc import Iterable

from adamshap.verify.cases import case_from_json
from adamshap.verify.oracle import ORACLE, expected
from adamshap.verify.tolerance import assert_within
from adamshap.verify.vectors.vector import Refusal, Vector

__all__ = ["answered_refusals", "disagreements"]


def disagreements(vectors: Iterable[Vector]) -> list[str]:
    """Return a sentence for each vector whose expected answer the installed oracle does not reproduce."""
    found = []
    for vector in vectors:
        again = expected(vector.step, vector.query)
        if {name: array.shape for name, array in again.items()} != {
            name: array.shape for name, array in vector.expected.items()
        }:
            found.append(f"{vector.name}: names or shapes of the answer differ from the oracle's")
            continue
        for name, array in again.items():
            try:
                assert_within(vector.expected[name], array, vector.bound[name], f"{vector.name}, {name}")
            except AssertionError as error:
                found.append(str(error))
    return found


def answered_refusals(refusals: Iterable[Refusal]) -> list[str]:
    """Return a sentence for each case that the installed oracle, or the reader of cases, does not refuse."""
    found = []
    for one in refusals:
        try:
            ORACLE.ask(*case_from_json(one.case))
        except (ValueError, TypeError):
            continue
        found.append(f"{one.name}: the oracle answers it, although {one.reason}")
    return found
