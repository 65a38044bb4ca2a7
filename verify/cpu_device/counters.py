"""Counts the device operations of a piece of code: launches, copies, synchronisations, matrix products."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Copies", "Counts", "Gemm", "count", "extension_counters", "record_gemm"]


@dataclass(frozen=True)
class Copies:
    """Copies between host and device, one way.

    Parameters
    ----------
    count : int
        Number of copies.
    bytes : int
        Total number of bytes.
    """

    count: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Gemm:
    """One matrix product that CuPy asked cuBLAS for: ``C (m, n) = A (m, k) @ B (k, n)``, column-major.

    CuPy's arrays are row-major, so its ``x @ y`` reaches cuBLAS as the transposed product, with m and n exchanged;
    `shape` is CuPy's.

    Parameters
    ----------
    function : str
        The cuBLAS function, such as ``"gemmEx"``.
    m, n, k : int
        As passed to cuBLAS.
    batch : int
        Number of products.
    dtype : str
        Dtype of C.
    compute_type : str
        Type of the accumulator, such as ``"CUBLAS_COMPUTE_32F"``.
    """

    function: str
    m: int
    n: int
    k: int
    batch: int
    dtype: str
    compute_type: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(rows, inner, columns)`` of CuPy's row-major product."""
        return self.n, self.k, self.m


@dataclass
class Counts:
    """The device operations inside ``with count() as counts``; filled in when the block ends.

    Parameters
    ----------
    launches : Counter
        Kernel launches by kernel name; their total is ``counts.launches.total()``.
    host_to_device, device_to_host, device_to_device : Copies
        CuPy's copies through CUDA's memcpy; kernels that copy count as launches.
    synchronisations : int
        Number of waits of the host: for the device, a stream or an event, and in blocking copies from or to the host.
    gemms : list of Gemm
        In the order of the calls.
    """

    launches: Counter[str] = field(default_factory=Counter)
    host_to_device: Copies = Copies()
    device_to_host: Copies = Copies()
    device_to_device: Copies = Copies()
    synchronisations: int = 0
    gemms: list[Gemm] = field(default_factory=list)


class ExtensionCounters(Protocol):
    """The extension's counters: totals since the start."""

    def count(self) -> dict[str, Any]:
        """Return the totals."""


_source: list[ExtensionCounters] = []
_recording: list[list[Gemm]] = []


def extension_counters(extension: ExtensionCounters) -> None:
    """Use the counters of `extension` from now on."""
    _source[:] = [extension]


def record_gemm(gemm: Gemm) -> None:
    """Record a matrix product in every active `count` block."""
    for gemms in _recording:
        gemms.append(gemm)


@contextlib.contextmanager
def count() -> Iterator[Counts]:
    """Count the device operations of the code inside the block; blocks may be nested.

    Yields
    ------
    Counts
        Filled in when the block ends.

    Raises
    ------
    RuntimeError
        CuPy on CPU is not installed; operations of a real device cannot be counted.
    """
    if not _source:
        raise RuntimeError("count() needs CuPy on CPU, which is not installed")
    counts = Counts()
    before = _source[0].count()
    _recording.append(counts.gemms)
    try:
        yield counts
    finally:
        _recording[:] = [gemms for gemms in _recording if gemms is not counts.gemms]
        after = _source[0].count()
        counts.launches.update(Counter(after["launches"]) - Counter(before["launches"]))
        for kind in ("host_to_device", "device_to_host", "device_to_device"):
            (count_before, bytes_before), (count_after, bytes_after) = before[kind], after[kind]
            setattr(counts, kind, Copies(count_after - count_before, bytes_after - bytes_before))
        counts.synchronisations = after["synchronisations"] - before["synchronisations"]
