"""The spelling of numbers, missing values and the names of classes and categories in files."""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from adamshap.reference.contract import shown

Label = int | float | str
Decimal = Literal[".", ","]

# Missing values as in pandas.read_csv, and "?", which the UCI repository uses.
MISSING = frozenset(
    [
        *("", "?", "NA", "N/A", "n/a", "NULL", "null", "None", "NaN", "nan", "-NaN", "-nan"),
        *("#N/A", "#N/A N/A", "#NA", "<NA>", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    ]
)
TRUTH = {"false": 0.0, "true": 1.0}

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
# Numbers with a decimal mark, and those whose mark may also be a thousands separator.
_MARKED = {mark: re.compile(rf"[+-]?(\d+\{mark}\d*|\{mark}\d+)(e[+-]?\d+)?", re.I) for mark in ".,"}
_THOUSANDS = {mark: re.compile(rf"[+-]?[1-9]\d{{0,2}}\{mark}\d{{3}}") for mark in ".,"}
_GROUPED = re.compile(
    r"(?P<groups>[+-]?\d{1,3}(?P<mark>[\s'’_.,])\d{3}((?P=mark)\d{3})*)(?P<rest>((?!(?P=mark))[.,]\d*)?)"
)
_UNIT = re.compile(r"[$€£¥₹%‰\s]|USD|EUR|GBP|CHF")
_DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}([T ].*)?|\d{1,2}([-/.])\d{1,2}\3\d{2,4}([T ].*)?|\d{1,2}:\d{2}(:.*)?")


def some(names: Sequence[str], most: int = 20) -> str:
    """Return the first names, quoted and shortened if long, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def in_one_line(text: str) -> str:
    """Return text of the user's data without line breaks, and without codes that would move the terminal's cursor."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def quoted(name: str) -> str:
    """Return `name` quoted as one argument for the shell."""
    return name if re.fullmatch(r"[\w.:@%+/-]+", name) else "'" + name.replace("'", "'\\''") + "'"


# --- numbers ---------------------------------------------------------------------------------------------------------


def number_or_none(text: str, decimal: Decimal = ".") -> float | None:
    """Return `text` as a number, or None."""
    # float() also accepts Python's 1_000, which is not a number in a table.
    if "_" in text or (decimal == "," and "." in text):
        return None
    try:
        return float(text.replace(decimal, "."))
    except ValueError:
        return None


