"""Temporary replacement of a function of the oracle, which is how faults are planted."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adamshap import reference


@contextmanager
def replaced(name: str, original: Any, substitute: Any) -> Iterator[None]:
    """Replace a function of the oracle in every module, and every table among its constants, that has it as `name`.

    Parameters
    ----------
    name : str
        The function's name in modules, or its key in a table.
    original, substitute : callable
        The function and its replacement.
    """
    holders = [space for space in _name_spaces() if space.get(name) is original]
    for space in holders:
        space[name] = substitute
    try:
        yield
    finally:
        for space in holders:
            space[name] = original


def _name_spaces() -> Iterator[dict[str, Any]]:
    """Yield the variables of the oracle's modules, and the tables among their constants."""
    within = f"{reference.__name__}."
    for module in [module for name, module in sys.modules.items() if f"{name}.".startswith(within)]:
        yield vars(module)
        yield from (table for name, table in vars(module).items() if type(table) is dict and name[0].isupper())
