"""The three makes of the elementwise passes against each other, and their divided difference against 50 digits."""

import importlib.util
from typing import Any

import mpmath
import numpy as np
import pytest
from engine_devices import in_each_dtype, on_device, on_each_device
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap.gpu import passes_numpy
from adamshap.gpu.backend import Backend, pick_backend
from adamshap.gpu.ghost import orthonormal
from adamshap.gpu.kernels import passes_for
from adamshap.gpu.kernels.plan import AdamScalars, SlopePlan, adam_scalars, slope_plan
from adamshap.gpu.layers import EngineContext
from adamshap.reference.contract import ACTIVATIONS, SLOPES, Adam, Array, Network
from adamshap.verify.strategies import adams, powers_of_ten, seeds
from adamshap.verify.tolerance import assert_within, rounding

MAKES = ("numpy", "device")
each_make = pytest.mark.parametrize("make", MAKES)


def passes_of(make: str, backend: Backend) -> Any:
    """Return plain NumPy's passes, or the device's own: CUDA kernels or Numba loops."""
    return passes_numpy if make == "numpy" and not backend.on_cuda else passes_for(backend)


def test_numba_is_what_the_processor_uses() -> None:
    assert importlib.util.find_spec("numba"), "the suite is to be run with the extra 'cpu'"
    assert passes_for(pick_backend("cpu", "float32")).__name__ == "adamshap.gpu.passes_numba"


def test_the_loops_are_found_in_numbas_cache_by_the_next_process() -> None:
    """A loop that closes over a compiled function has another key in each process, and is compiled in each."""
    from numba.core.dispatcher import Dispatcher

    from adamshap.gpu import fits_numba, passes_numba, splits_numba

    others = {"split": splits_numba._kernel(np.float32), "fit": fits_numba._kernel(np.float32)}
    for name, made in (passes_numba._kernels(np.float32) | others).items():
        closed_over = [cell.cell_contents for cell in made.py_func.__closure__ or ()]
        assert not any(isinstance(value, Dispatcher) for value in closed_over), name


def slopes(
    make: str, device: str, dtype: str, scalars: AdamScalars, plan: SlopePlan, g: Array, m: Array, v: Array
) -> Array:
    """Return the pass's slope for one row of numbers."""
    backend = pick_backend(device, dtype)
    g_, m_, v_ = (on_device(device, np.asarray(a, dtype)[None, :]) for a in (g, m, v))
    theta = backend.xp.zeros_like(g_)
    outputs = [backend.xp.empty_like(g_) for _ in range(5)]
    row, col = (on_device(device, np.ones(k, dtype)) for k in (1, len(g)))
    passes_of(make, backend).attributed(scalars, plan, 2, g_, theta, m_, v_, row, col, None, None, 0.5, *outputs)
    return np.asarray(backend.host(outputs[-1]))[0]


def parts_of_divided_difference(scalars: AdamScalars, a: float, b: float, m: float, v: float) -> tuple[float, float]:
    """Return A[a, b] and the sum of its parts' absolute values, k's and μ's, from the definition in 50 digits."""
    a, b, m, v, lr, k, eps = map(mpmath.mpf, (a, b, m, v, scalars.lr, scalars.k, scalars.eps))
    kappa, q = scalars.kappa * v + scalars.root, mpmath.mpf(scalars.root_q) ** 2
    below = [mpmath.sqrt(kappa + q * x**2) + eps for x in (a, b)]
    if a == b:
        r = below[0] - eps
        fall = q * a / r if r else mpmath.mpf(0)  # r'
        k_part, mu_part = (below[0] - fall * a) * k / below[0] ** 2, -scalars.mu * m * fall / below[0] ** 2
    else:
        k_part = k * (a / below[0] - b / below[1]) / (a - b)
        mu_part = scalars.mu * m * (1 / below[0] - 1 / below[1]) / (a - b)
    return float(lr * (k_part + mu_part)), float(lr * (abs(k_part) + abs(mu_part)))


