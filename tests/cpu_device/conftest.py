"""Fixtures of the tests of CuPy on the CPU."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cupy(cupy_on_cpu: Any) -> Any:
    """Return the module `cupy`, running on the CPU."""
    import cupy

    return cupy


@pytest.fixture
def raw(cupy: Any) -> Callable[..., Any]:
    """Return a function of CUDA C++ and launch arguments that runs the source's only kernel, ``k``."""

    def run(source: str, *arguments: Any, grid: int = 1, block: int = 32, **keywords: Any) -> Any:
        kernel = cupy.RawKernel(source, "k")
        kernel((grid,), (block,), arguments, **keywords)
        return arguments[0] if arguments else None

    return run


@pytest.fixture
def run_script(tmp_path: Path, cupy_on_cpu: Any) -> Run:
    """Return a function that runs a script with ``python -m adamshap.verify.cpu_device FLAGS script.py``."""

    def run(text: str, *flags: str, arguments: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
        script = tmp_path / "script.py"
        script.write_text(text)
        command = [sys.executable, "-m", "adamshap.verify.cpu_device", *flags, str(script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


@pytest.fixture
def assert_rounded(cupy: Any) -> Callable[..., None]:
    """Return a check that an array equals NumPy's float64 result, up to rounding in its own dtype.

    `operations` roundings follow one another, each of relative size u; `scale` is the size of the largest term.
    """

    def check(got: Any, want: Any, operations: int, scale: float | None = None) -> None:
        assert isinstance(got, cupy.ndarray)
        host = got.get()
        want = np.asarray(want)
        assert host.shape == want.shape
        size = float(np.max(np.abs(want))) if scale is None else scale
        unit = np.finfo(host.dtype).eps / 2
        assert float(np.max(np.abs(host.astype(np.float64) - want))) <= operations * unit * size

    return check
