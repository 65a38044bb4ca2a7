"""The pytest plugin that installs with the package: it adds options, and does nothing else until one is used.

- ``pytest --pyargs adamshap.verify --adamshap-target package.module:object`` checks the properties of an
  implementation.
- ``pytest --cupy-on-cpu`` runs CuPy on the CPU, or ends if that is impossible; ``--cupy-on-cpu-modes`` selects modes.

Fixtures, the marker ``gpu`` and receipts are in `device_plugin`, which a project loads by name. This module imports
nothing but pytest until one of its options is used; ``pytest -p no:adamshap`` disables it.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

CPU_DEVICE = "adamshap.verify.cpu_device"
CONFORMANCE = "adamshap.verify.conformance"
_HERE = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("adamshap")
    group.addoption(
        "--adamshap-target",
        metavar="TARGET",
        help="the implementation to test, as for `adamshap verify`; use it with --pyargs adamshap.verify",
    )
    group.addoption(
        "--adamshap-profile",
        choices=("quick", "ci", "thorough"),
        default="quick",
        help="number of random cases: 15, 60 or 600 for each property",
    )
    group.addoption("--adamshap-seed", type=int, default=0, help="seed of the random cases")
    group.addoption(
        "--adamshap-timeout", type=float, default=60.0, metavar="SECONDS", help="time limit of a call; default: 60"
    )
    group.addoption(
        "--adamshap-in-process",
        action="store_true",
        help="run the implementation in this process, to debug it, instead of in one of its own",
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
        help="modes of CuPy on the CPU: some of reverse, poison, sanitize, nvrtc, separated by commas",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Install CuPy on the CPU before a conftest can import CuPy."""
    options = early_config.known_args_namespace
    if options.cupy_on_cpu:
        install(options.cupy_on_cpu_modes, force=True)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a run with a target but without the properties: its success would mean nothing."""
    target = config.getoption("--adamshap-target")
    if target is not None and not any(map(_leads_here, config.args)):
        raise pytest.UsageError(
            f"--adamshap-target: got {target!r} in a run without the properties; needs --pyargs adamshap.verify as well"
        )


def _leads_here(argument: str) -> bool:
    """Return whether an argument (this package, a file or a folder) leads pytest to the properties."""
    name = argument.split("::")[0]
    return name.split(".")[:2] == ["adamshap", "verify"] or (_HERE / "properties.py").is_relative_to(
        Path(name).resolve()
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect this package as a folder: as a package it would be imported again, without its parent's name."""
    return pytest.Dir.from_parent(parent, path=path) if path.resolve() == _HERE else None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect the properties if the run names a target or this package."""
    config = parent.config
    wanted = config.getoption("--adamshap-target") is not None or config.getoption("pyargs")
    if not wanted or file_path.resolve() != _HERE / "properties.py":
        return None
    conformance: Any = importlib.import_module(CONFORMANCE)
    collector: pytest.Collector = conformance.Properties.from_parent(parent, path=file_path)
    return collector


def pytest_report_header(config: pytest.Config) -> str | None:
    """Return a line on what CuPy runs on, for a run with ``--cupy-on-cpu``."""
    return what_cupy_runs_on() if config.getoption("--cupy-on-cpu") else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write the diagnosis of failures and what CuPy runs on, for runs with the matching options."""
    if config.getoption("--adamshap-target") is not None and CONFORMANCE in sys.modules:
        sys.modules[CONFORMANCE].summarize(terminalreporter, config)
    if config.getoption("--cupy-on-cpu"):
        terminalreporter.write_line(what_cupy_runs_on())


def what_cupy_runs_on() -> str | None:
    """Return a line about CuPy on the CPU; None if it is not installed."""
    if not cpu_device_is_installed():
        return None
    how = str(cpu_device().current_modes())
    return f"CuPy on CPU: real CuPy code and kernels, executed on the CPU{f' ({how})' if how else ''}; not a GPU"


def cpu_device() -> Any:
    """Return the module `adamshap.verify.cpu_device`, imported now."""
    return importlib.import_module(CPU_DEVICE)


def cpu_device_is_installed() -> bool:
    """Return whether CuPy runs on the CPU in this process."""
    return CPU_DEVICE in sys.modules and bool(cpu_device().is_installed())


def install(modes: str, *, force: bool) -> None:
    """Install CuPy on the CPU with the modes of the command line, unless it is installed and no mode is given."""
    device = cpu_device()
    if cpu_device_is_installed() and not modes:
        return
    try:
        device.install(force=force, modes=device.Modes.parse(modes))
    except (device.UnavailableError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error
