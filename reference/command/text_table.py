"""Reads .csv and .tsv files; recognises encoding, separator and decimal mark where they are unambiguous."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import numpy as np

from adamshap.reference.command import columns
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.spelling import (
    MISSING,
    TRUTH,
    Decimal,
    Label,
    advice,
    marks,
    number_or_none,
    numbers_of,
    some,
)
from adamshap.reference.command.table import EPS, Column, Reading, Sheet, unreadable
from adamshap.reference.contract import Array, shown

if TYPE_CHECKING:
    from _csv import Reader

SEPARATORS = (",", ";", "\t", "|")
# Number of rows from which the separator is recognised.
FIRST_ROWS = 100
# First bytes of files that are often renamed to .csv.
OTHER_FORMATS = {
    b"\x1f\x8b": "a gzip archive; needs the file in it: gunzip",
    b"PK\x03\x04": "a zip archive or a spreadsheet; needs the file in it, or the sheet exported as .csv",
    b"PAR1\x15": "a Parquet file; needs the ending .parquet",
    b"\xd0\xcf\x11\xe0": "a spreadsheet; needs it exported as .csv",
}


@dataclass(frozen=True, eq=False)
class Cells:
    """A column of text without leading and trailing blanks."""

    name: str
    cells: list[str]
    decimal: Decimal
    where: "Lines"

    def labels(self) -> list[Label | None]:
        """Return the values as labels or categories, None for missing ones."""
        cells = self.cells
        if self.decimal == "," and _all_numbers(cells, ","):
            cells = [cell.replace(",", ".") for cell in cells]
        return [None if cell in MISSING else cell for cell in cells]

    def numbers(self) -> Array:
        """Return the values as float64, NaN for missing ones.

        A column of True and False becomes 1 and 0.
        """
        if self.decimal == "." and "_" not in "".join(self.cells):
            try:
                return np.array(list(map(float, self.cells)))
            except ValueError:
                pass  # not all numbers: True, a missing value, or a cell to refuse
        kinds = {cell.casefold() for cell in self.cells if cell not in MISSING}
        truth = bool(kinds & TRUTH.keys()) and kinds <= TRUTH.keys() | {"0", "1"}
        return np.array([self._number(row, cell, truth) for row, cell in enumerate(self.cells)], np.float64)

    def texts(self) -> list[str]:
        """Return the cells."""
        return self.cells

    def shown(self, row: int) -> str:
        """Return a value as error messages show it."""
        return shown(self.cells[row])

    @property
    def eps(self) -> float:
        """Return the machine epsilon of float64, since numbers in text are read as float64."""
        return EPS

    def _number(self, row: int, cell: str, truth: bool) -> float:
        if cell in MISSING:
            return np.nan
        value = TRUTH.get(cell.casefold()) if truth else None
        value = number_or_none(cell, self.decimal) if value is None else value
        if value is None:
            needs = advice(cell, self.name, self.decimal, distinct=len(set(self.cells)) == len(self.cells))
            raise CommandError(f"{self.where(row)}, column {self.name!r}: got {shown(cell)}; {needs}")
        return value


@dataclass(frozen=True, eq=False)
class Lines:
    """The number of the line on which each row of a file starts."""

    source: str
    numbers: list[int]

    def __call__(self, row: int) -> str:
        """Return the position of `row` for error messages."""
        return f"{self.source}, line {self.numbers[row]}"


@dataclass(frozen=True)
class Layout:
    """Where the text of a file starts and how it is divided.

    Parameters
    ----------
    encoding : str
    separator : str
    first : int
        Lines before the header: Excel's ``sep=;``.
    """

    encoding: Literal["utf-8-sig", "utf-16"]
    separator: str
    first: int


def read(path: Path, label: str, reading: Reading) -> Sheet:
    """Return the columns of a .csv or .tsv file.

    Raises
    ------
    CommandError
        It is not such a file, or its separator or decimal mark is ambiguous.
    """
    source = repr(str(path))
    try:
        layout = _layout(path, source, label, reading)
        with path.open(newline="", encoding=layout.encoding) as file:
            names, numbers, rows = _rows(file, source, layout)
    except OSError as error:
        raise unreadable(source, error) from error
    except UnicodeError as error:
        raise CommandError(
            f"{source}: got bytes that are not UTF-8 text ({error}); needs UTF-8, for example:"
            " iconv -f LATIN1 -t UTF-8 OLD.csv > NEW.csv"
        ) from error
    columns.check_label(source, names, label, _hint(names, label))
    _check_lengths(source, names, numbers, rows)
    names, cells = _without_empty(names, rows)
    columns.check_names(source, names, label, reading)
    if not numbers:
        raise CommandError(f"{source}: got no rows; needs a header and one row for each example")
    _refuse_example_as_header(source, names, label, cells)
    decimal = _decimal(source, layout.separator, names, cells, label, reading)
    where = Lines(source, numbers)
    sheet: dict[str, Column] = {
        name: Cells(name, column, decimal, where) for name, column in zip(names, cells, strict=True)
    }
    return Sheet(path.stem, source, sheet, where, _notes(path, layout, decimal), np.array(numbers))


# --- separator and rows ----------------------------------------------------------------------------------------------


def _layout(path: Path, source: str, label: str, reading: Reading) -> Layout:
    encoding = _encoding(path, source)
    with path.open(newline="", encoding=encoding) as file:
        # Excel's line that names the separator.
        excel = re.fullmatch(r'"?sep=(.)"?\s*', file.readline(), re.I | re.S)
    first = int(excel is not None)
    if reading.sep is not None:
        return Layout(encoding, reading.sep, first)
    if excel is not None:
        return Layout(encoding, excel[1], first)
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    heads = {}
    for separator in SEPARATORS:
        with path.open(newline="", encoding=encoding) as file:
            head = _head(file, separator)
        if head and len(head[0]) > 1:
            heads[separator] = head
    even = [separator for separator, head in heads.items() if len({len(row) for row in head}) == 1]
    # The only separator that finds the label is right even if a row is short, so that the error can name that row.
    named = [separator for separator, head in heads.items() if label in head[0]]
    fits = [separator for separator in named if separator in even] or named or even or [usual]
    if len(fits) > 1:
        raise CommandError(
            f"{source}: its columns may be separated by {' or '.join(map(repr, fits))}; choose one with --sep"
        )
    return Layout(encoding, fits[0], first)


def _encoding(path: Path, source: str) -> Literal["utf-8-sig", "utf-16"]:
    with path.open("rb") as file:
        start = file.read(64)
    for magic, needs in OTHER_FORMATS.items():
        if start.startswith(magic):
            raise CommandError(f"{source}: got {needs}")
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        raise CommandError(f"{source}: got UTF-32; needs UTF-8")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if len(start) >= 8 and (not any(start[:32:2]) or not any(start[1:32:2])):
        raise CommandError(f"{source}: got UTF-16 without a byte order mark, or no text; needs UTF-8")
    return "utf-8-sig"


def _head(file: TextIO, separator: str) -> list[list[str]]:
    """Return the header and the first rows, split at `separator`; an empty list if they cannot be split."""
    try:
        rows = islice(csv.reader(file, delimiter=separator, strict=True, skipinitialspace=separator != " "), FIRST_ROWS)
        return [[cell.strip() for cell in row] for row in rows if any(map(str.strip, row))]
    except csv.Error:
        return []


def _rows(file: TextIO, source: str, layout: Layout) -> tuple[list[str], list[int], list[list[str]]]:
    """Return the header, the line on which each row starts, and the rows."""
    for _ in range(layout.first):
        file.readline()
    reader = csv.reader(file, delimiter=layout.separator, strict=True, skipinitialspace=layout.separator != " ")
    try:
        found = _numbered(reader, layout.first)
        names = next((row for _, row in found if any(row)), [])
        numbers, rows = [], []
        for line, row in found:
            numbers.append(line)
            rows.append(row)
    except csv.Error as error:
        raise CommandError(f"{source}, line {reader.line_num + layout.first}: not valid CSV: {error}") from error
    while rows and not any(rows[-1]):  # a spreadsheet's empty rows at the end
        rows.pop()
        numbers.pop()
    return names, numbers, rows


def _numbered(reader: "Reader", before: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the line on which each row starts, and its cells; `before` lines of the file were not given to `reader`.

    A blank line is not a row. A cell in quotes may have several lines.
    """
    line = before + 1
    for row in reader:
        if row:
            yield line, [cell.strip() for cell in row]
        line = before + reader.line_num + 1


