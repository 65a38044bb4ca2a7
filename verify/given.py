"""The copy of a step that is passed to a candidate, and the detection of changes to it.

The copy has the types of the contract: arrays are read-only views, and mappings are plain dicts, since JAX and PyTorch
treat any other mapping as a leaf of a tree. Nobody else uses the copy, so a change does no harm beyond the call. In a
training loop it would, so it is detected and reported. At some edges the arrays have another layout (`LAYOUTS`), which
the contract allows: a candidate that only writes into writeable arrays passes with read-only ones.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.reference.contract import Array, Batch, Params, Step
from adamshap.verify.foreign.time_limit import TimeIsUp

READ_ONLY = "read-only"
"""The usual layout: read-only views of contiguous arrays."""


@dataclass(frozen=True)
class Given:
    """A candidate's inputs, and the originals that they were copied from.

    Parameters
    ----------
    step, options : Step, dict
        The candidate's copies.
    original, original_options : Step, Mapping
        The kit's originals.
    """

    step: Step
    options: dict[str, Any]
    original: Step
    original_options: Mapping[str, Any]

    @classmethod
    def of(cls, step: Step, options: Mapping[str, Any], layout: str = READ_ONLY) -> "Given":
        """Copy a step, its arrays in a layout of `LAYOUTS`, and a call's options."""
        copied = LAYOUTS[layout]

        def copies(arrays: Params) -> Params:
            return {name: copied(array) for name, array in arrays.items()}

        def copy_of_batch(batch: Batch) -> Batch:
            same: Batch = _with(batch, x=copied(batch.x), y=copied(batch.y))
            return same

        copied_step = _with(
            step,
            net=copy(step.net),
            params=copies(step.params),
            adam=copy(step.adam),
            state=_with(step.state, m=copies(step.state.m), v=copies(step.state.v)),
            train=copy_of_batch(step.train),
            valid=copy_of_batch(step.valid),
        )
        copied_options = {name: _copied_option(value) for name, value in options.items()}
        return cls(copied_step, copied_options, step, options)

    def changed(self) -> str:
        """Return the first part that has changed, such as ``step.params['0.weight']``; "" if none has."""
        try:
            return self._changed()
        except AttributeError as error:
            return f"a field is gone ({error})"
        except (TimeIsUp, KeyboardInterrupt):
            raise
        except BaseException as error:  # raised by an object that the candidate put there
            return f"a field cannot be compared with its original ({type_name(error)})"

    def _changed(self) -> str:
        now, then = self.step, self.original
        for name in ("net", "adam", "reduction"):
            value, original = getattr(now, name), getattr(then, name)
            if type(value) is not type(original) or value != original:
                return f"step.{name}"
        if type(now.state.step) is not type(then.state.step) or now.state.step != then.state.step:
            return "step.state.step"
        for where, group, original in (
            ("step.params", now.params, then.params),
            ("step.state.m", now.state.m, then.state.m),
            ("step.state.v", now.state.v, then.state.v),
            ("options", self.options, self.original_options),
        ):
            if list(group) != list(original):
                return f"the names in {where}, now {list(group)}"
            for name, value in original.items():
                if isinstance(value, np.ndarray) and not _same(group[name], value):
                    return f"{where}[{name!r}]"
                if isinstance(value, Mapping) and not _same_arrays(group[name], value):
                    return f"{where}[{name!r}]"
        for where, batch, right in (("step.train", now.train, then.train), ("step.valid", now.valid, then.valid)):
            for name in ("x", "y"):
                if not _same(getattr(batch, name), getattr(right, name)):
                    return f"{where}.{name}"
        return ""


def type_name(error: BaseException) -> str:
    """Return the name of an exception's class, even if its metaclass overrides ``__name__``."""
    return str(type.__dict__["__name__"].__get__(type(error)))


def arrays_of(step: Step) -> list[Array]:
    """Return every array in a step: parameters, moments, then the batches' x and y."""
    groups = (step.params, step.state.m, step.state.v)
    batches = [array for batch in (step.train, step.valid) for array in (batch.x, batch.y)]
    return [array for group in groups for array in group.values()] + batches


def _with(original: Any, **fields: Any) -> Any:
    """Return a copy with new values in some fields, without validation."""
    changed = copy(original)
    for name, value in fields.items():
        object.__setattr__(changed, name, value)
    return changed


def _read_only(array: Array) -> Array:
    view = array.copy().view()
    view.flags.writeable = False
    return view


def _strided(array: Array) -> Array:
    """Return every other number along the last axis of an array, the others NaN, or the least of an integer dtype."""
    spare = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), spare, dtype=array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _int32(array: Array) -> Array:
    return _read_only(array if array.dtype.kind == "f" else array.astype(np.int32))


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    READ_ONLY: _read_only,
    "writeable": np.copy,
    "fortran": lambda array: array.copy(order="F"),
    "strided": _strided,
    "int32": _int32,
}
"""Copies of an array in each layout; "int32" is the dtype of labels and tokens alone."""


def _copied_option(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _read_only(array) for name, array in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value


def _same_arrays(one: Any, other: Mapping[str, Array]) -> bool:
    return type(one) is dict and list(one) == list(other) and all(_same(one[name], other[name]) for name in other)


def _same(one: Any, other: Array) -> bool:
    """Return whether `one` is an array with the same dtype, shape and bits as `other`."""
    return (
        type(one) is np.ndarray
        and one.shape == other.shape
        and (one.dtype == other.dtype or (one.dtype.kind == other.dtype.kind == "i" and one.dtype == np.int32))
        and one.astype(other.dtype).tobytes() == other.tobytes()
    )
