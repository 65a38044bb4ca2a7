"""The properties on the card, smallest first; then the engine's own tests; then more random cases while time lasts."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from adamshap.verify.candidates.engine import Engine
from adamshap.verify.checking import PROFILES, check
from adamshap.verify.implementation import implementation
from adamshap.verify.on_gpu.child import Reporter
from adamshap.verify.on_gpu.plan import Setting, Task
from adamshap.verify.properties import PROPERTIES, Property
from adamshap.verify.reproduction import snippet

__all__ = ["tasks"]

DTYPES = ("float32", "float64")
SHRINK_SECONDS = 5.0
CALL_SECONDS = 30.0

TESTS = ("test_engine_*.py", "test_two_term.py")
NOT_HERE = "not test_benchmark"  # the stage before has measured it
REHEARSED = ("test_engine_scores.py", "test_influence and float32")
"""The file and the tests of it that a rehearsal runs: they report errors as all do."""


def tasks(setting: Setting) -> list[Task]:
    """Return the stage's tasks."""
    by_cost = sorted(PROPERTIES, key=lambda one: one.cost)
    found = _round(by_cost, "once" if setting.rehearsal else "quick", required=True)
    found += [Task(f"tests, {file.name}", partial(_tests, file, setting), fresh=True) for file in _files(setting)]
    if not setting.rehearsal:
        found += _round(by_cost, "ci", required=False) + _round(by_cost, "thorough", required=False)
    return found


def _round(properties: list[Property], profile: str, required: bool) -> list[Task]:
    return [
        Task(f"{one.name}, {dtype}, {profile}", partial(_try, one, dtype, profile), required)
        for one in properties
        for dtype in DTYPES
    ]


def _try(one: Property, dtype: str, profile: str, report: Reporter) -> None:
    candidate = implementation(Engine("cuda"), "the engine on CUDA")
    # A seed of its own for each profile, so that a longer one tries other cases.
    seed = list(PROFILES).index(profile)
    (outcome,) = check(
        candidate, [one], profile=profile, dtype=dtype, seed=seed, timeout=CALL_SECONDS, shrink_seconds=SHRINK_SECONDS
    )
    report.error(f"{one.name} {dtype}, share of the bound", outcome.share)
    if outcome.finding is not None:
        code = snippet(outcome.finding.case, "engine")
        report.failed(f"{one.name}, {dtype}, {profile}", f"{outcome.finding.sentence}\n\n{code}")
    elif outcome.status == "passed":
        report.passed(outcome.examples)
    else:
        report.failed(f"{one.name}, {dtype}, {profile}", f"{outcome.status}: {outcome.unsupported}")


def _files(setting: Setting) -> list[Path]:
    if not setting.checkout:
        return []
    folder = Path(setting.checkout) / "tests"
    if setting.rehearsal:
        return [folder / REHEARSED[0]]
    # The smallest file first.
    return sorted((file for pattern in TESTS for file in folder.glob(pattern)), key=lambda file: file.stat().st_size)


def _tests(file: Path, setting: Setting, report: Reporter) -> None:
    """Run the tests of one file that use the card, in this process."""
    import pytest

    os.chdir(setting.checkout)
    chosen = ["-k", f"cupy-on-cpu and {REHEARSED[1]}"] if setting.rehearsal else ["-m", "gpu", "-k", NOT_HERE]
    # Warnings of the libraries of that machine are no errors of ours.
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "default", "--tb", "short"]
    recorder = _Recorder(file.name, report)
    status = pytest.main([str(file), *options, *chosen], plugins=[recorder])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with {status!r} on {file.name}; see the log")


class _Recorder:
    """Passes on what pytest reports of each test, and the errors that tests recorded."""

    def __init__(self, file: str, report: Reporter) -> None:
        self.file, self.report = file, report

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Pass on one test's result."""
        if report.failed:
            self.report.failed(f"{report.nodeid}, {report.when}", report.longreprtext)
        elif report.when == "call" and report.passed:
            self.report.passed(1)

    def pytest_collectreport(self, report: Any) -> None:
        """Pass on a file that cannot be collected."""
        if report.failed:
            self.report.failed(f"{report.nodeid}, collection", report.longreprtext)

    def pytest_sessionfinish(self, session: Any) -> None:
        """Pass on the largest errors."""
        from adamshap.verify import plugin

        for name, error in session.config.stash.get(plugin._largest_errors, {}).items():
            self.report.error(name, error)
