"""The devices that the engine's tests run on, and functions that these tests share."""

from typing import Any

import numpy as np
import pytest

import adamshap.gpu as engine
from adamshap.gpu.backend import DTYPES
from adamshap.reference import models
from adamshap.reference.contract import Adam, AdamState, Batch, Model, Step
from adamshap.verify import cpu_device
from adamshap.verify.implementation import Query
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.tolerance import assert_within, unit_roundoff

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


def assert_answers(step: Step, device: Any, *queries: Query) -> None:
    """Assert that the engine answers in float64 as the oracle does, within the kit's bounds."""
    __tracebackhide__ = True
    for query in queries:
        got = getattr(engine, query.function)(step, device=device, dtype="float64", **query.options)
        bound = bounds(step, query, "float64")["values"]
        assert_within(getattr(got, "values", got), expected(step, query)["values"], bound, str(query))


def moved_step(model: Model, train: Batch, valid: Batch) -> Step:
    """Return a step with moments, from parameters none of which is 0 or 1."""
    generator, params = np.random.default_rng(1), model.init(0)
    params = {key: p + 0.3 * generator.standard_normal(p.shape) for key, p in params.items()}
    m = {key: 0.1 * generator.standard_normal(p.shape) for key, p in params.items()}
    v = {key: generator.uniform(0.01, 0.1, p.shape) for key, p in params.items()}
    return Step(model, params, Adam(0.01, weight_decay=0.1), AdamState(3, m, v), train, valid)


def assert_near(got: Any, wanted: Any, size: Any, dtype: Any) -> None:
    """Assert that results of a `moved_step` differ by at most a thousand roundings of their largest terms, `size`.

    v is at least 0.01 there, so that Adam's map, with slope below η/√v, magnifies no error of the gradient; and a
    gradient is the sum of fewer than a thousand products of numbers of order 1.
    """
    __tracebackhide__ = True
    assert np.all(np.abs(got - wanted) <= 1000 * unit_roundoff(dtype) * size)


def losses(step: Step) -> float:
    """Return the size of the validation loss, of which utilities are small differences."""
    return float(np.abs(models.sample_losses(step.net, step.params, step.valid)).max())
