"""The receipt of a run on a real GPU: the machine, the code, the checks and the largest errors.

`python -m adamshap.verify.on_gpu` and `pytest -m gpu --receipt docs/gpu-receipts/` write one. Only a complete receipt
allows this project to claim "verified on a GPU", and only for the code whose hash it holds. A receipt is *partial* if a
stage is missing or was cut short. A rehearsal without a GPU writes one too, which `read` refuses. The format is
described by `receipt.schema.json`, beside this file.
"""

import dataclasses
import datetime
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "EMULATED",
    "SCHEMA_FILE",
    "STATUSES",
    "Machine",
    "Receipt",
    "newest",
    "read",
    "source_hash",
    "this_machine",
    "verified_line",
    "why_stale",
    "write",
    "write_text",
]

SCHEMA_FILE = Path(__file__).with_name("receipt.schema.json")
SOURCE_SUFFIXES = (".py", ".cu", ".cuh", ".h")
HASH = re.compile(r"[0-9a-f]{64}")

EMULATED = "CuPy on CPU"
"""The device name of CuPy on the CPU: `cpu_device.DEVICE_NAME`."""

STATUSES = ("passed", "failed", "cut short", "not run")
"""The possible outcomes of a stage; the last two make a receipt partial."""


@dataclass(frozen=True)
class Machine:
    """The machine of a run: the card's name, and the versions of the driver, the CUDA runtime and CuPy."""

    card: str
    driver: str
    cuda: str
    cupy: str

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"Machine.{name}: got {value!r}; needs some text")


@dataclass(frozen=True)
class Receipt:
    """One run on a real GPU, or a rehearsal of one.

    Parameters
    ----------
    date : str
        Date, such as ``"2026-05-31"``.
    machine : Machine
    source : str
        `source_hash` of the engine's folder.
    passed : int
        Number of checks that passed, at least one unless the receipt is partial.
    largest_errors : dict of float
        The largest error of each property, in the property's own unit.
    throughput : dict of float
        Measured values by name; each name ends with its unit, if any.
    stages : dict of str
        Outcome of each stage, one of `STATUSES`; empty for a run of pytest, which has no stages.
    partial : bool
        Whether a stage was cut short or did not run.
    failed : list of str
        The checks that failed.
    rehearsal : bool
        Whether CuPy ran on the CPU.
    """

    date: str
    machine: Machine
    source: str
    passed: int
    largest_errors: dict[str, float] = field(default_factory=dict)
    throughput: dict[str, float] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    partial: bool = False
    failed: list[str] = field(default_factory=list)
    rehearsal: bool = False

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.date)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Receipt.date: got {self.date!r}; needs a date such as '2026-05-31'") from error
        if not isinstance(self.machine, Machine):
            raise TypeError(f"Receipt.machine: got {type(self.machine).__name__}; needs a Machine")
        if not isinstance(self.source, str) or HASH.fullmatch(self.source) is None:
            raise ValueError(f"Receipt.source: got {self.source!r}; needs 64 hexadecimal digits")
        for name in ("largest_errors", "throughput"):
            for key, value in getattr(self, name).items():
                if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                    raise ValueError(f"Receipt.{name}[{key!r}]: got {value!r}; needs a finite number of at least 0")
        for key, status in self.stages.items():
            if status not in STATUSES:
                raise ValueError(f"Receipt.stages[{key!r}]: got {status!r}; needs one of {', '.join(STATUSES)}")
        missing = bool(self.missing)
        if self.partial is not missing:
            raise ValueError(f"Receipt.partial: got {self.partial!r}; needs {missing}, by the stages {self.stages}")
        if not isinstance(self.passed, int) or self.passed < (0 if self.partial else 1):
            raise ValueError(f"Receipt.passed: got {self.passed!r}; needs at least one check that passed")
        if not isinstance(self.failed, list) or not all(isinstance(name, str) for name in self.failed):
            raise ValueError(f"Receipt.failed: got {self.failed!r}; needs a list of names")
        emulated = self.machine.card.startswith(EMULATED)
        if self.rehearsal is not emulated:
            raise ValueError(
                f"Receipt.rehearsal: got {self.rehearsal!r}; needs {emulated}, as the card is {self.machine.card!r}"
            )

    @property
    def missing(self) -> list[str]:
        """Stages that were cut short or did not run."""
        return [name for name, status in self.stages.items() if status in STATUSES[2:]]

    @property
    def verifies(self) -> bool:
        """Whether the code was verified: on a real GPU, with all stages, without a failure."""
        return not (self.partial or self.failed or self.rehearsal)


