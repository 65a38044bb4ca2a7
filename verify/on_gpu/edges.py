"""Checks that need a real card: two concurrent streams, exhausted memory, and more than 2³¹ elements.

A kernel on a large array is compared with the same kernel on some of its rows: each element depends only on its own
inputs, so the bits must be the same. A reduction is compared with a sum on the host, a whole step with its
micro-batches.
"""

from functools import partial
from typing import Any

import numpy as np

from adamshap import gpu
from adamshap.gpu.backend import NoRoomError, pick_backend
from adamshap.gpu.kernels import kernels_for
from adamshap.gpu.kernels.groups import FusedStepOut, GradientNorms, ParameterState
from adamshap.gpu.kernels.plan import adam_scalars, slope_plan
from adamshap.gpu.ops import ops_for
from adamshap.reference.contract import Adam, AdamState, Batch, Network, Step, StepNumber
from adamshap.verify.candidates.engine import Engine
from adamshap.verify.implementation import Query, implementation
from adamshap.verify.on_gpu.child import Reporter
from adamshap.verify.on_gpu.plan import Setting, Task
from adamshap.verify.on_gpu.smoke import step
from adamshap.verify.properties import PROPERTIES, Case, asker, in_dtype
from adamshap.verify.tolerance import assert_within, rounding

__all__ = ["tasks"]

LARGE = (46341, 46342)
"""Just above 2³¹ elements, 8.6 GB in float32; up to five such arrays exist at a time."""
LARGE_BATCH = (65537, 32768)
"""Samples and units, of the same total size."""
SMALL, SMALL_BATCH = (33, 65), (300, 8)
ROWS = (0, 1, -2, -1)


def tasks(setting: Setting) -> list[Task]:
    """Return the stage's tasks."""
    shape, batch = (SMALL, SMALL_BATCH) if setting.rehearsal else (LARGE, LARGE_BATCH)
    fresh = not setting.rehearsal  # so that each starts with an empty card
    return [
        Task("two streams", partial(_two_streams, setting)),
        Task("a full memory pool", _full_pool),
        Task("a full card", partial(_full_card, setting), fresh=fresh),
        Task("Adam's step of 2^31 parameters", partial(_large_adam, shape), fresh=fresh),
        Task("the fused pass over 2^31 parameters", partial(_large_fused, shape), fresh=fresh),
        Task("reductions of 2^31 elements", partial(_large_reductions, shape), fresh=fresh),
        Task("2^31 activations, against micro-batches", partial(_large_batch, batch), fresh=fresh),
    ]


# --- streams ----------------------------------------------------------------------------------------------------------


def _two_streams(setting: Setting, report: Reporter) -> None:
    """Check that concurrent calls on two streams give the same answers as sequential ones."""
    import cupy

    sizes, n = ((6, 24, 4), 24) if setting.rehearsal else ((784, 2048, 2048, 10), 1024)
    problems = [in_dtype(step(activation, sizes=sizes, n=n), "float32") for activation in ("gelu", "tanh")]
    options: dict[str, Any] = {"device": "cuda", "dtype": "float32"}
    alone = [gpu.scores(problem, **options) for problem in problems]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in problems]
    for _ in range(5):
        together = []
        for stream, problem in zip(streams, problems, strict=True):
            with stream:
                together.append(gpu.scores(problem, device_arrays=True, **options))
        for stream, found, expected in zip(streams, together, alone, strict=True):
            stream.synchronize()
            with stream:
                np.testing.assert_array_equal(found.get(), expected)
    report.passed(len(problems))


# --- memory -----------------------------------------------------------------------------------------------------------


def _full_pool(report: Reporter) -> None:
    """Check that a call beyond the limit of CuPy's pool raises `NoRoomError`, and that the next call is unaffected."""
    import cupy

    pool = cupy.get_default_memory_pool()
    problem = in_dtype(step(sizes=(64, 512, 512, 4), n=256), "float32")
    expected = gpu.scores(problem, device="cuda", dtype="float32")
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + (6 << 20))  # the step itself takes 4 MB
    try:
        _expect_no_room(problem)
    finally:
        pool.set_limit(size=0)
    np.testing.assert_array_equal(gpu.scores(problem, device="cuda", dtype="float32"), expected)
    report.passed(1)


def _full_card(setting: Setting, report: Reporter) -> None:
    """Check the same with a full card: almost all of its memory is allocated first."""
    import cupy

    if setting.rehearsal:
        report.note("a full card", "not rehearsed: this would take all of the host's memory")
        return
    problem = in_dtype(step(sizes=(64, 4096, 4096, 4), n=4096), "float32")
    expected = gpu.scores(problem, device="cuda", dtype="float32")
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    free, _ = cupy.cuda.runtime.memGetInfo()
    # Plain cudaMalloc, outside of any pool; the step itself takes 200 MB.
    taken = cupy.cuda.Memory(free - (320 << 20))
    try:
        _expect_no_room(problem)
    finally:
        del taken
        pool.free_all_blocks()
    np.testing.assert_array_equal(gpu.scores(problem, device="cuda", dtype="float32"), expected)


