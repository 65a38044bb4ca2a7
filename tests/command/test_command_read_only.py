"""Containers: a home folder that does not exist, and no writable folder for a cache."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import adamshap.gpu
import adamshap.reference
from adamshap.verify.cpu_device import toolchain
from adamshap.verify.cpu_device.errors import UnavailableError

CACHES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "NUMBA_CACHE_DIR", "CUPY_CACHE_DIR", "MPLCONFIGDIR")
NO_HOME = {"HOME": "/proc/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of the package in which not even root can write a cache."""
    folder = tmp_path_factory.mktemp("installed")
    for package in (adamshap.gpu, adamshap.reference):
        source = Path(next(iter(package.__path__)))
        target = folder / "adamshap" / package.__name__.split(".")[1]
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        (target / "__pycache__").touch()  # a file, not a folder
    return folder


def run(program: str, packages: Path, place: Path, caches: Mapping[str, str]) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in CACHES}
    environment = kept | NO_HOME | {"PYTHONPATH": str(packages)} | dict(caches)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=place, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


ATTRIBUTE = """
import numpy as np
from adamshap import gpu
from adamshap.gpu.kernels import numba as loops
from adamshap.reference import Adam, Batch, Network

generator = np.random.default_rng(0)
data = Batch(generator.normal(size=(8, 4)), generator.integers(0, 3, 8))
run = gpu.attribute(Network((4, 3)), Adam(), data, data, epochs=1, slope="sgd")
print(loops.__file__, np.isfinite(run.scores).all())
"""


@pytest.mark.skipif(find_spec("numba") is None or find_spec("cupy") is None, reason="needs Numba and CuPy")
@pytest.mark.parametrize(
    "caches", [{}, {"CUPY_CACHE_DIR": "/dev/null/x"}, {"CUPY_CACHE_DIR": "cupy"}], ids=["none", "no folder", "of CuPy"]
)
def test_the_engine_computes_without_a_cache(read_only: Path, tmp_path: Path, caches: dict[str, str]) -> None:
    printed = run(ATTRIBUTE, read_only, tmp_path, caches)
    assert printed == f"{read_only / 'adamshap' / 'gpu' / 'kernels' / 'numba.py'} True\n"
    assert not [path for path in tmp_path.iterdir() if path.name != "cupy"]


CUDA = """
from adamshap.gpu.backend import pick_backend

try:
    pick_backend("cuda", "float32")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(find_spec("cupy") is None, reason="needs CuPy")
def test_a_device_that_is_asked_for_says_which_cache_it_needs(read_only: Path, tmp_path: Path) -> None:
    printed = run(CUDA, read_only, tmp_path, {"CUPY_CACHE_DIR": "/dev/null/x"})
    assert printed.startswith("device: got 'cuda' where CuPy cannot make the folder of its cache")
    assert "CUPY_CACHE_DIR" in printed


@pytest.mark.skipif(find_spec("numba") is None, reason="needs Numba")
def test_a_full_disk_costs_the_cache_and_not_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import caching

    from adamshap.gpu.jit import compiled

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert compiled("int64(int64)")(lambda x: x + 1)(2) == 3


# --- CuPy on the CPU ------------------------------------------------------------------------------------------------


def test_cupy_on_the_cpu_asks_for_a_folder_where_there_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (toolchain.CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as if no home folder were known
    with pytest.raises(UnavailableError, match=f"no home folder is known; name a folder in {toolchain.CACHE_VARIABLE}"):
        toolchain.cache_folder()
