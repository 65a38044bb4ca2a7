"""``python -m adamshap.verify.on_gpu.wheels DIR``: fill a folder with wheels for a GPU machine without a network.

It holds this project and the packages of `WHEELS`. The machine has those of `MACHINE`. A test compares both lists with
the imports in the sources.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["MACHINE", "SOURCES", "WHEELS", "commands", "main"]

MACHINE = ("cupy-cuda13x", "hypothesis", "llvmlite", "numba", "numpy", "pytest", "rich", "torch", "typer")
"""Packages that the machine is expected to have, with their dependencies."""

WHEELS = ("autograd", "mpmath", "threadpoolctl")
"""Packages that it may lack: autograd for the oracle, mpmath for the engine's tests, threadpoolctl for the engine."""

SOURCES = ("LICENSE", "README.md", "pyproject.toml", "reference", "gpu", "verify")
"""Files and folders that make up this project's wheel."""

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def commands(folder: Path, sources: Path) -> Iterator[list[str]]:
    """Yield the pip commands that fill `folder`, with this project's sources in `sources`."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    yield [*pip, "wheel", "-qq", "--no-deps", "--wheel-dir", str(folder), str(sources)]
    where = ["--python-version", PYTHON, "--implementation", "cp", "--only-binary", ":all:"]
    where += [part for platform in PLATFORMS for part in ("--platform", platform)]
    yield [*pip, "download", "-qq", "--no-deps", *where, "--dest", str(folder), *WHEELS]


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m adamshap.verify.on_gpu.wheels",
        description=f"Fill a folder with wheels of this project and of {', '.join(WHEELS)}, for Python {PYTHON} on "
        "Linux (x86-64). It needs a network, and a checkout of the project.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder; it must be new or empty")
    folder: Path = parser.parse_args(arguments).folder
    root = Path(__file__).resolve().parents[2]
    missing = [name for name in SOURCES if not (root / name).exists()]
    if missing:
        parser.error(f"needs a checkout, installed with pip install -e; {root} has no {missing[0]}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"DIR: got {str(folder)!r}, which is not empty; pip would install old wheels beside new ones")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        # A copy, since a build in the checkout would include files left by earlier builds.
        for source in SOURCES:
            there, here = Path(name) / source, root / source
            if here.is_dir():
                shutil.copytree(here, there, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(here, there)
        for command in commands(folder, Path(name)):
            status = subprocess.run(command).returncode
            if status:
                print(f"{' '.join(command)} ended with exit status {status}", file=sys.stderr)
                return 1
    print("\n".join(sorted(file.name for file in folder.iterdir())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
