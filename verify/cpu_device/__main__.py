"""``python -m adamshap.verify.cpu_device [modes] script.py ...`` or ``-m module``: run it with CuPy on the CPU."""

import argparse
import ctypes
import os
import runpy
import sys
from pathlib import Path

from adamshap.verify.cpu_device import Modes, UnavailableError, install
from adamshap.verify.cpu_device.nvrtc import DEFAULT_ARCHITECTURES
from adamshap.verify.cpu_device.toolchain import sanitizer_libraries


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adamshap.verify.cpu_device",
        usage="%(prog)s [modes] (script.py | -m module) [arguments ...]",
        description="Run a script or a module with CuPy on the CPU, even where there is a real device.",
    )
    parser.add_argument("--reverse", action="store_true", help="run threads and blocks in reverse order")
    parser.add_argument("--poison", action="store_true", help="fill the fresh memory of every array with NaN")
    parser.add_argument("--sanitize", action="store_true", help="run kernels under AddressSanitizer")
    parser.add_argument("--nvrtc", action="store_true", help="compile every source with NVRTC for sm_80 and sm_90, too")
    return parser


def _start_again_with_the_sanitizer() -> None:
    """Restart this process with AddressSanitizer loaded first; return if it is already loaded."""
    if hasattr(ctypes.CDLL(None), "__asan_init"):
        return
    libraries = [*sanitizer_libraries(), *filter(None, [os.environ.get("LD_PRELOAD")])]
    # Python keeps memory until it exits, and fibers have stacks of their own: neither is an error.
    options = ["detect_leaks=0", "detect_stack_use_after_return=0", *filter(None, [os.environ.get("ASAN_OPTIONS")])]
    environment = os.environ | {"LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": ":".join(options)}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def main() -> None:
    """Run the command."""
    arguments = sys.argv[1:]
    own = next((i for i, word in enumerate(arguments) if word == "-m" or not word.startswith("-")), len(arguments))
    parser = _parser()
    options = parser.parse_args(arguments[:own])
    target = arguments[own:]
    is_module = target[:1] == ["-m"]
    target = target[1:] if is_module else target
    if not target:
        parser.error("needs a script, or -m and a module")
    architectures = DEFAULT_ARCHITECTURES if options.nvrtc else ()
    try:
        if options.sanitize:
            _start_again_with_the_sanitizer()
        install(force=True, modes=Modes(options.reverse, options.poison, options.sanitize, architectures))
    except UnavailableError as error:
        sys.exit(str(error))
    sys.argv = target
    if is_module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(target[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(target[0]).resolve().parent)
        runpy.run_path(target[0], run_name="__main__")


if __name__ == "__main__":
    main()
