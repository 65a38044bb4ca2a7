"""The array module and the precision: CuPy on a CUDA device or NumPy on the host, chosen once, then passed along.

All other modules get the array module from a `Backend`; none of them chooses between the two.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from mmap import mmap
from typing import Any, Literal

import numpy as np

from adamshap.reference.contract import LazyRows, one_of, refuse

__all__ = [
    "DEVICES",
    "DTYPES",
    "Backend",
    "Buffers",
    "DeviceName",
    "DtypeName",
    "NoRoomError",
    "Place",
    "arithmetic_of",
    "cuda_is_usable",
    "is_mapped",
    "pick_backend",
    "within_memory",
]

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["float32", "float64"]
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "float64")


def cuda_is_usable() -> bool:
    """Return whether CuPy is installed and finds a device, real or emulated."""
    return not _why_not_cuda()


@cache
def _why_not_cuda() -> str:
    try:
        import cupy
    except ImportError:
        return "where CuPy is not installed or finds no device"
    except OSError as error:
        return f"where CuPy cannot make the folder of its cache, which CUPY_CACHE_DIR names ({error})"
    return "" if cupy.is_available() else "where CuPy is not installed or finds no device"


EMULATED = "CuPy on CPU"
"""Beginning of the device's name if CuPy is executed on the CPU: for tests, never chosen by "auto"."""


def device_name() -> str:
    """Return the name of the CUDA device that "auto" chooses; "" if no device is real."""
    if not cuda_is_usable():
        return ""
    import cupy

    name: str = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return "" if name.startswith(EMULATED) else name


def describe(device: DeviceName = "auto") -> str:
    """Return a phrase for what the engine runs on, in float32.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        As for `attribute`.

    Returns
    -------
    str
        Such as "the engine on the CPU (Numba), float32".

    Raises
    ------
    ValueError, RuntimeError
        An unknown device; no CUDA device for "cuda".
    """
    if pick_backend(device, "float32").on_cuda:
        return f"the engine on {device_name() or EMULATED}, float32"
    loops = "Numba" if find_spec("numba") else "NumPy; the extra `cpu` makes it faster"
    return f"the engine on the CPU ({loops}), float32"


def arithmetic_of(backend: "Backend", parts: int) -> dict[str, Any]:
    """Return the versions and settings that determine the last digits of a run's results, for `run_settings`."""
    if backend.on_cuda:
        device = backend.xp.cuda.runtime.getDeviceProperties(0)["name"].decode()
        return {"cupy": backend.xp.__version__, "device": device}
    if find_spec("numba") is None:
        return {"parts": parts, "numba": None}
    import numba
    from llvmlite.binding import get_host_cpu_name

    return {"parts": parts, "numba": numba.__version__, "processor": get_host_cpu_name()}


@dataclass(frozen=True)
class Backend:
    """An array module, ``xp``, the ``dtype`` of real numbers in it, and how arrays come in and go out."""

    xp: Any
    dtype: np.dtype[Any]

    @property
    def on_cuda(self) -> bool:
        """Whether arrays are CuPy's."""
        return self.xp is not np

    def real(self, value: Any) -> Any:
        """Return `value` in this backend and dtype, C-contiguous: itself where it already is so, else a copy."""
        if not self.on_cuda:
            host = value.get() if _is_cupy(value) else value
            return np.require(host, self.dtype, ["C", "A"])
        return self.xp.ascontiguousarray(self.xp.asarray(value, dtype=self.dtype))

    def held(self, field: str, value: Any) -> Any:
        """Return `value` as `real` does, and refuse values beyond the dtype: they would become infinite."""
        with np.errstate(over="ignore"):
            array = self.real(value)
        if array.dtype.itemsize < value.dtype.itemsize:
            count = int(array.size - self.xp.count_nonzero(self.xp.isfinite(array)))
            if count:
                refuse(field, f"{count} values beyond {self.dtype}", "smaller values, or a wider dtype")
        return array

    def inputs(self, field: str, value: Any, integers: bool) -> Any:
        """Return tokens as integers, or other inputs as `held` does."""
        return self.labels(value, integers) if integers else self.held(field, value)

    def labels(self, value: Any, integers: bool = False) -> Any:
        """Return labels (n,) as integers, or targets (n, d_out) as real numbers unless they are `integers` too."""
        if value.ndim > 1 and not integers:
            return self.real(value)
        if not self.on_cuda:
            host = value.get() if _is_cupy(value) else value
            return np.ascontiguousarray(host, dtype=np.int64)
        return self.xp.ascontiguousarray(self.xp.asarray(value, dtype=np.int64))

    def targets(self, field: str, value: Any, integers: bool = False) -> Any:
        """Return labels or targets as `labels` does, and refuse targets beyond the dtype."""
        return self.held(field, value) if value.ndim > 1 and not integers else self.labels(value, integers)

    def reals(self, arrays: Mapping[str, Any], field: str = "") -> dict[str, Any]:
        """Return every array of a mapping as `held` does; `field` is the mapping's name in messages."""
        return {name: self.held(f"{field}[{name!r}]", array) for name, array in arrays.items()}

    def host(self, array: Any) -> Any:
        """Return `array` as NumPy's; this waits for the device."""
        return array.get() if self.on_cuda else array

    def out(self, array: Any, device_arrays: bool) -> Any:
        """Return a result: on its device if `device_arrays`, else on the host."""
        return array if device_arrays else self.host(array)


