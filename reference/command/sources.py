"""What the command reads: a bundled data set or files, as a table of numbers with labels, or one clear error."""

import csv
import importlib
import io
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adamshap.reference.command.errors import CommandError
from adamshap.reference.problem import Array, Rows

Label = int | float | str
Task = Literal["classification", "regression"]

# Above this, a float no longer tells neighbouring integers apart: such labels are names.
EXACT_INTEGERS = 2.0**53
TABLES = (".csv", ".parquet")
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Table:
    """What a file or a bundled data set holds, before it is known what its labels are.

    Parameters
    ----------
    name, source : str
        For people, and as errors name it.
    x : float64 array or `Rows` (N, d)
    labels : sequence of N labels (all numbers, or all text), or real array (N, k)
    features : tuple of d str
    image_shape : tuple (height, width), or None
    task : {"classification", "regression"}, or None
        What the data set is made for, where that is known.
    x_eps, y_eps : float, or array (d,) or (k,)
        `eps_of` the dtype in which the file has the columns, or the targets.
    """

    name: str
    source: str
    x: Array | Rows
    labels: Sequence[Label] | Array
    features: tuple[str, ...]
    image_shape: tuple[int, int] | None = None
    task: Task | None = None
    x_eps: Array | float = EPS
    y_eps: Array | float = EPS


def eps_of(dtype: np.dtype[Any]) -> float:
    """Return the relative rounding of numbers of `dtype`: 0 for integers."""
    return max(float(np.finfo(dtype).eps), EPS) if dtype.kind == "f" else 0.0


def read(argument: str, data: str, label: str | None = None) -> Table:
    """Return what `data` names, the value of the command's `argument`.

    Parameters
    ----------
    argument : str
        As errors name it.
    data : str
        As for `datasets.load`.
    label : str, optional
        The label column of a table; by default "label".

    Raises
    ------
    CommandError
        Where it cannot be read, or is no table of numbers with a label for each row.
    """
    if "\0" in data:
        raise CommandError(f"{argument}: got {data!r}; needs a name without the character 0")
    path = Path(data)
    suffix = path.suffix.lower()
    if label is not None and suffix not in TABLES:
        raise CommandError(
            f"--label: got {label!r} with {data!r}; needs a .csv or .parquet file, whose column it names"
        )
    if data in BUNDLED:
        return _bundled(data)
    if suffix == ".csv":
        return _read_csv(path, "label" if label is None else label)
    if suffix == ".parquet":
        return _read_parquet(path, "label" if label is None else label)
    if suffix == ".npz":
        return _arrays(path, *_npz_arrays(path))
    if suffix == ".npy":
        return _read_pair(argument, data)
    kind = ", which is a folder" if path.is_dir() else ""
    raise CommandError(
        f"{argument}: got {data!r}{kind}; needs one of {', '.join(BUNDLED)}, or a .npz, .csv or .parquet file,"
        " or x.npy,y.npy"
    )


def absolute(data: str) -> str:
    """Return `data` so that it is found from any folder: with absolute paths, or the name that it is."""
    if data in BUNDLED:
        return data
    return ",".join(map(os.path.abspath, data.split(","))) if data.lower().endswith(".npy") else os.path.abspath(data)


# --- scikit-learn's bundled data -------------------------------------------------------------------------------------

BUNDLED = ("digits", "breast_cancer", "wine", "diabetes")


def _bundled(name: str) -> Table:
    try:
        sklearn_datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise CommandError(f'{name} needs scikit-learn ({error}): pip install "adamshap[demo]"') from error
    bunch = getattr(sklearn_datasets, f"load_{name}")()
    features = tuple(bunch.feature_names)
    if "target_names" not in bunch:
        return Table(name, name, bunch.data, bunch.target[:, None], features, None, "regression")
    shape = bunch.images.shape[1:] if "images" in bunch else None
    classes = [str(target) for target in bunch.target_names]
    return Table(name, name, bunch.data, [classes[at] for at in bunch.target], features, shape, "classification")


