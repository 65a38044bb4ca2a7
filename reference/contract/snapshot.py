"""The state of a run between two steps, from which it goes on: written by a trainer, checked when it comes back."""

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

__all__ = ["ARITHMETIC", "NO_SETTINGS", "Checkpointer", "Snapshot", "recorded_arithmetic", "resumed", "run_settings"]

Snapshot = dict[str, Array]
"""All that a run needs to go on, as named NumPy arrays: ``step``, ``settings`` (`run_settings`), ``params/0.weight``,
``m/...``, ``v/...``, ``scores``, ``sgd_scores``, ``seen``, ``history/train_loss``, ``history/valid_loss``, and what
else a trainer has, under names of its own. Those in ``history/`` have a row for each step, which later ones leave as it
is."""

Checkpointer = Callable[[CompletedSteps, Callable[[], Snapshot]], None]
"""Is given the number of completed steps, and a function that copies the run's state when it is called."""

ARITHMETIC = "arithmetic"
"""The name in a run's settings of what its last digits depend on."""


def run_settings(train: Batch, valid: Batch, own_arithmetic: Mapping[str, Any] | None = None, **settings: Any) -> str:
    """Return as text all that decides what a run computes: a state made with other settings is none of this run.

    Under `ARITHMETIC` it also says what decides the last digits alone.

    Parameters
    ----------
    train, valid : Batch
        Enter by shape, dtype and checksum.
    own_arithmetic : mapping, optional
        What the last digits depend on besides NumPy and BLAS.
    **settings
        Plain values and the contract's dataclasses.
    """
    settings[ARITHMETIC] = arithmetic() | dict(own_arithmetic or {})
    plain = {name: asdict(value) if is_dataclass(value) else value for name, value in settings.items()}  # type: ignore[arg-type]
    for name, batch in (("train", train), ("valid", valid)):
        plain[name] = {part: _checksum(getattr(batch, part)) for part in ("x", "y")}
    return json.dumps(plain, sort_keys=True, default=str)


def _checksum(array: Any) -> str:
    value = 0
    for part in parts(array):
        value = zlib.crc32(on_host(part).tobytes(), value)
    return f"{array.dtype} {array.shape} {value:08x}"


def resumed(
    resume: object, settings: str, like: Mapping[str, Any], *, steps: int, optional: Mapping[str, Any] | None = None
) -> Snapshot:
    """Return the snapshot `resume` once it is one of this run.

    Parameters
    ----------
    resume : mapping from name to array
    settings : str
        This run's.
    like : mapping from name to array
        A fresh run's arrays, whose names, shapes and dtypes the snapshot must have; those of ``history/`` as long as
        `steps`.
    steps : int
        Of the whole run.
    optional : mapping from name to array
        What a snapshot may have besides.

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
    except Exception as error:  # another library's, of any kind
        refuse(
            field, f"{type(value).__name__} that is no array ({' '.join(str(error).split())})", "an array", TypeError
        )


def _difference(theirs: str, ours: str) -> str:
    """Say in which of the settings two runs differ; "" where it is in none but the arithmetic."""
    one, other = _parsed(theirs), _parsed(ours)
    if not one:
        return NO_SETTINGS
    names = [name for name in _leaves(one, other) if not name.startswith(ARITHMETIC)]
    return f"which differs in {', '.join(names)}" if names else ""


def _leaves(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the names of what differs between two settings, such as "seed" and "estimator.slope"."""
    found = []
    for name in one | other:
        left, right = one.get(name), other.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _leaves(left, right, f"{prefix}{name}.")
        elif left != right:
            found.append(prefix + name)
    return found


def recorded_arithmetic(resume: object) -> dict[str, Any]:
    """Return what the last digits of the run depended on that the snapshot `resume` is of; {} if it does not say."""
    settings = resume.get("settings", "") if isinstance(resume, Mapping) else ""
    found = _parsed(str(settings)).get(ARITHMETIC)
    return found if isinstance(found, dict) else {}


def _parsed(settings: str) -> dict[str, Any]:
    try:
        found = json.loads(settings)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
