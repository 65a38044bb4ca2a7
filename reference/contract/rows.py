"""Data larger than memory: an array whose rows are computed a few at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract.refusal import refuse, refuse_masked

__all__ = ["LazyRows", "parts"]

NUMBERS_AT_A_TIME = 1 << 20
"""Numbers in one part of an array, so that the whole need not fit into memory."""


@dataclass(frozen=True, eq=False)
class LazyRows:
    """An array (n, d) in float64 that is never stored as a whole: its rows are computed on demand.

    A `Batch` accepts it as its inputs. A row does not depend on the rows computed with it.

    Parameters
    ----------
    source : array (N, ...) of numbers
        A NumPy array, such as a memory map, or other `LazyRows`; each row is flattened to d numbers.
    index : int array (n,), optional
        Indices of the rows of `source`, in order; all rows by default.
    mean, scale : arrays (d,), optional
        Finite numbers, no scale 0: each row becomes ``(row - mean) / scale``.
    """

    source: Any
    index: npt.NDArray[Any] | None = None
    mean: npt.NDArray[Any] | None = None
    scale: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        for name in ("source", "index", "mean", "scale"):
            refuse_masked(f"LazyRows.{name}", getattr(self, name))
        if not isinstance(self.source, np.ndarray | LazyRows):
            refuse("LazyRows.source", type(self.source).__name__, "a NumPy array, such as a memory map", TypeError)
        if self.source.dtype.kind not in "biuf":
            refuse(
                "LazyRows.source", f"dtype {self.source.dtype}", "real numbers (a float or integer dtype)", TypeError
            )
        if len(self.source.shape) < 2 or 0 in self.source.shape:
            refuse("LazyRows.source", f"shape {self.source.shape}", "shape (any, any, ...), not empty")
        count, width = len(self.source), int(np.prod(self.source.shape[1:]))
        for name in ("index", "mean", "scale"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, np.ndarray | list | tuple):  # a bytearray is refused
                refuse(f"LazyRows.{name}", type(given).__name__, "a NumPy array, a list or None", TypeError)
        if self.index is not None:
            index = _of_numbers("LazyRows.index", self.index)
            if index.dtype.kind not in "iu" or index.ndim != 1 or not len(index):
                refuse(
                    "LazyRows.index",
                    f"dtype {index.dtype} of shape {index.shape}",
                    "integers of shape (any,), not empty",
                )
            if index.min() < 0 or index.max() >= count:
                refuse("LazyRows.index", f"rows from {index.min()} to {index.max()}", f"rows from 0 to {count - 1}")
            object.__setattr__(self, "index", index)
        for name in ("mean", "scale"):
            if (given := getattr(self, name)) is not None:
                array = _of_numbers(f"LazyRows.{name}", given)
                if array.dtype.kind not in "iuf" or array.shape != (width,):
                    refuse(
                        f"LazyRows.{name}",
                        f"dtype {array.dtype} of shape {array.shape}",
                        f"numbers of shape ({width},)",
                    )
                if not np.isfinite(array).all():
                    refuse(f"LazyRows.{name}", "values that are NaN or infinite", "finite numbers only")
                if name == "scale" and not array.all():
                    refuse("LazyRows.scale", "a value of 0", "nonzero numbers: rows are divided by them")
                object.__setattr__(self, name, array)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of numbers in each row, (n, d)."""
        count = len(self.source) if self.index is None else len(self.index)
        return count, int(np.prod(self.source.shape[1:]))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the computed rows: float64."""
        return np.dtype(np.float64)

    @property
    def ndim(self) -> int:
        """Number of dimensions: 2."""
        return 2

    @property
    def size(self) -> int:
        """Number of all elements."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> npt.NDArray[Any]:
        found = self.source[where if self.index is None else self.index[where]]
        # Numbers beyond float64 become infinite; the caller's check of finite values refuses them.
        with np.errstate(over="ignore", invalid="ignore"):
            rows = np.array(found, np.float64, order="C")  # sums depend on the layout: the same for all sources
            rows = rows.reshape(*rows.shape[: rows.ndim - len(self.source.shape) + 1], -1)
            if self.mean is not None:
                rows -= self.mean
            if self.scale is not None:
                rows /= self.scale
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("rows are computed on demand: an array of them is always a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)


def _of_numbers(field: str, value: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:  # rows of different lengths
        refuse(field, f"a list that is not an array ({' '.join(str(error).split())})", "numbers", type(error))


def parts(array: Any) -> Iterator[Any]:
    """Yield `array` in small parts of consecutive rows.

    Parameters
    ----------
    array : array (N, ...) or `LazyRows`
        The whole; a scalar array is its only part.
    """
    if array.ndim == 0:
        yield array
        return
    rows = max(NUMBERS_AT_A_TIME * len(array) // max(array.size, 1), 1)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
