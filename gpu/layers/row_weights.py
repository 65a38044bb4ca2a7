"""The weight of each row's loss: one number for all rows, or an array (rows, 1)."""

from typing import Any

__all__ = ["in_dtype_of", "weight_of_rows"]


def in_dtype_of(z: Any, weight: Any) -> Any:
    """Return a weight in the dtype of `z`, which an array already has."""
    return z.dtype.type(weight) if isinstance(weight, float) else weight


def weight_of_rows(weight: Any, rows: slice) -> Any:
    """Return the weight of some rows."""
    return weight if isinstance(weight, float) else weight[rows]
