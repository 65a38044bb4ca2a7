"""Numbers on a device: each list is fetched at once, so that a check waits for the device once, not for each number."""

import math
from typing import Any

import numpy as np

from adamshap.gpu.backend import Backend
from adamshap.gpu.squares import row_norms
from adamshap.reference.contract import Array

__all__ = ["fetched", "length_of", "norm_of"]


def length_of(xp: Any, array: Array) -> Any:
    """Return the norm of an array in double, on its device."""
    return xp.linalg.norm(array.ravel())


def norm_of(xp: Any, array: Array) -> Any:
    """Return the norm of a large array in its own precision, unless squares over- or underflow there."""
    if xp is not np:
        return row_norms(xp, array.reshape(1, -1))[0].astype(np.float64)
    norm = float(np.linalg.norm(array.ravel()))
    return np.float64(norm if 0 < norm < math.inf else float(np.linalg.norm(array.astype(np.float64).ravel())))


def fetched(backend: Backend, numbers: list[Any]) -> list[float]:
    """Return numbers of a device, by one wait for all."""
    return [float(one) for one in backend.host(backend.xp.stack(numbers))] if numbers else []
