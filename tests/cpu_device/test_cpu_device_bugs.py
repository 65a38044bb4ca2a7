"""Planted bugs: each is caught by the rung designed for it, and not by accident."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

REVERSED = """
extern "C" __global__ void k(float* out, const float* in) {
    __shared__ float tile[64];
    tile[threadIdx.x] = in[threadIdx.x];
    %s
    out[threadIdx.x] = tile[63 - threadIdx.x];
}
"""
RUNNING_SUM = """
extern "C" __global__ void k(float* total) {
    __shared__ float latest;
    if (threadIdx.x == 0) latest = 0.0f;
    __syncthreads();
    latest = latest * 2.0f + threadIdx.x;  // every thread builds on the one before: the order decides
    __syncthreads();
    if (threadIdx.x == 0) total[0] = latest;
}
"""
OUT_OF_BOUNDS = """
import sys
import cupy
kernel = cupy.RawKernel(
    'extern "C" __global__ void k(float* x, int n) { if (threadIdx.x <= n) x[threadIdx.x] = 1.0f; }', "k")
x = cupy.zeros(10, dtype=cupy.float32)
kernel((1,), (32,), (x, cupy.int32(int(sys.argv[1]))))
print("sum", float(x.sum()))
"""
SHARED_OUT_OF_BOUNDS = """
import sys
import cupy
kernel = cupy.RawKernel('''
extern "C" __global__ void k(float* x, int n) {
    __shared__ float tile[8];
    extern __shared__ float rest[];
    if (threadIdx.x < n) tile[threadIdx.x] = 1.0f;
    if (threadIdx.x < n) rest[threadIdx.x] = 2.0f;
    __syncthreads();
    x[0] = tile[0] + rest[0];
}
''', "k")
x = cupy.zeros(1, dtype=cupy.float32)
kernel((1,), (32,), (x, cupy.int32(int(sys.argv[1]))), shared_mem=int(sys.argv[2]))
print("value", float(x[0]))
"""


def test_a_barrier_is_kept(raw: Callable[..., Any], cupy: Any, cupy_on_cpu: Any) -> None:
    for reverse in (False, True):
        with cupy_on_cpu.modes(reverse=reverse):
            out = raw(REVERSED % "__syncthreads();", cupy.zeros(64, "f"), cupy.arange(64, dtype="f"), block=64)
        assert out.get().tolist() == list(range(63, -1, -1))


def test_a_missing_barrier_reads_poison(raw: Callable[..., Any], cupy: Any) -> None:
    out = raw(REVERSED % "", cupy.zeros(64, "f"), cupy.arange(64, dtype="f"), block=64)
    assert np.isnan(out.get()).sum() == 32  # the half that reads values written by later threads


def test_a_missing_barrier_gives_another_result_in_reverse(
    raw: Callable[..., Any], cupy: Any, cupy_on_cpu: Any
) -> None:
    results = set()
    for reverse in (False, True):
        with cupy_on_cpu.modes(reverse=reverse):
            results.add(float(raw(RUNNING_SUM, cupy.zeros(1, "f"), block=8)[0]))
    assert len(results) == 2


def test_blocks_that_lean_on_their_order_give_another_result_in_reverse(
    raw: Callable[..., Any], cupy: Any, cupy_on_cpu: Any
) -> None:
    source = 'extern "C" __global__ void k(int* last) { if (threadIdx.x == 0) last[0] = blockIdx.x; }'
    results = []
    for reverse in (False, True):
        with cupy_on_cpu.modes(reverse=reverse):
            results.append(int(raw(source, cupy.zeros(1, "i"), grid=5)[0]))
    assert results == [4, 0]


def test_a_divergent_barrier_is_an_error(raw: Callable[..., Any], cupy: Any, cupy_on_cpu: Any) -> None:
    source = """
    extern "C" __global__ void k(float* x) {
        if (threadIdx.x < 5) { __syncthreads(); x[0] = 1; }
        else { __syncthreads(); x[1] = 1; }
    }"""
    with pytest.raises(cupy_on_cpu.KernelError, match="k: divergent barrier"):
        raw(source, cupy.zeros(2, "f"))


def test_lanes_that_wait_for_each_other_are_an_error(raw: Callable[..., Any], cupy: Any, cupy_on_cpu: Any) -> None:
    source = """
    extern "C" __global__ void k(float* x) {
        if (threadIdx.x < 16) x[threadIdx.x] = __shfl_sync(0xffffffff, x[threadIdx.x], 0);
        __syncthreads();
    }"""
    with pytest.raises(cupy_on_cpu.KernelError, match=r"deadlock: 16 threads .* and 16 in a warp-wide operation"):
        raw(source, cupy.zeros(32, "f"))
    # The device is usable afterwards: abandoned fibers are restarted.
    out = raw(REVERSED % "__syncthreads();", cupy.zeros(64, "f"), cupy.arange(64, dtype="f"), block=64)
    assert out.get().tolist() == list(range(63, -1, -1))


def test_a_lane_outside_its_own_mask_is_an_error(raw: Callable[..., Any], cupy: Any, cupy_on_cpu: Any) -> None:
    source = 'extern "C" __global__ void k(int* x) { x[threadIdx.x] = __shfl_sync(0x0000ffff, 1, 0); }'
    with pytest.raises(cupy_on_cpu.KernelError, match="mask leaves it out"):
        raw(source, cupy.zeros(32, "i"))


def test_a_shuffle_from_a_lane_that_takes_no_part_reads_poison(raw: Callable[..., Any], cupy: Any) -> None:
    source = """
    extern "C" __global__ void k(float* x) {
        if (threadIdx.x >= 16) return;
        x[threadIdx.x] = __shfl_down_sync(0x0000ffff, (float)threadIdx.x, 8);
    }"""
    values = raw(source, cupy.zeros(32, "f")).get()
    assert values[:8].tolist() == [8, 9, 10, 11, 12, 13, 14, 15]
    assert np.isnan(values[8:16]).all()


def test_unwritten_memory_reads_as_poison(cupy: Any, cupy_on_cpu: Any) -> None:
    with cupy_on_cpu.modes(poison=True):
        cupy.ones(8, "f")  # freed at once: without the mode the pool would hand it out again
        assert np.isnan(cupy.empty(8, "f").get()).all()
        assert (cupy.empty(8, "i").get() == -1).all()
        assert np.isnan(float((cupy.empty(8, "d") + 1).sum()))


def test_unwritten_shared_memory_reads_as_poison_in_every_block(raw: Callable[..., Any], cupy: Any) -> None:
    source = """
    extern "C" __global__ void k(float* x) {
        __shared__ float tile;
        extern __shared__ float rest[];
        x[2 * blockIdx.x] = tile;
        x[2 * blockIdx.x + 1] = rest[0];
        tile = 1;
        rest[0] = 1;
    }"""
    values = raw(source, cupy.zeros(6, "f"), grid=3, block=1, shared_mem=4)
    assert np.isnan(values.get()).all()


def test_unwritten_shared_memory_of_a_template_reads_as_poison(cupy: Any) -> None:
    source = "template <class T> __global__ void k(T* x) { __shared__ T tile; x[threadIdx.x] = tile; tile = 1; }"
    x = cupy.zeros(1, "f")
    kernel = cupy.RawModule(code=source, name_expressions=("k<float>",)).get_function("k<float>")
    for _ in range(2):
        kernel((1,), (1,), (x,))
        assert np.isnan(float(x[0]))


def test_an_out_of_bounds_write_is_caught_by_the_sanitizer(run_script: Callable[..., Any]) -> None:
    within = run_script(OUT_OF_BOUNDS, "--sanitize", arguments=("9",))
    assert (within.returncode, within.stdout) == (0, "sum 10.0\n"), within.stderr
    beyond = run_script(OUT_OF_BOUNDS, "--sanitize", arguments=("10",))
    assert beyond.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in beyond.stderr
    assert "in k " in beyond.stderr  # the kernel is named


def test_an_out_of_bounds_write_to_shared_memory_is_caught_by_the_sanitizer(run_script: Callable[..., Any]) -> None:
    within = run_script(SHARED_OUT_OF_BOUNDS, "--sanitize", arguments=("8", "32"))
    assert (within.returncode, within.stdout) == (0, "value 3.0\n"), within.stderr
    fixed = run_script(SHARED_OUT_OF_BOUNDS, "--sanitize", arguments=("9", "36"))
    assert "AddressSanitizer: global-buffer-overflow" in fixed.stderr
    dynamic = run_script(SHARED_OUT_OF_BOUNDS, "--sanitize", arguments=("8", "28"))
    assert "AddressSanitizer: heap-buffer-overflow" in dynamic.stderr


@pytest.mark.parametrize(
    ("grid", "block", "shared", "reason"),
    [
        ((1,), (1025,), 0, r"a block beyond \(1024, 1024, 64\)"),
        ((1,), (1, 1, 65), 0, r"a block beyond \(1024, 1024, 64\)"),
        ((1,), (64, 32), 0, "a block of more than 1024 threads"),
        ((1, 65536), (1,), 0, r"a grid beyond \(2147483647, 65535, 65535\)"),
        ((1,), (1,), 48 * 1024 + 1, "more dynamic shared memory"),
    ],
)
def test_an_illegal_launch_is_cudas_error(
    cupy: Any, grid: tuple[int, ...], block: tuple[int, ...], shared: int, reason: str
) -> None:
    kernel = cupy.RawKernel('extern "C" __global__ void k() {}', "k")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match=f"CUDA_ERROR_INVALID_VALUE: launch of k with {reason}"):
        kernel(grid, block, (), shared_mem=shared)


def test_more_shared_memory_can_be_asked_for(raw: Callable[..., Any], cupy: Any) -> None:
    kernel = cupy.RawKernel('extern "C" __global__ void k(float* x) { extern __shared__ float s[]; x[0] = s[0]; }', "k")
    kernel.max_dynamic_shared_size_bytes = 100_000
    kernel((1,), (1,), (cupy.zeros(1, "f"),), shared_mem=100_000)
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="227 KiB"):
        kernel.max_dynamic_shared_size_bytes = 300_000


def test_a_syntax_error_is_the_compilers_with_the_kernels_line(raw: Callable[..., Any], cupy: Any) -> None:
    with pytest.raises(cupy.cuda.compiler.CompileException, match=r"kernel.cu:3:\d+: error: expected"):
        raw('extern "C" __global__ void k() {\n\n    int x = ; }')


def test_an_unknown_intrinsic_is_named(raw: Callable[..., Any], cupy: Any) -> None:
    with pytest.raises(cupy.cuda.compiler.CompileException, match="__nanosleep"):
        raw('extern "C" __global__ void k() { __nanosleep(100); }')


def test_a_kernel_without_c_linkage_is_not_found(raw: Callable[..., Any], cupy: Any) -> None:
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="CUDA_ERROR_NOT_FOUND"):
        raw("__global__ void k(float* x) { x[0] = 1; }", cupy.zeros(1, "f"))


def test_a_failed_assertion_is_an_error_of_the_launch(raw: Callable[..., Any], cupy: Any, cupy_on_cpu: Any) -> None:
    source = 'extern "C" __global__ void k(int n) { assert(n > 3); %s }'
    for barrier in ("", "__syncthreads();"):
        with pytest.raises(cupy_on_cpu.KernelError, match="k: assertion failed: n > 3"):
            raw(source % barrier, np.int32(3))
        raw(source % barrier, np.int32(4))


def test_a_copy_beyond_its_memory_is_cudas_error(cupy: Any) -> None:
    memory = cupy.cuda.memory.Memory(16)
    host = np.zeros(32, np.uint8)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidValue: a copy leaves"):
        cupy.cuda.runtime.memcpy(memory.ptr, host.ctypes.data, 32, cupy.cuda.runtime.memcpyHostToDevice)


def test_nvrtc_refuses_what_gcc_takes(run_script: Callable[..., Any]) -> None:
    script = """
