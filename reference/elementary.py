"""The oracle's elementary operations: libraries round them differently, and the kit measures the effect.

A library's sum depends on its order, 1 − β^t may have an absolute error, and so on: perturbed inputs do not show such
errors. Each of these operations is one function marked `elementary`, computed here as exactly as float64 allows.
`computed_by` replaces them temporarily: it is the only way in which rounding errors enter the oracle. A new layer takes
its products, activations and losses from functions marked `elementary`, and marks its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

__all__ = ["OPERATIONS", "computed_by", "elementary"]

Given = ParamSpec("Given")
Result = TypeVar("Result")

OPERATIONS: dict[str, Callable[..., Any]] = {}
"""The exact operations by name."""

_others: dict[str, Callable[..., Any]] = {}


def elementary(exact: Callable[Given, Result]) -> Callable[Given, Result]:
    """Mark a function as an elementary operation, registered under its name."""
    name = exact.__name__
    OPERATIONS[name] = exact

    @wraps(exact)
    def operation(*given: Given.args, **named: Given.kwargs) -> Result:
        return _others.get(name, exact)(*given, **named)  # type: ignore[no-any-return]

    return operation


@contextmanager
def computed_by(others: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Compute the operations named in `others` by these functions instead, within the context."""
    if unknown := others.keys() - OPERATIONS.keys():
        raise KeyError(f"no elementary operations: {', '.join(sorted(unknown))}")
    before = dict(_others)
    _others.update(others)
    try:
        yield
    finally:
        _others.clear()
        _others.update(before)