def marks(cells: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the first cell with each mark: as an unambiguous decimal mark, and as a possible thousands separator."""
    certain: dict[str, str] = {}
    doubtful: dict[str, str] = {}
    for mark, pattern in _MARKED.items():
        for cell in filter(pattern.fullmatch, (cell for cell in cells if mark in cell)):
            if not _THOUSANDS[mark].fullmatch(cell):
                certain[mark] = cell
                break
            doubtful.setdefault(mark, cell)
    return certain, doubtful


def advice(cell: str, column: str, decimal: Decimal, *, distinct: bool) -> str:
    """Return advice for a cell that is not a number; `distinct` is whether no two cells of its column are alike."""
    other: Decimal = "," if decimal == "." else "."
    if number_or_none(cell, other) is not None and not _THOUSANDS[other].fullmatch(cell):
        return f"needs a number with the decimal mark {decimal!r}, or --decimal {other}"
    grouped = _GROUPED.fullmatch(cell)
    if grouped:
        mark = grouped["rest"][:1]
        option = f", and --decimal {mark}" if mark and mark != decimal else ""
        return f"needs a number without thousands separators: {_digits(grouped['groups'])}{grouped['rest']}{option}"
    if number_or_none(cell.replace("−", "-"), decimal) is not None:
        return "needs a number with a plain minus sign, -"
    if number_or_none(_UNIT.sub("", cell), decimal) is not None:
        return "needs the number alone, without currency, percent sign or unit"
    if _DATE.fullmatch(cell):
        return f"needs a number, such as the days since a certain date; --drop {quoted(column)} leaves the column out"
    return f"needs a number; {categories_or_nothing(column, distinct=distinct)}"


def _digits(text: str) -> str:
    return re.sub(r"[^\d+-]", "", text)


def categories_or_nothing(column: str, *, distinct: bool) -> str:
    """Return advice for a column of text; `distinct` is whether no two of its values are alike."""
    return (
        f"--one-hot {quoted(column)} makes a feature of 0 and 1 for each category of the column,"
        f" {name_or_nothing(column, distinct=distinct)}"
    )


def name_or_nothing(column: str, *, distinct: bool) -> str:
    """Return advice for a column that is no feature: `distinct` values may name the rows, and others groups of them."""
    uses = f"--id {quoted(column)} names the rows by it" if distinct else f"--group {quoted(column)} scores its groups"
    return f"{uses}, --drop {quoted(column)} leaves it out"


# --- names of classes and categories ---------------------------------------------------------------------------------


def class_name(kind: Label) -> str:
    """Return the class name of a label. Text keeps its spelling: "007" and "7" are different classes."""
    if isinstance(kind, str | bool):
        return str(kind)
    return str(int(kind)) if kind == int(kind) else repr(kind)


def are_integers(names: Iterable[str]) -> bool:
    """Return whether every name is the shortest spelling of an integer."""
    return all(map(_INTEGER.fullmatch, names))


def are_codes(names: Iterable[str]) -> bool:
    """Return whether any name has a leading zero, as codes do and quantities do not: 007."""
    return any(re.match(r"[+-]?0[0-9]", name) for name in names)


def numbers_of(names: Sequence[str]) -> list[float]:
    """Return `names` as numbers if all are finite numbers; otherwise an empty list."""
    numbers = [number for number in map(number_or_none, names) if number is not None and math.isfinite(number)]
    return numbers if len(numbers) == len(names) else []


def in_order(names: Iterable[str]) -> list[str]:
    """Return the distinct names, in numerical order if all are numbers."""
    different = sorted(set(names))
    if not numbers_of(different):
        return different
    # Integers that are equal as float64 are ordered as integers.
    return sorted(different, key=lambda name: (float(name), int(name) if _INTEGER.fullmatch(name) else 0, name))


def matched(names: Collection[str], known: Sequence[str]) -> dict[str, str]:
    """Return a mapping from `names` to the matching ones of `known`, without names that match none.

    True and False, in any case, match 1 and 0, and a whole number may end in ".0", as pandas writes it, as long as the
    match is unambiguous.
    """
    found = {name: name for name in names if name in known}
    plain = {_plain(name): name for name in known}
    others = {_plain(name): name for name in names}
    if len(plain) < len(known) or len(others) < len(set(names)):
        return found
    truth = any(name.casefold() in TRUTH for name in (*names, *known))
    if truth and not plain.keys() <= {"0", "1"}:
        return found
    return found | {name: plain[key] for key, name in others.items() if key in plain}


def respelled(names: Iterable[str], known: Sequence[str]) -> tuple[str, str] | None:
    """Return the first of `names` that may be a different spelling of one of `known`, and that one."""
    loose = {_loose(name): name for name in known}
    return next(((name, loose[_loose(name)]) for name in names if _loose(name) in loose), None)


def twice(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two of the distinct `names` that may be two spellings of the same name."""
    seen: dict[str | float, str] = {}
    for name in names:
        if seen.setdefault(_loose(name), name) != name:
            return seen[_loose(name)], name
    return None


def _plain(name: str) -> str:
    if name.casefold() in TRUTH:
        return str(int(TRUTH[name.casefold()]))
    whole = re.fullmatch(r"(0|-?[1-9]\d{0,14})\.0", name)
    return whole[1] if whole else name


def _loose(name: str) -> str | float:
    plain = _plain(name)
    number = number_or_none(plain)
    if number is None:
        return plain.casefold().strip()
    # Different integers that are equal as float64 are not spellings of one another.
    return plain if _INTEGER.fullmatch(plain) and abs(number) >= 2.0**53 else number
