"""The pytest plugin: an implementation's properties, CuPy on the CPU, and receipts of runs on a GPU.

- ``pytest --pyargs adamshap.verify --adamshap-target package.module:object`` tries the properties on an implementation.
- ``pytest --cupy-on-cpu`` runs CuPy on the CPU, and ends where that is impossible; ``--cupy-on-cpu-modes`` tells how.
- The fixture `device` gives a test one array library after the other: NumPy, CuPy on the CPU, CuPy on a real device.
- Tests marked ``gpu`` need a real device. ``pytest -m gpu --receipt DIRECTORY`` runs them and writes the receipt.

It imports nothing but pytest until one of these is used; ``pytest -p no:adamshap`` leaves it out.
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

__all__ = ["Device"]

CPU_DEVICE = "adamshap.verify.cpu_device"
CONFORMANCE = "adamshap.verify.conformance"
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Device:
    """What a test runs on: its `name` ("cpu", "cupy-on-cpu" or "cuda"), and the array library `xp`."""

    name: str
    xp: ModuleType


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("adamshap")
    group.addoption(
        "--adamshap-target",
        metavar="TARGET",
        help="the implementation to try, as for `adamshap verify`; use it with --pyargs adamshap.verify",
    )
    group.addoption(
        "--adamshap-profile",
        choices=("quick", "ci", "thorough"),
        default="quick",
        help="how many random cases: 15, 60 or 600 for each property",
    )
    group.addoption("--adamshap-seed", type=int, default=0, help="of the random cases")
    group.addoption(
        "--adamshap-timeout", type=float, default=60.0, metavar="SECONDS", help="that one call may take; default: 60"
    )
    group.addoption(
        "--adamshap-in-process",
        action="store_true",
        help="run the implementation in this process, to debug it, and not in one of its own",
    )
    group.addoption(
        "--cupy-on-cpu",
        action="store_true",
        help="run CuPy on the CPU, even where there is a real device: CuPy's own code and kernels, no GPU",
    )
    group.addoption(
        "--cupy-on-cpu-modes",
        default="",
        metavar="MODES",
        help="how CuPy on the CPU runs: some of reverse, poison, sanitize, nvrtc, with commas between",
    )
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


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Install CuPy on the CPU before a conftest can import CuPy."""
    options = early_config.known_args_namespace
    if options.cupy_on_cpu:
        if options.receipt is not None:
            raise pytest.UsageError("--receipt is for a real GPU: CuPy on CPU cannot make one")
        _install(options.cupy_on_cpu_modes, force=True)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and get ready to write a receipt."""
    config.addinivalue_line("markers", "gpu: needs a real CUDA device")
    folder: Path | None = config.getoption("--receipt")
    if folder is not None:
        if config.getoption("numprocesses", None):
            raise pytest.UsageError("--receipt needs one process: leave -n out")
        if _cpu_device_is_installed() or _real_devices() == 0:
            raise pytest.UsageError("--receipt is for a real GPU: there is none here")
        source: Path = config.getoption("--receipt-source") or config.rootpath / "gpu"
        config.pluginmanager.register(_ReceiptWriter(config, folder, source), "adamshap-receipt")


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect this package as a folder: as a package it would be imported once more, without its parent's name."""
    return pytest.Dir.from_parent(parent, path=path) if path.resolve() == _HERE else None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the properties where somebody asks for them, by a target or by this package's name."""
    config = parent.config
    asked = config.getoption("--adamshap-target") is not None or config.getoption("pyargs")
    if not asked or file_path.resolve() != _HERE / "properties.py":
        return None
    conformance: Any = importlib.import_module(CONFORMANCE)
    collector: pytest.Collector = conformance.Properties.from_parent(parent, path=file_path)
    return collector


