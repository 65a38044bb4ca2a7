"""The receipt of a run on a real GPU: what ran where, on which code, and how far off it was.

`pytest -m gpu --receipt docs/gpu-receipts/` writes one. Nothing else lets this project say "verified on a GPU", and it
says so of the code whose hash it holds. Its format is `receipt.schema.json`, beside this file.
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
    "SCHEMA_FILE",
    "Machine",
    "Receipt",
    "newest",
    "read",
    "source_hash",
    "this_machine",
    "verified_line",
    "why_stale",
    "write",
]

SCHEMA_FILE = Path(__file__).with_name("receipt.schema.json")
SOURCE_SUFFIXES = (".py", ".cu", ".cuh", ".h")
HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Machine:
    """Where a run took place: the card's name, and the versions of the driver, of CUDA's runtime and of CuPy."""

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
    """One run of the whole suite on a real GPU, all of it passed.

    Parameters
    ----------
    date : str
        Such as ``"2026-05-31"``.
    machine : Machine
    source : str
        `source_hash` of the engine's folder.
    passed : int
        Number of tests, at least one.
    largest_errors : dict of float
        For each property, the largest error that it saw, in the property's own unit.
    throughput : dict of float
        What the benchmark measured, by name.
    """

    date: str
    machine: Machine
    source: str
    passed: int
    largest_errors: dict[str, float] = field(default_factory=dict)
    throughput: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.date)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Receipt.date: got {self.date!r}; needs a date such as '2026-05-31'") from error
        if not isinstance(self.machine, Machine):
            raise TypeError(f"Receipt.machine: got {type(self.machine).__name__}; needs a Machine")
        if not isinstance(self.source, str) or HASH.fullmatch(self.source) is None:
            raise ValueError(f"Receipt.source: got {self.source!r}; needs 64 hexadecimal digits")
        if not isinstance(self.passed, int) or self.passed < 1:
            raise ValueError(f"Receipt.passed: got {self.passed!r}; needs at least one test that passed")
        for name in ("largest_errors", "throughput"):
            for key, value in getattr(self, name).items():
                if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                    raise ValueError(f"Receipt.{name}[{key!r}]: got {value!r}; needs a finite number of at least 0")


def source_hash(folder: Path) -> str:
    """Return the SHA-256 of the source files under `folder`: their paths and contents, in order."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in SOURCE_SUFFIXES):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def this_machine() -> Machine:
    """Return the facts of the CUDA device that CuPy uses.

    Raises
    ------
    RuntimeError
        Where CuPy runs on the CPU: no receipt can come from that.
    """
    import cupy

    from adamshap.verify.cpu_device import DEVICE_NAME

    runtime = cupy.cuda.runtime
    card = runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    if card == DEVICE_NAME:
        raise RuntimeError(f"a receipt needs a real GPU: this is {DEVICE_NAME}")
    return Machine(
        card=card,
        driver=_version(runtime.driverGetVersion()),
        cuda=_version(runtime.runtimeGetVersion()),
        cupy=cupy.__version__,
    )


def _version(number: int) -> str:
    """Return CUDA's 13020 as 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def write(folder: Path, receipt: Receipt) -> Path:
    """Write `receipt` to `folder`, under its date, card and code; return the file.

    A receipt of the same day, card and code is replaced.
    """
    card = re.sub(r"[^a-z0-9]+", "-", receipt.machine.card.lower()).strip("-")
    file = folder / f"{receipt.date}-{card}-{receipt.source[:8]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(dataclasses.asdict(receipt), indent=2, sort_keys=True) + "\n")
    os.replace(unfinished, file)
    return file


def read(file: Path) -> Receipt:
    """Return the receipt in `file`; an error names the file."""
    try:
        content: Mapping[str, Any] = json.loads(file.read_text())
        return Receipt(**{**content, "machine": Machine(**content["machine"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: no receipt: {error}") from error


def newest(folder: Path) -> Receipt | None:
    """Return the receipt of the latest date in `folder`; None where there is none."""
    receipts = [read(file) for file in sorted(folder.glob("*.json"))]
    return max(receipts, key=lambda receipt: receipt.date, default=None)


def why_stale(receipt: Receipt | None, source_folder: Path) -> str | None:
    """Return why `receipt` does not cover the code in `source_folder`; None if it does."""
    if receipt is None:
        return "not yet verified on a GPU: there is no receipt"
    if receipt.source != source_hash(source_folder):
        return (
            f"the newest GPU receipt ({receipt.date}, {receipt.machine.card}) is of other code than today's "
            f"{source_folder.name}/: run pytest -m gpu --receipt on a GPU"
        )
    return None


def verified_line(receipt: Receipt | None) -> str:
    """Return the README's line: what was verified, in the only words that may be used."""
    if receipt is None:
        return "not yet verified on a GPU"
    return f"verified on a GPU: {receipt.date}, {receipt.machine.card}"