def pick_backend(device: str, dtype: str) -> Backend:
    """Return the backend that ``device`` and ``dtype`` name; "auto" chooses a real CUDA device if one exists."""
    one_of("device", device, DEVICES)
    one_of("dtype", dtype, DTYPES)
    if device == "cuda" and not cuda_is_usable():
        refuse(
            "device",
            f"'cuda' {_why_not_cuda()}",
            "'cpu', or CuPy with a CUDA device (the extra 'gpu')",
            RuntimeError,
        )
    if device == "cpu" or (device == "auto" and not device_name()):
        return Backend(np, np.dtype(dtype))
    import cupy

    return Backend(cupy, np.dtype(dtype))


def is_mapped(array: Any) -> bool:
    """Whether `array` is read on demand: a view of a file, NumPy's memory map, or `LazyRows`."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap | LazyRows)


class NoRoomError(MemoryError):
    """Memory ran out for `what`; the message suggests a remedy."""

    def __init__(self, what: str, cause: BaseException, where: str = "") -> None:
        super().__init__(
            f"memory: got no room for {what}{where} ({cause}); needs a smaller micro_batch, or a smaller network"
        )
        self.what = what


@dataclass
class Place:
    """The computation in progress, its samples and its step, for the messages of `within_memory`."""

    phase: str = "preparation"
    samples: slice | str = "the step"
    step: int = 0

    def __str__(self) -> str:
        of = self.samples
        if isinstance(of, slice):
            of = f"samples {of.start} to {of.stop - 1} of the batch"
        return f"the {self.phase} of {of}" + (f" at step {self.step}" if self.step else "")


@contextmanager
def within_memory(place: Place) -> Iterator[None]:
    """Add the `place` to the error when memory runs out, for a buffer or a temporary array."""
    try:
        yield
    except MemoryError as error:  # CuPy's OutOfMemoryError is one
        what = error.what if isinstance(error, NoRoomError) else "a temporary array"
        cause = error.__cause__ or error  # replaces a buffer's own message by one with the place
        raise NoRoomError(what, cause, f" in {place}") from cause


@dataclass
class Buffers:
    """Named arrays, allocated once and reused in every step; a smaller shape gets the front of a larger array."""

    backend: Backend
    kept: dict[str, Any] = field(default_factory=dict)
    views: dict[tuple[str, tuple[int, ...]], Any] = field(default_factory=dict)  # of the kept arrays

    def get(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return an array of `shape` under `name`, its content undefined.

        Raises
        ------
        NoRoomError
            Out of memory; the message names the buffer and a remedy.
        """
        view = self.views.get((name, shape))
        if view is None:
            size = math.prod(shape)
            have = self.kept.get(name)
            if have is None or have.size < size:
                have = self._allocate(name, size)
            view = self.views[name, shape] = have[:size].reshape(shape)
        return view

    def release(self) -> None:
        """Forget all arrays, so that the memory of those that nobody else holds is free."""
        self.kept.clear()
        self.views.clear()

    def _allocate(self, name: str, size: int) -> Any:
        self.kept.pop(name, None)  # frees the smaller array before a larger one is allocated
        for key in [key for key in self.views if key[0] == name]:
            del self.views[key]
        try:
            array = self.kept[name] = self.backend.xp.empty(size, self.backend.dtype)
        except MemoryError as error:
            raise NoRoomError(f"buffer {name!r} of {size * self.backend.dtype.itemsize:,} bytes", error) from error
        return array


def _is_cupy(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "cupy"
