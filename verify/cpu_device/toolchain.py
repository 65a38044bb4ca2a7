"""The C++ compiler, and the per-user cache of its output.

A cache entry's name depends on everything that determines its content. Entries appear atomically: the compiler writes
to a temporary file, which is then renamed. Processes that build the same entry at once duplicate the work and agree.
"""

import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from adamshap.verify.cpu_device.errors import UnavailableError

__all__ = [
    "CACHE_VARIABLE",
    "HERE",
    "cache_folder",
    "cached",
    "compile_headers",
    "compile_shared_object",
    "compiler",
    "cupy_version",
    "fingerprint",
    "kernel_flags",
    "python_include",
    "sanitizer_libraries",
]

HERE = Path(__file__).parent
CACHE_VARIABLE = "ADAMSHAP_CPU_DEVICE_CACHE"
COMPILER_VARIABLE = "ADAMSHAP_CPU_DEVICE_CXX"
SANITIZE_FLAGS = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g")


@functools.cache
def compiler() -> str:
    """Return the path of g++, or of the compiler named by ``ADAMSHAP_CPU_DEVICE_CXX``."""
    name = os.environ.get(COMPILER_VARIABLE, "g++")
    path = shutil.which(name)
    if path is None:
        raise UnavailableError(
            f"CuPy on CPU compiles kernels with g++, and {name!r} is not on PATH; install it (Debian, Ubuntu: "
            f"apt install g++; Fedora: dnf install gcc-c++), or name another compiler in {COMPILER_VARIABLE}"
        )
    return path


@functools.cache
def compiler_version() -> str:
    """Return the compiler's version and target machine."""
    result = subprocess.run(
        [compiler(), "-dumpfullversion", "-dumpmachine"], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise UnavailableError(f"CuPy on CPU needs GCC; {compiler()} answered: {result.stderr.strip()}")
    return " ".join(result.stdout.split())


@functools.cache
def cupy_version() -> str:
    """Return CuPy's version without importing it."""
    for distribution in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise UnavailableError("CuPy on CPU needs CuPy: pip install 'adamshap[cpu-device]'")


def python_include() -> Path:
    """Return the folder of Python's C headers."""
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").exists():
        raise UnavailableError(
            f"CuPy on CPU needs Python's C headers, and there is no {folder / 'Python.h'}; install them (Debian, "
            f"Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)"
        )
    return folder


@functools.cache
def _processor_flags() -> frozenset[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return frozenset()
    lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")]
    return frozenset(lines[0].split(":", 1)[1].split()) if lines else frozenset()


def kernel_flags(*, sanitize: bool) -> tuple[str, ...]:
    """Return g++'s flags for a kernel, chosen to keep CUDA's guarantees.

    Multiplications and additions may contract to FMA if the processor has the instruction, as by NVCC's default
    (``--fmad=true``). Integers wrap and memory may be read as another type: device code relies on both.
    """
    flags = ["-shared", "-fPIC", "-w", "-O1", "-fwrapv", "-fno-strict-aliasing", "-ffp-contract=fast"]
    # A kernel with the name of a libc function, or of another module's template, must resolve to itself.
    flags.extend(["-Wl,-Bsymbolic", "-fno-gnu-unique"])
    if platform.machine() == "x86_64" and "fma" in _processor_flags():
        flags.append("-mfma")
    if sanitize:
        flags.extend(SANITIZE_FLAGS)
    return tuple(flags)


def sanitizer_libraries() -> list[str]:
    """Return the libraries of AddressSanitizer and of C++, whose exceptions it wraps; both must be loaded first."""
    paths = []
    for library in ("libasan.so", "libstdc++.so"):
        command = [compiler(), f"-print-file-name={library}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        path = Path(result.stdout.strip())
        if not path.is_absolute():
            raise UnavailableError(f"AddressSanitizer needs {library}, and {compiler()} has none; install it")
        paths.append(str(path.resolve()))
    return paths


def cache_folder() -> Path:
    """Return (and create) the cache: ``ADAMSHAP_CPU_DEVICE_CACHE``, or a folder in the user's cache."""
    named = os.environ.get(CACHE_VARIABLE)
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    folder = Path(named) if named else user_cache / "adamshap" / "cpu_device"
    if not named and str(user_cache).startswith("~"):
        raise UnavailableError(
            f"CuPy on CPU caches compiled kernels in the user's cache, and no home folder is known; name a folder in "
            f"{CACHE_VARIABLE}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"CuPy on CPU caches compiled kernels in {folder}, which cannot be created ({error}); name another folder "
            f"in {CACHE_VARIABLE}"
        ) from error
    return folder


def fingerprint(*parts: object) -> str:
    """Return the name of a cache entry that depends on `parts`, the compiler, CuPy's version and Python's."""
    everything = (*parts, compiler(), compiler_version(), cupy_version(), sys.version, platform.machine())
    return hashlib.sha256("\0".join(map(str, everything)).encode()).hexdigest()


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """Return the cache entry `name`; if it is missing, `build` writes it to the path passed to it."""
    entry = cache_folder() / name
    if entry.exists():
        return entry
    try:
        with tempfile.TemporaryDirectory(prefix=".building-", dir=entry.parent) as folder:
            unfinished = Path(folder) / name
            build(unfinished)
            os.replace(unfinished, entry)
    except OSError as error:
        raise UnavailableError(
            f"CuPy on CPU cannot write to its cache {entry.parent} ({error}); name another folder in {CACHE_VARIABLE}"
        ) from error
    return entry


def compile_shared_object(source: Path, target: Path, flags: tuple[str, ...], include: tuple[Path, ...]) -> str:
    """Compile `source` to `target`; return the compiler's message, empty on success."""
    return _message_of_compiler(source, target, flags, include)


def compile_headers(header: Path, target: Path, flags: tuple[str, ...], include: tuple[Path, ...]) -> str:
    """Parse `header` for kernels with the same `flags`; return the compiler's message, empty on success.

    With `target` next to it, named ``HEADER.gch``, g++ reads that instead of `header`.
    """
    without_linking = tuple(flag for flag in flags if flag != "-shared" and not flag.startswith("-Wl,"))
    return _message_of_compiler(header, target, ("-x", "c++-header", *without_linking), include)


def _message_of_compiler(source: Path, target: Path, flags: tuple[str, ...], include: tuple[Path, ...]) -> str:
    folders = [f"-I{folder}" for folder in include]
    command = [compiler(), *folders, *flags, str(source), "-o", str(target)]
    # The compiler itself need not run under AddressSanitizer.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        return f"{result.stderr}\n(command: {shlex.join(command)})"
    return ""
