"""Turns the columns of a file into a table of numbers: labels, categories, dropped columns, missing values."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.file_rows import FileRows
from adamshap.reference.command.grouping import check_group, group_names
from adamshap.reference.command.spelling import (
    Label,
    class_name,
    in_order,
    matched,
    name_or_nothing,
    quoted,
    respelled,
    some,
    twice,
)
from adamshap.reference.command.table import EPS, Column, Fitted, Reading, Sheet, Table
from adamshap.reference.contract import Array

# A column with more categories than this identifies examples (names, ids) rather than groups of them.
MOST_CATEGORIES = 1000
NAMELESS = ("", "Unnamed: 0")
"""Names of a column that has none: as it is written, and as pandas reads it."""


def check_label(source: str, columns: Sequence[str], label: str, hint: str = "") -> None:
    """Refuse a file without the label column; `hint` is appended to the message."""
    if not columns:
        raise CommandError(f"{source}: the file is empty; needs a header and one row for each example")
    if label not in columns:
        raise CommandError(f"{source}: no column {label!r} for the labels; --label names one of {some(columns)}{hint}")


def check_names(source: str, columns: Sequence[str], label: str, reading: Reading) -> None:
    """Refuse unnamed columns, columns of the same name, and a table without features."""
    kept = [column for column in columns if column not in reading.drop and column != reading.id]
    for number, column in enumerate(columns, start=1):
        if column in kept and column in NAMELESS:
            what = "has no name; needs names for all" if not column else f"is {column!r}, pandas' row numbers"
            raise CommandError(
                f"{source}: column {number} {what} (from pandas: save with index=False; --drop {quoted(column)} leaves"
                " it out)"
            )
    doubles = [column for column, count in Counter(kept).items() if count > 1]
    if doubles:
        raise CommandError(f"{source}: got {some(doubles)} more than once; needs column names that differ")
    if label in reading.drop:
        raise CommandError(f"--drop: got {label!r}, the label column; needs a column of features")
    if not any(reading.is_feature(column, label) for column in columns):
        only = "the label column" if reading.group not in columns else "columns of labels and groups"
        raise CommandError(f"{source}: got only {only}; needs at least one column of numbers")


def table_of(sheet: Sheet, label: str, reading: Reading, fitted: Fitted | None = None) -> Table:
    """Return the table of numbers that `sheet` holds.

    Parameters
    ----------
    sheet : Sheet
        With names that `check_names` has accepted.
    label : str
        The label column.
    reading : Reading
    fitted : Fitted, optional
        Categories and means of the training data, for a validation file.

    Raises
    ------
    CommandError
        For a column without numbers or with a missing value, unless `reading` has an option for it.
    """
    if fitted is None:
        _check_options(sheet, label, reading)
    labels = sheet.columns[label].labels()
    notes = list(sheet.notes)
    features, x, eps, categories = _features(sheet, label, reading, fitted, notes)
    lacks = np.array([value is None for value in labels])
    if lacks.any() and reading.missing != "drop":
        row = int(np.flatnonzero(lacks)[0])
        raise CommandError(
            f"{sheet.where(row)}, column {label!r}: got {sheet.columns[label].shown(row)}, no label; needs one, or"
            " --missing drop, which leaves such rows out (a class of this name needs another name)"
        )
    rows, means, gaps, in_file = None, {}, None, _in_file(sheet, label, reading)
    if reading.missing == "drop":
        kept = ~(lacks | np.isnan(x).any(axis=1))
        if not kept.any():
            raise CommandError(f"--missing drop: {sheet.source} has no row without missing values; needs some")
        if not kept.all():
            notes.append(f"{(~kept).sum()} of {len(kept)} rows have missing values and are left out")
            rows, x = np.flatnonzero(kept), x[kept]
            in_file = in_file.take(rows)
            labels = [labels[row] for row in rows]
    elif reading.missing == "mean":
        means = _means(sheet, features, x) if fitted is None else fitted.means
        gaps = np.isnan(x)
        _fill(features, x, gaps, means, notes)
    if fitted is None:
        notes += _about_ids(reading.id, in_file.ids)
    found: list[Label] = [value for value in labels if value is not None]
    groups = None
    if fitted is None and reading.group is not None:
        values = sheet.columns[reading.group].labels()
        kept_values = values if rows is None else [values[row] for row in rows]
        groups = group_names(sheet.source, reading.group, kept_values)
    return Table(
        sheet.name,
        sheet.source,
        x,
        found,
        tuple(features),
        None,
        None,
        rows,
        tuple(notes),
        Fitted(categories, means),
        gaps,
        # A gap is filled with a mean, which is rounded to float64 whatever the column's dtype.
        np.array(eps) if gaps is None else np.where(gaps.any(axis=0), np.maximum(eps, EPS), eps),
        sheet.columns[label].eps,
        in_file,
        groups,
    )


def _in_file(sheet: Sheet, label: str, reading: Reading) -> FileRows:
    shown = [name for name in sheet.columns if name not in (label, reading.id, *NAMELESS)]
    ids = None if reading.id not in sheet.columns else sheet.columns[reading.id].texts()
    return FileRows({name: sheet.columns[name].texts() for name in shown}, sheet.lines, ids)


def _about_ids(column: str | None, ids: list[str] | None) -> list[str]:
    """Return a note if an id names several rows, which the results then cannot tell apart by it."""
    name, count = Counter(filter(None, ids or ())).most_common(1)[0] if any(ids or ()) else ("", 1)
    return [f"the ids of {column!r} are not unique: {name!r} is on {count} rows"] if count > 1 else []


def _features(
    sheet: Sheet, label: str, reading: Reading, fitted: Fitted | None, notes: list[str]
) -> tuple[list[str], Array, list[float], dict[str, tuple[str, ...]]]:
    """Return names, values (N, d) and epsilons of the features, and the categories of the one-hot columns."""
    features: list[str] = []
    parts: list[Array] = []
    eps: list[float] = []
    categories: dict[str, tuple[str, ...]] = {}
    for name, column in sheet.columns.items():
        if not reading.is_feature(name, label):
            continue
        if name in reading.one_hot:
            known = None if fitted is None else fitted.categories.get(name)
            part, categories[name] = _one_hot(sheet, name, column, known, notes)
            features += [f"{name}={category}" for category in categories[name]]
        else:
            part = _numbers(sheet, name, column)[:, None]
            features.append(name)
        # A row without a value is NaN in every feature of its column, so the first feature finds all such rows.
        if reading.missing is None and np.isnan(part[:, 0]).any():
            raise _no_value(sheet, name, column, int(np.flatnonzero(np.isnan(part[:, 0]))[0]))
        parts.append(part)
        eps += [0.0 if name in reading.one_hot else column.eps] * part.shape[1]
    doubles = [feature for feature, count in Counter(features).items() if count > 1]
    if doubles:
        raise CommandError(f"{sheet.source}: got the features {some(doubles)} more than once; needs names that differ")
    return features, np.concatenate(parts, axis=1), eps, categories


def _check_options(sheet: Sheet, label: str, reading: Reading) -> None:
    if reading.group is not None:
        check_group(sheet.source, list(sheet.columns), label, reading.group)
    ids = () if reading.id is None else (reading.id,)
    for option, names in (("--drop", reading.drop), ("--one-hot", reading.one_hot), ("--id", ids)):
        unknown = [name for name in names if name not in sheet.columns]
        if unknown:
            raise CommandError(
                f"{option}: got {some(unknown)}; needs columns of {sheet.source}: {some(list(sheet.columns))}"
            )
    if label in reading.one_hot:
        raise CommandError(f"--one-hot: got {label!r}, the label column; needs a column of features")
    if reading.id == label:
        raise CommandError(f"--id: got {label!r}, the label column; needs a column that names the rows")
    if reading.id in reading.one_hot:
        raise CommandError(f"--one-hot: got {reading.id!r} with --id; needs one of the two")
    both = [name for name in reading.one_hot if name in reading.drop]
    if both:
        raise CommandError(f"--one-hot: got {some(both)} with --drop; needs one of the two")


def _numbers(sheet: Sheet, name: str, column: Column) -> Array:
    numbers = column.numbers()
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        row = int(infinite[0])
        raise CommandError(f"{sheet.where(row)}, column {name!r}: got {column.shown(row)}; needs a finite number")
    return numbers


def _one_hot(
    sheet: Sheet, name: str, column: Column, known: tuple[str, ...] | None, notes: list[str]
) -> tuple[Array, tuple[str, ...]]:
    """Return a column of zeros and ones for each category, and the categories; rows without a value are NaN."""
    values = [None if value is None else class_name(value) for value in column.labels()]
    names = in_order(value for value in values if value is not None)
    if known is None:
        if len(names) > MOST_CATEGORIES:
            raise CommandError(
                f"--one-hot: column {name!r} of {sheet.source} has {len(names)} categories; needs at most"
                f" {MOST_CATEGORIES}; {name_or_nothing(name, distinct=len(names) == len(values))}"
            )
        if not names:
            raise CommandError(
                f"{sheet.source}, column {name!r}: got no value at all; --drop {quoted(name)} leaves it out"
            )
        known = tuple(names)
        pair = twice(names)
        if pair:
            notes.append(f"column {name!r}: {pair[0]!r} and {pair[1]!r} are two categories, as they are spelled")
    same = matched(names, known)
    unknown = [value for value in names if value not in same]
    other = respelled(unknown, known)
    if other:
        raise CommandError(
            f"--valid: {sheet.source}, column {name!r}: got the category {other[0]!r}, the training data {other[1]!r};"
            " needs one spelling"
        )
    if unknown:
        count = sum(value in unknown for value in values)
        notes.append(
            f"column {name!r}: {some(unknown, 5)} ({count} of {len(values)} rows) is no category of the"
            " training data; all features of the column are 0 there"
        )
    place = {category: number for number, category in enumerate(known)}
    part = np.zeros((len(values), len(known)))
    for row, value in enumerate(values):
        if value is None:
            part[row] = np.nan
        elif value in same:
            part[row, place[same[value]]] = 1.0
    return part, known


def _no_value(sheet: Sheet, name: str, column: Column, row: int) -> CommandError:
    return CommandError(
        f"{sheet.where(row)}, column {name!r}: got {column.shown(row)}, no value; needs a number, or --missing mean,"
        " which fills in the column's mean, or --missing drop, which leaves such rows out"
    )


def _means(sheet: Sheet, features: list[str], x: Array) -> dict[str, float]:
    empty = np.flatnonzero(np.isnan(x).all(axis=0))
    if len(empty):
        name = features[int(empty[0])]
        raise CommandError(f"{sheet.source}, column {name!r}: got no value at all; --drop {quoted(name)} leaves it out")
    with np.errstate(over="ignore"):
        means = column_means(x)
    if not np.isfinite(means).all():
        name = features[int(np.flatnonzero(~np.isfinite(means))[0])]
        raise CommandError(f"{sheet.source}, column {name!r}: its mean is beyond float64; needs smaller numbers")
    return dict(zip(features, means.tolist(), strict=True))


def column_means(x: Array) -> Array:
    """Return the mean of each column without its missing values; the mean of equal values is exactly that value."""
    base = np.nanmin(x, axis=0)
    means: Array = base + np.nanmean(x - base, axis=0)
    return means


def _fill(features: list[str], x: Array, gaps: Array, means: dict[str, float], notes: list[str]) -> None:
    for at in np.flatnonzero(gaps.any(axis=0)):
        if features[at] in means:  # otherwise the training data lacks the feature, which `load_valid` refuses
            x[gaps[:, at], at] = means[features[at]]
    if gaps.any():
        rows, columns = int(gaps.any(axis=1).sum()), [features[at] for at in np.flatnonzero(gaps.any(axis=0))]
        notes.append(
            f"missing values in {rows} of {len(x)} rows are the mean of the training data in {some(columns, 5)}"
        )
