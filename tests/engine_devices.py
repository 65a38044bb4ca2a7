"""The devices that the engine's tests run on, and functions that these tests share."""

from typing import Any

import numpy as np
import pytest

from adamshap.gpu.backend import DTYPES
from adamshap.reference.contract import Step
from adamshap.verify import cpu_device
from adamshap.verify.implementation import Query
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.tolerance import assert_within

if cpu_device.is_installed():
    CUDA = pytest.param("cuda", id="cupy-on-cpu")  # pytest --cupy-on-cpu: real CuPy and its kernels, no GPU
else:
    CUDA = pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)  # skipped, with the reason, where there is none
DEVICES = ("cpu", CUDA)
on_each_device = pytest.mark.parametrize("device", DEVICES)
in_each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def on_device(device: str, array: Any) -> Any:
    """Return `array` as an array of the device's library."""
    if device == "cpu":
        return np.asarray(array)
    import cupy

    return cupy.asarray(array)


def assert_scores(got: Any, step: Step, dtype: Any, **options: Any) -> float:
    """Assert that scores computed in `dtype` are the oracle's for `options`; return the largest share of its bound."""
    __tracebackhide__ = True
    query = Query("scores", options)
    wanted, close = expected(step, query)["values"], bounds(step, query, dtype)["values"]
    assert_within(got, wanted, close, "score")
    return float(np.max(np.abs(got - wanted)[close > 0] / close[close > 0], initial=0.0))
