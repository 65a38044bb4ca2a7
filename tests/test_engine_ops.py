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


# --- sequences -------------------------------------------------------------------------------------------------------


@each_implementation
@on_each_device
@in_each_dtype
@given(seed=seeds, positions=st.integers(1, 40), scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
@settings(max_examples=8)
def test_softmax_over_earlier_positions_and_its_derivative(
    implementation: Any, device: Any, dtype: Any, seed: int, positions: int, scale: float
) -> None:
    """Large scores included; what a row's later positions hold is not read."""
    backend = pick_backend(device, dtype)
    ops, factor = ops_of(implementation, backend), 0.3
    shape = (2, 3, positions, positions)
    logits, s = np.asarray(numbers(seed, shape, scale), dtype), np.asarray(numbers(seed + 1, shape), dtype)
    seen = np.tri(positions, dtype=bool)
    weights = on_device(device, np.where(seen, logits, np.asarray(np.nan, dtype)))
    ops.causal_softmax(weights, factor)
    wide = factor * np.where(seen, logits.astype(np.float64), -np.inf)
    exact = np.exp(wide - wide.max(axis=-1, keepdims=True))
    exact /= exact.sum(axis=-1, keepdims=True)
    got = backend.host(weights)
    # e^x magnifies the rounding of factor · x and of its difference from the largest by their size.
    size = exact * (1 + factor * np.abs(logits).max(axis=-1, keepdims=True))
    assert_within(got, exact, rounding(size, positions, dtype), "W")
    assert (got[..., ~seen] == 0).all()

    ours = on_device(device, np.where(seen, s, np.asarray(0, dtype)))
    ops.softmax_derivative(ours, weights, factor)
    w, g = got.astype(np.float64), np.where(seen, s, 0).astype(np.float64)
    along = (w * g).sum(axis=-1, keepdims=True)
    size = factor * w * (np.abs(g) + (w * np.abs(g)).sum(axis=-1, keepdims=True))
    assert_within(backend.host(ours), factor * w * (g - along), rounding(size, positions, dtype), "derivative")


@each_implementation
@on_each_device
@in_each_dtype
@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf])
def test_softmax_of_a_row_that_is_not_finite(implementation: Any, device: Any, dtype: Any, wrong: float) -> None:
    """Its weights are NaN wherever it is, and other rows are as they were."""
    backend = pick_backend(device, dtype)
    ops = ops_of(implementation, backend)
    for row, column in ((0, 0), (5, 0), (5, 3), (5, 5)):
        logits = np.asarray(numbers(0, (1, 7, 7)), dtype)
        plain, logits_with = on_device(device, logits.copy()), logits.copy()
        logits_with[0, row, column] = wrong
        ours = on_device(device, logits_with)
        with np.errstate(invalid="ignore"):
            ops.causal_softmax(plain, 1.0)
            ops.causal_softmax(ours, 1.0)
        assert np.isnan(backend.host(ours)[0, row, : row + 1]).all()
        others = np.arange(7) != row
        np.testing.assert_array_equal(backend.host(ours)[0, others], backend.host(plain)[0, others])
    masked = np.full((1, 3, 3), -np.inf, dtype)
    masked[0, :, 0] = 1  # one score is finite: it has all the weight
    ours = on_device(device, masked)
    ops.causal_softmax(ours, 1.0)
    np.testing.assert_array_equal(backend.host(ours)[0], np.eye(3)[[0, 0, 0]])