# --- npz and npy -----------------------------------------------------------------------------------------------------


def _arrays(path: Path, x: Array, y: Array) -> Table:
    source = repr(str(path))
    if x.dtype.kind not in "biuf":
        raise CommandError(f"{source}: x: got dtype {x.dtype}; needs numbers")
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise CommandError(
            f"{source}: x: got shape {x.shape}; needs (N, features), or (N, height, width) for images, not empty"
        )
    if y.dtype.kind not in "biufU":
        raise CommandError(f"{source}: y: got dtype {y.dtype}; needs numbers or text")
    if y.shape[:1] != x.shape[:1] or y.ndim > 2 or 0 in y.shape or (y.ndim == 2 and y.dtype.kind not in "iuf"):
        raise CommandError(
            f"{source}: y: got shape {y.shape} of dtype {y.dtype}; needs one label for each row of x, ({len(x)},),"
            f" or numbers ({len(x)}, targets) for a regression"
        )
    eps = eps_of(x.dtype), eps_of(y.dtype)
    if y.dtype.kind == "f":
        y = y.astype(np.float64)
        bad = ~np.isfinite(y.reshape(len(y), -1)).all(axis=1)
        if bad.any():
            raise CommandError(f"{source}: y, row {np.flatnonzero(bad)[0]}: got NaN or infinity as a label")
    image_shape = (x.shape[1], x.shape[2]) if x.ndim == 3 else None
    features = tuple("x[" + ",".join(map(str, place)) + "]" for place in np.ndindex(x.shape[1:]))
    rows = Rows(x)
    table_x = rows if isinstance(x, np.memmap) else rows[:]
    return Table(path.stem, source, table_x, y.tolist() if y.ndim == 1 else y, features, image_shape, None, *eps)


def _read_pair(argument: str, data: str) -> Table:
    paths = [Path(part) for part in data.split(",")]
    if len(paths) != 2 or any(path.suffix.lower() != ".npy" for path in paths):
        raise CommandError(f"{argument}: got {data!r}; needs two files, the inputs and the labels: x.npy,y.npy")
    return _arrays(paths[0], *map(_npy_array, paths))


def _npy_array(path: Path) -> Array:
    """Return the array as a memory map: it may be larger than memory."""
    source, needs = repr(str(path)), "needs a .npy file, as numpy.save writes it"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise _unreadable(source, error) from error
    except Exception as error:  # as for .npz
        raise _broken(source, error, needs) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise CommandError(f"{source}: got an archive of arrays; {needs}")
    return array


def _npz_arrays(path: Path) -> tuple[Array, Array]:
    source = repr(str(path))
    needs = "needs a .npz file with the arrays x and y, as numpy.savez writes it"
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CommandError(f"{source}: got a single array; {needs}")
            missing = [name for name in ("x", "y") if name not in archive.files]
            if missing:
                raise CommandError(f"{source}: no array {some(missing)} among {some(archive.files) or 'none'}; {needs}")
            return archive["x"], archive["y"]
    except OSError as error:
        raise _unreadable(source, error) from error
    except CommandError:
        raise
    except Exception as error:
        # Bytes from outside, read by zipfile, zlib and NumPy: a broken file can raise almost anything.
        raise _broken(source, error, needs) from error


def _broken(source: str, error: Exception, needs: str) -> CommandError:
    """Return an error for a file that NumPy does not read; its advice to read such a file without care is left out."""
    what = (
        "got Python objects, or no NumPy file"
        if "pickle" in str(error) or "Python objects" in str(error)
        else f"{type(error).__name__}: {error}"
    )
    return CommandError(f"{source}: {what}; {needs}")


# --- csv -------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, label: str) -> Table:
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


