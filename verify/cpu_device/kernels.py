"""Compiles CUDA C++ to a shared object that the executor can call, as NVRTC does for a device."""

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adamshap.verify.cpu_device import toolchain
from adamshap.verify.cpu_device.errors import NotCoveredError

__all__ = ["ENTRY_PREFIX", "CompilationError", "build", "kernel_names", "translate", "without_comments"]

ENTRY_PREFIX = "cpu_device_entry_"  # native/driver.hpp looks up kernels by this prefix

# Comments, and string and character literals; the leftmost match wins, as in C++.
LEXEMES = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
BARRIER = re.compile(r"\b(?:__syncthreads|__syncwarp|__shfl\w*_sync|__ballot_sync|__any_sync|__all_sync)\b")
DYNAMIC_SHARED = re.compile(
    r"\bextern\s+(?:volatile\s+)?__shared__\s+(?:__align__\s*\(\s*\w+\s*\)\s+)?"
    r"(?P<type>[\w:<>,\s]+?)\s+(?P<name>\w+)\s*\[\s*\]\s*;"
)
KERNEL = re.compile(r"\b__global__\b(?P<rest>[^;{}]*)")
KERNEL_NAME = re.compile(r"(\w+)\s*\($")
LINKAGE_BLOCK = re.compile(r"extern\s*\"C\"\s*$")
# What CuPy puts at the beginning of the sources that it generates.
LEADING_HEADERS = re.compile(r"(?:\s*#include <cupy/[\w./]+>[ \t]*\n)*")


class CompilationError(Exception):
    """The compiler rejected a kernel; the message is the compiler's."""


def without_comments(source: str) -> str:
    """Return `source` with comments blanked out; keep line numbers and string literals."""

    def blank(match: re.Match[str]) -> str:
        text = match[0]
        return "\n" * text.count("\n") + " " if text.startswith("/") else text

    return LEXEMES.sub(blank, source)


def kernel_names(source: str) -> list[str]:
    """Return the kernels of `source` that CUDA finds by their plain name: those with C linkage.

    Without ``extern "C"`` a kernel's name is mangled, here as on a device.
    """
    code = without_comments(source)
    names = []
    for match in KERNEL.finditer(code):
        start = max(code.rfind(mark, 0, match.start()) for mark in ";{}")
        declaration = code[start + 1 : match.start()]
        if "template" in declaration:
            continue
        if 'extern "C"' in re.sub(r"\s+", " ", declaration) or _in_linkage_block(code, match.start()):
            name = _declared_name(match["rest"])
            if name is not None and name not in names:
                names.append(name)
    return names


def _declared_name(rest: str) -> str | None:
    """Return the function's name in the text after ``__global__``: the word before its parameter list."""
    plain = re.sub(r"__launch_bounds__\s*\([^()]*\)", " ", rest)
    match = KERNEL_NAME.search(plain[: plain.find("(") + 1])
    return match[1] if match else None


def _in_linkage_block(code: str, position: int) -> bool:
    """Return whether `position` lies in an ``extern "C" { ... }``."""
    opened: list[bool] = []
    for match in re.finditer(r"[{}]", code[:position]):
        if match[0] == "{":
            opened.append(LINKAGE_BLOCK.search(code[: match.start()]) is not None)
        elif opened:
            opened.pop()
    return any(opened)


@dataclass(frozen=True)
class Translation:
    """C++ for g++, and the symbol name of each name expression in the shared object."""

    text: str
    mapping: dict[str, str]


def translate(source: str, name_expressions: Sequence[str] | None) -> Translation:
    """Return `source` with the shim included and an entry point for each kernel.

    Only dynamic shared memory is beyond the preprocessor: ``extern __shared__ T name[];`` becomes a reference to the
    single pointer of all such arrays.
    """
    code = without_comments(source)
    if re.search(r"\b__CUDA_ARCH__\b", code):
        raise NotCoveredError("a kernel that uses __CUDA_ARCH__")
    barriers = 1 if BARRIER.search(code) else 0
    code = DYNAMIC_SHARED.sub(
        r"static \g<type>*& \g<name> = *reinterpret_cast<\g<type>**>(&cpu_device::dynamic_shared);", code
    )
    expressions = sorted(name_expressions or ())
    mapping = {expression: f"expression_{number}" for number, expression in enumerate(expressions)}
    kernels = mapping or {name: name for name in kernel_names(source)}
    entries = [f"CPU_DEVICE_KERNEL({ENTRY_PREFIX}{name}, {kernel})" for kernel, name in kernels.items()]
    lines = [
        '#include "cuda_shim.h"',
        '#line 1 "kernel.cu"',
        code,
        f"CPU_DEVICE_MODULE({barriers}, {len(kernels)})",
        *entries,
        "",
    ]
    return Translation("\n".join(lines), mapping)


