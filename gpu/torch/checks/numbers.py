"""Numbers on a device: each list is fetched at once, so that a check waits for the device once, not for each number."""

from typing import Any

from adamshap.gpu.backend import Backend
from adamshap.reference.contract import Array

__all__ = ["fetched", "length_of"]


def length_of(xp: Any, array: Array) -> Any:
    """Return the norm of an array in double, on its device."""
    return xp.linalg.norm(array.ravel())


def fetched(backend: Backend, numbers: list[Any]) -> list[float]:
    """Return numbers of a device, by one wait for all."""
    return [float(one) for one in backend.host(backend.xp.stack(numbers))] if numbers else []