@each_make
@on_each_device
@in_each_dtype
@given(
    adam=adams(),
    t=st.integers(1, 1000),
    g=powers_of_ten(-25, 10),
    v=st.just(0.0) | powers_of_ten(-30, 10),
    m=powers_of_ten(-25, 5),
    signs=st.tuples(st.sampled_from([-1, 1]), st.sampled_from([-1, 0, 1])),
    slope=st.sampled_from(["tangent", "secant"]),
)
@settings(max_examples=60)
def test_divided_difference_to_its_last_digits(
    make: Any,
    device: Any,
    dtype: Any,
    adam: Adam,
    t: int,
    g: float,
    v: float,
    m: float,
    signs: tuple[int, int],
    slope: Any,
) -> None:
    """Neither part cancels, whatever the sizes: each is right to a few roundings, in float32 as well."""
    scalars, g, m = adam_scalars(adam, t), signs[0] * g, signs[1] * m
    g, m, v = (float(np.dtype(dtype).type(x)) for x in (g, m, v))  # what the dtype holds
    # ε and the scalars come as the dtype holds them too.
    held = AdamScalars(*(float(np.dtype(dtype).type(x)) for x in vars(scalars).values()))
    got = slopes(make, device, dtype, held, slope_plan(slope, (4, 4), 2), np.array([g]), np.array([m]), np.array([v]))
    with mpmath.workdps(80):
        expected, parts = parts_of_divided_difference(held, g, g if slope == "tangent" else 0.0, m, v)
    assert_within(got[0], expected, rounding(parts, 1, dtype), slope)


def wide(dtype: str) -> Any:
    """Return a wider type, in which plain NumPy's passes are the measure for the others."""
    return np.dtype(np.float64 if dtype == "float32" else np.longdouble)


def numbers(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> Array:
    return scale * np.random.default_rng(seed).standard_normal(shape)


@each_make
@on_each_device
@in_each_dtype
@pytest.mark.parametrize("slope", [*SLOPES, "previous"])
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 5), st.sampled_from([1, 7, 300])),
    exact=st.booleans(),
    in_place=st.booleans(),
)
@settings(max_examples=6)
def test_one_pass_in_every_make(
    make: Any, device: Any, dtype: Any, slope: str, seed: int, shape: tuple[int, int], exact: bool, in_place: bool
) -> None:
    """All outputs, with σ, Γ and a point, over blocks and their ends, against the same formulas in a wider type.

    In place, the state after the step is written over the one before it, and the slope over the gradient.
    """
    backend, n = pick_backend(device, dtype), 6
    scalars = adam_scalars(Adam(lr=0.01, betas=(0.75, 0.5), eps=0.0625, weight_decay=0.5), 3)
    plan = slope_plan("linearized", (4, 4), n, "previous") if slope == "previous" else slope_plan(slope, (4, 4), n)
    x = numbers(seed, (n, *shape))
    row, col = np.sqrt(np.abs(numbers(seed, shape[:1])) + 1), np.sqrt(np.abs(numbers(seed, shape[1:])) + 1)
    root = np.asarray(np.sqrt((x**2).sum(axis=0)), dtype) if exact else None
    gs = x.sum(axis=0) if exact else x.sum(axis=0) / 100  # within what rank one can be the variance of
    inputs = [gs, numbers(seed + 1, shape), numbers(seed + 2, shape), numbers(seed + 3, shape) ** 2]
    held = [np.asarray(a, dtype) for a in (*inputs, numbers(seed + 4, shape))]
    norms = (None, None, root) if exact else (np.asarray(row, dtype), np.asarray(col, dtype), None)

    def run(passes: Any, convert: Any, kind: Any, xp: Any, over_inputs: bool = False) -> list[Any]:
        *arrays, gamma = (convert(a.copy()) for a in held)
        outputs = [xp.empty(shape, kind) for _ in range(5)]
        if over_inputs:
            outputs = [*arrays[1:4], outputs[3], arrays[0]]
        held_norms = (None if a is None else convert(a) for a in norms)
        passes.attributed(scalars, plan, n, *arrays, *held_norms, gamma, 0.5, *outputs)
        return outputs

    got = run(passes_of(make, backend), lambda a: on_device(device, a), dtype, backend.xp, in_place)
    expected = run(passes_numpy, lambda a: a.astype(wide(dtype)), wide(dtype), np)
    for name, ours, theirs in zip(("θ", "m", "v", "point", "slope"), got, expected, strict=True):
        # ε is large and v ordinary: nothing is steep, but σ² is a difference, of numbers below n.
        scale = np.abs(theirs) + n * np.abs(held[-1] if name == "slope" else 1.0)
        assert_within(backend.host(ours), theirs, rounding(scale, 1, dtype), name)


