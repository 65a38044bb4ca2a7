"""The copy of a step that is passed to a candidate, and the detection of changes to it.

The copy has the types of the contract: arrays are read-only views, and mappings are plain dicts, since JAX and PyTorch
treat any other mapping as a leaf of a tree. Nobody else uses the copy, so a change does no harm beyond the call. In a
training loop it would, so it is detected and reported.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.reference.contract import Array, Batch, Params, Step
from adamshap.verify.time_limit import TimeIsUp


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
    def of(cls, step: Step, options: Mapping[str, Any]) -> "Given":
        """Copy a step and a call's options."""
        copied_step = _with(
            step,
            net=copy(step.net),
            params=_copies(step.params),
            adam=copy(step.adam),
            state=_with(step.state, m=_copies(step.state.m), v=_copies(step.state.v)),
            train=_copy_of_batch(step.train),
            valid=_copy_of_batch(step.valid),
        )
        copied = {name: _copied_option(value) for name, value in options.items()}
        return cls(copied_step, copied, step, options)

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


def _copy_of(array: Array) -> Array:
    view = array.copy().view()
    view.flags.writeable = False
    return view


def _copies(arrays: Params) -> Params:
    return {name: _copy_of(array) for name, array in arrays.items()}


def _copy_of_batch(batch: Batch) -> Batch:
    same: Batch = _with(batch, x=_copy_of(batch.x), y=_copy_of(batch.y))
    return same


def _copied_option(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _copies(dict(value))
    return value.copy() if isinstance(value, np.ndarray) else value


def _same_arrays(one: Any, other: Mapping[str, Array]) -> bool:
    return type(one) is dict and list(one) == list(other) and all(_same(one[name], other[name]) for name in other)


def _same(one: Any, other: Array) -> bool:
    """Return whether `one` is an array with the same dtype, shape and bits as `other`."""
    return (
        type(one) is np.ndarray
        and (one.dtype, one.shape) == (other.dtype, other.shape)
        and one.tobytes() == other.tobytes()
    )
