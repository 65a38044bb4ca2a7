"""cuBLAS's matrix products in NumPy: the functions that CuPy's matmul, dot, tensordot and einsum call.

Matrices are column-major, as in cuBLAS: element (i, j) of A lies at ``A + i + j * lda``. Sums have the precision of the
compute type: float32 for half, bfloat16 and float32, float64 for float64. CUBLAS_COMPUTE_32F_FAST_TF32 rounds its
inputs to the 10 bits of TF32, the minimum that cuBLAS guarantees. All other functions of cuBLAS are refused.
"""

import ctypes
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.verify.cpu_device.counters import Gemm, record_gemm
from adamshap.verify.cpu_device.errors import NotCoveredError

__all__ = ["MODULE_NAME", "cublas_module"]

MODULE_NAME = "cupy_backends.cuda.libs.cublas"
Array = npt.NDArray[Any]

# Values from cublas_api.h (CUDA 13) of the constants that CuPy's products use.
CONSTANTS = {
    "CUBLAS_OP_N": 0,
    "CUBLAS_OP_T": 1,
    "CUBLAS_POINTER_MODE_HOST": 0,
    "CUBLAS_POINTER_MODE_DEVICE": 1,
    "CUBLAS_GEMM_DEFAULT": -1,
    "CUBLAS_GEMM_DEFAULT_TENSOR_OP": 99,
    "CUBLAS_COMPUTE_16F": 64,
    "CUBLAS_COMPUTE_16F_PEDANTIC": 65,
    "CUBLAS_COMPUTE_32F": 68,
    "CUBLAS_COMPUTE_32F_PEDANTIC": 69,
    "CUBLAS_COMPUTE_64F": 70,
    "CUBLAS_COMPUTE_64F_PEDANTIC": 71,
    "CUBLAS_COMPUTE_32I": 72,
    "CUBLAS_COMPUTE_32I_PEDANTIC": 73,
    "CUBLAS_COMPUTE_32F_FAST_16F": 74,
    "CUBLAS_COMPUTE_32F_FAST_16BF": 75,
    "CUBLAS_COMPUTE_32F_FAST_TF32": 77,
}
COMPUTE_NAMES = {value: name for name, value in CONSTANTS.items() if name.startswith("CUBLAS_COMPUTE_")}
TF32 = CONSTANTS["CUBLAS_COMPUTE_32F_FAST_TF32"]
# Type of the sums and of the factors alpha and beta, for the supported compute types.
REAL_COMPUTE = {68: np.float32, 69: np.float32, 70: np.float64, 71: np.float64, TF32: np.float32}

# cudaDataType: the element's name and its storage type.
BFLOAT16 = 14
STORED = {
    0: ("float32", np.float32),
    1: ("float64", np.float64),
    2: ("float16", np.float16),
    4: ("complex64", np.complex64),
    5: ("complex128", np.complex128),
    BFLOAT16: ("bfloat16", np.uint16),
}
OF_PREFIX = {"s": 0, "d": 1, "c": 4, "z": 5}


def _at(address: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """Return the memory at `address` as an array; `strides` counts elements."""
    dtype = np.dtype(dtype)
    length = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    buffer = (ctypes.c_char * (length * dtype.itemsize)).from_address(address)
    flat = np.frombuffer(buffer, dtype=dtype)
    return np.lib.stride_tricks.as_strided(flat, shape, [stride * dtype.itemsize for stride in strides])


def _stored(kind: int, function: str) -> tuple[str, Any]:
    if kind not in STORED:
        raise NotCoveredError(f"cublas.{function} of cudaDataType {kind}")
    return STORED[kind]


def _widened(matrix: Array, kind: int, accumulator: Any) -> Array:
    """Return `matrix` in the type of the sums."""
    if kind == BFLOAT16:
        matrix = (matrix.astype(np.uint32) << 16).view(np.float32)
    return matrix.astype(accumulator)


def _narrowed(matrix: Array, kind: int) -> Array:
    """Return `matrix` in its storage type; bfloat16 rounds to nearest, ties to even."""
    if kind != BFLOAT16:
        return matrix.astype(STORED[kind][1])
    bits = np.ascontiguousarray(matrix, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(matrix), 0x7FFF, rounded).astype(np.uint16)


def _rounded_to_tf32(matrix: Array) -> Array:
    """Return float32 `matrix` rounded to 10 significand bits, ties away from zero."""
    if np.iscomplexobj(matrix):
        return _rounded_to_tf32(matrix.real) + 1j * _rounded_to_tf32(matrix.imag)
    bits = np.ascontiguousarray(matrix).view(np.uint32)
    rounded = ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(matrix), rounded, matrix)


def _operand(
    address: int, kind: int, operation: int, rows: int, columns: int, leading: int, accumulator: Any, function: str
) -> Array:
    """Return ``op(A)`` of shape (rows, columns); operation 0 takes A, 1 its transpose, 2 its conjugate transpose."""
    _, dtype = _stored(kind, function)
    shape = (rows, columns) if operation == 0 else (columns, rows)
    matrix = _widened(_at(address, dtype, shape, (1, leading)), kind, accumulator)
    if operation == 0:
        return matrix
    return matrix.T if operation == 1 else matrix.conj().T


