"""Describes the machine: the card according to nvidia-smi and CuPy, the libraries, the host, and the sources."""

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adamshap.verify import receipt
from adamshap.verify.on_gpu.child import Reporter
from adamshap.verify.on_gpu.conductor import folder_of
from adamshap.verify.on_gpu.plan import Setting, Task
from adamshap.verify.on_gpu.wheels import MACHINE, WHEELS

__all__ = ["tasks"]

SMI_FIELDS = (
    "name,uuid,driver_version,vbios_version,memory.total,memory.used,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.limit,temperature.gpu,compute_mode,ecc.mode.current,mig.mode.current,pcie.link.gen.current"
)
LIBRARIES = (
    *("adamshap", *MACHINE, *WHEELS),
    *("nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "triton"),
)
ATTRIBUTES = ("name", "major", "minor", "multiProcessorCount", "totalGlobalMem", "l2CacheSize", "sharedMemPerBlock")


def tasks(setting: Setting) -> list[Task]:
    """Return the stage's tasks."""
    return [
        Task("CuPy", lambda report: _cupy(setting, report)),
        Task("nvidia-smi", _smi, required=not setting.rehearsal),
        Task("libraries", _libraries),
        Task("host", _host),
        Task("sources", lambda report: _sources(setting, report)),
    ]


def _cupy(setting: Setting, report: Reporter) -> None:
    import cupy

    report.machine(asdict(receipt.this_machine(rehearsal=setting.rehearsal)))
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    facts: dict[str, Any] = {name: properties[name] for name in ATTRIBUTES if name in properties}
    facts["name"] = facts["name"].decode()
    facts["devices"] = cupy.cuda.runtime.getDeviceCount()
    facts["free memory, total memory"] = _known(lambda: list(cupy.cuda.runtime.memGetInfo()))
    facts["NVRTC"] = _known(lambda: list(cupy.cuda.nvrtc.getVersion()))
    facts["cuBLAS"] = _known(lambda: cupy.cuda.cublas.getVersion(cupy.cuda.device.get_cublas_handle()))
    facts["accelerators"] = _known(lambda: [int(kind) for kind in cupy._core.get_reduction_accelerators()])
    facts["CUPY_TF32"] = os.environ.get("CUPY_TF32", "")
    report.note("CuPy", facts)


def _known(fact: Callable[[], Any]) -> Any:
    """Return an optional fact, or the error that prevents it."""
    try:
        return fact()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _smi(report: Reporter) -> None:
    try:
        result = subprocess.run(
            ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv"], capture_output=True, text=True, timeout=20
        )
    except FileNotFoundError:
        report.note("nvidia-smi", "not found")
        return
    names, _, values = result.stdout.partition("\n")
    cells = zip(names.split(", "), values.strip().split(", "), strict=False)
    report.note("nvidia-smi", dict(cells) if result.returncode == 0 else result.stdout + result.stderr)


def _libraries(report: Reporter) -> None:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    report.note("libraries", found)


def _host(report: Reporter) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    report.note(
        "host",
        {
            "python": platform.python_version(),
            "kernel": platform.platform(),
            "cores": len(os.sched_getaffinity(0)),
            "memory, GiB": round(memory, 1),
        },
    )


def _sources(setting: Setting, report: Reporter) -> None:
    hashes = {name: receipt.source_hash(folder_of(f"adamshap.{name}")) for name in ("reference", "gpu", "verify")}
    report.note("SHA-256 of the installed sources", hashes)
    if setting.checkout:
        there = {name: receipt.source_hash(Path(setting.checkout) / name) for name in hashes}
        if there != hashes:
            report.failed("sources", f"the sources in the checkout {setting.checkout} differ from those installed")