@each_make
@on_each_device
@in_each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(seed=seeds, rows=st.integers(1, 80), columns=st.integers(1, 40), bias=st.booleans())
@settings(max_examples=6)
def test_activations_and_their_derivatives(
    make: Any, device: Any, dtype: Any, activation: str, seed: int, rows: int, columns: int, bias: bool
) -> None:
    backend = pick_backend(device, dtype)
    passes = passes_of(make, backend)
    z, b, shift = (np.asarray(numbers(seed + i, (rows, columns), 4.0), dtype) for i in range(3))
    shift = shift[0] if bias else None
    ours, derivative = on_device(device, z.copy()), on_device(device, np.zeros_like(z))
    passes.activate(activation, ours, None if shift is None else on_device(device, shift), derivative)
    kept = ours if activation == "relu" else derivative
    scaled = on_device(device, b.copy())
    passes.scale_by_derivative(activation, scaled, kept)
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


@each_make
@on_each_device
@in_each_dtype
@given(seed=seeds, rows=st.integers(1, 80), columns=st.integers(1, 40), exponent=st.sampled_from([-25, 0, 15]))
@settings(max_examples=10)
def test_norms_and_row_dots(
    make: Any, device: Any, dtype: Any, seed: int, rows: int, columns: int, exponent: int
) -> None:
    """Norms of numbers whose squares float32 cannot hold; dots that are added to what is there."""
    backend = pick_backend(device, dtype)
    passes = passes_of(make, backend)
    x, z = (np.asarray(numbers(seed + i, (rows, columns)), dtype) for i in range(2))
    tiny = np.asarray(x * 10.0**exponent, dtype)
    norms = np.sqrt((tiny.astype(np.float64) ** 2).sum(axis=0))
    assert_within(
        backend.host(passes.column_norms(on_device(device, tiny))), norms, rounding(norms, rows, dtype), "norm"
    )
    p, out = np.asarray(z[0], dtype), np.ones(rows, dtype)
    for shift in (None, p):
        ours = on_device(device, out.copy())
        passes.row_dot(*(on_device(device, a) for a in (x, z)), None if shift is None else on_device(device, p), ours)
        terms = x.astype(np.float64) * (z.astype(np.float64) + (0.0 if shift is None else p.astype(np.float64)))
        size = 1 + (np.abs(x) * (np.abs(z) + np.abs(p))).sum(axis=1)
        assert_within(backend.host(ours), 1 + terms.sum(axis=1), rounding(size, columns, dtype), "row dot")


@on_each_device
@given(seed=seeds, r=st.integers(1, 12), dead=st.integers(0, 3))
@settings(max_examples=20)
def test_whitening_gives_an_orthonormal_basis_of_what_there_is(device: Any, seed: int, r: int, dead: int) -> None:
    """Columns that depend on others, and zero columns, come out as 0 and harm nothing."""
    backend = pick_backend(device, "float64")
    y = numbers(seed, (40, r))
    y[:, :dead] = 0
    y = np.concatenate([y, y[:, -1:]], axis=1)
    white = backend.host(passes_for(backend).whitening(on_device(device, y.T @ y)))
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
def test_whitening_drops_what_double_precision_cannot_tell_from_nothing(device: Any, apart: float) -> None:
    """Else a direction of rounding errors comes out with any length."""
    backend = pick_backend(device, "float64")
    for seed in range(8):
        y = numbers(seed, (40, 2))
        y[:, 1] = y[:, 0] + apart * y[:, 1]
        white = backend.host(passes_for(backend).whitening(on_device(device, y.T @ y)))
        lengths = np.linalg.svd(y @ white, compute_uv=False)
        assert_within(lengths, np.array([1.0, 0.0]), rounding(1.0, 40, np.float64), "singular value")


@on_each_device
@in_each_dtype
def test_a_basis_keeps_what_the_dtype_can_tell_apart(device: Any, dtype: Any) -> None:
    """Columns whose Gram matrix float32 could not hold: their difference squared is below its rounding."""
    backend = pick_backend(device, dtype)
    y = numbers(0, (40, 2))
    y[:, 1] = y[:, 0] + 1e-4 * y[:, 1]
    held = np.asarray(y, dtype)
    context = EngineContext.on(Network((2, 2)), backend)
    q = backend.host(orthonormal(context, on_device(device, held))).astype(np.float64)
    assert_within(q.T @ q, np.eye(2), rounding(1.0, 40, "float32"), "Qᵀ Q")