def _multiply(
    function: str,
    operations: tuple[int, int],
    size: tuple[int, int, int],
    alpha: int,
    a: tuple[int, int, int],
    b: tuple[int, int, int],
    beta: int,
    c: tuple[int, int, int],
    compute: int,
) -> None:
    """C = alpha op(A) op(B) + beta C, where each matrix is (address, cudaDataType, leading dimension)."""
    if compute not in REAL_COMPUTE:
        raise NotCoveredError(f"cublas.{function} with {COMPUTE_NAMES.get(compute, f'compute type {compute}')}")
    m, n, k = size
    accumulator = REAL_COMPUTE[compute]
    if c[1] in (4, 5):
        accumulator = np.result_type(accumulator, np.complex64).type
    left = _operand(a[0], a[1], operations[0], m, k, a[2], accumulator, function)
    right = _operand(b[0], b[1], operations[1], k, n, b[2], accumulator, function)
    if compute == TF32:
        left, right = _rounded_to_tf32(left), _rounded_to_tf32(right)
    factor, kept = (_at(address, accumulator, (), ())[()] for address in (alpha, beta))
    result = factor * (left @ right)
    target = _at(c[0], _stored(c[1], function)[1], (m, n), (1, c[2]))
    if kept != 0:  # cuBLAS does not read C if beta is zero; a NaN there must not survive
        result = result + kept * _widened(target, c[1], accumulator)
    target[...] = _narrowed(result, c[1])


def _record(function: str, size: tuple[int, int, int], batch: int, kind: int, compute: int) -> None:
    m, n, k = size
    record_gemm(Gemm(function, m, n, k, batch, _stored(kind, function)[0], COMPUTE_NAMES[compute]))


def _compute_of(kind: int) -> int:
    """Return the compute type of a function that has no such argument."""
    double = STORED[kind][0] in ("float64", "complex128")
    return CONSTANTS["CUBLAS_COMPUTE_64F" if double else "CUBLAS_COMPUTE_32F"]


def gemm_ex(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, a_type: int, lda: int, B: int,
    b_type: int, ldb: int, beta: int, C: int, c_type: int, ldc: int, compute_type: int, algo: int,
) -> None:  # fmt: skip
    """``cublasGemmEx``."""
    a, b, c = (A, a_type, lda), (B, b_type, ldb), (C, c_type, ldc)
    _multiply("gemmEx", (transa, transb), (m, n, k), alpha, a, b, beta, c, compute_type)
    _record("gemmEx", (m, n, k), 1, c_type, compute_type)


def gemm_strided_batched_ex(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, a_type: int, lda: int,
    stride_a: int, B: int, b_type: int, ldb: int, stride_b: int, beta: int, C: int, c_type: int, ldc: int,
    stride_c: int, batch: int, compute_type: int, algo: int,
) -> None:  # fmt: skip
    """``cublasGemmStridedBatchedEx``; CuPy passes C's data type in place of the compute type."""
    name = "gemmStridedBatchedEx"
    compute = _compute_of(compute_type) if compute_type in STORED else compute_type
    sizes = [np.dtype(_stored(kind, name)[1]).itemsize for kind in (a_type, b_type, c_type)]
    for i in range(batch):
        a = (A + i * stride_a * sizes[0], a_type, lda)
        b = (B + i * stride_b * sizes[1], b_type, ldb)
        c = (C + i * stride_c * sizes[2], c_type, ldc)
        _multiply(name, (transa, transb), (m, n, k), alpha, a, b, beta, c, compute)
    _record(name, (m, n, k), batch, c_type, compute)


def _batched(prefix: str) -> Callable[..., None]:
    kind = OF_PREFIX[prefix]
    name = f"{prefix}gemmBatched"

    def gemm_batched(
        handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, lda: int, B: int, ldb: int,
        beta: int, C: int, ldc: int, batch: int,
    ) -> None:  # fmt: skip
        """``cublas<t>gemmBatched``: A, B and C are arrays of pointers on the device."""
        compute = _compute_of(kind)
        pointers = [_at(address, np.uintp, (batch,), (1,)) for address in (A, B, C)]
        for a, b, c in zip(*pointers, strict=True):
            matrices = (int(a), kind, lda), (int(b), kind, ldb), (int(c), kind, ldc)
            _multiply(name, (transa, transb), (m, n, k), alpha, matrices[0], matrices[1], beta, matrices[2], compute)
        _record(name, (m, n, k), batch, kind, compute)

    return gemm_batched


def _geam(prefix: str) -> Callable[..., None]:
    kind = OF_PREFIX[prefix]
    dtype = STORED[kind][1]

    def geam(
        handle: int, transa: int, transb: int, m: int, n: int, alpha: int, A: int, lda: int, beta: int, B: int,
        ldb: int, C: int, ldc: int,
    ) -> None:  # fmt: skip
        """``cublas<t>geam``: C = alpha op(A) + beta op(B), which CuPy uses to change the order of a matrix."""
        name = f"{prefix}geam"
        factor, other = (_at(address, dtype, (), ())[()] for address in (alpha, beta))
        result = factor * _operand(A, kind, transa, m, n, lda, dtype, name)
        if other != 0:
            result = result + other * _operand(B, kind, transb, m, n, ldb, dtype, name)
        _at(C, dtype, (m, n), (1, ldc))[...] = result

    return geam


class _Cublas(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotCoveredError(f"cublas.{name}")


def cublas_module() -> types.ModuleType:
    """Return a replacement for ``cupy_backends.cuda.libs.cublas``, which cannot be imported without cuBLAS."""
    module = _Cublas(MODULE_NAME)
    functions: dict[str, Callable[..., Any]] = {
        "create": lambda: 1,
        "destroy": lambda handle: None,
        "getVersion": lambda handle: 130000,
        "setStream": lambda handle, stream: None,
        "getPointerMode": lambda handle: CONSTANTS["CUBLAS_POINTER_MODE_HOST"],
        "gemmEx": gemm_ex,
        "gemmStridedBatchedEx": gemm_strided_batched_ex,
        "sgeam": _geam("s"),
        "dgeam": _geam("d"),
    }
    functions |= {f"{prefix}gemmBatched": _batched(prefix) for prefix in OF_PREFIX}
    for name, value in (CONSTANTS | functions).items():
        setattr(module, name, value)
    return module
