"""A pytest plugin for tests of code that runs on a GPU: fixtures, the marker ``gpu``, and receipts.

- The fixture `device` runs a test with each array library: NumPy, CuPy on the CPU, CuPy on a real device.
- Tests marked ``gpu`` need a real device. ``pytest -m gpu --receipt DIRECTORY`` runs them and writes the receipt.

Its names are common, so it acts only in a project that loads it: ``-p adamshap.verify.device_plugin`` on the command
line or among ``addopts``. This repository does so in ``pyproject.toml``.
"""

import datetime
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from adamshap.verify.plugin import cpu_device, cpu_device_is_installed, install, what_cupy_runs_on

__all__ = ["Device"]


@dataclass(frozen=True)
class Device:
    """A test's device: its `name` ("cpu", "cupy-on-cpu" or "cuda") and array library `xp`."""

    name: str
    xp: ModuleType


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("adamshap")
    group.addoption(
        "--receipt",
        type=Path,
        metavar="DIRECTORY",
        help="write the receipt of a run on a real GPU there, if all tests passed; use it with -m gpu",
    )
    group.addoption(
        "--receipt-source",
        type=Path,
        metavar="DIRECTORY",
        help="the code that the receipt is about; default: gpu/ in the root directory",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the receipt's writer if a receipt is wanted."""
    config.addinivalue_line("markers", "gpu: needs a real CUDA device")
    folder: Path | None = config.getoption("--receipt")
    if folder is not None:
        if config.getoption("numprocesses", None):
            raise pytest.UsageError("--receipt needs one process: leave -n out")
        if config.getoption("cupy_on_cpu", False):
            raise pytest.UsageError("--receipt is for a real GPU: CuPy on CPU cannot make one")
        if cpu_device_is_installed() or _real_devices() == 0:
            raise pytest.UsageError("--receipt is for a real GPU: none found")
        source: Path = config.getoption("--receipt-source") or config.rootpath / "gpu"
        config.pluginmanager.register(_ReceiptWriter(config, folder, source), "adamshap-receipt")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Return a line on what CuPy runs on, unless the plugin of the option prints it."""
    return None if config.getoption("cupy_on_cpu", False) else what_cupy_runs_on()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Repeat what CuPy runs on: a fixture may have installed CuPy on the CPU meanwhile."""
    line = pytest_report_header(config)
    if line is not None:
        terminalreporter.write_line(line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a real device if there is none."""
    if item.get_closest_marker("gpu") is None:
        return
    if cpu_device_is_installed():
        pytest.skip("needs a real CUDA device, not CuPy on CPU")
    if _real_devices() == 0:
        pytest.skip("needs a real CUDA device: none found")


def _real_devices() -> int:
    return int(cpu_device().real_devices())


# --- fixtures: with session scope, since Hypothesis refuses others in a property's arguments --------------------------


@pytest.fixture(scope="session")
def cupy_on_cpu(pytestconfig: pytest.Config) -> Any:
    """Return `adamshap.verify.cpu_device`, installed: ``import cupy`` after it gives CuPy on the CPU.

    If that is impossible, skips the test; with ``--cupy-on-cpu``, ends the whole run.
    """
    if not cpu_device_is_installed():
        try:
            install(pytestconfig.getoption("cupy_on_cpu_modes", ""), force=False)
        except pytest.UsageError as error:
            if "cupy" in sys.modules:
                pytest.fail(f"{error}; pytest --cupy-on-cpu does so before it collects tests")
            pytest.skip(str(error))
    return cpu_device()


@pytest.fixture(scope="session", params=["cpu", "cupy-on-cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """Return NumPy, CuPy on the CPU and CuPy on a real device in turn; skip a missing one with the reason."""
    if request.param == "cpu":
        return Device("cpu", importlib.import_module("numpy"))
    if request.param == "cupy-on-cpu":
        request.getfixturevalue("cupy_on_cpu")
    return Device(request.param, importlib.import_module("cupy"))


@pytest.fixture(scope="session")
def record_error(pytestconfig: pytest.Config) -> Callable[[str, float], None]:
    """Return a function that records a property's error by name; the receipt holds the largest of each."""
    errors = pytestconfig.stash.setdefault(_largest_errors, {})

    def record(name: str, error: float) -> None:
        errors[name] = max(errors.get(name, 0.0), float(error))

    return record


@pytest.fixture(scope="session")
def record_throughput(pytestconfig: pytest.Config) -> Callable[[str, float], None]:
    """Return a function that records a measured throughput by name; the receipt holds the last of each."""
    throughput = pytestconfig.stash.setdefault(_throughput, {})

    def record(name: str, value: float) -> None:
        throughput[name] = float(value)

    return record


# --- the receipt -----------------------------------------------------------------------------------------------------

_largest_errors = pytest.StashKey[dict[str, float]]()
_throughput = pytest.StashKey[dict[str, float]]()


class _ReceiptWriter:
    """Counts the tests on the device, and writes the receipt at the end of the run if all passed."""

    def __init__(self, config: pytest.Config, folder: Path, source: Path) -> None:
        self.config = config
        self.folder = folder
        self.source = source
        self.passed = 0
        self.message = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and "gpu" in report.keywords:
            self.passed += 1

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus != pytest.ExitCode.OK or self.passed == 0:
            self.message = "no receipt: not all tests passed, or none ran on the GPU"
            return
        from adamshap.verify import receipt

        file = receipt.write(
            self.folder,
            receipt.Receipt(
                date=datetime.datetime.now(datetime.UTC).date().isoformat(),
                machine=receipt.this_machine(),
                source=receipt.source_hash(self.source),
                passed=self.passed,
                largest_errors=self.config.stash.get(_largest_errors, {}),
                throughput=self.config.stash.get(_throughput, {}),
            ),
        )
        self.message = f"receipt: {file}"

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.write_line(self.message)
