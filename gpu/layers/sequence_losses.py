"""Losses of a model's output (rows, …), one a sample, and their gradient, written over the output."""

import math
from typing import Any

from adamshap.gpu.layers.cross_entropy import cross_entropy
from adamshap.gpu.layers.row_weights import in_dtype_of
from adamshap.gpu.layers.squared_error import squared_error
from adamshap.reference.contract import NOT_COUNTED

__all__ = ["sequence_cross_entropy", "sequence_squared_error"]


def sequence_cross_entropy(xp: Any, z: Any, y: Any, weight: Any) -> Any:
    """Return the cross-entropy of logits (rows, classes), or of (rows, T, classes) its mean over counted positions.

    Turn `z` into the gradient, times `weight`. Label −100 is not counted.
    """
    if z.ndim == 2:
        return cross_entropy(xp, z, y, weight)
    counted = y != NOT_COUNTED
    position_weights = counted / counted.sum(axis=1, keepdims=True).astype(z.dtype)
    weights = (position_weights * in_dtype_of(z, weight)).reshape(-1, 1)
    labels = xp.where(counted, y, 0).reshape(-1)
    losses = cross_entropy(xp, z.reshape(-1, z.shape[-1]), labels, weights).reshape(y.shape)
    return (losses * position_weights).sum(axis=1)


def sequence_squared_error(xp: Any, z: Any, y: Any, weight: Any) -> Any:
    """Return the mean over all outputs of (z − y)² and turn `z` into its gradient, times `weight`."""
    size = math.prod(z.shape[1:])
    return squared_error(xp, z.reshape(len(z), size), y.reshape(len(z), size), weight)
