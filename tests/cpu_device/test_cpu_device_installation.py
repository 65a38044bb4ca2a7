"""Installation: what is refused, with which message, and that CuPy is then unchanged."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT_HEAD = """
import sys
from adamshap.verify import cpu_device
from adamshap.verify.cpu_device import installation, toolchain
"""


def run_python(text: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", SCRIPT_HEAD + text],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def refusal(text: str, **environment: str) -> str:
    """Return the message of the UnavailableError that `text` must raise without importing CuPy."""
    wrapped = "\n".join(
        [
            "try:",
            *(f"    {line}" for line in text.strip().splitlines()),
            "except cpu_device.UnavailableError as error:",
            "    print(error)",
            "    assert not cpu_device.is_installed()",
            "else:",
            "    sys.exit('installed')",
        ]
    )
    result = run_python(wrapped, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    result = run_python("print('cupy' in sys.modules, cpu_device.is_installed())")
    assert result.stdout == "False False\n", result.stderr


@pytest.mark.usefixtures("cupy_on_cpu")
def test_cupy_must_not_be_imported_before() -> None:
    message = refusal("import cupy\ncpu_device.install()")
    assert "CuPy was imported before cpu_device.install()" in message


@pytest.mark.usefixtures("cupy_on_cpu")
def test_a_real_device_is_hidden_only_by_force() -> None:
    pretend = "installation.real_devices = lambda: 2\n"
    message = refusal(pretend + "cpu_device.install()")
    assert "there are 2 real CUDA devices here" in message
    assert "install(force=True)" in message
    forced = run_python(pretend + "cpu_device.install(force=True)\nprint(cpu_device.is_installed())")
    assert forced.stdout == "True\n", forced.stderr


def test_another_version_of_cupy_is_refused() -> None:
    message = refusal("toolchain.cupy_version = lambda: '99.0.0'\ncpu_device.install(force=True)")
    assert "was tested with 14.2.0; this is 99.0.0" in message


def test_a_missing_cupy_is_named() -> None:
    missing = """
def version(name):
    raise toolchain.importlib.metadata.PackageNotFoundError(name)
toolchain.importlib.metadata.version = version
cpu_device.install(force=True)
"""
    assert "pip install 'adamshap[cpu-device]'" in refusal(missing)


@pytest.mark.usefixtures("cupy_on_cpu")
def test_a_missing_compiler_is_named() -> None:
    message = refusal("cpu_device.install(force=True)", ADAMSHAP_CPU_DEVICE_CXX="no-such-compiler")
    assert "'no-such-compiler' is not on PATH" in message
    assert "apt install g++" in message


@pytest.mark.usefixtures("cupy_on_cpu")
def test_missing_headers_are_named() -> None:
    message = refusal("toolchain.sysconfig.get_path = lambda name: '/nowhere'\ncpu_device.install(force=True)")
    assert "there is no /nowhere/Python.h" in message
    assert "python3-dev" in message


@pytest.mark.usefixtures("cupy_on_cpu")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    message = refusal("cpu_device.install(force=True)", ADAMSHAP_CPU_DEVICE_CACHE=str(in_the_way / "cache"))
    assert "cannot be created" in message
    assert "ADAMSHAP_CPU_DEVICE_CACHE" in message


@pytest.mark.usefixtures("cupy_on_cpu")
@pytest.mark.parametrize(("module", "name"), [("runtime", "malloc"), ("driver", "launchKernel")])
def test_a_changed_signature_is_refused_and_changes_nothing(module: str, name: str) -> None:
    message = refusal(f"""
import ctypes, importlib
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
signature = ctypes.create_string_buffer(b"int (double)")
runtime, driver = (importlib.import_module("cupy_backends.cuda.api." + name) for name in ("runtime", "driver"))
{module}.__pyx_capi__["{name}"] = new(1, ctypes.addressof(signature), None)
before = dict(runtime.__pyx_capi__) | dict(driver.__pyx_capi__)
try:
    cpu_device.install(force=True)
finally:
    assert before == dict(runtime.__pyx_capi__) | dict(driver.__pyx_capi__)
