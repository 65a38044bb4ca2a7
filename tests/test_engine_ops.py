"""The three implementations of the array routines against each other and many digits."""

import importlib.util
from typing import Any

import mpmath
import numpy as np
import pytest
from engine_devices import in_each_dtype, on_device, on_each_device
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap.gpu.backend import Backend, pick_backend
from adamshap.gpu.layers import context_for
from adamshap.gpu.ops import numpy as in_numpy
from adamshap.gpu.ops import ops_for
from adamshap.gpu.sketch import orthonormal
from adamshap.reference.contract import ACTIVATIONS, Array, Network
from adamshap.verify.strategies import seeds
from adamshap.verify.tolerance import assert_within, rounding

IMPLEMENTATIONS = ("numpy", "device")
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def ops_of(implementation: str, backend: Backend) -> Any:
    """Return plain NumPy's routines, or the device's own: CUDA kernels or Numba loops."""
    return in_numpy if implementation == "numpy" and not backend.on_cuda else ops_for(backend)


def test_numba_is_what_the_processor_uses() -> None:
    assert importlib.util.find_spec("numba"), "the suite is to be run with the extra 'cpu'"
    assert ops_for(pick_backend("cpu", "float32")).__name__ == "adamshap.gpu.ops.numba"


def numbers(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> Array:
    return scale * np.random.default_rng(seed).standard_normal(shape)


@each_implementation
@on_each_device
@in_each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(seed=seeds, rows=st.integers(1, 80), columns=st.integers(1, 40), bias=st.booleans())
@settings(max_examples=6)
def test_activations_and_their_derivatives(
    implementation: Any, device: Any, dtype: Any, activation: str, seed: int, rows: int, columns: int, bias: bool
) -> None:
    backend = pick_backend(device, dtype)
    ops = ops_of(implementation, backend)
    z, b, shift = (np.asarray(numbers(seed + i, (rows, columns), 4.0), dtype) for i in range(3))
    shift = shift[0] if bias else None
    ours, derivative = on_device(device, z.copy()), on_device(device, np.zeros_like(z))
    ops.activate(activation, ours, None if shift is None else on_device(device, shift), derivative)
    kept = ours if activation == "relu" else derivative
    scaled = on_device(device, b.copy())
    ops.scale_by_derivative(activation, scaled, kept)
    with mpmath.workdps(40):
        value, slope = activation_in_many_digits(activation)
        both = z.astype(np.float64) + (0.0 if shift is None else shift.astype(np.float64))
        expected = np.array([[float(value(mpmath.mpf(x))) for x in line] for line in both])
        slopes_ = np.array([[float(slope(mpmath.mpf(x))) for x in line] for line in both])
    # z + bias is rounded; the exponentials amplify that by |z|, the normal tail by z².
    size = (1 + both**2) * (np.abs(expected) + np.exp(-(both**2) / 2)) + (np.abs(z) + np.abs(both)) * np.abs(slopes_)
    steep = (1 + np.abs(both) ** 3) * (np.abs(slopes_) + np.exp(-np.minimum(both**2 / 2, np.abs(both))))
    assert_within(backend.host(ours), expected, rounding(size, 1, dtype), activation)
    assert_within(backend.host(scaled), b * slopes_, rounding(np.abs(b) * steep, 1, dtype), f"{activation}'")


def activation_in_many_digits(name: str) -> tuple[Any, Any]:
    """Return the function and its derivative."""

    def normal(z: Any) -> Any:
        return mpmath.erfc(-z / mpmath.sqrt(2)) / 2

    def logistic(z: Any) -> Any:
        return 1 / (1 + mpmath.exp(-z))

    def density(z: Any) -> Any:
        return mpmath.exp(-(z**2) / 2) / mpmath.sqrt(2 * mpmath.pi)

    return {
        "relu": (lambda z: max(z, 0), lambda z: 1 if z > 0 else 0),
        "identity": (lambda z: z, lambda z: 1),
        "tanh": (mpmath.tanh, lambda z: mpmath.sech(z) ** 2),
        "sigmoid": (logistic, lambda z: logistic(z) * logistic(-z)),
        "silu": (lambda z: z * logistic(z), lambda z: logistic(z) * (1 + z * logistic(-z))),
        "gelu": (lambda z: z * normal(z), lambda z: normal(z) + z * density(z)),
    }[name]


@each_implementation
@on_each_device
@in_each_dtype
@given(seed=seeds, rows=st.integers(1, 80), columns=st.integers(1, 40), exponent=st.sampled_from([-25, 0, 15]))
@settings(max_examples=10)
def test_norms_and_row_dots(
    implementation: Any, device: Any, dtype: Any, seed: int, rows: int, columns: int, exponent: int
) -> None:
    """Norms of numbers whose squares float32 cannot hold; dots that are added to the output."""
    backend = pick_backend(device, dtype)
    ops = ops_of(implementation, backend)
    x, z = (np.asarray(numbers(seed + i, (rows, columns)), dtype) for i in range(2))
    tiny = np.asarray(x * 10.0**exponent, dtype)
    norms = np.sqrt((tiny.astype(np.float64) ** 2).sum(axis=0))
    assert_within(backend.host(ops.column_norms(on_device(device, tiny))), norms, rounding(norms, rows, dtype), "norm")
    p, out = np.asarray(z[0], dtype), np.ones(rows, dtype)
    for shift in (None, p):
        ours = on_device(device, out.copy())
        ops.row_dot(*(on_device(device, a) for a in (x, z)), None if shift is None else on_device(device, p), ours)
        terms = x.astype(np.float64) * (z.astype(np.float64) + (0.0 if shift is None else p.astype(np.float64)))
        size = 1 + (np.abs(x) * (np.abs(z) + np.abs(p))).sum(axis=1)
        assert_within(backend.host(ours), 1 + terms.sum(axis=1), rounding(size, columns, dtype), "row dot")


@each_implementation
@on_each_device
@in_each_dtype
@given(seed=seeds, rows=st.integers(1, 9), columns=st.integers(1, 300), exponent=st.sampled_from([-25, 0, 15]))
@settings(max_examples=6)
def test_squares_are_added_in_double(
    implementation: Any, device: Any, dtype: Any, seed: int, rows: int, columns: int, exponent: int
) -> None:
    backend = pick_backend(device, dtype)
    x, sums = np.asarray(numbers(seed, (rows, columns), 10.0**exponent), dtype), numbers(seed + 1, (rows, columns)) ** 2
    ours = on_device(device, sums.copy())
    ops_of(implementation, backend).add_squares(on_device(device, x), ours)
    wanted = sums + x.astype(np.float64) ** 2
    assert_within(backend.host(ours), wanted, rounding(wanted, 2, "float64"), "sums of squares")


@on_each_device
@given(seed=seeds, r=st.integers(1, 12), dead=st.integers(0, 3))
@settings(max_examples=20)
def test_whitening_gives_an_orthonormal_basis_of_the_range(device: Any, seed: int, r: int, dead: int) -> None:
    """Columns that depend on others, and zero columns, come out as 0 and harm nothing."""
    backend = pick_backend(device, "float64")
    y = numbers(seed, (40, r))
    y[:, :dead] = 0
    y = np.concatenate([y, y[:, -1:]], axis=1)
    white = backend.host(ops_for(backend).whitening(on_device(device, y.T @ y)))
    q = y @ white
    rank = np.linalg.matrix_rank(y)
    projector = q @ q.T
    exact = np.linalg.pinv(y)
    condition = np.linalg.cond(y[:, min(dead, r - 1) : r]) ** 2 if dead < r else 1.0
    close = rounding(condition, 40 * r, np.float64)
    assert_within(projector, y @ exact, close, "projector")
    assert_within(np.trace(projector), rank, 40 * close, "rank")


@on_each_device
@pytest.mark.parametrize("apart", [1e-8, 3e-9])
def test_whitening_drops_directions_that_double_precision_cannot_resolve(device: Any, apart: float) -> None:
    """Else a direction of rounding errors comes out with any length."""
    backend = pick_backend(device, "float64")
    for seed in range(8):
        y = numbers(seed, (40, 2))
        y[:, 1] = y[:, 0] + apart * y[:, 1]
        white = backend.host(ops_for(backend).whitening(on_device(device, y.T @ y)))
        lengths = np.linalg.svd(y @ white, compute_uv=False)
        assert_within(lengths, np.array([1.0, 0.0]), rounding(1.0, 40, np.float64), "singular value")


@on_each_device
@in_each_dtype
def test_a_basis_keeps_directions_that_the_dtype_resolves(device: Any, dtype: Any) -> None:
    """Columns whose Gram matrix float32 could not hold: their difference squared is below its rounding."""
    backend = pick_backend(device, dtype)
    y = numbers(0, (40, 2))
    y[:, 1] = y[:, 0] + 1e-4 * y[:, 1]
    held = np.asarray(y, dtype)
    context = context_for(Network((2, 2)), backend)
    q = backend.host(orthonormal(context, on_device(device, held))).astype(np.float64)
    assert_within(q.T @ q, np.eye(2), rounding(1.0, 40, "float32"), "Qᵀ Q")
