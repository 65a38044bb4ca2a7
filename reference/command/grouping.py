"""The groups of examples that ``--group`` names: a column of a table or an array, as the name of each row's group."""

from collections.abc import Iterable, Sequence

import numpy as np

from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.spelling import Label, class_name, some
from adamshap.reference.contract import Array

# More groups than this are ids of examples, not groups of them.
MOST_GROUPS = 1000
NO_VALUE = "(no value)"
"""Name of the group of rows without a value."""


def group_names(source: str, name: str, values: Iterable[Label | None]) -> Array:
    """Return the name of each row's group, as text.

    Parameters
    ----------
    source, name : str
        The file and its column or array, for error messages.
    values : iterable of N labels
        None for a row without a value.

    Returns
    -------
    array of str (N,)

    Raises
    ------
    CommandError
        There is a single group, or more than `MOST_GROUPS`.
    """
    names = np.array([NO_VALUE if value is None else class_name(value) for value in values], np.str_)
    count = len(np.unique(names))
    if not 1 < count <= MOST_GROUPS:
        raise CommandError(
            f"--group: {name!r} of {source} has {count} different value{'s' * (count != 1)}; needs 2 to {MOST_GROUPS}"
        )
    return names


def check_group(source: str, columns: Sequence[str], label: str, group: str) -> None:
    """Refuse a group column that the file lacks, or that holds the labels."""
    if group not in columns:
        raise CommandError(f"--group: got {group!r}; needs one of {some(list(columns))}, which {source} has")
    if group == label:
        raise CommandError(
            f"--group: got {group!r}, the label column; needs another, as every run has a table of its classes"
        )
