"""DATA of the command: a name or a file becomes arrays, class names and feature names, or one clear error."""

import csv
import importlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adamshap.reference.command.errors import CommandError
from adamshap.reference.problem import Array

Label = int | float | str

# More numbers than this, as labels, are taken for a quantity where they also are fractions or mostly differ.
MANY_CLASSES = 20
# Above this, a float no longer tells neighbouring integers apart: such labels are names.
EXACT_INTEGERS = 2.0**53


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled examples, as the user gave them.

    Parameters
    ----------
    name : str
    x : float64 array (N, d)
    y : int64 array (N,)
        Class of each example, an index into `classes`.
    classes : tuple of str
        At least two, each with at least two examples.
    features : tuple of d str
    image_shape : tuple (height, width), or None
        How an example's features make a picture, row by row.
    """

    name: str
    x: Array
    y: Array
    classes: tuple[str, ...]
    features: tuple[str, ...]
    image_shape: tuple[int, int] | None = None


def load(data: str, label: str | None = None) -> Dataset:
    """Return the data set that `data` names.

    Parameters
    ----------
    data : str
        One of `BUNDLED`, or the path of a ``.npz`` or ``.csv`` file.
    label : str, optional
        The label column of a ``.csv``; by default "label".

    Raises
    ------
    CommandError
        For everything that keeps `data` from being a classification data set.
    """
    path = Path(data)
    suffix = path.suffix.lower()
    if label is not None and suffix != ".csv":
        raise CommandError(f"--label: got {label!r} with {data!r}; needs a .csv file, whose column it names")
    if data in BUNDLED:
        return _bundled(data)
    if suffix == ".csv":
        return _read_csv(path, "label" if label is None else label)
    if suffix == ".npz":
        return _read_npz(path)
    kind = ", which is a folder" if path.is_dir() else ""
    raise CommandError(f"DATA: got {data!r}{kind}; needs one of {', '.join(BUNDLED)}, or a .npz or .csv file")


# --- scikit-learn's bundled data -------------------------------------------------------------------------------------

BUNDLED = ("digits", "breast_cancer", "wine")


def _bundled(name: str) -> Dataset:
    try:
        sklearn_datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise CommandError(f'{name} needs scikit-learn ({error}): pip install "adamshap[demo]"') from error
    bunch = getattr(sklearn_datasets, f"load_{name}")()
    shape = bunch.images.shape[1:] if "images" in bunch else None
    classes = [str(target) for target in bunch.target_names]
    return _dataset(
        name, name, bunch.data, [classes[target] for target in bunch.target], tuple(bunch.feature_names), shape
    )


# --- npz -------------------------------------------------------------------------------------------------------------


def _read_npz(path: Path) -> Dataset:
    source = repr(str(path))
    x, y = _npz_arrays(path, source)
    if x.dtype.kind not in "biuf":
        raise CommandError(f"{source}: x: got dtype {x.dtype}; needs numbers")
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise CommandError(
            f"{source}: x: got shape {x.shape}; needs (N, features), or (N, height, width) for images, not empty"
        )
    if y.dtype.kind not in "biufU":
        raise CommandError(f"{source}: y: got dtype {y.dtype}; needs integers or text")
    if y.shape != (len(x),):
        raise CommandError(f"{source}: y: got shape {y.shape}; needs one label for each row of x, ({len(x)},)")
    if y.dtype.kind == "f":
        y = y.astype(np.float64)
        if not np.isfinite(y).all():
            raise CommandError(f"{source}: y, row {np.flatnonzero(~np.isfinite(y))[0]}: got NaN or infinity as a label")
    image_shape = (x.shape[1], x.shape[2]) if x.ndim == 3 else None
    features = tuple("x[" + ",".join(map(str, place)) + "]" for place in np.ndindex(x.shape[1:]))
    with np.errstate(over="ignore"):  # what float64 cannot hold becomes infinite, and is refused as that
        flat = x.reshape(len(x), -1).astype(np.float64)
    return _dataset(path.stem, source, flat, y.tolist(), features, image_shape)


def _npz_arrays(path: Path, source: str) -> tuple[Array, Array]:
    needs = "needs a .npz file with the arrays x and y, as numpy.savez writes it"
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CommandError(f"{source}: got a single array; {needs}")
            missing = [name for name in ("x", "y") if name not in archive.files]
            if missing:
                raise CommandError(
                    f"{source}: no array {_some(missing)} among {_some(archive.files) or 'none'}; {needs}"
                )
            return archive["x"], archive["y"]
    except OSError as error:
        raise _unreadable(source, error) from error
    except CommandError:
        raise
    except Exception as error:
        # Bytes from outside, read by zipfile, zlib and NumPy: a broken file can raise almost anything.
        raise CommandError(f"{source}: {type(error).__name__}: {error}; {needs}") from error


# --- csv -------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, label: str) -> Dataset:
    source = repr(str(path))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            # A blank line is no row; line_num counts lines of the file, the header's included.
            return _table(path.stem, source, label, ((reader.line_num, row) for row in reader if row))
    except OSError as error:
        raise _unreadable(source, error) from error
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{source}: got bytes that are no UTF-8 text ({error.reason}); needs a .csv in UTF-8"
        ) from error
    except csv.Error as error:
        raise CommandError(f"{source}, line {reader.line_num}: no valid CSV: {error}") from error


def _table(name: str, source: str, label: str, rows: Iterator[tuple[int, list[str]]]) -> Dataset:
    columns = [column.strip() for column in next(rows, (0, []))[1]]
    _check_columns(source, columns, label)
    at = columns.index(label)
    features = columns[:at] + columns[at + 1 :]
    x: list[list[float]] = []
    labels: list[str] = []
    for line, row in rows:
        where = f"{source}, line {line}"
        if len(row) != len(columns):
            raise CommandError(f"{where}: got {len(row)} cells; needs {len(columns)}, one for each column")
        labels.append(row.pop(at).strip())
        if not labels[-1]:
            raise CommandError(f"{where}, column {label!r}: got no label")
        x.append([_number(where, column, cell) for column, cell in zip(features, row, strict=True)])
    if not x:
        raise CommandError(f"{source}: got no rows; needs a header and one row for each example")
    return _dataset(name, source, np.array(x), _numbers_or_text(source, label, labels), tuple(features))


def _check_columns(source: str, columns: list[str], label: str) -> None:
    if not columns:
        raise CommandError(f"{source}: the file is empty; needs a header and one row for each example")
    for number, column in enumerate(columns, start=1):
        if not column:
            raise CommandError(
                f"{source}: column {number} has no name; needs names for all (from pandas: save with index=False)"
            )
    doubles = [column for column, count in Counter(columns).items() if count > 1]
    if doubles:
        raise CommandError(f"{source}: got {_some(doubles)} more than once; needs column names that differ")
    if label not in columns:
        raise CommandError(f"{source}: no column {label!r} for the labels; --label names one of {_some(columns)}")
    if len(columns) == 1:
        raise CommandError(f"{source}: got only the label column; needs at least one column of numbers")


def _some(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _number(where: str, column: str, cell: str) -> float:
    value = _float(cell)
    if value is None or not math.isfinite(value):
        raise CommandError(f"{where}, column {column!r}: got {cell!r}; needs a finite number")
    return value


def _float(text: str) -> float | None:
    # float() also reads Python's own 1_000, which is no number in a table.
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _numbers_or_text(source: str, label: str, labels: list[str]) -> Sequence[Label]:
    """Return the labels as numbers if all of them are, so that "1" and "1.0" are one class; else the text as it is."""
    numbers = [number for number in map(_float, labels) if number is not None]
    if len(numbers) < len(labels):
        return labels
    if not all(map(math.isfinite, numbers)):
        raise CommandError(f"{source}, column {label!r}: got NaN or infinity as a label")
    return numbers if all(abs(number) < EXACT_INTEGERS for number in numbers) else labels


# --- for all of them -------------------------------------------------------------------------------------------------


def _unreadable(source: str, error: OSError) -> CommandError:
    return CommandError(f"cannot read {source}: {error.strerror or error}")


def _dataset(
    name: str,
    source: str,
    x: Array,
    labels: Sequence[Label],
    features: tuple[str, ...],
    image_shape: tuple[int, int] | None = None,
) -> Dataset:
    """Return the data set, if it is one that can be split and trained on; `source` names it in errors."""
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        raise CommandError(f"{source}: x, row {row}, {features[column]}: got {x[row, column]}; needs finite numbers")
    counts = Counter(labels)
    kinds = sorted(counts)  # all numbers, or all text
    fewest = min(kinds, key=counts.__getitem__)
    _refuse_quantity(source, kinds, len(labels), counts[fewest])
    if len(kinds) == 1:
        raise CommandError(
            f"{source}: all {len(labels)} examples are of class {_class_name(kinds[0])!r}; needs two classes"
        )
    if counts[fewest] < 2:
        raise CommandError(
            f"{source}: class {_class_name(fewest)!r} has one example; needs two, to train on and to validate"
        )
    index = {kind: number for number, kind in enumerate(kinds)}
    y = np.array([index[kind] for kind in labels], np.int64)
    return Dataset(name, x, y, tuple(map(_class_name, kinds)), features, image_shape)


def _refuse_quantity(source: str, kinds: Sequence[Label], count: int, fewest: int) -> None:
    """Refuse labels that look like the target of a regression: a quantity, not a class."""
    numbers = [kind for kind in kinds if not isinstance(kind, str)]
    many = len(numbers) > MANY_CLASSES and (fewest < 2 or any(number != int(number) for number in numbers))
    if many or (len(numbers) > 2 and 2 * len(numbers) > count):
        raise CommandError(
            f"{source}: the labels are {len(numbers)} different numbers in {count} examples, which looks like"
            " the target of a regression; needs classes"
        )


def _class_name(kind: Label) -> str:
    if isinstance(kind, str):
        return kind
    return str(int(kind)) if kind == int(kind) else repr(kind)
