"""The devices that the engine's tests run on here, and what they share."""

from typing import Any

import numpy as np
import pytest

from adamshap.gpu.arrays import DTYPES, cuda_is_usable

DEVICES = ("cpu", "cuda") if cuda_is_usable() else ("cpu",)
on_each_device = pytest.mark.parametrize("device", DEVICES)
in_each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def on_device(device: str, array: Any) -> Any:
    """Return `array` as the device's own kind of array."""
    if device == "cpu":
        return np.asarray(array)
    import cupy

    return cupy.asarray(array)
