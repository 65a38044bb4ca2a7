"""Reads .parquet files through pandas."""

import datetime
import decimal
import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adamshap.reference.command import columns
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.spelling import MISSING, Label, categories_or_nothing, quoted, some
from adamshap.reference.command.table import EPS, Column, Reading, Sheet, eps_of, unreadable
from adamshap.reference.contract import Array, needed


@dataclass(frozen=True, eq=False)
class Series:
    """A column of a pandas table."""

    source: str
    name: str
    values: Any

    def labels(self) -> list[Label | None]:
        """Return the values as labels or categories, None for missing ones."""
        return [self._label(value) for value in _without_missing(self.values)]

    def numbers(self) -> Array:
        """Return the values as float64, NaN for missing ones."""
        kind = self.values.dtype.kind
        if kind in "biuf":
            numbers: Array = self.values.to_numpy(dtype=np.float64, na_value=np.nan)
            return numbers
        values = _without_missing(self.values)
        if self.values.dtype == object and all(
            value is None or isinstance(value, bool | int | float | decimal.Decimal) for value in values
        ):
            return np.array([np.nan if value is None else float(value) for value in values])
        got = f"{self.source}, column {self.name!r}: got {self._kind(values)}"
        if kind in "mM" or any(
            isinstance(value, datetime.date | datetime.time | datetime.timedelta) for value in values
        ):
            raise CommandError(
                f"{got}; needs numbers, such as the days since a certain date; --drop {quoted(self.name)} leaves the"
                " column out"
            )
        if any(isinstance(value, str | bool | int | float) for value in values):
            distinct = len(set(self.texts())) == len(self.values)
            raise CommandError(f"{got}; needs numbers; {categories_or_nothing(self.name, distinct=distinct)}")
        raise CommandError(f"{got}; needs numbers; --drop {quoted(self.name)} leaves the column out")

    def texts(self) -> list[str]:
        """Return the values as text, empty for missing ones."""
        return ["" if value is None else str(value) for value in _without_missing(self.values)]

    def shown(self, row: int) -> str:
        """Return a value as error messages show it."""
        return repr(_without_missing(self.values.iloc[row : row + 1])[0])

    @property
    def eps(self) -> float:
        """Return `table.eps_of` the column's dtype, which may be a pandas dtype such as Float32."""
        dtype = getattr(self.values.dtype, "numpy_dtype", self.values.dtype)
        return eps_of(np.dtype(dtype)) if dtype.kind in "biuf" else EPS

    def _label(self, value: Any) -> Label | None:
        if value is None or (isinstance(value, str) and value in MISSING):
            return None
        if isinstance(value, decimal.Decimal):
            return int(value) if value == int(value) else float(value)
        if not isinstance(value, bool | int | float | str):
            raise CommandError(
                f"{self.source}, column {self.name!r}: got {self._kind([value])}; needs numbers or text, as pandas'"
                " astype(str) makes"
            )
        if isinstance(value, float) and not np.isfinite(value):
            raise CommandError(
                f"{self.source}, column {self.name!r}: got NaN or infinity as a label; needs finite numbers"
            )
        return value

    def _kind(self, values: list[Any]) -> str:
        """Return the column's dtype as text, or the type of a value if the dtype is object."""
        first = next((value for value in values if value is not None), None)
        if self.values.dtype != object or first is None:
            return f"dtype {self.values.dtype}"
        return f"values of type {type(first).__name__}"


def read(path: Path, label: str, reading: Reading) -> Sheet:
    """Return the columns of a .parquet file.

    Raises
    ------
    CommandError
        It is not a .parquet file, or pandas and pyarrow are not installed.
    """
    source = repr(str(path))
    with needed("pandas and pyarrow", by=source, extra="tables", error=CommandError):
        pandas = importlib.import_module("pandas")
        importlib.import_module("pyarrow")
    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise unreadable(source, error) from error
    try:
        frame = pandas.read_parquet(content, engine="pyarrow")
    except Exception as error:  # untrusted bytes: pyarrow can raise almost anything, OSError included
        raise CommandError(
            f"{source}: {type(error).__name__}: {error}; needs a .parquet file, as pandas writes it"
        ) from error
    index = [str(name) for name in frame.index.names if name is not None]
    frame.columns = list(map(str, frame.columns))
    if label in index and label not in frame.columns:
        frame = frame.reset_index(level=label)
        index.remove(label)
    columns.check_label(source, list(frame.columns), label)
    columns.check_names(source, list(frame.columns), label, reading)
    if not len(frame):
        raise CommandError(f"{source}: got no rows; needs one for each example")
    notes = (f"its index {some(index)} is no feature",) if index else ()
    sheet: dict[str, Column] = {name: Series(source, name, frame[name]) for name in frame.columns}
    return Sheet(path.stem, source, sheet, lambda row: f"{source}, row {row}", notes)


def _without_missing(values: Any) -> list[Any]:
    """Return the values, None for missing ones."""
    missing = values.isna().to_numpy()
    return [None if lacks else value for lacks, value in zip(missing, values.tolist(), strict=True)]