def _table(name: str, source: str, label: str, rows: Iterator[tuple[int, list[str]]]) -> Table:
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
    return Table(name, source, np.array(x), _numbers_or_text(source, label, labels), tuple(features))


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
        raise CommandError(f"{source}: got {some(doubles)} more than once; needs column names that differ")
    if label not in columns:
        raise CommandError(f"{source}: no column {label!r} for the labels; --label names one of {some(columns)}")
    if len(columns) == 1:
        raise CommandError(f"{source}: got only the label column; needs at least one column of numbers")


def some(names: Sequence[str], most: int = 20) -> str:
    """Return the first names, quoted, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _number(where: str, column: str, cell: str) -> float:
    value = number_or_none(cell)
    if value is None or not math.isfinite(value):
        raise CommandError(f"{where}, column {column!r}: got {cell!r}; needs a finite number")
    return value


def number_or_none(text: str) -> float | None:
    """Return the number that `text` is, if it is one."""
    # float() also reads Python's own 1_000, which is no number in a table.
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _numbers_or_text(source: str, label: str, labels: list[str]) -> Sequence[Label]:
    """Return the labels as numbers if all of them are, so that "1" and "1.0" are one class; else the text as it is."""
    numbers = [number for number in map(number_or_none, labels) if number is not None]
    if len(numbers) < len(labels):
        return labels
    if not all(map(math.isfinite, numbers)):
        raise CommandError(f"{source}, column {label!r}: got NaN or infinity as a label")
    return numbers if all(abs(number) < EXACT_INTEGERS for number in numbers) else labels


# --- parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, label: str) -> Table:
    source = repr(str(path))
    try:
        pandas = importlib.import_module("pandas")
        importlib.import_module("pyarrow")
    except ImportError as error:
        raise CommandError(f'{source} needs pandas and pyarrow ({error}): pip install "adamshap[tables]"') from error
    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise _unreadable(source, error) from error
    try:
        frame = pandas.read_parquet(content, engine="pyarrow")
    except Exception as error:  # as for .npz; some of pyarrow's are OSErrors
        raise CommandError(
            f"{source}: {type(error).__name__}: {error}; needs a .parquet file, as pandas writes it"
        ) from error
    columns = list(map(str, frame.columns))
    frame.columns = columns
    _check_columns(source, columns, label)
    if not len(frame):
        raise CommandError(f"{source}: got no rows; needs one for each example")
    features = [column for column in columns if column != label]
    missing = frame[label].isna().to_numpy()
    if missing.any():
        raise CommandError(f"{source}, row {np.flatnonzero(missing)[0]}, column {label!r}: got no label")
    labels = frame[label].tolist()
    if all(isinstance(value, bool | int | float) for value in labels):
        if not all(map(math.isfinite, labels)):
            raise CommandError(f"{source}, column {label!r}: got NaN or infinity as a label")
    elif not all(isinstance(value, str) for value in labels):
        raise CommandError(f"{source}, column {label!r}: got dtype {frame[label].dtype}; needs numbers or text")
    x, eps = np.empty((len(frame), len(features))), np.empty(len(features))
    for at, column in enumerate(features):
        if not pandas.api.types.is_numeric_dtype(frame[column]) or frame[column].dtype.kind == "c":
            raise CommandError(f"{source}, column {column!r}: got dtype {frame[column].dtype}; needs numbers")
        x[:, at] = frame[column].to_numpy(dtype=np.float64, na_value=np.nan)  # refused later, by its row
        eps[at] = _eps_in_pandas(frame[column].dtype)
    numbers = pandas.api.types.is_numeric_dtype(frame[label])
    y_eps = _eps_in_pandas(frame[label].dtype) if numbers else EPS
    return Table(path.stem, source, x, labels, tuple(features), x_eps=eps, y_eps=y_eps)


def _eps_in_pandas(dtype: Any) -> float:
    """Return `eps_of` a dtype of numbers, which may be one of pandas' own such as Float32."""
    return eps_of(np.dtype(getattr(dtype, "numpy_dtype", dtype)))


def _unreadable(source: str, error: OSError) -> CommandError:
    return CommandError(f"cannot read {source}: {error.strerror or error}")