def source_hash(folder: Path) -> str:
    """Return the SHA-256 of the paths and contents of the source files under `folder`."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in SOURCE_SUFFIXES):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def this_machine(*, rehearsal: bool = False) -> Machine:
    """Return the description of the CUDA device that CuPy uses.

    Parameters
    ----------
    rehearsal : bool
        Accept CuPy on the CPU.

    Raises
    ------
    RuntimeError
        CuPy runs on the CPU, and this is not a rehearsal.
    """
    import cupy

    runtime = cupy.cuda.runtime
    card = runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    if card.startswith(EMULATED) and not rehearsal:
        raise RuntimeError(f"a receipt needs a real GPU: this is {EMULATED}")
    return Machine(
        card=card,
        driver=_version(runtime.driverGetVersion()),
        cuda=_version(runtime.runtimeGetVersion()),
        cupy=cupy.__version__,
    )


def _version(number: int) -> str:
    """Return a CUDA version number as text: 13020 as "13.2"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def write(folder: Path, receipt: Receipt) -> Path:
    """Write `receipt` to a file in `folder`, named by date, card and code; return its path.

    A receipt with the same date, card and code is replaced.
    """
    card = re.sub(r"[^a-z0-9]+", "-", receipt.machine.card.lower()).strip("-")
    rehearsal = "rehearsal-" if receipt.rehearsal else ""
    file = folder / f"{rehearsal}{receipt.date}-{card}-{receipt.source[:8]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(dataclasses.asdict(receipt), indent=2, sort_keys=True) + "\n")
    return file


def write_text(file: Path, text: str) -> None:
    """Write `text` to `file` atomically: a process killed meanwhile leaves the old content."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)


def read(file: Path) -> Receipt:
    """Return the receipt of a run on a real GPU from `file`.

    Raises
    ------
    ValueError
        It is not a receipt, or the receipt of a rehearsal.
    """
    try:
        content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = Receipt(**{**content, "machine": Machine(**content["machine"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: no receipt: {error}") from error
    if found.rehearsal:
        raise ValueError(f"{file}: no receipt: it comes from a rehearsal on {EMULATED}; needs a run on a real GPU")
    return found


def newest(folder: Path) -> Receipt | None:
    """Return the latest receipt in `folder`, preferring those that verify; None if it has none."""
    receipts = [read(file) for file in sorted(folder.glob("*.json"))]
    return max(receipts, key=lambda receipt: (receipt.verifies, receipt.date), default=None)


def why_stale(receipt: Receipt | None, source_folder: Path) -> str | None:
    """Return why `receipt` does not cover the code in `source_folder`; None if it does."""
    if receipt is None:
        return "not yet verified on a GPU: there is no receipt"
    if not receipt.verifies:
        return verified_line(receipt)
    if receipt.source != source_hash(source_folder):
        return (
            f"the newest GPU receipt ({receipt.date}, {receipt.machine.card}) does not match the current code of "
            f"{source_folder.name}/: run python -m adamshap.verify.on_gpu on a GPU"
        )
    return None


def verified_line(receipt: Receipt | None) -> str:
    """Return the README's line on GPU verification, in the only wording allowed."""
    if receipt is None:
        return "not yet verified on a GPU"
    if receipt.verifies:
        return f"verified on a GPU: {receipt.date}, {receipt.machine.card}"
    reasons = [f"lacks {', '.join(receipt.missing)}"] if receipt.partial else []
    reasons += [f"has failed checks ({len(receipt.failed)})"] if receipt.failed else []
    which = f"{receipt.date}, {receipt.machine.card}"
    return f"not yet verified on a GPU: the newest receipt ({which}) {' and '.join(reasons)}"