def _expect_no_room(problem: Step) -> None:
    try:
        gpu.scores(problem, device="cuda", dtype="float32")
    except NoRoomError:
        return
    raise AssertionError("a call without room for its arrays did not fail")


# --- more than 2³¹ elements -------------------------------------------------------------------------------------------


def _random(shape: tuple[int, ...], seed: int) -> Any:
    """Return pseudo-random numbers of either sign, computed on the card by a kernel of our own."""
    import cupy

    out = cupy.empty(shape, "float32")
    mixed = cupy.ElementwiseKernel(
        "uint64 seed",
        "float32 x",
        """
        unsigned long long z = (unsigned long long)i * 0x9E3779B97F4A7C15ull + seed;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        x = (float)((double)(z >> 11) * (1.0 / 4503599627370496.0) - 1.0);
        """,
        "adamshap_test_numbers",
    )
    mixed(np.uint64(seed), out)
    return out


def _rows(array: Any) -> Any:
    """Return a copy of the first two and the last two rows."""
    import cupy

    return cupy.concatenate([array[row][None] for row in ROWS])


def _same(report: Reporter, large: Any, small: Any, what: str) -> None:
    np.testing.assert_array_equal(_rows(large).get(), small.get(), err_msg=what)
    report.passed(1)


def _large_adam(shape: tuple[int, int], report: Reporter) -> None:
    backend, scalars = pick_backend("cuda", "float32"), adam_scalars(Adam(lr=0.01, weight_decay=0.1), StepNumber(3))
    kernels, ops = kernels_for(backend), ops_for(backend)
    g, theta, m, v = (_random(shape, seed) for seed in range(4))
    v *= v
    few = [_rows(array) for array in (g, theta, m, v)]
    for gradient, *arrays in ((g, theta, m, v), few):
        state = ParameterState(*arrays)
        kernels.adam_step(scalars, gradient, state, state)
    for name, large, small in zip(("theta", "m", "v"), (theta, m, v), few[1:], strict=True):
        _same(report, large, small, name)
    ops.between(0.3, theta, m, v)
    ops.between(0.3, few[1], few[2], few[3])
    _same(report, v, few[3], "between")


def _large_fused(shape: tuple[int, int], report: Reporter) -> None:
    n = 8
    kernels = kernels_for(pick_backend("cuda", "float32"))
    scalars, plan = adam_scalars(Adam(lr=0.01, weight_decay=0.1), StepNumber(3)), slope_plan("random_order", (4, 4), n)
    g, theta, m, v = (_random(shape, seed) for seed in range(4))
    v *= v
    row, col = abs(_random(shape[:1], 5)), abs(_random(shape[1:], 6))
    few, few_of_row = [_rows(array) for array in (g, theta, m, v)], row[list(ROWS)]
    for (g_, theta_, m_, v_), row_ in (((g, theta, m, v), row), (few, few_of_row)):
        state = ParameterState(theta_, m_, v_)
        out = FusedStepOut(state, None, g_)
        kernels.fused_step(scalars, plan, g_, state, GradientNorms(n, row_, col), None, 0.5, out)
    for name, large, small in zip(("slope", "theta", "m", "v"), (g, theta, m, v), few, strict=True):
        _same(report, large, small, name)


def _large_reductions(shape: tuple[int, int], report: Reporter) -> None:
    backend = pick_backend("cuda", "float32")
    ops = ops_for(backend)
    b, z = _random(shape, 0), _random(shape, 1)
    dots = backend.xp.zeros(shape[0], "float32")
    ops.row_dot(b, z, None, dots)
    few = [_rows(array).get().astype(np.float64) for array in (b, z)]
    sizes = np.abs(few[0] * few[1]).sum(axis=1)
    assert_within(
        dots[list(ROWS)].get(), (few[0] * few[1]).sum(axis=1), rounding(sizes, shape[1], "float32"), "row_dot"
    )
    norms = ops.column_norms(b)
    columns = backend.xp.ascontiguousarray(b[:, list(ROWS)]).get().astype(np.float64)
    expected = np.sqrt((columns**2).sum(axis=0))
    assert_within(norms[list(ROWS)].get(), expected, rounding(expected, shape[0], "float32"), "column_norms")
    report.passed(1)


def _large_batch(shape: tuple[int, int], report: Reporter) -> None:
    n, width = shape
    net = Network((4, width, 3), "relu")
    params, generator = net.init(0), np.random.default_rng(0)
    train, valid = (Batch(generator.standard_normal((count, 4)), generator.integers(0, 3, count)) for count in (n, 3))
    problem = in_dtype(Step(net, params, Adam(), AdamState.zeros(params), train, valid), "float32")
    options = {"slope": "secant", "gradient": "midpoint", "micro_batch": max(n // 16, 1)}
    one = next(one for one in PROPERTIES if one.name == "micro-batch")
    ask = asker(implementation(Engine("cuda"), "the engine on CUDA"))
    report.error(
        "2^31 activations, share of the bound", one.check(ask, Case(problem, Query("scores", options)), "float32")
    )
