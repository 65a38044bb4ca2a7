"""The properties on the card, cheapest first; then the engine's own tests; then more random cases as time permits."""

import ast
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

__all__ = ["tasks", "tests_in"]

DTYPES = ("float32", "float64")
SHRINK_SECONDS = 5.0
CALL_SECONDS = 30.0

TESTS = ("test_engine_*.py", "test_two_term.py", "pytorch/test_torch_on_card.py")
ELSEWHERE = ("test_benchmark", "test_property")
"""Tests that the throughput stage and the properties above replace."""
REHEARSED = "test_two_term.py::test_micro_batches_change_nothing"
"""The test that a rehearsal runs; it records an error."""


def tasks(setting: Setting) -> list[Task]:
    """Return the stage's tasks."""
    by_cost = sorted(PROPERTIES, key=lambda one: one.cost)
    found = _round(by_cost, "once" if setting.rehearsal else "quick", required=True)
    found += [Task(f"tests, {test}", partial(_test, test, setting), fresh=True) for test in tests_in(setting)]
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
    # A different seed for each profile, so that a longer one tests other cases.
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


def tests_in(setting: Setting) -> list[str]:
    """Return the names of the checkout's tests that take a device or need a real one, from short files first."""
    if not setting.checkout:
        return []
    folder, found = Path(setting.checkout) / "tests", []
    files = [file for pattern in TESTS for file in folder.glob(pattern)]
    for file in sorted(files, key=lambda file: file.stat().st_size):
        text = file.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and node.name not in ELSEWHERE:
                takes = {argument.arg for argument in node.args.args}
                if "device" in takes or "pytest.mark.gpu" in text:
                    found.append(f"{file.relative_to(folder).as_posix()}::{node.name}")
    return [test for test in found if test == REHEARSED] if setting.rehearsal else found


def _test(name: str, setting: Setting, report: Reporter) -> None:
    """Run one of the checkout's tests on the card, in this process."""
    import pytest

    os.chdir(setting.checkout)
    chosen = ["-k", "cupy-on-cpu and float32"] if setting.rehearsal else ["-m", "gpu"]
    # Warnings from that machine's libraries are not errors.
    options = ["-q", "-p", "no:cacheprovider", "-W", "default", "--tb", "short"]
    recorder = _Recorder(report)
    status = pytest.main([f"tests/{name}", *options, *chosen], plugins=[recorder])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {status!r}; see the log")


class _Recorder:
    """Passes on pytest's report of each test, and the errors that tests recorded."""

    def __init__(self, report: Reporter) -> None:
        self.report = report

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
        from adamshap.verify import device_plugin

        for name, error in session.config.stash.get(device_plugin._largest_errors, {}).items():
            self.report.error(name, error)