""")
    assert f"the entry point {name} has the signature int (double) here; needs " in message


def test_installing_again_only_changes_the_modes(cupy_on_cpu: Any) -> None:
    before = cupy_on_cpu.current_modes()
    cupy_on_cpu.install(modes=cupy_on_cpu.Modes(reverse=True))
    assert cupy_on_cpu.current_modes().reverse
    cupy_on_cpu.install(modes=before)
    assert cupy_on_cpu.current_modes() == before


def test_the_sanitizer_cannot_be_switched_on_in_between(cupy_on_cpu: Any) -> None:
    with pytest.raises(cupy_on_cpu.UnavailableError, match="can only be enabled at the start of a process"):
        cupy_on_cpu.install(modes=cupy_on_cpu.Modes(sanitize=not cupy_on_cpu.current_modes().sanitize))


@pytest.mark.usefixtures("cupy_on_cpu")
def test_the_sanitizer_must_be_loaded_first() -> None:
    message = refusal("cpu_device.install(force=True, modes=cpu_device.Modes(sanitize=True))", LD_PRELOAD="")
    assert "python -m adamshap.verify.cpu_device --sanitize" in message


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("", {}),
        ("reverse", {"reverse": True}),
        ("poison, reverse", {"reverse": True, "poison": True}),
        ("nvrtc,sanitize", {"sanitize": True, "nvrtc": ("80", "90")}),
    ],
)
def test_modes_are_read_from_text(cupy_on_cpu: Any, text: str, modes: dict[str, Any]) -> None:
    assert cupy_on_cpu.Modes.parse(text) == cupy_on_cpu.Modes(**modes)


def test_an_unknown_mode_is_refused(cupy_on_cpu: Any) -> None:
    with pytest.raises(ValueError, match="modes: got 'backwards'"):
        cupy_on_cpu.Modes.parse("reverse,backwards")


def refused_calls(cupy: Any) -> dict[str, Callable[[], object]]:
    source = 'extern "C" __global__ void k() {%s}'
    return {
        "cupy.cuda.thrust.sort": lambda: cupy.sort(cupy.arange(4)),
        "cupy.random._generator_api.init_curand": lambda: cupy.random.default_rng(0),
        "curand.createGenerator": lambda: cupy.random.rand(3),
        "cusolver.create": lambda: cupy.linalg.solve(cupy.eye(2), cupy.ones(2)),
        "cublas.sger": lambda: cupy.cublas.ger(1.0, cupy.ones(2, "f"), cupy.ones(2, "f"), cupy.zeros((2, 2), "f")),
        "cupy_backends.cuda.api.runtime.streamBeginCapture": lambda: cupy.cuda.Stream(
            non_blocking=True
        ).begin_capture(),
        "cupy_backends.cuda.api.runtime.mallocManaged": lambda: cupy.cuda.malloc_managed(8),
        "cupy_backends.cuda.api.runtime.ipcGetMemHandle": lambda: cupy.cuda.runtime.ipcGetMemHandle(0),
        "cupy_backends.cuda.api.driver.moduleLoad": lambda: cupy.RawModule(path="k.cubin").compile(),
        "the compiler option --use_fast_math": lambda: cupy.RawKernel(source, "k", ("--use_fast_math",)).compile(),
        "the compiler 'nvcc'": lambda: cupy.RawKernel(source, "k", backend="nvcc").compile(),
        "cooperative groups": lambda: cupy.RawKernel(source, "k", enable_cooperative_groups=True).compile(),
        "a kernel that uses __CUDA_ARCH__": lambda: cupy.RawKernel(
            source % "\n#if __CUDA_ARCH__ > 700\n#endif\n", "k"
        ).compile(),
    }


def test_what_is_not_covered_says_so(cupy: Any, cupy_on_cpu: Any) -> None:
    for name, call in refused_calls(cupy).items():
        with pytest.raises(cupy_on_cpu.NotCoveredError, match="does not cover") as error:
            call()
        assert f"does not cover {name};" in str(error.value)


def test_every_entry_point_is_covered_or_refused(cupy: Any, cupy_on_cpu: Any) -> None:
    from cupy_backends.cuda.api import driver, runtime

    covered = [set(names) for names in cupy_on_cpu.installation._state.extension.covered()]
    data = {name for name in runtime.__pyx_capi__ if name.startswith(("_is_", "deviceAttribute", "error"))}
    structures = {name for name in runtime.__pyx_capi__ if name.startswith(("getChannelDesc", "make_", "getTexture"))}
    for module, names in zip((runtime, driver), covered, strict=True):
        rest = set(module.__pyx_capi__) - names - data - structures - cupy_on_cpu.installation.KEPT
        for name in rest:
            with pytest.raises(cupy_on_cpu.NotCoveredError, match=rf"\.{name};"):
                getattr(module, name)()


def test_a_script_runs_with_its_arguments_and_folder(run_script: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import cupy\nNAME = cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()")
    result = run_script("import sys, beside; print(__name__, sys.argv[1:], beside.NAME)", arguments=("-x", "y"))
    assert result.stdout == "__main__ ['-x', 'y'] CuPy on CPU\n", result.stderr


@pytest.mark.usefixtures("cupy_on_cpu")
def test_a_module_runs_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys, cupy; print(sys.argv[1:], int(cupy.arange(4).sum()))")
    command = [sys.executable, "-m", "adamshap.verify.cpu_device", "--reverse", "-m", "program", "--flag"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.stdout == "['--flag'] 6\n", result.stderr


def test_a_command_without_a_script_is_refused() -> None:
    command = [sys.executable, "-m", "adamshap.verify.cpu_device", "--reverse"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "needs a script" in result.stderr
