"""The counters of `count`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def test_launches_are_counted_by_kernel(raw: Callable[..., Any], cupy: Any, cupy_on_cpu: Any) -> None:
    x = cupy.ones(4, "f")
    twice = cupy.ElementwiseKernel("T x", "T y", "y = 2 * x", "twice")
    with cupy_on_cpu.count() as counts:
        twice(x)
        twice(x)
        raw('extern "C" __global__ void k() {}')
    assert counts.launches.total() == 3
    assert counts.launches["k"] == 1
    assert sum(number for name, number in counts.launches.items() if name.startswith("twice")) == 2


def test_copies_are_counted_with_their_bytes(cupy: Any, cupy_on_cpu: Any) -> None:
    host = np.ones(10, np.float64)
    with cupy_on_cpu.count() as counts:
        device = cupy.asarray(host)
        cupy.asnumpy(device)
        cupy.empty_like(device).data.copy_from_device(device.data, 80)
    assert counts.host_to_device == cupy_on_cpu.Copies(1, 80)
    assert counts.device_to_host == cupy_on_cpu.Copies(1, 80)
    assert counts.device_to_device == cupy_on_cpu.Copies(1, 80)


@pytest.mark.parametrize(
    "wait",
    [
        lambda cupy, x: float(x[0]),
        lambda cupy, x: cupy.asnumpy(x),
        lambda cupy, x: cupy.nonzero(x),
        lambda cupy, x: cupy.cuda.Device().synchronize(),
        lambda cupy, x: cupy.cuda.get_current_stream().synchronize(),
    ],
)
def test_waiting_is_counted(cupy: Any, cupy_on_cpu: Any, wait: Callable[[Any, Any], object]) -> None:
    x = cupy.ones(4, "f")
    with cupy_on_cpu.count() as counts:
        wait(cupy, x)
    assert counts.synchronisations >= 1


def test_work_that_stays_on_the_device_waits_for_nothing(cupy: Any, cupy_on_cpu: Any) -> None:
    x = cupy.ones((4, 4), "f")
    with cupy_on_cpu.count() as counts:
        y = cupy.tanh(x @ x.T) + 1
        y[0] = y.sum(axis=0)
    assert counts.synchronisations == 0
    assert counts.host_to_device == counts.device_to_host == cupy_on_cpu.Copies(0, 0)


def test_products_are_counted_with_shape_and_compute_type(cupy: Any, cupy_on_cpu: Any) -> None:
    with cupy_on_cpu.count() as counts:
        cupy.ones((2, 3), "f") @ cupy.ones((3, 5), "f")
        cupy.ones((2, 3), "d") @ cupy.ones((3, 5), "d")
        cupy.ones((7, 2, 3), "f") @ cupy.ones((7, 3, 5), "f")
        cupy.ones((7, 2, 3), "d") @ cupy.ones((3, 5), "d")
    assert [gemm.shape for gemm in counts.gemms] == [(2, 3, 5)] * 4
    assert [gemm.batch for gemm in counts.gemms] == [1, 1, 7, 7]
    assert [gemm.dtype for gemm in counts.gemms] == ["float32", "float64", "float32", "float64"]
    assert [gemm.compute_type for gemm in counts.gemms] == ["CUBLAS_COMPUTE_32F", "CUBLAS_COMPUTE_64F"] * 2
    names = ["gemmEx", "gemmEx", "gemmStridedBatchedEx", "dgemmBatched"]
    assert [gemm.function for gemm in counts.gemms] == names


def test_blocks_that_count_may_be_nested(cupy: Any, cupy_on_cpu: Any) -> None:
    x = cupy.ones((2, 2), "f")
    with cupy_on_cpu.count() as outer:
        x + x
        with cupy_on_cpu.count() as inner:
            x @ x
            x + x
    x + x
    assert outer.launches.total() == 2
    assert inner.launches.total() == 1
    assert outer.gemms == inner.gemms
