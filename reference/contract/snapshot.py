"""The state of a run between two steps, from which it resumes: written by a trainer, checked on resuming."""

import json
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np

from adamshap.reference.contract.arrays import Array, on_host
from adamshap.reference.contract.batch import Batch
from adamshap.reference.contract.blas import arithmetic
from adamshap.reference.contract.checks import shown
from adamshap.reference.contract.optimiser import CompletedSteps
from adamshap.reference.contract.refusal import refuse, refuse_masked
from adamshap.reference.contract.rows import parts

__all__ = [
    "ARITHMETIC",
    "NO_SETTINGS",
    "Checkpointer",
    "Snapshot",
    "checksum",
    "recorded_arithmetic",
    "resumed",
    "run_settings",
]

Snapshot = dict[str, Array]
"""The complete state for resuming a run, as named NumPy arrays: ``step``, ``settings`` (`run_settings`),
``params/0.weight``, ``m/...``, ``v/...``, ``scores``, ``sgd_scores``, ``seen``, ``history/train_loss``,
``history/valid_loss``, and further arrays of a trainer, under names of its own. Arrays in ``history/`` have one row per
step, which later steps do not change."""

Checkpointer = Callable[[CompletedSteps, Callable[[], Snapshot]], None]
"""A function that receives the number of completed steps, and a function that returns a copy of the run's state."""

ARITHMETIC = "arithmetic"
"""Key in a run's settings of the environment that affects the last digits."""


def run_settings(train: Batch, valid: Batch, own_arithmetic: Mapping[str, Any] | None = None, **settings: Any) -> str:
    """Return as text everything that determines a run's results: a state with other settings belongs to another run.

    The entry `ARITHMETIC` holds what affects only the last digits.

    Parameters
    ----------
    train, valid : Batch
        The data, recorded as shape, dtype and checksum.
    own_arithmetic : mapping, optional
        Versions that affect the last digits, besides NumPy's and BLAS's.
    **settings
        Plain values and the contract's dataclasses.
    """
    settings[ARITHMETIC] = arithmetic() | dict(own_arithmetic or {})
    plain = {name: _plain(value) for name, value in settings.items()}
    for name, batch in (("train", train), ("valid", valid)):
        plain[name] = {part: checksum(getattr(batch, part)) for part in ("x", "y")}
    return json.dumps(plain, sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if not is_dataclass(value):
        return value
    # Not written where it is 0: states written by earlier versions have no such entry.
    return asdict(value, dict_factory=lambda pairs: dict(pair for pair in pairs if pair != ("l2", 0.0)))  # type: ignore[arg-type]


def checksum(array: Any) -> str:
    """Return dtype, shape and CRC-32 of an array or `LazyRows`, which is read in parts."""
    value = 0
    for part in parts(array):
        value = zlib.crc32(on_host(part).tobytes(), value)
    return f"{array.dtype} {array.shape} {value:08x}"


def resumed(
    resume: object, settings: str, like: Mapping[str, Any], *, steps: int, optional: Mapping[str, Any] | None = None
) -> Snapshot:
    """Return the validated snapshot `resume` of this run.

    Parameters
    ----------
    resume : mapping from name to array
        The snapshot.
    settings : str
        Settings of this run.
    like : mapping from name to array
        A fresh run's arrays, whose names, shapes and dtypes the snapshot must have; those of ``history/`` have `steps`
        rows.
    steps : int
        Number of steps of the whole run.
    optional : mapping from name to array
        Further arrays that a snapshot may have.

    Warns
    -----
    UserWarning
        The snapshot was computed with other versions or on another kind of processor, so that last digits may differ.
    """
    if not isinstance(resume, Mapping):
        refuse("resume", type(resume).__name__, "a mapping from name to array", TypeError)
    optional = {} if optional is None else optional
    needed = ["step", "settings", *(name for name in like if name not in ("step", "settings"))]
    if any(name not in resume for name in needed) or any(name not in (*needed, *optional) for name in resume):
        refuse("resume", f"the names {sorted(map(str, resume))}", f"exactly the names {needed}")
    given = {name: _kept(name, resume[name]) for name in resume}
    theirs, step = given["settings"], given["step"]
    differ = _difference(str(theirs), settings) if theirs.shape == () else NO_SETTINGS
    if differ:
        refuse("resume", f"the state of another run, {differ}", "one of this run")
    if step.shape != () or step.dtype.kind != "i" or not 0 <= step <= steps:
        refuse("resume['step']", shown(step), f"an integer from 0 to {steps}")
    found: Snapshot = {"step": step, "settings": theirs}
    for name in (name for name in (*needed[2:], *optional) if name in resume):
        array = like[name] if name in like else optional[name]
        have = given[name]
        shape = (int(step), *array.shape[1:]) if name.startswith("history/") else array.shape
        if have.shape != shape or have.dtype != array.dtype:
            refuse(f"resume[{name!r}]", f"{have.dtype} of shape {have.shape}", f"{array.dtype} of shape {shape}")
        if not np.isfinite(have).all():
            refuse(f"resume[{name!r}]", "values that are NaN or infinite", "finite numbers only")
        found[name] = have
    before, now = recorded_arithmetic(resume), recorded_arithmetic({"settings": settings})
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    if changed:
        warnings.warn(
            f"resume: the state was computed with another {', '.join(changed)}; the run continues, and its last digits "
            "may differ from those of an uninterrupted run",
            stacklevel=3,
        )
    return found


NO_SETTINGS = "without settings"


def _kept(name: str, value: object) -> Array:
    field = f"resume[{name!r}]"
    refuse_masked(field, value)
    try:
        return np.asarray(value)
    except Exception as error:  # other libraries raise exceptions of any type
        why = " ".join(str(error).split())
        refuse(field, f"{type(value).__name__} that is not an array ({why})", "an array", TypeError)


def _difference(theirs: str, ours: str) -> str:
    """Return a clause that names the settings in which two runs differ, or "" if only the arithmetic does."""
    one, other = _parsed(theirs), _parsed(ours)
    if not one:
        return NO_SETTINGS
    names = [name for name in _leaves(one, other) if not name.startswith(ARITHMETIC)]
    return f"which differs in {', '.join(names)}" if names else ""


def _leaves(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the values that differ between two settings, such as "seed" and "estimator.slope"."""
    found = []
    for name in one | other:
        left, right = one.get(name), other.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _leaves(left, right, f"{prefix}{name}.")
        elif left != right:
            found.append(prefix + name)
    return found


def recorded_arithmetic(resume: object) -> dict[str, Any]:
    """Return the recorded arithmetic of the snapshot `resume`, which affects its last digits; {} if it has none."""
    settings = resume.get("settings", "") if isinstance(resume, Mapping) else ""
    found = _parsed(str(settings)).get(ARITHMETIC)
    return found if isinstance(found, dict) else {}


def _parsed(settings: str) -> dict[str, Any]:
    try:
        found = json.loads(settings)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
