"""Installs the CPU device as CuPy's backend."""

import contextlib
import ctypes
import dataclasses
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamshap.verify.cpu_device import counters, cublas, kernels, nvrtc, toolchain
from adamshap.verify.cpu_device.errors import KernelError, NotCoveredError, UnavailableError

__all__ = ["DEVICE_NAME", "TESTED_CUPY", "Modes", "current_modes", "install", "is_installed", "modes", "real_devices"]

DEVICE_NAME = "CuPy on CPU"
TESTED_CUPY = ("14.2.0",)

API = "cupy_backends.cuda.api"
LIBRARIES = "cupy_backends.cuda.libs"
REFUSED_LIBRARIES = ("curand", "cusolver", "cusparse")
# Native CUDA code inside CuPy's own modules, which cannot be replaced through capsules.
REFUSED_MODULES = ("cupy.cuda.thrust", "cupy.cuda.cub", "cupy.random._generator_api")
# CuPy's functions that work without a device, and are kept.
KEPT = {"check_status", "get_build_version", "_is_cuda_python", "_export_enum"}


@dataclass(frozen=True)
class Modes:
    """Modes of running kernels.

    Parameters
    ----------
    reverse : bool
        Run blocks, and the threads of a block, in reverse order: code that depends on the order gives another result.
    poison : bool
        Give every array memory of its own instead of a piece of CuPy's pool, which reads as NaN, -1 or True until it is
        written.
    sanitize : bool
        Compile kernels for AddressSanitizer, and give memory as with `poison`. The process must have been started for
        it, as ``python -m adamshap.verify.cpu_device --sanitize ...`` does.
    nvrtc : tuple of str
        Architectures, such as ``("80", "90")``, for which NVRTC also compiles every source.
    """

    reverse: bool = False
    poison: bool = False
    sanitize: bool = False
    nvrtc: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Modes":
        """Return the modes listed in a text.

        Parameters
        ----------
        text : str
            Names separated by commas, such as ``"reverse,poison,nvrtc"``.

        Returns
        -------
        Modes
            The modes with those fields set.
        """
        known = {"reverse": {"reverse": True}, "poison": {"poison": True}, "sanitize": {"sanitize": True}}
        changes: dict[str, Any] = {}
        for word in filter(None, (part.strip() for part in text.split(","))):
            if word == "nvrtc":
                changes["nvrtc"] = nvrtc.DEFAULT_ARCHITECTURES
            elif word in known:
                changes |= known[word]
            else:
                raise ValueError(f"modes: got {word!r}; needs reverse, poison, sanitize or nvrtc, separated by commas")
        return cls(**changes)

    def __str__(self) -> str:
        words = [name for name in ("reverse", "poison", "sanitize") if getattr(self, name)]
        return ", ".join([*words, *(f"NVRTC sm_{architecture}" for architecture in self.nvrtc)])


@dataclass
class _State:
    """The device of this process, which is installed at most once."""

    extension: Any = None
    modes: Modes = Modes()


_state = _State()


def is_installed() -> bool:
    """Return whether this process's CuPy runs on the CPU.

    Returns
    -------
    bool
        True after `install`, until the process ends.
    """
    return _state.extension is not None


def current_modes() -> Modes:
    """Return the current modes of running kernels.

    Returns
    -------
    Modes
        Set by `install`, or by the innermost block of `modes`.
    """
    return _state.modes


