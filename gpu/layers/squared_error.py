"""Squared error of outputs z and targets y, the mean over outputs, and its gradient."""

from typing import Any

from adamshap.gpu.layers.row_weights import in_dtype_of

__all__ = ["squared_error"]


def squared_error(xp: Any, z: Any, y: Any, weight: Any) -> Any:
    """Return the mean over outputs of (z − y)² and turn `z` into its gradient, times `weight`."""
    z -= y
    losses = xp.einsum("no,no->n", z, z) / z.dtype.type(z.shape[1])
    z *= in_dtype_of(z, weight) * z.dtype.type(2 / z.shape[1])
    return losses
