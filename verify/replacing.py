"""The oracle with another function in place of one of its own, for a while: how faults and rounding errors are made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adamshap import reference
from adamshap.reference import (
    accounts,
    adam,
    carry,
    game,
    losses,
    models,
    perceptron,
    run,
    scoring,
    slopes,
    two_term,
    validation,
)

MODULES = (
    reference,
    adam,
    models,
    perceptron,
    losses,
    game,
    slopes,
    validation,
    scoring,
    two_term,
    carry,
    accounts,
    run,
)
"""The oracle's modules that may hold a function under its name."""

TABLES: tuple[dict[str, Any], ...] = (
    slopes.SLOPE_FUNCTIONS,
    validation.GRADIENT_FUNCTIONS,
    perceptron.ACTIVATION_FUNCTIONS,
)
"""And its tables of functions."""


@contextmanager
def replaced(name: str, original: Any, substitute: Any) -> Iterator[None]:
    """Replace a function of the oracle, wherever one of its modules or tables holds it under that name.

    Parameters
    ----------
    name : str
        In modules the function's own, in a table its key.
    original, substitute : callable
    """
    holders = [module for module in MODULES if getattr(module, name, None) is original]
    tables = [table for table in TABLES if table.get(name) is original]
    for module in holders:
        setattr(module, name, substitute)
    for table in tables:
        table[name] = substitute
    try:
        yield
    finally:
        for module in holders:
            setattr(module, name, original)
        for table in tables:
            table[name] = original
