"""cuBLAS's products, called as by CuPy, on host memory: operations, leading dimensions, types."""

from typing import Any

import numpy as np
import pytest

from adamshap.verify.cpu_device import cublas
from adamshap.verify.cpu_device.errors import NotCoveredError

CUBLAS: Any = cublas.cublas_module()
GENERATOR = np.random.default_rng(1)
KIND = {"float32": 0, "float64": 1, "float16": 2, "complex64": 4, "complex128": 5}
COMPUTE = {"float32": 68, "float64": 70, "float16": 68, "complex64": 68, "complex128": 70}


def column_major(rows: int, columns: int, leading: int, dtype: str) -> tuple[Any, Any]:
    """Return memory of `leading` rows, filled with small integers, and the matrix at its start."""
    memory = GENERATOR.integers(-4, 5, (columns, leading)).astype(dtype)
    if dtype.startswith("complex"):
        memory = (memory + 1j * GENERATOR.integers(-4, 5, memory.shape)).astype(dtype)
    return memory, memory.T[:rows]


def factors(dtype: str, alpha: float, beta: float) -> tuple[Any, Any]:
    coefficient = "float32" if dtype == "float16" else dtype
    return np.array(alpha, coefficient), np.array(beta, coefficient)


@pytest.mark.parametrize("dtype", list(KIND))
@pytest.mark.parametrize("operations", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)])
@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_gemm_ex(dtype: str, operations: tuple[int, int], beta: float) -> None:
    m, n, k = 3, 4, 5
    a_memory, a = column_major(*((m, k) if operations[0] == 0 else (k, m)), 7, dtype)
    b_memory, b = column_major(*((k, n) if operations[1] == 0 else (n, k)), 8, dtype)
    c_memory, c = column_major(m, n, 6, dtype)
    operate = [lambda x: x, lambda x: x.T, lambda x: x.conj().T]
    want = 3 * (operate[operations[0]](a) @ operate[operations[1]](b)) + beta * c
    beyond = c_memory[:, m:].copy()
    one, other = factors(dtype, 3, beta)
    kind, compute = KIND[dtype], COMPUTE[dtype]
    where = [memory.ctypes.data for memory in (a_memory, b_memory, c_memory, one, other)]
    CUBLAS.gemmEx(
        1,
        *operations,
        m,
        n,
        k,
        where[3],
        where[0],
        kind,
        7,
        where[1],
        kind,
        8,
        where[4],
        where[2],
        kind,
        6,
        compute,
        -1,
    )
    assert c.tolist() == want.astype(dtype).tolist()
    assert c_memory[:, m:].tolist() == beyond.tolist()  # below the matrix nothing is touched


def test_what_c_held_is_not_read_where_beta_is_zero() -> None:
    a = np.ones((1, 1), np.float32)
    c = np.full((1, 1), np.nan, np.float32)
    one, zero = factors("float32", 1, 0)
    where = [array.ctypes.data for array in (a, a, c)]
    CUBLAS.gemmEx(
        1, 0, 0, 1, 1, 1, one.ctypes.data, where[0], 0, 1, where[1], 0, 1, zero.ctypes.data, where[2], 0, 1, 68, -1
    )
    assert c.tolist() == [[1]]


def product_of_scalars(x: Any, y: Any, kind: int, compute: int) -> Any:
    c = np.zeros_like(x)
    one, zero = factors("float32", 1, 0)
    where = [array.ctypes.data for array in (x, y, c)]
    CUBLAS.gemmEx(
        1, 0, 0, 1, 1, 1, one.ctypes.data, where[0], kind, 1, where[1], kind, 1, zero.ctypes.data, where[2], kind, 1,
        compute, -1,
    )  # fmt: skip
    return c[0]


def test_bfloat16_is_stored_as_the_upper_half_of_a_float() -> None:
    def bits(value: float) -> Any:
        return (np.array([value], np.float32).view(np.uint32) >> 16).astype(np.uint16)

    # 1.5 and 1.0078125 have 7 bits after the point; their product, 1.51171875, is a tie between 1.5078125 and 1.515625.
    assert product_of_scalars(bits(1.5), bits(1.0078125), 14, 68) == bits(1.515625)[0]
    assert product_of_scalars(bits(2.0), bits(-3.0), 14, 68) == bits(-6.0)[0]


def test_tf32_keeps_ten_bits_of_its_inputs() -> None:
    below, middle, above = (np.array([1 + extra], np.float32) for extra in (2.0**-12, 2.0**-11, 2.0**-10))
    one = np.ones(1, np.float32)
    assert product_of_scalars(below, one, 0, 77) == 1
    assert product_of_scalars(middle, one, 0, 77) == above[0]
    assert product_of_scalars(above, one, 0, 77) == above[0]
    assert product_of_scalars(below, one, 0, 68) == below[0]
    assert np.isinf(product_of_scalars(np.array([np.inf], np.float32), one, 0, 77))


@pytest.mark.parametrize(("kind", "compute"), [(3, 68), (0, 64), (0, 72)])
def test_other_types_are_refused(kind: int, compute: int) -> None:
    x = np.ones(1, np.float32)
    with pytest.raises(NotCoveredError, match=r"cublas\.gemmEx"):
        product_of_scalars(x, x, kind, compute)


@pytest.mark.parametrize("prefix", ["s", "d"])
def test_geam_transposes(prefix: str) -> None:
    dtype = {"s": "float32", "d": "float64"}[prefix]
    memory, matrix = column_major(4, 3, 4, dtype)
    c_memory, c = column_major(3, 4, 3, dtype)
    one, zero = factors(dtype, 1, 0)
    geam = getattr(CUBLAS, f"{prefix}geam")
    where = memory.ctypes.data
    geam(1, 1, 1, 3, 4, one.ctypes.data, where, 4, zero.ctypes.data, where, 4, c_memory.ctypes.data, 3)
    assert c.tolist() == matrix.T.tolist()
    _, added = column_major(3, 4, 3, dtype)
    CUBLAS_B = np.asfortranarray(added)
    geam(1, 1, 0, 3, 4, one.ctypes.data, where, 4, one.ctypes.data, CUBLAS_B.ctypes.data, 3, c_memory.ctypes.data, 3)
    assert c.tolist() == (matrix.T + added).tolist()


def test_anything_else_is_refused_by_name() -> None:
    with pytest.raises(NotCoveredError, match=r"cublas\.dgemv;"):
        CUBLAS.dgemv(1)
    with pytest.raises(NotCoveredError, match=r"cublas\.CUBLAS_FILL_MODE_LOWER;"):
        _ = CUBLAS.CUBLAS_FILL_MODE_LOWER
