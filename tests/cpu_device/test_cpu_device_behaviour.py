"""CuPy's own behaviour: what runs here is its front end, so its promotions and refusals hold as on a GPU.

Sources: [difference] https://docs.cupy.dev/en/stable/user_guide/difference.html, [kernel]
https://docs.cupy.dev/en/stable/user_guide/kernel.html, [sync]
https://docs.cupy.dev/en/stable/reference/generated/cupyx.allow_synchronize.html, [NEP 50]
https://numpy.org/neps/nep-0050-scalar-promotion.html, which CuPy 14 follows, and [v14.2.0], CuPy's source of that tag.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

NUMPY_REFUSED = r"Unsupported type <class 'numpy\.ndarray'>"


@pytest.mark.parametrize(
    ("left", "right", "result"),
    [
        ("float32", 2.0, "float32"),  # [NEP 50]: a Python scalar is weak
        ("float32", np.float64(2), "float64"),  # [NEP 50]: a NumPy scalar is not
        ("int32", 2.5, "float64"),
        ("uint8", 3, "uint8"),
    ],
)
def test_scalars_promote_as_in_numpy_2(cupy: Any, left: str, right: Any, result: str) -> None:
    assert (cupy.ones(2, left) + right).dtype == result
    assert (np.ones(2, left) + right).dtype == result


@pytest.mark.parametrize("left", ["float16", "float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("right", ["float16", "float32", "int64", "bool"])
def test_arrays_promote_as_in_numpy(cupy: Any, left: str, right: str) -> None:
    assert cupy.result_type(cupy.ones(1, left), cupy.ones(1, right)) == np.result_type(left, right)
    assert (cupy.ones(2, left) * cupy.ones(2, right)).dtype == np.result_type(left, right)


def test_a_python_integer_that_does_not_fit_is_refused(cupy: Any) -> None:
    with pytest.raises(OverflowError, match="300 out of bounds for uint8"):  # [NEP 50]
        cupy.ones(2, "uint8") + 300


def test_index_arrays_wrap_around(cupy: Any) -> None:
    # [difference], "Out-of-bounds indices": CuPy wraps them, where NumPy raises.
    assert cupy.arange(3)[cupy.array([1, 3, 5, -4])].get().tolist() == [1, 0, 2, 2]
    assert cupy.arange(3).take(cupy.array([4])).get().tolist() == [1]


def test_a_python_index_out_of_range_is_refused(cupy: Any) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        cupy.arange(3)[5]


def test_reductions_stay_on_the_device(cupy: Any) -> None:
    total = cupy.ones((2, 3), "f").sum()  # [difference], "Reduction methods return zero-dimensional array"
    assert isinstance(total, cupy.ndarray)
    assert total.shape == ()


def test_numpy_arrays_are_refused(cupy: Any) -> None:
    # [difference], "Universal Functions only work with CuPy array or scalar"
    host = np.ones(3, np.float32)
    device = cupy.ones(3, "f")
    mixtures: list[Callable[[], object]] = [
        lambda: device + host,
        lambda: cupy.add(device, host),
        lambda: cupy.add(device, device, out=host),
    ]
    for mixed in mixtures:
        with pytest.raises(TypeError, match=NUMPY_REFUSED):
            mixed()


def test_an_implicit_copy_to_the_host_is_refused(cupy: Any) -> None:
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(cupy.ones(3))


def test_objects_and_strings_are_refused(cupy: Any) -> None:
    for values in ([None], ["a"]):  # [difference], "Data types": numbers only
        with pytest.raises(ValueError, match="Unsupported dtype"):
            cupy.array(values)


def test_where_is_no_argument_of_a_ufunc(cupy: Any) -> None:
    ones = cupy.ones(3)
    with pytest.raises(TypeError, match="Wrong arguments"):
        cupy.add(ones, ones, where=ones > 0)


def test_an_output_that_would_lose_is_refused(cupy: Any) -> None:
    ones = cupy.ones(3, "f")
    with pytest.raises(TypeError, match="Cannot cast output operand"):
        cupy.add(ones, ones, out=cupy.empty(3, "i"))


def test_an_elementwise_kernel_checks_dtype_shape_count_and_kind(cupy: Any) -> None:
    kernel = cupy.ElementwiseKernel("T x", "T y", "y = 2 * x", "twice")  # [kernel], "Elementwise kernels"
    ones = cupy.ones(3, "f")
    assert kernel(ones).get().tolist() == [2, 2, 2]
    with pytest.raises(TypeError, match="Type is mismatched"):
        kernel(ones.astype("d"), cupy.empty(3, "f"))
    with pytest.raises(ValueError, match="could not be broadcast"):
        kernel(ones, cupy.empty(4, "f"))
    with pytest.raises(TypeError, match="Wrong number of arguments"):
        kernel()
    with pytest.raises(TypeError, match=NUMPY_REFUSED):
        kernel(np.ones(3, np.float32))


def test_a_raw_kernel_refuses_a_numpy_array(raw: Callable[..., Any], cupy: Any) -> None:
    # [v14.2.0] cupy/cuda/function.pyx, _pointer(): only arrays of one element pass, by value
    source = 'extern "C" __global__ void k(float* x, float y) { x[0] = y; }'
    with pytest.raises(TypeError, match=r"trying to pass a numpy.ndarray of shape \(3,\)"):
        raw(source, np.ones(3, np.float32), np.float32(1))
    assert float(raw(source, cupy.zeros(1, "f"), np.ones(1, np.float32))[0]) == 1


def test_a_raw_kernel_takes_a_pointer_of_the_wrong_type(raw: Callable[..., Any], cupy: Any) -> None:
    # [kernel], "Raw kernels": "arguments are not checked". No rung sees it, this one included: only numbers do.
    source = 'extern "C" __global__ void k(float* x) { x[0] = 1.0f; }'
    assert raw(source, cupy.zeros(1, "d")).get()[0] != 1


@pytest.mark.filterwarnings("ignore:cupyx.allow_synchronize will be removed:UserWarning")
def test_synchronising_is_refused_where_it_is_not_allowed(cupy: Any) -> None:
    import cupyx

    x = cupy.arange(6, dtype="f")
    with cupyx.allow_synchronize(False):  # [sync]
        y = cupy.where(x > 2, x, 0) + x.sum()
        for wait in (lambda: float(y[0]), lambda: y[y > 0], lambda: cupy.nonzero(y), lambda: cupy.asnumpy(y)):
            with pytest.raises(cupyx.DeviceSynchronized):
                wait()


def test_tf32_is_asked_for_by_an_environment_variable(run_script: Callable[..., Any]) -> None:
    # [v14.2.0] cupy/_core/_routines_linalg.pyx, get_compute_type(): CUPY_TF32
    script = """
import os, sys
os.environ["CUPY_TF32"] = sys.argv[1]
import cupy
from adamshap.verify import cpu_device
x = cupy.full((1, 1), 1 + 2.0**-12, dtype="float32")
with cpu_device.count() as counts:
    y = x @ cupy.ones((1, 2), dtype="float32")
print(counts.gemms[0].compute_type, float(y[0, 0]) == 1)
"""
    assert run_script(script, arguments=("0",)).stdout == "CUBLAS_COMPUTE_32F False\n"
    assert run_script(script, arguments=("1",)).stdout == "CUBLAS_COMPUTE_32F_FAST_TF32 True\n"
