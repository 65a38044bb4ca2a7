"""Data larger than memory: an array of which a few rows at a time are read and made."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Rows", "parts"]

NUMBERS_AT_A_TIME = 1 << 20
"""How much of an array is looked at in one go, so that it need not fit into memory."""


@dataclass(frozen=True, eq=False)
class Rows:
    """An array (n, d) in float64 that is nowhere as a whole: its rows are made when they are asked for.

    A `Batch` takes it for its inputs. A row is the same whichever others are made with it.

    Parameters
    ----------
    source : real array (N, ...)
        A memory map, say, or other `Rows`; what one row holds is laid out flat, d numbers.
    index : int array (n,), optional
        Which rows of `source`, in which order; all of them where it is not given.
    mean, scale : arrays (d,), optional
        ``(row - mean) / scale`` is made of each row.
    """

    source: Any
    index: npt.NDArray[Any] | None = None
    mean: npt.NDArray[Any] | None = None
    scale: npt.NDArray[Any] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Counts of rows and of numbers in each, (n, d)."""
        count = len(self.source) if self.index is None else len(self.index)
        return count, int(np.prod(self.source.shape[1:]))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows that are made: float64."""
        return np.dtype(np.float64)

    @property
    def ndim(self) -> int:
        """Count of dimensions: 2."""
        return 2

    @property
    def size(self) -> int:
        """Count of all numbers."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> npt.NDArray[Any]:
        found = self.source[where if self.index is None else self.index[where]]
        # What float64 cannot hold becomes infinite, and is refused as that by those who look at it.
        with np.errstate(over="ignore", invalid="ignore"):
            made = np.array(found, np.float64, order="C")  # sums depend on the layout: it is one for all sources
            made = made.reshape(*made.shape[: made.ndim - len(self.source.shape) + 1], -1)
            if self.mean is not None:
                made -= self.mean
            if self.scale is not None:
                made /= self.scale
        return made

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("rows are made when they are asked for: there is no array that is not a copy")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)


def parts(array: Any) -> Iterator[Any]:
    """Yield `array` by so many rows that each part is small.

    Parameters
    ----------
    array : array (N, ...) or `Rows`
        One without dimensions is its only part.
    """
    if array.ndim == 0:
        yield array
        return
    rows = max(NUMBERS_AT_A_TIME * len(array) // max(array.size, 1), 1)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
