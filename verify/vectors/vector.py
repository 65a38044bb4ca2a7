"""A test vector, and its JSON.

Version 1 has the fields ``name, seed, oracle, case, expected, bound, exposes``. Version 2 adds ``flag``, ``needs``, and
``variants`` where other answers are accepted.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from adamshap.reference.contract import Step
from adamshap.verify.cases import CaseError, answer_from_json, answer_to_json, case_from_json, case_to_json
from adamshap.verify.implementation import Answer, Query
from adamshap.verify.json_values import Json, brief
from adamshap.verify.vectors.needs import needs_of

__all__ = ["Flag", "Refusal", "Variant", "Vector", "refusal_from_json", "vector_from_json", "vector_to_json"]

Flag = Literal["valid", "acceptable", "must_refuse"]
"""Whether only the expected answer is right, other answers are legitimate too, or no answer is right."""


@dataclass(frozen=True, eq=False)
class Variant:
    """Another answer that is accepted.

    Parameters
    ----------
    name : str
        Name of the variant of the method, explained in ``variants.json``.
    expected, bound : named arrays
        Its answer, and the error allowed.
    """

    name: str
    expected: Answer
    bound: Answer


@dataclass(frozen=True, eq=False)
class Vector:
    """One test vector with an answer.

    Parameters
    ----------
    name : str
        Its function, in version 2 its group, and a number.
    seed : int
        Seed of its step.
    oracle : str
        Version of adamshap that computed the answer.
    step, query
        The case.
    expected, bound : named arrays
        The oracle's answer, and the error allowed in float64, element by element.
    exposes : tuple of str
        Names of the faults that clearly fail it.
    variants : tuple of Variant
        Other answers that are accepted; none in version 1.
    """

    name: str
    seed: int
    oracle: str
    step: Step
    query: Query
    expected: Answer
    bound: Answer
    exposes: tuple[str, ...]
    variants: tuple[Variant, ...] = ()

    @property
    def flag(self) -> Flag:
        """Whether other answers are legitimate too."""
        return "acceptable" if self.variants else "valid"

    @property
    def needs(self) -> tuple[str, ...]:
        """What an implementation must support to answer it."""
        return needs_of(self.step, self.query)


@dataclass(frozen=True)
class Refusal:
    """A case that has no right answer.

    Parameters
    ----------
    name : str
    case : dict
        The case in JSON; it may break the schema of cases.
    field : str
        What is wrong in it.
    reason : str
        Why no answer can be right, in a sentence.
    """

    name: str
    case: Json
    field: str
    reason: str


def vector_to_json(vector: Vector, version: int) -> Json:
    """Return a vector in JSON types."""
    value = {
        "name": vector.name,
        "seed": vector.seed,
        "oracle": vector.oracle,
        "case": case_to_json(vector.step, vector.query),
        "expected": answer_to_json(vector.expected),
        "bound": answer_to_json(vector.bound),
        "exposes": list(vector.exposes),
    }
    if version == 1:
        return value
    variants = [
        {"name": one.name, "expected": answer_to_json(one.expected), "bound": answer_to_json(one.bound)}
        for one in vector.variants
    ]
    head = {"name": vector.name, "flag": vector.flag, "needs": list(vector.needs)}
    return head | value | ({"variants": variants} if variants else {})


def vector_from_json(value: Any, where: str, function: str, version: int) -> Vector:
    """Return the vector that `value` describes.

    Raises
    ------
    CaseError
        Its case or an answer is invalid.
    KeyError, TypeError
        A name is missing, or has a value of another type.
    """
    step, query = case_from_json(value["case"], where)
    if query.function != function:
        raise CaseError(f"{where}: calls {query.function}")
    right, bound = _answers(value, where)
    variants = tuple(
        Variant(one["name"], *_answers(one, f"{where}, variant {one['name']!r}")) for one in value.get("variants", ())
    )
    for one in variants:
        if _shapes(one.expected) != _shapes(right):
            raise CaseError(f"{where}: variant {one.name!r} differs from the expected answer in names or shapes")
    vector = Vector(
        value["name"], value["seed"], value["oracle"], step, query, right, bound, tuple(value["exposes"]), variants
    )
    if version > 1 and (value["flag"], tuple(value["needs"])) != (vector.flag, vector.needs):
        got = brief([value["flag"], value["needs"]])
        raise CaseError(f"{where}: got the flag and needs {got}; needs {brief([vector.flag, list(vector.needs)])}")
    return vector


def refusal_from_json(value: Any, where: str) -> Refusal:
    """Return the refusal that `value` describes."""
    if value["flag"] != "must_refuse":
        raise CaseError(f"{where}: got the flag {value['flag']!r}; needs 'must_refuse'")
    return Refusal(value["name"], value["case"], value["field"], value["reason"])


def _answers(value: Any, where: str) -> tuple[Answer, Answer]:
    right, bound = (answer_from_json(value[key], f"{where}, {key}") for key in ("expected", "bound"))
    if _shapes(right) != _shapes(bound):
        raise CaseError(f"{where}: expected and bound differ in names or shapes")
    return right, bound


def _shapes(answer: Answer) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(array) for name, array in answer.items()}
