"""The supported operations against NumPy: bit-equal where the numbers are exact, otherwise up to rounding."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

GENERATOR = np.random.default_rng(0)
FLOATS = ["float32", "float64"]
# Small integers: sums and products of them are exact in float32 and float16.
INTEGERS = {
    shape: GENERATOR.integers(-4, 5, shape) for shape in [(64,), (6, 20), (20, 5), (3, 4, 5), (3, 5, 2), (37, 129)]
}
WHOLE_WARP = "0xffffffff"
ROW_SUMS = """
extern "C" __global__ void k(float* out, const float* in, int columns) {
    extern __shared__ float warps[];
    const float* row = in + blockIdx.x * columns;
    float sum = 0.0f;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) sum += row[column];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    sum = threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : 0.0f;
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
"""


def test_the_device_names_itself(cupy: Any, cupy_on_cpu: Any) -> None:
    assert cupy.cuda.runtime.getDeviceProperties(0)["name"] == b"CuPy on CPU"
    assert cupy_on_cpu.is_installed()
    assert cupy.is_available()
    assert cupy.cuda.runtime.getDeviceCount() == 1
    assert cupy.cuda.Device().compute_capability == "90"


@pytest.mark.parametrize("dtype", FLOATS)
def test_elementwise(cupy: Any, assert_rounded: Callable[..., None], dtype: str) -> None:
    x = GENERATOR.standard_normal((6, 20)).astype(dtype)
    wide = x.astype(np.float64)
    assert_rounded(cupy.tanh(cupy.asarray(x)), np.tanh(wide), operations=4)
    assert_rounded(cupy.asarray(x).T[::2] * 3 - 1, wide.T[::2] * 3 - 1, operations=2, scale=3 * np.abs(wide).max() + 1)
    assert_rounded(cupy.maximum(cupy.asarray(x), 0), np.maximum(wide, 0), operations=0)


def test_elementwise_kernels_with_several_outputs_and_strides(cupy: Any) -> None:
    kernel = cupy.ElementwiseKernel("T x, T y", "T sum, T product", "sum = x + y; product = x * y", "both")
    x, y = INTEGERS[6, 20].astype("f"), INTEGERS[20, 5].astype("f")
    total, product = kernel(cupy.asarray(x)[:, ::4], cupy.asarray(y).T[:, :1].T[0])
    assert total.get().tolist() == (x[:, ::4] + y.T[:, 0]).tolist()
    assert product.get().tolist() == (x[:, ::4] * y.T[:, 0]).tolist()


@pytest.mark.parametrize("axis", [0, 1, None])
def test_reductions(cupy: Any, axis: int | None) -> None:
    x = INTEGERS[37, 129].astype("f")
    kernel = cupy.ReductionKernel("T x, T y", "T out", "x * y", "a + b", "out = a", "0", "inner")
    device = cupy.asarray(x)
    assert kernel(device, device, axis=axis).get().tolist() == (x * x).sum(axis=axis).tolist()
    assert device.sum(axis=axis).get().tolist() == x.sum(axis=axis).tolist()
    assert device.max(axis=axis).get().tolist() == x.max(axis=axis).tolist()
    assert device.argmax(axis=axis).get().tolist() == x.argmax(axis=axis).tolist()
    assert cupy.cumsum(device, axis=axis).get().tolist() == np.cumsum(x, axis=axis).tolist()


@pytest.mark.parametrize("reverse", [False, True])
def test_raw_kernels_with_shared_memory_barriers_and_shuffles(
    raw: Callable[..., Any], cupy: Any, cupy_on_cpu: Any, reverse: bool
) -> None:
    x = INTEGERS[37, 129].astype("f")
    with cupy_on_cpu.modes(reverse=reverse):
        out = raw(ROW_SUMS, cupy.zeros(37, "f"), cupy.asarray(x), np.int32(129), grid=37, block=128, shared_mem=16)
    assert out.get().tolist() == x.sum(axis=1).tolist()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("__shfl_sync(ALL, v, 3)", lambda lane: 3),
        ("__shfl_sync(ALL, v, 9, 8)", lambda lane: lane // 8 * 8 + 1),
        ("__shfl_up_sync(ALL, v, 2)", lambda lane: lane - 2 if lane >= 2 else lane),
        ("__shfl_up_sync(ALL, v, 3, 8)", lambda lane: lane - 3 if lane % 8 >= 3 else lane),
        ("__shfl_down_sync(ALL, v, 2)", lambda lane: lane + 2 if lane < 30 else lane),
        ("__shfl_down_sync(ALL, v, 3, 8)", lambda lane: lane + 3 if lane % 8 < 5 else lane),
        ("__shfl_xor_sync(ALL, v, 5)", lambda lane: lane ^ 5),
        ("__shfl_xor_sync(ALL, v, 12, 8)", lambda lane: lane ^ 12 if (lane ^ 12) // 8 <= lane // 8 else lane),
    ],
)
def test_shuffles(raw: Callable[..., Any], cupy: Any, call: str, expected: Callable[[int], int]) -> None:
    # CUDA C++ Programming Guide, "Warp Shuffle Functions": a lane that reads outside of its segment gets its own value;
    # of __shfl_xor_sync only a later segment counts as outside.
    source = 'extern "C" __global__ void k(int* x) { int v = threadIdx.x; x[v] = CALL; }'
    values = raw(source.replace("CALL", call.replace("ALL", WHOLE_WARP)), cupy.zeros(32, "i"))
    assert values.get().tolist() == [expected(lane) for lane in range(32)]


def test_votes(raw: Callable[..., Any], cupy: Any) -> None:
    source = """
    extern "C" __global__ void k(unsigned* x) {
        unsigned ballot = __ballot_sync(0xffffffff, threadIdx.x % 3 == 0);
        int any = __any_sync(0xffffffff, threadIdx.x == 5);
        int none = __any_sync(0xffffffff, threadIdx.x == 32);
        int all = __all_sync(0xffffffff, threadIdx.x < 32);
        int most = __all_sync(0xffffffff, threadIdx.x < 31);
        if (threadIdx.x == 7) { x[0] = ballot; x[1] = any; x[2] = none; x[3] = all; x[4] = most; }
    }"""
    values = raw(source, cupy.zeros(5, "uint32"))
    assert values.get().tolist() == [sum(1 << lane for lane in range(0, 32, 3)), 1, 0, 1, 0]


def test_threads_that_exit_are_not_waited_for(raw: Callable[..., Any], cupy: Any) -> None:
    source = """
    extern "C" __global__ void k(int* x) {
        __shared__ int seen[64];
        seen[threadIdx.x] = threadIdx.x;
        if (threadIdx.x % 2) return;
        __syncthreads();
        x[threadIdx.x] = seen[63 - threadIdx.x];
    }"""
    values = raw(source, cupy.zeros(64, "i"), block=64).get()
    assert values[::2].tolist() == list(range(63, 0, -2))


def test_lanes_that_exit_are_not_waited_for(raw: Callable[..., Any], cupy: Any) -> None:
    # CUDA C++ Programming Guide, "Warp Shuffle Functions": all non-exited threads named in the mask take part.
    source = """
    extern "C" __global__ void k(int* x) {
        if (threadIdx.x >= 20) return;
        x[threadIdx.x] = __shfl_sync(0xffffffff, threadIdx.x, 3);
    }"""
    assert raw(source, cupy.zeros(32, "i")).get().tolist() == [3] * 20 + [0] * 12


def test_blocks_and_grids_of_three_dimensions(raw: Callable[..., Any], cupy: Any) -> None:
    source = """
    extern "C" __global__ void k(int* x) {
        int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        atomicAdd(&x[block * blockDim.x * blockDim.y * blockDim.z + thread], 1);
    }"""
    x = cupy.zeros(2 * 3 * 4 * 5 * 2 * 3, "i")
    cupy.RawKernel(source, "k")((2, 3, 4), (5, 2, 3), (x,))
    assert (x.get() == 1).all()


def test_templates_and_constant_memory(cupy: Any) -> None:
    source = """
    __constant__ float factors[4];
    template <class T, int n> __global__ void scale(T* x) {
        __shared__ T tile[n];
        tile[threadIdx.x] = x[threadIdx.x] * factors[threadIdx.x];
        __syncthreads();
        x[threadIdx.x] = tile[n - 1 - threadIdx.x];
    }"""
    names = ("scale<float, 4>", "scale<double, 4>")
    module = cupy.RawModule(code=source, name_expressions=names)
    factors = cupy.ndarray(4, "f", module.get_global("factors"))
    factors[...] = cupy.asarray([1, 2, 3, 4], "f")
    for name, dtype in zip(names, ("f", "d"), strict=True):
        x = cupy.ones(4, dtype)
        module.get_function(name)((1,), (4,), (x,))
        assert x.get().tolist() == [4, 3, 2, 1]


def test_kernels_of_one_module_may_have_more_shared_memory_together(cupy: Any) -> None:
    kernel = """
    extern "C" __global__ void NAME(int* x) {
        __shared__ char tile[40000];
        tile[threadIdx.x] = 1;
        x[0] = tile[0];
    }"""
    module = cupy.RawModule(code=kernel.replace("NAME", "k") + kernel.replace("NAME", "l"))
    for name in ("k", "l"):
        x = cupy.zeros(1, "i")
        module.get_function(name)((1,), (1,), (x,))
        assert int(x[0]) == 1


def test_any_thread_may_launch(raw: Callable[..., Any], cupy: Any) -> None:
    x = INTEGERS[37, 129].astype("f")
    sums = []

    def launch() -> None:
        out = raw(ROW_SUMS, cupy.zeros(37, "f"), cupy.asarray(x), np.int32(129), grid=37, block=128, shared_mem=16)
        sums.append(out.get().tolist())

    launch()
    for _ in range(2):
        thread = threading.Thread(target=launch)
        thread.start()
        thread.join()
    launch()
    assert sums == [x.sum(axis=1).tolist()] * 4


def test_modules_do_not_share_what_has_the_same_name(cupy: Any) -> None:
    source = """
    template <class T> __device__ int answer() { return VALUE; }
    template <class T> __global__ void k(T* x) {
        __shared__ T tile[SIZE];
        for (int i = 0; i < SIZE; ++i) tile[i] = answer<T>();
        for (int i = 0; i < SIZE; ++i) x[0] += tile[i];
    }"""
    kernels = []
    for size, value in ((1, "2"), (1000, "3")):
        code = source.replace("SIZE", str(size)).replace("VALUE", value)
        kernels.append(cupy.RawModule(code=code, name_expressions=("k<int>",)).get_function("k<int>"))
    for kernel, sum_of_all in zip(kernels, (2, 3000), strict=True):
        x = cupy.zeros(1, "i")
        kernel((1,), (1,), (x,))
        assert int(x[0]) == sum_of_all


def test_fuse(cupy: Any, assert_rounded: Callable[..., None]) -> None:
    @cupy.fuse()
    def fused(a, b):  # type: ignore[no-untyped-def]
        return cupy.sum(cupy.tanh(a) * b + a, axis=1)

    x = GENERATOR.standard_normal((6, 20))
    y = GENERATOR.standard_normal((6, 20))
    got = fused(cupy.asarray(x), cupy.asarray(y))
    terms = np.tanh(x) * y + x
    assert_rounded(got, terms.sum(axis=1), operations=20 + 6, scale=float(np.abs(terms).sum(axis=1).max() * 2))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "int32"])
def test_products_of_matrices(cupy: Any, dtype: str) -> None:
    x, y = INTEGERS[6, 20].astype(dtype), INTEGERS[20, 5].astype(dtype)
    a, b = cupy.asarray(x), cupy.asarray(y)
    assert (a @ b).get().tolist() == (x @ y).tolist()
    assert (b.T @ a.T).get().tolist() == (y.T @ x.T).tolist()
    assert (a[:, ::2] @ b[::2]).get().tolist() == (x[:, ::2] @ y[::2]).tolist()
    assert cupy.dot(a, b[:, 0]).get().tolist() == (x @ y[:, 0]).tolist()
    assert (cupy.asfortranarray(a) @ cupy.asfortranarray(b)).get().tolist() == (x @ y).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_products_of_batches(cupy: Any, dtype: str) -> None:
    x, y = INTEGERS[3, 4, 5].astype(dtype), INTEGERS[3, 5, 2].astype(dtype)
    a, b = cupy.asarray(x), cupy.asarray(y)
    assert (a @ b).get().tolist() == (x @ y).tolist()
    assert (a @ b[0]).get().tolist() == (x @ y[0]).tolist()
    assert cupy.einsum("bij,bjk->bik", a, b).get().tolist() == (x @ y).tolist()
    assert cupy.einsum("bij,bij->b", a, a).get().tolist() == np.einsum("bij,bij->b", x, x).tolist()
    assert cupy.tensordot(a, b, ((0, 2), (0, 1))).get().tolist() == np.tensordot(x, y, ((0, 2), (0, 1))).tolist()


def test_sums_of_half_products_are_kept_in_float32(cupy: Any) -> None:
    # 2048 + 1 is 2048 in float16: accumulated in float16, the sum of the ones would be lost.
    x = cupy.asarray(np.array([[2048, 1, 1, 1, 1]] * 2, np.float16))
    assert (x @ cupy.ones((5, 2), "float16")).get().tolist() == [[2052, 2052]] * 2


def test_indexing_and_scatter_add(cupy: Any) -> None:
    import cupyx

    x = INTEGERS[6, 20]
    device = cupy.asarray(x)
    rows, columns = np.array([0, 5, 2]), np.array([1, 1, 19])
    assert device[cupy.asarray(rows), cupy.asarray(columns)].get().tolist() == x[rows, columns].tolist()
    assert device[device > 0].get().tolist() == x[x > 0].tolist()
    assert [i.get().tolist() for i in cupy.nonzero(device)] == [i.tolist() for i in np.nonzero(x)]
    labels = GENERATOR.integers(0, 4, 64)
    for dtype in ("float16", "float32", "float64", "int32", "uint64"):
        total, same = cupy.zeros(4, dtype), cupy.zeros(4, dtype)
        cupy.add.at(total, cupy.asarray(labels), cupy.ones(64, dtype))
        with pytest.warns(DeprecationWarning, match=r"use `cupy.add.at`"):
            cupyx.scatter_add(same, cupy.asarray(labels), cupy.ones(64, dtype))
        assert total.get().tolist() == same.get().tolist() == np.bincount(labels, minlength=4).tolist()


def test_streams_and_events(cupy: Any) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    with stream:
        start.record(stream)
        x = cupy.arange(10) + 1
        end.record(stream)
    assert cupy.cuda.runtime.streamGetFlags(stream.ptr) == cupy.cuda.runtime.streamNonBlocking
    assert cupy.cuda.runtime.streamGetFlags(cupy.cuda.Stream.null.ptr) == 0
    stream.wait_event(end)
    stream.synchronize()
    end.synchronize()
    assert stream.done
    assert end.done
    assert cupy.cuda.get_elapsed_time(start, end) > 0
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="never recorded"):
        cupy.cuda.get_elapsed_time(start, cupy.cuda.Event())
    assert x.get().tolist() == list(range(1, 11))


def test_every_half_converts_as_in_numpy(cupy: Any) -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    got = cupy.asarray(halves).astype("float32").get()
    assert np.array_equal(got, halves.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_convert_to_half_as_in_numpy(cupy: Any, dtype: str) -> None:
    # Between every two neighbours: their middle (a tie), and the numbers beside it, which rounding twice would spoil.
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(dtype)
    middles = (halves[:-1] + halves[1:]) / 2
    values = np.concatenate(
        [halves, middles, np.nextafter(middles, 0, dtype=dtype), np.nextafter(middles, 1e9, dtype=dtype)]
    )
    values = np.concatenate([values, -values, np.array([np.inf, -np.inf, np.nan, 65519, 65520, 1e9], dtype)])
    with np.errstate(over="ignore"):
        want = values.astype(np.float16)
    assert np.array_equal(cupy.asarray(values).astype("float16").get(), want, equal_nan=True)


def test_integers_wrap(cupy: Any) -> None:
    largest = cupy.full(1, 2**31 - 1, "int32")
    assert (largest + cupy.ones(1, "int32")).get().tolist() == [-(2**31)]


def test_jit_kernels(cupy: Any) -> None:
    from cupyx import jit

    def doubled(x, y, n):  # type: ignore[no-untyped-def]
        i = jit.grid(1)
        if i < n:
            y[i] = x[i] * 2.0

    with pytest.warns(FutureWarning, match="experimental"):
        kernel = jit.rawkernel()(doubled)
    x = cupy.arange(100, dtype="f")
    y = cupy.empty_like(x)
    kernel[4, 32](x, y, np.int32(100))
    assert y.get().tolist() == (2 * np.arange(100)).tolist()
