"""How numbers, missing values and the names of classes and categories are spelled in files."""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from adamshap.reference.contract import shown

Label = int | float | str
Decimal = Literal[".", ","]

# What pandas.read_csv takes for a missing value, and "?", which the UCI repository writes.
MISSING = frozenset(
    [
        *("", "?", "NA", "N/A", "n/a", "NULL", "null", "None", "NaN", "nan", "-NaN", "-nan"),
        *("#N/A", "#N/A N/A", "#NA", "<NA>", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    ]
)
TRUTH = {"false": 0.0, "true": 1.0}

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
# Numbers with a decimal mark, and those of them whose mark may as well separate thousands.
_MARKED = {mark: re.compile(rf"[+-]?(\d+\{mark}\d*|\{mark}\d+)(e[+-]?\d+)?", re.I) for mark in ".,"}
_THOUSANDS = {mark: re.compile(rf"[+-]?[1-9]\d{{0,2}}\{mark}\d{{3}}") for mark in ".,"}
_GROUPED = re.compile(
    r"(?P<groups>[+-]?\d{1,3}(?P<mark>[\s'’_.,])\d{3}((?P=mark)\d{3})*)(?P<rest>((?!(?P=mark))[.,]\d*)?)"
)
_UNIT = re.compile(r"[$€£¥₹%‰\s]|USD|EUR|GBP|CHF")
_DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}([T ].*)?|\d{1,2}([-/.])\d{1,2}\3\d{2,4}([T ].*)?|\d{1,2}:\d{2}(:.*)?")


def some(names: Sequence[str], most: int = 20) -> str:
    """Return the first names, quoted and cut where they are long, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def quoted(name: str) -> str:
    """Return `name` as a shell takes it for one argument."""
    return name if re.fullmatch(r"[\w.:@%+/-]+", name) else "'" + name.replace("'", "'\\''") + "'"


# --- numbers ---------------------------------------------------------------------------------------------------------


def number_or_none(text: str, decimal: Decimal = ".") -> float | None:
    """Return the number that `text` is, if it is one."""
    # float() also reads Python's own 1_000, which is no number in a table.
    if "_" in text or (decimal == "," and "." in text):
        return None
    try:
        return float(text.replace(decimal, "."))
    except ValueError:
        return None


def marks(cells: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the first number with each decimal mark: where it can be nothing else, and where it may be thousands."""
    certain: dict[str, str] = {}
    doubtful: dict[str, str] = {}
    for mark, pattern in _MARKED.items():
        for cell in filter(pattern.fullmatch, (cell for cell in cells if mark in cell)):
            if not _THOUSANDS[mark].fullmatch(cell):
                certain[mark] = cell
                break
            doubtful.setdefault(mark, cell)
    return certain, doubtful


def advice(cell: str, column: str, decimal: Decimal) -> str:
    """Return what is needed in place of a cell that is no number."""
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
    return f"needs a number; {categories_or_nothing(column)}"


def _digits(text: str) -> str:
    return re.sub(r"[^\d+-]", "", text)


def categories_or_nothing(column: str) -> str:
    """Return what can be done about a column of text."""
    return (
        f"--one-hot {quoted(column)} makes a feature of 0 and 1 for each category of the column,"
        f" --drop {quoted(column)} leaves it out"
    )


# --- names of classes and categories ---------------------------------------------------------------------------------


def class_name(kind: Label) -> str:
    """Return the name of the class with this label: text as it is spelled, so that "007" is another one than "7"."""
    if isinstance(kind, str | bool):
        return str(kind)
    return str(int(kind)) if kind == int(kind) else repr(kind)


def are_integers(names: Iterable[str]) -> bool:
    """Return whether all are the shortest spelling of an integer."""
    return all(map(_INTEGER.fullmatch, names))


def are_codes(names: Iterable[str]) -> bool:
    """Return whether one has the leading zero that a code has and a quantity has not: 007."""
    return any(re.match(r"[+-]?0[0-9]", name) for name in names)


def numbers_of(names: Sequence[str]) -> list[float]:
    """Return `names` as numbers, if all of them are finite ones; else nothing."""
    numbers = [number for number in map(number_or_none, names) if number is not None and math.isfinite(number)]
    return numbers if len(numbers) == len(names) else []


def in_order(names: Iterable[str]) -> list[str]:
    """Return the different names, by size where all are numbers."""
    different = sorted(set(names))
    if not numbers_of(different):
        return different
    # Integers that float64 does not tell apart are ordered as integers.
    return sorted(different, key=lambda name: (float(name), int(name) if _INTEGER.fullmatch(name) else 0, name))


def matched(names: Collection[str], known: Sequence[str]) -> dict[str, str]:
    """Return which of `known` each of `names` is, without the names that are none of them.

    True and False, in any case of letters, are 1 and 0, and a whole number may end in ".0", as pandas writes it: two
    files may differ in this where it leaves no doubt.
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
    """Return the first of `names` that may be one of `known` in another spelling, and that one."""
    loose = {_loose(name): name for name in known}
    return next(((name, loose[_loose(name)]) for name in names if _loose(name) in loose), None)


def twice(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two of the different `names` that may be one in two spellings."""
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
    # Integers that float64 does not tell apart are no spellings of one another.
    return plain if _INTEGER.fullmatch(plain) and abs(number) >= 2.0**53 else number