def pytest_report_header() -> str | None:
    """Say what CuPy runs on."""
    return _what_cupy_runs_on()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which mistake explains failures; and what CuPy runs on: a fixture may have installed it meanwhile."""
    if config.getoption("--adamshap-target") is not None and CONFORMANCE in sys.modules:
        sys.modules[CONFORMANCE].summarize(terminalreporter, config)
    line = _what_cupy_runs_on()
    if line is not None:
        terminalreporter.write_line(line)


def _what_cupy_runs_on() -> str | None:
    if not _cpu_device_is_installed():
        return None
    how = str(_cpu_device().current_modes())
    return f"CuPy on CPU: real CuPy code and kernels, executed on the CPU{f' ({how})' if how else ''}; not a GPU"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a real device where there is none."""
    if item.get_closest_marker("gpu") is None:
        return
    if _cpu_device_is_installed():
        pytest.skip("needs a real CUDA device: CuPy on CPU is none")
    if _real_devices() == 0:
        pytest.skip("needs a real CUDA device: there is none here")


def _cpu_device() -> Any:
    return importlib.import_module(CPU_DEVICE)


def _cpu_device_is_installed() -> bool:
    return CPU_DEVICE in sys.modules and bool(_cpu_device().is_installed())


def _real_devices() -> int:
    return int(_cpu_device().real_devices())


def _install(modes: str, *, force: bool) -> None:
    """Install CuPy on the CPU with the modes of the command line; leave it alone where it is there already."""
    cpu_device = _cpu_device()
    if _cpu_device_is_installed() and not modes:
        return
    try:
        cpu_device.install(force=force, modes=cpu_device.Modes.parse(modes))
    except (cpu_device.UnavailableError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error


# --- fixtures: of session scope, since Hypothesis refuses others in a property's arguments ----------------------------


@pytest.fixture(scope="session")
def cupy_on_cpu(pytestconfig: pytest.Config) -> Any:
    """Return `adamshap.verify.cpu_device`, installed: ``import cupy`` after it gives CuPy on the CPU.

    Skips the test where that is impossible; with ``--cupy-on-cpu`` the whole run ends then.
    """
    if not _cpu_device_is_installed():
        try:
            _install(pytestconfig.getoption("--cupy-on-cpu-modes"), force=False)
        except pytest.UsageError as error:
            if "cupy" in sys.modules:
                pytest.fail(f"{error}; pytest --cupy-on-cpu does so before it collects tests")
            pytest.skip(str(error))
    return _cpu_device()


@pytest.fixture(scope="session", params=["cpu", "cupy-on-cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """Give the test NumPy, CuPy on the CPU and CuPy on a real device in turn; what is missing is skipped, and why."""
    if request.param == "cpu":
        return Device("cpu", importlib.import_module("numpy"))
    if request.param == "cupy-on-cpu":
        request.getfixturevalue("cupy_on_cpu")
    return Device(request.param, importlib.import_module("cupy"))


@pytest.fixture(scope="session")
def record_error(pytestconfig: pytest.Config) -> Callable[[str, float], None]:
    """Return a function of a property's name and an error that it saw; the receipt holds the largest of each."""
    errors = pytestconfig.stash.setdefault(_largest_errors, {})

    def record(name: str, error: float) -> None:
        errors[name] = max(errors.get(name, 0.0), float(error))

    return record


@pytest.fixture(scope="session")
def record_throughput(pytestconfig: pytest.Config) -> Callable[[str, float], None]:
    """Return a function of a name and a measured throughput; the receipt holds the last of each."""
    throughput = pytestconfig.stash.setdefault(_throughput, {})

    def record(name: str, value: float) -> None:
        throughput[name] = float(value)

    return record


# --- the receipt -----------------------------------------------------------------------------------------------------

_largest_errors = pytest.StashKey[dict[str, float]]()
_throughput = pytest.StashKey[dict[str, float]]()


class _ReceiptWriter:
    """Counts the tests on the device, and writes the receipt when the run ends and all of them passed."""

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
