"""Checks of plain arguments: names, numbers, flags and functions. Errors name the field."""

import math
import operator
import re
import sys
from typing import Any, TypeVar

import numpy as np

from adamshap.reference.contract.refusal import refuse

__all__ = [
    "MOST_LETTERS",
    "MOST_SEEDS",
    "MOST_STEPS",
    "Kind",
    "check_callable",
    "not_negative",
    "of_kind",
    "one_of",
    "positive_integer",
    "real_number",
    "seed_of",
    "shown",
    "true_or_false",
]

Kind = TypeVar("Kind")
MOST_LETTERS = 200
MOST_STEPS = 1 << 40  # limits the steps of a run and the permutations of a batch: more would take centuries
MOST_SEEDS = (1 << 128) - 1


def shown(value: object) -> str:
    """Return `value` as errors show it: its repr, on one line, truncated if long."""
    try:
        text = re.sub(r"\s*\n\s*", " ", repr(value))
    except Exception:  # an integer with too many digits, or a broken repr
        return f"a value of type {type(value).__name__} that cannot be printed"
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + "…"


def one_of(field: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        refuse(field, shown(value), "one of " + ", ".join(choices))
    return value


def of_kind(field: str, value: Any, kind: type[Kind]) -> Kind:
    """Return `value` if it is an instance of `kind`, a class of this contract."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        refuse(field, type(value).__name__, f"{article} {kind.__name__}", TypeError)
    return value


def check_callable(field: str, value: object) -> None:
    """Refuse a `value` that is neither None nor callable."""
    if value is not None and not callable(value):
        refuse(field, shown(value), "a function, or None", TypeError)


def true_or_false(field: str, value: object) -> bool:
    """Return `value`, Python's or NumPy's, as a bool."""
    if not isinstance(value, bool | np.bool_):
        refuse(field, shown(value), "True or False", TypeError)
    return bool(value)


def positive_integer(field: str, value: object, minimum: int = 1, maximum: int | None = sys.maxsize) -> int:
    """Return `value` as an int from `minimum` to `maximum`; booleans and floats are refused."""
    if isinstance(value, bool | np.bool_):
        refuse(field, shown(value), f"an integer of at least {minimum}", TypeError)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        refuse(field, shown(value), f"an integer of at least {minimum}", TypeError)
    if number < minimum:
        refuse(field, shown(number), f"an integer of at least {minimum}")
    if maximum is not None and number > maximum:
        refuse(field, shown(number), f"an integer of at most {maximum}")
    return number


def seed_of(value: object) -> int:
    """Return `value` as a seed for NumPy: a non-negative integer of up to 128 bits."""
    return positive_integer("seed", value, minimum=0, maximum=MOST_SEEDS)


def real_number(field: str, value: object, needs: str) -> float:
    """Return `value` as a finite float; booleans are refused."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        refuse(field, shown(value), needs, TypeError)
    try:
        number = float(value)
    except OverflowError:  # an integer beyond float64
        number = math.inf if value > 0 else -math.inf
    if not math.isfinite(number):
        refuse(field, shown(number), needs)
    return number


def not_negative(field: str, value: object) -> float:
    """Return `value` as a finite float of at least 0."""
    needs = "a finite real number of at least 0"
    number = real_number(field, value, needs)
    if number < 0:
        refuse(field, shown(number), needs)
    return number
