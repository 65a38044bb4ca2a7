"""The three implementations of the fused step against each other, and their divided difference against 80 digits."""

import importlib.util
from typing import Any

import mpmath
import numpy as np
import pytest
from engine_devices import in_each_dtype, on_device, on_each_device
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap.gpu.backend import Backend, pick_backend
from adamshap.gpu.kernels import kernels_for
from adamshap.gpu.kernels import numpy as in_numpy
from adamshap.gpu.kernels.groups import NO_NORMS, FusedStepOut, GradientNorms, ParameterState
from adamshap.gpu.kernels.plan import AdamScalars, SlopePlan, adam_scalars, slope_plan
from adamshap.reference.contract import SLOPES, Adam, Array
from adamshap.verify.strategies import adams, powers_of_ten, seeds
from adamshap.verify.tolerance import assert_within, rounding

IMPLEMENTATIONS = ("numpy", "device")
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def kernels_of(implementation: str, backend: Backend) -> Any:
    """Return plain NumPy's kernels, or the device's own: CUDA or Numba loops."""
    return in_numpy if implementation == "numpy" and not backend.on_cuda else kernels_for(backend)


def test_numba_is_what_the_processor_uses() -> None:
    assert importlib.util.find_spec("numba"), "the suite is to be run with the extra 'cpu'"
    assert kernels_for(pick_backend("cpu", "float32")).__name__ == "adamshap.gpu.kernels.numba"


def test_the_loops_are_found_in_numbas_cache_by_the_next_process() -> None:
    """A loop that closes over a compiled function has another key in each process, and is compiled in each."""
    from numba.core.dispatcher import Dispatcher

    from adamshap.gpu.kernels import numba, numba_steps
    from adamshap.gpu.ops import numba as ops

    loops = {
        name: getattr(module, f"_{name}")(np.float32)
        for module in (numba_steps, numba)
        for name in ("adam_step", "secant_step", *numba.__all__)
        if hasattr(module, f"_{name}")
    }
    assert set(loops) == {"secant_step", *numba.__all__}
    for name, loop in (loops | ops._loops(np.float32)).items():
        closed_over = [cell.cell_contents for cell in loop.py_func.__closure__ or ()]
        assert not any(isinstance(value, Dispatcher) for value in closed_over), name


def slopes(
    implementation: str, device: str, dtype: str, scalars: AdamScalars, plan: SlopePlan, g: Array, m: Array, v: Array
) -> Array:
    """Return the fused step's slope for one row of numbers."""
    backend = pick_backend(device, dtype)
    g_, m_, v_ = (on_device(device, np.asarray(a, dtype)[None, :]) for a in (g, m, v))
    state = ParameterState(backend.xp.zeros_like(g_), m_, v_)
    theta, m, v, point, slope = (backend.xp.empty_like(g_) for _ in range(5))
    norms = GradientNorms(2, *(on_device(device, np.ones(k, dtype)) for k in (1, len(g))))
    out = FusedStepOut(ParameterState(theta, m, v), point, slope)
    kernels_of(implementation, backend).fused_step(scalars, plan, g_, state, norms, None, 0.5, out)
    return np.asarray(backend.host(slope))[0]


def parts_of_divided_difference(scalars: AdamScalars, a: float, b: float, m: float, v: float) -> tuple[float, float]:
    """Return A[a, b] and the sum of its parts' absolute values, k's and μ's, from the definition in 80 digits."""
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


@each_implementation
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
    implementation: Any,
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
    g, m, v = (float(np.dtype(dtype).type(x)) for x in (g, m, v))  # rounded to the dtype
    # ε and the scalars are rounded to the dtype too.
    held = AdamScalars(*(float(np.dtype(dtype).type(x)) for x in vars(scalars).values()))
    got = slopes(
        implementation, device, dtype, held, slope_plan(slope, (4, 4), 2), np.array([g]), np.array([m]), np.array([v])
    )
    with mpmath.workdps(80):
        expected, parts = parts_of_divided_difference(held, g, g if slope == "tangent" else 0.0, m, v)
    assert_within(got[0], expected, rounding(parts, 1, dtype), slope)


