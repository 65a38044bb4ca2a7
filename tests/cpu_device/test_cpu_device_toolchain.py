"""The cache, and the translation of CUDA C++ for the compiler."""

import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from adamshap.verify.cpu_device import kernels, nvrtc, toolchain
from adamshap.verify.cpu_device.errors import NotCoveredError, UnavailableError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(toolchain.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert toolchain.cache_folder() == tmp_path / "adamshap" / "cpu_device"


def test_an_entry_is_built_once(cache: Path) -> None:
    built = []

    def build(target: Path) -> None:
        built.append(target)
        target.write_text("content")

    assert toolchain.cached("entry", build).read_text() == "content"
    assert toolchain.cached("entry", build) == cache / "entry"
    assert len(built) == 1


def test_an_entry_that_two_build_at_once_is_whole(cache: Path) -> None:
    both_are_building = threading.Barrier(2)

    def build(target: Path) -> None:
        target.write_text("half ")
        both_are_building.wait(timeout=10)
        with target.open("a") as file:
            file.write("and half")

    threads = [threading.Thread(target=toolchain.cached, args=("entry", build)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache / "entry").read_text() == "half and half"
    assert [file.name for file in cache.iterdir()] == ["entry"]


def test_a_build_that_fails_leaves_nothing(cache: Path) -> None:
    def build(target: Path) -> None:
        target.write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        toolchain.cached("entry", build)
    assert list(cache.iterdir()) == []


def test_a_build_without_room_names_the_variable(cache: Path) -> None:
    def build(target: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UnavailableError, match=f"No space left on device.*{toolchain.CACHE_VARIABLE}"):
        toolchain.cached("entry", build)


@pytest.mark.parametrize("changed", ["compiler_version", "cupy_version"])
def test_a_name_depends_on_every_tool(monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    monkeypatch.setattr(toolchain, "cupy_version", lambda: "14.2.0")
    before = toolchain.fingerprint("source")
    assert toolchain.fingerprint("source") == before
    assert toolchain.fingerprint("other source") != before
    monkeypatch.setattr(toolchain, changed, lambda: "another")
    assert toolchain.fingerprint("source") != before


def test_a_name_depends_on_pythons_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "cupy_version", lambda: "14.2.0")
    before = toolchain.fingerprint("source")
    monkeypatch.setattr(sys, "version", "9.9")
    assert toolchain.fingerprint("source") != before


def test_parts_of_a_name_do_not_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "cupy_version", lambda: "14.2.0")
    assert toolchain.fingerprint("ab", "c") != toolchain.fingerprint("a", "bc")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('extern "C" __global__ void k(int n) {}', ["k"]),
        ('extern "C" __global__\nvoid\nk (int n) {}', ["k"]),
        ('extern "C" __global__ void __launch_bounds__(128, 2) k(int n) {}', ["k"]),
        ('extern "C" __global__ __launch_bounds__(N) void k(int n) {}', ["k"]),
        ('extern "C" { __device__ int f() { return 1; } __global__ void k() {} __global__ void l() {} }', ["k", "l"]),
        ('extern "C" { int f(); }\n__global__ void k() {}', []),
        ("__global__ void k() {}", []),
        ('template <class T> __global__ void t(T x) {}\nextern "C" __global__ void k() {}', ["k"]),
        ('// extern "C" __global__ void no() {}\n/* extern "C" __global__ void no() {} */', []),
        ('const char* s = "// no comment"; extern "C" __global__ void k() {}', ["k"]),
        ('extern "C" __global__ void k(int n);\nextern "C" __global__ void k(int n) {}', ["k"]),
    ],
)
def test_kernels_are_found_by_their_linkage(source: str, names: list[str]) -> None:
    assert kernels.kernel_names(source) == names


def test_comments_vanish_and_lines_stay() -> None:
    source = 'a // one\n/* two\nlines */ b "/* text */" \'"\' // "end"\nc'
    assert kernels.without_comments(source) == 'a  \n\n  b "/* text */" \'"\'  \nc'.replace("\n\n  b", "\n\n  b")
    assert kernels.without_comments(source).count("\n") == source.count("\n")


