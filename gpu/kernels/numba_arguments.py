"""Arguments of the Numba kernels: scalars, nodes and missing arrays as arrays, and the types that the loops take."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from adamshap.gpu.kernels.groups import GradientNorms
    from adamshap.gpu.kernels.plan import AdamScalars

__all__ = ["array_types", "matrix", "norms_of", "scalar_array", "table"]


@lru_cache(maxsize=8)  # those of a step, for all parameters
def scalar_array(scalars: AdamScalars, n: int, dtype: Any, *more: float) -> Any:
    """Return the scalars, 1/n, n/(n − 1) and the smallest normal number, followed by a kernel's own."""
    unbias = n / (n - 1) if n > 1 else 0.0
    return np.array([*vars(scalars).values(), 1 / n, unbias, np.finfo(dtype).tiny, *more], dtype)


@lru_cache(maxsize=32)
def table(nodes: tuple[tuple[float, ...], ...], dtype: Any) -> Any:
    """Return nodes as the rows of an array."""
    return np.array(nodes or np.zeros((0, 4)), dtype)


def norms_of(norms: GradientNorms, dtype: Any) -> tuple[Any, Any, Any]:
    """Return the three arrays of the norms."""
    row, col = (empty(dtype).reshape(-1) if a is None else a for a in (norms.row, norms.col))
    return row, col, matrix(norms.root, dtype)


def matrix(array: Any, dtype: Any) -> Any:
    """Return the array, or an empty one for None."""
    return empty(dtype) if array is None else array


@cache
def empty(dtype: Any) -> Any:
    """Return an empty matrix, which a loop takes for a missing one."""
    return np.empty((0, 0), dtype)


def array_types(scalar: Any) -> tuple[dict[int, Any], dict[int, Any]]:
    """Return Numba's types of arrays of one and two dimensions: those that a loop reads, and those that it writes."""
    read, write = (
        {d: numba.types.Array(scalar, d, "C", readonly=readonly) for d in (1, 2)} for readonly in (True, False)
    )
    return read, write
