"""The common form of all kinds of files: columns, and then a table of numbers with a label for each row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.file_rows import FileRows
from adamshap.reference.command.spelling import Decimal, Label
from adamshap.reference.contract import Array, LazyRows

Task = Literal["classification", "regression", "text"]
Missing = Literal["mean", "drop"]

TEXT_TABLES = (".csv", ".tsv")
TABLES = (*TEXT_TABLES, ".parquet")
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Reading:
    """The command's options for reading a .csv, .tsv or .parquet file.

    Parameters
    ----------
    sep : str, optional
        The separator of a .csv or .tsv; recognised by default.
    decimal : {".", ","}, optional
        The decimal mark of a .csv or .tsv; recognised by default.
    one_hot, drop : tuple of str
        Columns of categories, and columns to leave out.
    missing : {"mean", "drop"}, optional
        Fill a missing value with the column's mean, or leave its row out; by default, refuse it.
    id : str, optional
        A column that names the rows, and is no feature.
    group : str, optional
        The column of the examples' groups, which is no feature unless `one_hot` names it too; of an .npz, an array.
    """

    sep: str | None = None
    decimal: Decimal | None = None
    one_hot: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing: Missing | None = None
    id: str | None = None
    group: str | None = None

    def is_feature(self, column: str, label: str) -> bool:
        """Return whether `column` of a table becomes features."""
        return column not in (label, self.id, *self.drop) and (column != self.group or column in self.one_hot)


@dataclass(frozen=True)
class Fitted:
    """Values of the training data that a validation file reuses: categories of columns and means of features."""

    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Table:
    """The content of a file or a bundled data set, before its labels are read as classes or quantities.

    Parameters
    ----------
    name, source : str
        Name for display, and for error messages.
    x : float64 array or `LazyRows` (N, d)
    labels : sequence of N labels (all numbers, or all text), or real array (N, k)
    features : tuple of d str
    image_shape : tuple of two or three int, or None
        As in `datasets.Dataset`.
    task : {"classification", "regression"}, or None
        The data set's task, if known.
    rows : int array (N,), or None
        Row numbers in the file, if some rows were left out.
    notes : tuple of str
        Messages for the user about how the file was read.
    fitted : Fitted
    gaps : bool array (N, d), or None
        Values that were missing and are filled with the mean of the others.
    x_eps, y_eps : float, or array (d,) or (k,)
        `eps_of` the file's dtype of the columns, or of the targets.
    in_file : FileRows of N rows, or None
        The rows as a file with columns has them.
    groups : array of str (N,), or None
        The name of each row's group.
    """

    name: str
    source: str
    x: Array | LazyRows
    labels: Sequence[Label] | Array
    features: tuple[str, ...]
    image_shape: tuple[int, ...] | None = None
    task: Task | None = None
    rows: Array | None = None
    notes: tuple[str, ...] = ()
    fitted: Fitted = field(default_factory=Fitted)
    gaps: Array | None = None
    x_eps: Array | float = EPS
    y_eps: Array | float = EPS
    in_file: FileRows | None = None
    groups: Array | None = None


def eps_of(dtype: np.dtype[Any]) -> float:
    """Return the machine epsilon of `dtype`, at least float64's; 0 for integers."""
    return max(float(np.finfo(dtype).eps), EPS) if dtype.kind == "f" else 0.0


class Column(Protocol):
    """A column of a file, one value a row."""

    def labels(self) -> list[Label | None]:
        """Return the values as labels or categories, None for missing ones."""

    def numbers(self) -> Array:
        """Return the values as float64, NaN for missing ones."""

    def texts(self) -> list[str]:
        """Return the values as text, empty for missing ones."""

    def shown(self, row: int) -> str:
        """Return a value as error messages show it."""

    @property
    def eps(self) -> float:
        """Return `eps_of` the file's dtype of the values."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """The columns of a file.

    Parameters
    ----------
    name, source : str
        Name for display, and for error messages.
    columns : dict of str to Column
    where : callable
        ``where(row)`` names the row's position in the file, for error messages.
    notes : tuple of str
    lines : int array (N,), or None
        The line on which each row starts, in a file of lines.
    """

    name: str
    source: str
    columns: dict[str, Column]
    where: Callable[[int], str]
    notes: tuple[str, ...] = ()
    lines: Array | None = None


def unreadable(source: str, error: OSError) -> CommandError:
    """Return the error for a file that cannot be opened or read."""
    return CommandError(f"cannot read {source}: {error.strerror or error}")