@each_implementation
@on_each_device
@in_each_dtype
@given(
    seed=seeds, rows=st.integers(1, 30), width=st.integers(1, 40), centred=st.booleans(), bias=st.booleans(),
    shift=st.sampled_from([0.0, 3.0]),
)  # fmt: skip
@settings(max_examples=12)
def test_norms_of_positions_and_their_derivative(
    implementation: Any, device: Any, dtype: Any, seed: int, rows: int, width: int, centred: bool, bias: bool,
    shift: float,
) -> None:  # fmt: skip
    backend = pick_backend(device, dtype)
    ops, eps = ops_of(implementation, backend), 0.1
    x, g = (np.asarray(numbers(seed + i, (rows, width)) + shift, dtype) for i in range(2))
    gain, own = (np.asarray(numbers(seed + 2 + i, (width,)), dtype) for i in range(2))
    normalised, out = (on_device(device, np.zeros_like(x)) for _ in range(2))
    inverse = on_device(device, np.zeros((rows, 1), dtype))
    held = [on_device(device, array) for array in (x, gain, own)]
    ops.normalise(held[0], eps, centred, held[1], held[2] if bias else None, (normalised, inverse, out))

    wide = x.astype(np.float64)
    middle = wide - wide.mean(axis=1, keepdims=True) if centred else wide
    exact_inverse = 1 / np.sqrt((middle**2).mean(axis=1, keepdims=True) + eps)
    exact = middle * exact_inverse
    largest = np.abs(wide).max(axis=1, keepdims=True)
    size = (1 + largest * exact_inverse) ** 2  # x̂ and what the mean's rounding adds to it
    assert_within(backend.host(normalised), exact, rounding(size, width, dtype), "x̂")
    assert_within(backend.host(inverse), exact_inverse, rounding(size * exact_inverse, width, dtype), "1/s")
    wanted = exact * gain + (own if bias else 0)
    assert_within(backend.host(out), wanted, rounding(size * np.abs(gain) + np.abs(own), width, dtype), "output")

    for factor in (held[1], None):
        for in_place in (False, True):
            ours = on_device(device, g.copy())
            to = ours if in_place else on_device(device, np.zeros_like(g))
            ops.norm_derivative(ours, factor, normalised, inverse, centred, to)
            through = g.astype(np.float64) * (1 if factor is None else gain)
            hats, scales = backend.host(normalised).astype(np.float64), backend.host(inverse).astype(np.float64)
            along = (through * hats).mean(axis=1, keepdims=True)
            mean = through.mean(axis=1, keepdims=True) if centred else 0
            wanted = (through - mean - hats * along) * scales
            most = np.abs(through).max(axis=1, keepdims=True)
            size = scales * most * (2 + np.abs(hats).max(axis=1, keepdims=True) ** 2)
            assert_within(backend.host(to), wanted, rounding(size, width, dtype), "gradient")


@on_each_device
@in_each_dtype
@given(seed=seeds)
@settings(max_examples=4)
def test_gelu_far_out_and_of_numbers_that_are_not_finite(device: Any, dtype: Any, seed: int) -> None:
    """Its tail keeps its digits to where the dtype has no numbers left, in rows of any length."""
    backend = pick_backend(device, dtype)
    z = np.asarray(-np.sort(np.random.default_rng(seed).uniform(0, 16, (3, 37))), dtype)
    ours, derivative = on_device(device, z.copy()), on_device(device, np.zeros_like(z))
    ops_for(backend).activate("gelu", ours, None, derivative)
    value, slope = activation_in_many_digits("gelu")
    for got, function, growth in ((ours, value, 2), (derivative, slope, 3)):
        with mpmath.workdps(60):
            exact = np.array([[float(function(mpmath.mpf(float(x)))) for x in row] for row in z])
            size = np.abs(exact) + np.exp(-(z.astype(np.float64) ** 2) / 2) * (1 + np.abs(z)) ** growth / 10
        close = rounding(size * (1 + z.astype(np.float64) ** 2), 1, dtype)
        assert_within(backend.host(got), exact, close, "tail")
    far = on_device(device, np.asarray([[np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0]], dtype))
    derivative = on_device(device, np.zeros((1, 6), dtype))
    with np.errstate(all="ignore"):
        ops_for(backend).activate("gelu", far, None, derivative)
    np.testing.assert_array_equal(backend.host(far)[0], np.asarray([np.nan, np.inf, np.nan, 1e30, 0, 0], dtype))
    np.testing.assert_array_equal(backend.host(derivative)[0], [np.nan, np.nan, np.nan, 1, 0, 0.5])