@pytest.mark.parametrize(
    "declaration",
    [
        "extern __shared__ float s[];",
        "extern  __shared__\n float s [ ] ;",
        "extern __shared__ __align__(16) float s[];",
        "extern volatile __shared__ float s[];",
    ],
)
def test_dynamic_shared_memory_becomes_the_launchs(declaration: str) -> None:
    text = kernels.translate(declaration, None).text
    assert "extern" not in text.split("CPU_DEVICE_MODULE")[0].split("kernel.cu")[1]
    assert "reinterpret_cast<float**>(&cpu_device::dynamic_shared);" in text


@pytest.mark.parametrize(
    ("body", "barriers"),
    [("__syncthreads();", 1), ("x = __shfl_down_sync(m, x, 1);", 1), ("// __syncthreads();", 0), ("x = 1;", 0)],
)
def test_a_kernel_with_barriers_runs_as_fibers(body: str, barriers: int) -> None:
    source = f'extern "C" __global__ void k(int x, unsigned m) {{ {body}\n }}'
    assert f"CPU_DEVICE_MODULE({barriers}, 1)" in kernels.translate(source, None).text


def test_name_expressions_get_names_that_a_symbol_can_have() -> None:
    translation = kernels.translate(
        "template <class T, int n> __global__ void k(T* x) {}", ["k<float, 4>", "k<int, 2>"]
    )
    assert translation.mapping == {"k<float, 4>": "expression_0", "k<int, 2>": "expression_1"}
    assert "CPU_DEVICE_KERNEL(cpu_device_entry_expression_0, k<float, 4>)" in translation.text


def test_options_keep_their_meaning_or_are_refused() -> None:
    options = ("-DN=4", "--define-macro=M=2", "-I/somewhere", "--std=c++14", "--fmad=false", "-lineinfo")
    assert kernels._compiler_options(options) == (
        "-DN=4", "-DM=2", "-I/somewhere", "-std=c++14", "-ffp-contract=off",
    )  # fmt: skip
    assert kernels._compiler_options(()) == ("-std=c++17",)
    with pytest.raises(NotCoveredError, match="-ftz=true"):
        kernels._compiler_options(("-ftz=true",))


HEADERS = "#include <cupy/complex.cuh>\n#include <cupy/carray.cuh>\n"
KERNEL = 'extern "C" __global__ void k(complex<double>* x) { x[0] = 1; }'


def built(source: str, *options: str) -> Path:
    """Return the shared object of `source`."""
    cupy = find_spec("cupy")
    if cupy is None or cupy.origin is None:
        pytest.skip("needs CuPy")
    include = Path(cupy.origin).parent / "_core" / "include"
    file, _ = kernels.build(source, options, None, cupy_include=include, foreign_include=(), sanitize=False)
    return file


def test_the_headers_of_many_kernels_are_parsed_once(cache: Path) -> None:
    built(HEADERS + KERNEL)
    (header,) = cache.glob("*.h")
    assert header.with_suffix(".h.gch").exists()
    header.write_text("#error not parsed")
    built(HEADERS + KERNEL.replace("= 1", "= 2"))
    assert len(list(cache.iterdir())) == 4  # these two files, and one for each kernel
    header.with_suffix(".h.gch").write_text("no parsed headers")
    with pytest.raises(kernels.CompilationError, match="not parsed"):
        built(HEADERS + KERNEL.replace("= 1", "= 3"))


def test_a_kernel_sees_the_headers_that_it_includes_and_no_others(cache: Path) -> None:
    built(HEADERS + KERNEL)
    with pytest.raises(kernels.CompilationError, match="complex"):
        built(KERNEL)


@pytest.mark.parametrize("option", ["-DN=4", "-UN"])
def test_headers_are_read_anew_where_a_macro_may_change_them(cache: Path, option: str) -> None:
    built(HEADERS + KERNEL, option)
    assert not list(cache.glob("*.gch"))


def test_nvrtc_is_not_asked_for_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC is a separate extra: without its mode, CuPy on the CPU must run without it."""

    def missing() -> str:
        raise UnavailableError("no NVRTC")

    monkeypatch.setattr(nvrtc, "require", missing)
    nvrtc.check(None, "source", (), None, architectures=())
    with pytest.raises(UnavailableError, match="no NVRTC"):
        nvrtc.check(None, "source", (), None, architectures=("80",))
