"""Arrays by parameter name, with a type for each role in a step.

A step uses the same memory for several of them, one after another: a new name and type mark each change.
"""

import math
from typing import Any, NewType, TypeVar, cast

import numpy.typing as npt

from adamshap.gpu.context import EngineContext

__all__ = ["Arrays", "BatchGradient", "ScoreMatrix", "SlopeArrays", "ValidationGradient", "as_matrix", "like"]

A = TypeVar("A", bound=npt.NDArray[Any])

Arrays = dict[str, Any]

BatchGradient = NewType("BatchGradient", Arrays)
"""g, the gradient of the batch."""

ValidationGradient = NewType("ValidationGradient", Arrays)
"""Γ, the gradient of the validation loss."""

SlopeArrays = NewType("SlopeArrays", Arrays)
"""S."""

ScoreMatrix = NewType("ScoreMatrix", Arrays)
"""P = Γ ⊙ S, with which captures are contracted."""


def like(context: EngineContext, name: str) -> Arrays:
    """Return one buffer for each parameter, under `name`."""
    return {key: context.buffers.get(f"{name} {key}", shape) for key, shape in context.shapes.items()}


def as_matrix(array: A) -> A:
    """Return a linear layer's weight as it is, a bias as one row, and a kernel's elements in one axis."""
    if array.ndim == 2:
        return array
    return cast(A, array[None, :] if array.ndim == 1 else array.reshape(len(array), math.prod(array.shape[1:])))