def _compiler_options(options: Sequence[str]) -> tuple[str, ...]:
    """Translate NVRTC's `options` for g++; refuse unknown options."""
    kept = []
    has_standard = False
    for option in options:
        if option.startswith(("-D", "-U", "--define-macro=", "-I", "--include-path=")):
            kept.append(option.replace("--define-macro=", "-D").replace("--include-path=", "-I"))
        elif option.startswith(("-std=", "--std=")):
            kept.append("-" + option.lstrip("-"))
            has_standard = True
        elif option in ("-fmad=false", "--fmad=false"):
            kept.append("-ffp-contract=off")
        elif option not in ("-fmad=true", "--fmad=true", "-lineinfo", "--generate-line-info", "-default-device"):
            raise NotCoveredError(f"the compiler option {option}")
    return tuple(kept) if has_standard else ("-std=c++17", *kept)


@functools.cache
def _shim_text() -> str:
    """Return the content of the shim's files, for the cache key."""
    files = sorted(file for file in (toolchain.HERE / "include").rglob("*") if file.is_file())
    return "\0".join(file.read_text() for file in files)


def _precompiled_headers(source: str, flags: tuple[str, ...], folders: tuple[Path, ...]) -> tuple[str, ...]:
    """Return g++'s flags for reading the headers at the beginning of a translated `source` from the cache, parsed.

    Parsing them takes most of a kernel's compilation. They include themselves only once, so that the translation stays
    as it is, and means the same without the flags.
    """
    leading = LEADING_HEADERS.match(without_comments(source))
    assert leading is not None
    names = re.findall("<(.+)>", leading[0])
    text = "".join(f"#include <{name}>\n" for name in ("cuda_shim.h", *names))
    name = toolchain.fingerprint("headers", text, _shim_text(), flags) + ".h"

    def write_header(target: Path) -> None:
        target.write_text(text)

    header = toolchain.cached(name, write_header)

    def compile_headers(target: Path) -> None:
        message = toolchain.compile_headers(header, target, flags, folders)
        if message:
            raise CompilationError(message)

    toolchain.cached(f"{name}.gch", compile_headers)
    return ("-include", str(header))


def build(
    source: str,
    options: Sequence[str],
    name_expressions: Sequence[str] | None,
    *,
    cupy_include: Path,
    foreign_include: Sequence[Path],
    sanitize: bool,
) -> tuple[Path, dict[str, str]]:
    """Return the shared object of `source`, compiled or from the cache, and the names of its name expressions.

    Parameters
    ----------
    source : str
        CUDA C++, as CuPy would pass it to NVRTC.
    options : sequence of str
        NVRTC's options.
    name_expressions : sequence of str, optional
        Template instances, as for NVRTC.
    cupy_include : path
        CuPy's own headers.
    foreign_include : sequence of paths
        Include folders in the options with NVIDIA's headers, which the shim replaces.
    sanitize : bool
        Whether to compile for AddressSanitizer.

    Raises
    ------
    CompilationError
        With g++'s message.
    NotCoveredError
        For a source or an option that would have another meaning here.
    """
    translation = translate(source, name_expressions)
    foreign = {f"-I{folder}" for folder in foreign_include}
    own = [option for option in _compiler_options(options) if option not in foreign]
    flags = (*toolchain.kernel_flags(sanitize=sanitize), *own)
    name = toolchain.fingerprint("kernel", translation.text, _shim_text(), flags) + ".so"

    def compile_kernel(target: Path) -> None:
        file = target.with_suffix(".cpp")
        file.write_text(translation.text)
        folders = (toolchain.HERE / "include", cupy_include)
        # Macros may change what headers mean, and AddressSanitizer's flags are for few kernels of few processes.
        parsed = not sanitize and not any(option.startswith(("-D", "-U")) for option in own)
        headers = _precompiled_headers(source, flags, folders) if parsed else ()
        message = toolchain.compile_shared_object(file, target, (*flags, *headers), folders)
        if message:
            raise CompilationError(message.replace(os.fspath(file), "kernel.cu"))

    return toolchain.cached(name, compile_kernel), translation.mapping