def real_devices() -> int:
    """Return the number of CUDA devices according to the driver, without importing CuPy.

    Returns
    -------
    int
        0 without a driver.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def install(*, force: bool = False, modes: Modes | None = None) -> None:
    """Make CuPy run on the CPU in this process, from now on. Call it before anything imports CuPy.

    Parameters
    ----------
    force : bool
        Install even if there is a real device, which is then not used.
    modes : Modes, optional
        How kernels run; by default forward, in CuPy's memory pool.

    Raises
    ------
    UnavailableError
        Something is missing (g++, Python's headers, a tested version of CuPy with the expected entry points) or
        prevents it (CuPy already imported, a real device). CuPy is then unchanged, except if only NVRTC is missing.
    """
    wanted = modes or Modes()
    if is_installed():
        _change(wanted)
        return
    _check_that_no_device_is_real(force)
    if "cupy" in sys.modules:
        raise UnavailableError("CuPy was imported before cpu_device.install(): install first, then import cupy")
    version = toolchain.cupy_version()
    if version not in TESTED_CUPY:
        raise UnavailableError(
            f"CuPy on CPU replaces private parts of CuPy and was tested with {', '.join(TESTED_CUPY)}; "
            f"this is {version}"
        )
    if wanted.sanitize:
        _check_that_the_sanitizer_is_loaded()
    extension = _load_extension()
    _replace_backends(extension)
    _replace_compiler()
    _state.extension = extension
    counters.extension_counters(extension)
    _state.modes = Modes(sanitize=wanted.sanitize)
    _change(wanted)


def _check_that_no_device_is_real(force: bool) -> None:
    count = 0 if force else real_devices()
    if count:
        raise UnavailableError(
            f"there are {count} real CUDA devices here: CuPy on CPU would hide them; install(force=True) does so"
        )


def _check_that_the_sanitizer_is_loaded() -> None:
    if not hasattr(ctypes.CDLL(None), "__asan_init"):
        raise UnavailableError(
            "AddressSanitizer must be loaded before Python: run python -m adamshap.verify.cpu_device --sanitize "
            "script.py (or --sanitize -m pytest)"
        )


# --- the extension ---------------------------------------------------------------------------------------------------


def _load_extension() -> Any:
    """Import the extension, compiled now or taken from the cache."""
    native, include = toolchain.HERE / "native", toolchain.HERE / "include"
    python_include = toolchain.python_include()
    texts = [file.read_text() for file in sorted([*native.iterdir(), include / "launch.h"]) if file.is_file()]
    flags = ("-std=c++17", "-O2", "-w", "-shared", "-fPIC")
    name = toolchain.fingerprint("extension", *texts, flags) + ".so"

    def compile_extension(target: Path) -> None:
        folders = (python_include,)
        message = toolchain.compile_shared_object(native / "extension.cpp", target, flags, folders)
        if message:
            raise UnavailableError(f"the extension of CuPy on CPU does not compile:\n{message}")

    file = toolchain.cached(name, compile_extension)
    loader = importlib.machinery.ExtensionFileLoader("cpu_device_extension", str(file))
    spec = importlib.util.spec_from_file_location("cpu_device_extension", file, loader=loader)
    assert spec is not None
    extension = importlib.util.module_from_spec(spec)
    loader.exec_module(extension)
    return extension


# --- CUDA's entry points, and its libraries --------------------------------------------------------------------------


def _runtime_error_factory(runtime: Any) -> Any:
    def runtime_error(status: int, message: str) -> BaseException:
        error: BaseException = runtime.CUDARuntimeError(status)
        error.args = (message,)
        return error

    return runtime_error


def _driver_error_factory(driver: Any) -> Any:
    def driver_error(status: int, message: str) -> BaseException:
        # Its __init__ would query the driver for the message, but there is no driver.
        error: BaseException = driver.CUDADriverError.__new__(driver.CUDADriverError, message)
        error.status = status  # type: ignore[attr-defined]
        return error

    return driver_error


def _device_properties() -> dict[str, object]:
    return {
        "name": DEVICE_NAME.encode(),
        "major": 9,
        "minor": 0,
        "warpSize": 32,
        "multiProcessorCount": 1,
        "maxThreadsPerBlock": 1024,
        "maxThreadsDim": (1024, 1024, 64),
        "maxGridSize": (2147483647, 65535, 65535),
        "sharedMemPerBlock": 49152,
        "sharedMemPerBlockOptin": 232448,
    }


def _replace_backends(extension: Any) -> None:
    try:
        runtime: Any = importlib.import_module(f"{API}.runtime")
        driver: Any = importlib.import_module(f"{API}.driver")
        extension.install(
            runtime=runtime,
            driver=driver,
            runtime_error=_runtime_error_factory(runtime),
            driver_error=_driver_error_factory(driver),
            kernel_failed=KernelError,
            not_covered=NotCoveredError,
            pointer_attributes=runtime.PointerAttributes,
            device_properties=_device_properties(),
        )
    except ImportError as error:
        raise UnavailableError(f"CuPy on CPU was written for another version of CuPy: {error}") from error
    for module, covered in zip((runtime, driver), extension.covered(), strict=True):
        replaced = {*covered, *KEPT}
        extension.refuse(module, [name for name in module.__pyx_capi__ if name not in replaced])
        _refuse_functions(module, replaced)
    libraries: Any = importlib.import_module(LIBRARIES)
    stand_ins = [cublas.cublas_module(), *(_RefusedLibrary(f"{LIBRARIES}.{name}") for name in REFUSED_LIBRARIES)]
    for stand_in in stand_ins:
        sys.modules[stand_in.__name__] = stand_in
        setattr(libraries, stand_in.__name__.rpartition(".")[2], stand_in)


class _Refused:
    """A placeholder for something that the CPU device does not cover: it raises when it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: object, **keywords: object) -> Any:
        raise NotCoveredError(self._name)

    def __index__(self) -> int:
        raise NotCoveredError(self._name)


