"""Input arrays: NumPy's, CuPy's and other libraries' by DLPack, checked and kept as read-only views."""

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract.refusal import refuse, refuse_masked
from adamshap.reference.contract.rows import LazyRows, parts

__all__ = [
    "CUDA",
    "LABELS",
    "REAL",
    "Array",
    "Params",
    "as_array",
    "named_arrays",
    "on_host",
    "read_only",
    "real_array",
]

Array = npt.NDArray[Any]
Params = dict[str, Array]

CUDA = 2
"""DLPack's number for CUDA device memory."""

REAL = "real numbers (a float or integer dtype)"
LABELS = "integer labels of shape (n,) or (n, T), or real targets of shape (n, d_out)"


def as_array(field: str, value: Any, needs: str = REAL) -> Any:
    """Return `value` as a NumPy array or, on a CUDA device, a CuPy array; an array is not copied."""
    refuse_masked(field, value)
    try:
        if not isinstance(value, np.ndarray) and hasattr(value, "__dlpack_device__"):
            if value.__dlpack_device__()[0] == CUDA:
                import cupy  # required only for arrays on a CUDA device

                return value if isinstance(value, cupy.ndarray) else cupy.from_dlpack(value)
            # Torch tensors and the like: DLPack shares their memory, and refuses tensors that require a gradient.
            return np.from_dlpack(value)
        array = np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # other libraries raise exceptions of any type
        name, why = type(value).__name__, " ".join(str(error).split())
        raise TypeError(f"{field}: got {name} that is not an array ({why}); needs {needs}") from error
    if array.dtype == object:
        _refuse_objects(field, value, array, needs)
    return array


def _refuse_objects(field: str, value: Any, array: Array, needs: str) -> NoReturn:
    name = type(value).__name__
    if hasattr(value, "toarray"):
        refuse(field, f"{name}, a sparse matrix", f"{needs}, such as its `toarray()`", TypeError)
    if hasattr(value, "to_numpy"):
        hint = "such as its `to_numpy(float)`, or for labels `to_numpy(int)`"
        refuse(field, f"{name} of dtype object", f"{needs}, {hint}", TypeError)
    refuse(field, f"dtype object of shape {array.shape}" if array.ndim else name, needs, TypeError)


def real_array(
    field: str, value: object, shape: tuple[int | None, ...], needs: str = REAL, *, or_more: bool = False
) -> Any:
    """Return `value` as a finite real array of `shape` (None: any positive length), read-only, not copied.

    With `or_more`, further axes of any positive length may follow.
    """
    array = value if isinstance(value, LazyRows) else as_array(field, value, needs)
    lengths = ["any" if length is None else str(length) for length in shape]
    wanted = "(" + ", ".join([*lengths, *(["..."] if or_more else [])]) + ")"
    shape = (*shape, *[None] * (array.ndim - len(shape) if or_more else 0))
    if array.dtype.kind not in "iuf":
        refuse(field, f"dtype {array.dtype}", needs, TypeError)
    if array.ndim != len(shape) or any(
        have == 0 if want is None else have != want for have, want in zip(array.shape, shape, strict=True)
    ):
        refuse(field, f"shape {array.shape}", f"shape {wanted}, not empty")
    count = sum(int(part.size - np.count_nonzero(np.isfinite(part))) for part in parts(array))
    if count:
        refuse(field, f"{count} values that are NaN or infinite", "finite numbers only")
    return read_only(array)


def read_only(array: Any) -> Any:
    """Return a read-only view of `array`; CuPy arrays and `LazyRows` are returned unchanged."""
    if not isinstance(array, np.ndarray):
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def on_host(array: Any) -> Any:
    """Return `array` as a NumPy array."""
    if isinstance(array, LazyRows):
        return array[:]
    return array if isinstance(array, np.ndarray) else array.get()


def named_arrays(field: str, value: object, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Return the mapping `value` in the order of `shapes`; refuse any other names or shapes."""
    if not isinstance(value, Mapping):
        refuse(field, type(value).__name__, "a mapping from parameter name to array", TypeError)
    if set(value) != set(shapes):
        refuse(field, f"the names {sorted(map(str, value))}", f"exactly the names {list(shapes)}")
    arrays = {name: as_array(f"{field}[{name!r}]", value[name]) for name in shapes}
    return {name: real_array(f"{field}[{name!r}]", arrays[name], shape) for name, shape in shapes.items()}
