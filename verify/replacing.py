"""The oracle with another function in place of one of its own, for a while: how faults and rounding errors are made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adamshap import reference
from adamshap.reference import adam, carry, game, ghost, network, run, two_term

MODULES = (reference, adam, carry, network, game, ghost, run, two_term)
"""The oracle's modules that may hold a function under its name."""

TABLES: tuple[dict[str, Any], ...] = (ghost.SLOPE_FUNCTIONS, ghost.GRADIENT_FUNCTIONS, network.ACTIVATION_FUNCTIONS)
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