import cupy
source = 'extern "C" __global__ void k(float* x) { x[0] = __builtin_parity(7u); }'
x = cupy.zeros(1, dtype=cupy.float32)
cupy.RawKernel(source, "k")((1,), (1,), (x,))
print("ran", float(x[0]))
"""
    alone = run_script(script)
    assert (alone.returncode, alone.stdout) == (0, "ran 1.0\n"), alone.stderr
    both = run_script(script, "--nvrtc")
    assert "cupy.cuda.compiler.CompileException" in both.stderr
    assert "__builtin_parity" in both.stderr


def test_nvrtc_refuses_what_does_not_fit(run_script: Callable[..., Any]) -> None:
    script = """
import cupy
source = 'extern "C" __global__ void k(char* x) { __shared__ char tile[%d]; tile[threadIdx.x] = 1; x[0] = tile[0]; }'
x = cupy.zeros(1, dtype=cupy.int8)
for size in (49152, 49153):
    cupy.RawKernel(source % size, "k")((1,), (1,), (x,))
    print(size)
"""
    alone = run_script(script)
    assert alone.stdout == "49152\n"
    assert "CUDA_ERROR_INVALID_VALUE: launch of k with more than 48 KiB of static shared memory" in alone.stderr
    both = run_script(script, "--nvrtc")
    assert both.stdout == "49152\n"
    assert "CompileException" in both.stderr
    assert "too much shared data" in both.stderr


def test_nvrtc_takes_what_is_right(run_script: Callable[..., Any]) -> None:
    result = run_script("import cupy\nprint(float((cupy.arange(4, dtype='f') * 2).sum()))", "--nvrtc")
    assert (result.returncode, result.stdout) == (0, "12.0\n"), result.stderr