def test_an_output_that_is_no_contiguous_array_is_an_error() -> None:
    """A flat view of it would be a copy, and the slope be lost."""
    kernels, g = kernels_for(pick_backend("cpu", "float32")), np.ones((4, 6), np.float32)
    state, out = ParameterState(g, g, g), FusedStepOut(None, None, np.ones((6, 4), np.float32).T)
    with pytest.raises(AssertionError, match="copies of its outputs"):
        kernels.fused_step(adam_scalars(Adam(), 2), slope_plan("secant", (4, 4), 2), g, state, NO_NORMS, None, 0.5, out)


def wide(dtype: str) -> Any:
    """Return a wider type, in which plain NumPy's kernels are the reference for the others."""
    return np.dtype(np.float64 if dtype == "float32" else np.longdouble)


def test_a_divided_difference_to_no_gradient_meets_its_denominator() -> None:
    """Whatever the weight of the node: a new slope may have one of these."""
    half = SlopePlan("nodes", ((0.5, 0.5, 0.0, 0.5),))
    meets = {"half": half.needs_idle} | {name: slope_plan(name, (4, 4), 6).needs_idle for name in SLOPES}
    assert {name for name, flag in meets.items() if flag} == {"half", "linearized", "secant"}


def numbers(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> Array:
    return scale * np.random.default_rng(seed).standard_normal(shape)


@each_implementation
@on_each_device
@in_each_dtype
@pytest.mark.parametrize("slope", [*SLOPES, "previous"])
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 5), st.sampled_from([1, 7, 300])),
    exact=st.booleans(),
    state=st.sampled_from(["apart", "in place", "not wanted"]),
)
@settings(max_examples=6)
def test_the_fused_step_in_every_implementation(
    implementation: Any,
    device: Any,
    dtype: Any,
    slope: str,
    seed: int,
    shape: tuple[int, int],
    exact: bool,
    state: str,
) -> None:
    """All outputs, with σ, Γ and a point, over blocks and their ends, against the same formulas in a wider type.

    In place, the state after the step is written over the one before it, and the slope over the gradient. A state that
    is not wanted changes nothing else.
    """
    backend, n = pick_backend(device, dtype), 6
    scalars = adam_scalars(Adam(lr=0.01, betas=(0.75, 0.5), eps=0.0625, weight_decay=0.5), 3)
    plan = slope_plan("linearized", (4, 4), n, "previous") if slope == "previous" else slope_plan(slope, (4, 4), n)
    x = numbers(seed, (n, *shape))
    row, col = np.sqrt(np.abs(numbers(seed, shape[:1])) + 1), np.sqrt(np.abs(numbers(seed, shape[1:])) + 1)
    root = np.asarray(np.sqrt((x**2).sum(axis=0)), dtype) if exact else None
    gs = x.sum(axis=0) if exact else x.sum(axis=0) / 100  # small enough for a variance of rank one
    inputs = [gs, numbers(seed + 1, shape), numbers(seed + 2, shape), numbers(seed + 3, shape) ** 2]
    held = [np.asarray(a, dtype) for a in (*inputs, numbers(seed + 4, shape))]
    norms = (None, None, root) if exact else (np.asarray(row, dtype), np.asarray(col, dtype), None)

    def run(kernels: Any, convert: Any, kind: Any, xp: Any, where: str = "apart") -> list[Any]:
        *arrays, gamma = (convert(a.copy()) for a in held)
        outputs = [xp.empty(shape, kind) for _ in range(5)]
        if where == "in place":
            outputs = [*arrays[1:4], outputs[3], arrays[0]]
        held_norms = GradientNorms(n, *(None if a is None else convert(a) for a in norms))
        g, *before = arrays
        out = FusedStepOut(None if where == "not wanted" else ParameterState(*outputs[:3]), *outputs[3:])
        kernels.fused_step(scalars, plan, g, ParameterState(*before), held_norms, gamma, 0.25, out)
        return [None] * 3 + outputs[3:] if where == "not wanted" else outputs

    got = run(kernels_of(implementation, backend), lambda a: on_device(device, a), dtype, backend.xp, state)
    expected = run(in_numpy, lambda a: a.astype(wide(dtype)), wide(dtype), np)
    for name, ours, theirs in zip(("θ", "m", "v", "point", "slope"), got, expected, strict=True):
        if ours is None:
            continue
        # ε is large and v ordinary: nothing is steep, but σ² is a difference, of numbers below n.
        scale = np.abs(theirs) + n * np.abs(held[-1] if name == "slope" else 1.0)
        assert_within(backend.host(ours), theirs, rounding(scale, 1, dtype), name)