def _check_lengths(source: str, names: list[str], numbers: list[int], rows: list[list[str]]) -> None:
    """Refuse a row with too few or too many cells."""
    for line, row in zip(numbers, rows, strict=True):
        if len(row) != len(names):
            raise CommandError(f"{source}, line {line}: got {len(row)} cells; needs {len(names)}, one for each column")


def _without_empty(names: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Return names and columns without those that have neither: a trailing separator on each line makes one."""
    cells: list[list[str]] = list(map(list, zip(*rows, strict=True))) if rows else [[] for _ in names]
    kept = [(name, column) for name, column in zip(names, cells, strict=True) if name or any(column) or not rows]
    return [name for name, _ in kept], [column for _, column in kept]


def _hint(names: list[str], label: str) -> str:
    """Return a hint about a header without `label`."""
    if any(numbers_of([name]) for name in names):
        return f"; if line 1 is an example, the file needs a header before it, with {label!r} among its names"
    return "" if len(names) > 1 else "; line 1 holds the names of all columns, and --sep what separates them"


def _refuse_example_as_header(source: str, names: list[str], label: str, cells: list[list[str]]) -> None:
    """Refuse a first line that must be an example: its label occurs in other rows, and the rest are numbers."""
    numbers = numbers_of(names)
    counted = bool(numbers) and all(after == before + 1 for before, after in pairwise(numbers))
    others = [name for name in names if name != label]
    if numbers_of(others) and not counted and label in cells[names.index(label)]:
        raise CommandError(
            f"{source}: line 1 ({some(names, 5)}) looks like an example; needs a header before it, a line of names"
        )


# --- decimal mark ----------------------------------------------------------------------------------------------------


def _decimal(
    source: str, separator: str, names: list[str], cells: list[list[str]], label: str, reading: Reading
) -> Decimal:
    """Return the decimal mark that fits every number with a mark."""
    if reading.decimal is not None:
        return reading.decimal
    left_out = {*reading.drop, *reading.one_hot, reading.id, reading.group}
    certain: dict[str, str] = {}
    doubtful: dict[str, str] = {}
    for name, column in zip(names, cells, strict=True):
        if name in left_out or (name == label and not (_all_numbers(column, ".") or _all_numbers(column, ","))):
            continue
        for found, into in zip(marks(column), (certain, doubtful), strict=True):
            for mark, cell in found.items():
                into.setdefault(mark, cell)
    if len(certain) == 2:
        raise CommandError(
            f"{source}: got {certain[',']!r} and {certain['.']!r}; needs the same decimal mark in all numbers,"
            " given by --decimal"
        )
    if certain:
        return "," if "," in certain else "."
    # A point is usually the decimal mark, except where semicolons as separators suggest decimal commas.
    if "," in doubtful or ("." in doubtful and separator == ";"):
        example = doubtful.get(",") or doubtful["."]
        raise CommandError(
            f"{source}: got {example!r}, where {example.strip('+-0123456789')!r} may be the decimal mark or a"
            " thousands separator; choose the decimal mark with --decimal . or --decimal ,"
        )
    return "."


def _all_numbers(cells: Sequence[str], decimal: Decimal) -> bool:
    return all(cell in MISSING or number_or_none(cell, decimal) is not None for cell in cells)


def _notes(path: Path, layout: Layout, decimal: Decimal) -> tuple[str, ...]:
    """Return a note on whatever differs from the file ending's usual format."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    found = []
    if layout.encoding == "utf-16":
        found.append("its text is UTF-16")
    if layout.separator != usual:
        found.append(f"columns are separated by {layout.separator!r}")
    if decimal != ".":
        found.append(f"the decimal mark is {decimal!r}")
    return (", ".join(found),) if found else ()
