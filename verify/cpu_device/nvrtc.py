"""Compiles every source that the CPU device runs with NVRTC, the real compiler, for real architectures.

The result is not run. It proves that the source is CUDA C++, not merely something that g++ accepts, and that the kernel
fits the architecture's limits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adamshap.verify.cpu_device import toolchain
from adamshap.verify.cpu_device.errors import UnavailableError

__all__ = ["DEFAULT_ARCHITECTURES", "check", "require"]

DEFAULT_ARCHITECTURES = ("80", "90")


def require() -> str:
    """Return NVRTC's version, or raise an error with instructions to install it."""
    from cupy_backends.cuda.libs import nvrtc

    try:
        major, minor = nvrtc.getVersion()
    except RuntimeError as error:
        raise UnavailableError(
            f"compiling for real architectures needs NVRTC ({error}); pip install 'adamshap[cuda-compile]'"
        ) from error
    return f"{major}.{minor}"


def check(
    compiler: Any,
    source: str,
    options: Sequence[str],
    name_expressions: Sequence[str] | None,
    architectures: Sequence[str],
) -> None:
    """Compile `source` for each of `architectures`, with CuPy's own options; cache successes.

    Parameters
    ----------
    compiler : module
        ``cupy.cuda.compiler``.

    Raises
    ------
    cupy.cuda.compiler.CompileException
        With NVRTC's message.
    """
    if not architectures:
        return  # NVRTC is a separate extra, and need not be installed
    version = require()
    expressions = tuple(sorted(name_expressions or ()))
    for architecture in architectures:
        # The options that CuPy 14 adds before calling NVRTC (cupy/cuda/compiler.py, _compile_using_nvrtc_no_warning).
        every_option = (*options, "-ftz=true", f"-arch=sm_{architecture}", "--device-as-default-execution-space")
        name = toolchain.fingerprint("nvrtc", version, source, every_option, expressions) + ".cubin"

        def compile_source(target: Path, every_option: tuple[str, ...] = every_option) -> None:
            program = compiler._NVRTCProgram(source, "kernel.cu", name_expressions=expressions or None, method="cubin")
            cubin, _ = program.compile(every_option)
            target.write_bytes(cubin)

        toolchain.cached(name, compile_source)