class _RefusedLibrary(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Refused(f"{self.__name__.rpartition('.')[2]}.{name}")


def _refuse_functions(module: Any, kept: set[str]) -> None:
    """Replace the Python functions of `module` that are not `kept`."""
    for name, value in list(vars(module).items()):
        if isinstance(value, types.BuiltinFunctionType) and name not in kept:
            setattr(module, name, _Refused(f"{module.__name__}.{name}"))


# --- the compiler ----------------------------------------------------------------------------------------------------


def _replace_compiler() -> None:
    import cupy
    from cupy.cuda import compiler

    compiler._compile_module_with_cache = _compile_module
    # CUB's reductions are device code compiled into CuPy; without them CuPy generates its own from source.
    cupy._core.set_reduction_accelerators([])
    cupy._core.set_routine_accelerators([])
    for name in REFUSED_MODULES:
        _refuse_functions(sys.modules[name], {"get_build_version"})


def _compile_module(
    source: str,
    options: tuple[str, ...] = (),
    *,
    arch: str | None = None,
    extra_source: str | None = None,
    backend: str = "nvrtc",
    enable_cooperative_groups: bool = False,
    name_expressions: tuple[str, ...] | None = None,
    log_stream: object = None,
    jitify: bool = False,
    to_ltoir: bool = False,
) -> Any:
    """Replace ``cupy.cuda.compiler._compile_module_with_cache``, with the same arguments."""
    import cupy
    from cupy.cuda import compiler, function

    refused = {
        f"the compiler {backend!r}": backend != "nvrtc",
        "cooperative groups": enable_cooperative_groups,
        "jitify": jitify,
        "LTO": to_ltoir,
    }
    for what, asked in refused.items():
        if asked:
            raise NotCoveredError(what)
    include = Path(cupy.__file__).parent / "_core" / "include"
    try:
        file, mapping = kernels.build(
            source,
            options,
            name_expressions,
            cupy_include=include,
            foreign_include=_foreign_include(options, include),
            sanitize=_state.modes.sanitize,
        )
    except kernels.CompilationError as error:
        raise compiler.CompileException(str(error), source, "kernel.cu", options, "g++") from error
    nvrtc.check(compiler, source, options, name_expressions, _state.modes.nvrtc)
    module = function.Module()
    module.load(str(file).encode())
    if name_expressions:
        module._set_mapping(mapping)
    return module


def _foreign_include(options: tuple[str, ...], include: Path) -> list[Path]:
    """Return the include folders in `options` with NVIDIA's headers: CCCL, shipped with CuPy, and the CUDA runtime."""
    cccl = include / "cupy" / "_cccl"
    folders = [Path(option[2:]) for option in options if option.startswith("-I")]
    return [folder for folder in folders if cccl in folder.parents or (folder / "cuda.h").exists()]


# --- modes -----------------------------------------------------------------------------------------------------------


def _change(wanted: Modes) -> None:
    if wanted.sanitize != _state.modes.sanitize:
        raise UnavailableError("AddressSanitizer can only be enabled at the start of a process")
    if wanted.nvrtc:
        nvrtc.require()
    _apply(wanted)


def _apply(wanted: Modes) -> None:
    import cupy

    _state.extension.set_reverse(wanted.reverse)
    if wanted.poison or wanted.sanitize:
        cupy.cuda.set_allocator(None)
    else:
        cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)
    _state.modes = wanted


@contextlib.contextmanager
def modes(**changes: Any) -> Iterator[Modes]:
    """Run the block with some of the fields of `Modes` changed: ``with modes(reverse=True): ...``.

    Kernels that are already compiled are not compiled by NVRTC again: set `nvrtc` when installing.

    Parameters
    ----------
    **changes : bool, or tuple of str for `nvrtc`
        Fields of `Modes`.

    Yields
    ------
    Modes
        The modes inside the block.
    """
    if not is_installed():
        raise RuntimeError("modes() needs CuPy on CPU, which is not installed")
    before = _state.modes
    _change(dataclasses.replace(before, **changes))
    try:
        yield _state.modes
    finally:
        _apply(before)
