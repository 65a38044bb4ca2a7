"""Plant the faults of `engine_faults.py` in a copy of the engine, one at a time, and print which test catches each.

python tests/run_engine_faults.py [--workers 2] [--only NAME ...]   # half an hour of processor time

The libraries are imported once, and each fault has a forked process.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import autograd.numpy  # noqa: F401  what follows is imported here for the forked processes
import mpmath  # noqa: F401
import numba
import numpy as np
import pytest
from engine_faults import FAULTS, Fault, planted
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("gpu", "reference", "verify", "tests", "docs")
SECONDS = 900
FIRST = "not cupy and (micro_batches or repeat or activations or memory or both_slopes)"
"""Tests that have the loops compiled, for all faults that leave them alone."""


class Recorder:
    """A plugin of pytest that keeps the name of the first test that fails, and Hypothesis from shrinking its case."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_sessionstart(self) -> None:
        settings.register_profile("faults", parent=settings.default, phases=(Phase.explicit, Phase.generate))
        settings.load_profile("faults")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    pytest_collectreport = pytest_runtest_logreport


def copied(tree: Path, to: Path) -> Path:
    """Copy what the tests need of `tree`, with a folder that leads imports of adamshap there; return the copy."""
    to.mkdir()
    for name in FOLDERS:
        shutil.copytree(tree / name, to / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(tree / name, to)
    site = to / "site" / "adamshap"
    site.mkdir(parents=True)
    for name in FOLDERS[:3]:
        (site / name).symlink_to(to / name)
    return to


def files_of(names: str, tree: Path) -> list[str]:
    """Return the test files of a fault's `tests`."""
    paths = (
        [f"tests/{start}{name}.py" for start in ("test_engine_", "test_", "test_memory_")] for name in names.split()
    )
    return [next(path for path in some if (tree / path).exists()) for some in paths]


def failure(tree: Path, tests: list[str], chosen: str) -> str:
    """Return the first test that fails in `tree`; to be called once in a process, before adamshap is imported."""
    site = str(tree / "site")
    os.chdir(tree)
    os.environ["PYTHONPATH"] = site
    sys.path.insert(0, site)
    recorder = Recorder()
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # Hypothesis is imported already
    with (tree / "output").open("w") as output, redirect_stdout(output), redirect_stderr(output):
        status = pytest.main([*options, *tests], plugins=[recorder])
    return recorder.failed or ("" if status in (0, 5) else f"pytest ended with {status}")


def plant(fault: Fault, tree: Path, whole: Path) -> None:
    """Put the engine of `whole` with the fault into `tree`."""
    shutil.rmtree(tree / "gpu")
    shutil.copytree(whole / "gpu", tree / "gpu")
    path, text = planted(fault, tree / "gpu")
    path.write_text(text, encoding="utf-8")
    if "numba" in path.as_posix():  # Numba does not see that a function that another loop inlines has changed
        for cached in (tree / "gpu").rglob("*.nb?"):
            cached.unlink()


def forked(tree: Path, tests: list[str], chosen: str) -> int:
    """Start a process that writes the first failure to a file of `tree`; return its number."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        (tree / "result").write_text(failure(tree, tests, chosen))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def ended(running: dict[int, tuple[Fault, Path, float]]) -> tuple[Fault, Path, float]:
    """Wait for one of the processes, end those that take too long, and return what it was for."""
    while True:
        for child, (_, _, start) in running.items():
            if os.waitpid(child, os.WNOHANG)[0]:
                return running.pop(child)
            if time.monotonic() - start > SECONDS:
                os.killpg(child, signal.SIGKILL)
        time.sleep(0.2)


def main() -> None:
    """Try the faults and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--tree", type=Path, default=ROOT)
    given = parser.parse_args()
    left = [fault for fault in FAULTS if not given.only or fault.name in given.only]
    os.environ["OMP_NUM_THREADS"] = "1"
    numba.njit(lambda x: x + 1)(np.ones(1))  # loads the compiler
    caught, running = 0, dict[int, tuple[Fault, Path, float]]()
    with tempfile.TemporaryDirectory() as name:
        whole = copied(given.tree.resolve(), Path(name) / "whole")
        for fault in left:
            planted(fault, whole / "gpu")
        os.waitpid(forked(whole, files_of("run kernels ops carry two_term", whole), FIRST), 0)
        if found := (whole / "result").read_text():  # it has also filled the caches of compiled loops
            sys.exit(f"without a fault: {found}")
        trees = [copied(whole, Path(name) / f"tree{number}") for number in range(given.workers)]
        left, total = left[::-1], len(left)
        while left or running:
            while left and trees:
                fault, tree = left.pop(), trees.pop()
                plant(fault, tree, whole)
                (tree / "result").write_text("time limit")
                running[forked(tree, files_of(fault.tests, tree), fault.chosen)] = fault, tree, time.monotonic()
            fault, tree, start = ended(running)
            trees.append(tree)
            found = (tree / "result").read_text()
            caught += bool(found)
            print(f"{fault.name:50} {time.monotonic() - start:4.0f} s  {found or '**nothing**'}", flush=True)
    print(f"{caught} of {total} caught")


if __name__ == "__main__":
    main()
