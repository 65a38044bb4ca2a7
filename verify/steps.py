"""Steps of the kit: their common settings, and copies with every real array cast or perturbed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy.typing as npt

from adamshap.reference.contract import (
    Adam,
    AdamState,
    Array,
    Batch,
    Clipped,
    Optimiser,
    Params,
    Schedule,
    Step,
    real_parts,
    refuse,
)
from adamshap.verify.optimisers import with_settings

__all__ = ["Normal", "adam_of", "in_dtype", "perturbed"]


class Normal(Protocol):
    """A source of random numbers of mean 0 and variance 1, such as NumPy's generators."""

    def standard_normal(self, size: tuple[int, ...], /) -> Any:
        """Return independent numbers."""


def adam_of(step: Step) -> Adam:
    """Return the settings that all parameters share at this step; refuse a step of groups that differ."""
    first, *others = dict.fromkeys(step.settings(name) for name in step.params)
    if others:
        refuse("Step.adam", f"{1 + len(others)} different settings", "one set of settings for all parameters")
    return first


def in_dtype(step: Step, dtype: npt.DTypeLike) -> Step:
    """Return the step with its real arrays in `dtype`."""
    return _changed(step, lambda array: array.astype(dtype))


def perturbed(step: Step, size: float, generator: Normal) -> Step:
    """Return `step` with every real input changed by a relative `size` times a standard normal number; zeros stay zero.

    The factor of a schedule that falls is changed by an absolute one: it is 1 − p or (1 + cos π p)/2 or cos² (π p/2),
    and near its end at 0 these differ by rounding errors of numbers near 1.

    Parameters
    ----------
    step : Step
    size : float
        Standard deviation of the relative changes: opposing changes of equal size would cancel.
    generator : numpy.random.Generator or Uneven
        Source of the changes.

    Returns
    -------
    Step
        The step with the same model and labels, and the same optimiser but for that factor.
    """
    changed = _changed(step, lambda array: array * (1 + size * generator.standard_normal(array.shape)))
    off = _off_schedule(step, size, generator)
    return changed if off is None else replace(changed, adam=off)


def _off_schedule(step: Step, size: float, generator: Normal) -> Optimiser | None:
    """Return the optimiser with an absolute error in the factor of a falling schedule; None for any other."""
    clip = step.adam if isinstance(step.adam, Clipped) else None
    schedule = step.adam if clip is None else clip.adam
    if not isinstance(schedule, Schedule) or schedule.shape not in ("linear", "cosine"):
        return None
    factor = abs(schedule.factor(step.state.next_step) + size * float(generator.standard_normal(())))
    scaled = with_settings(schedule.adam, lambda adam: replace(adam, lr=factor * adam.lr))
    return scaled if clip is None else replace(clip, adam=scaled)


def _changed(step: Step, change: Callable[[Array], Array]) -> Step:
    def change_all(arrays: Params) -> Params:
        return {name: change(array) for name, array in arrays.items()}

    def change_batch(batch: Batch) -> Batch:
        real = real_parts(step.net, batch)
        return Batch(*(change(getattr(batch, name)) if name in real else getattr(batch, name) for name in ("x", "y")))

    # In this order: each change may draw random numbers.
    state = AdamState(step.state.step, change_all(step.state.m), change_all(step.state.v))
    train, valid = change_batch(step.train), change_batch(step.valid)
    return Step(step.net, change_all(step.params), step.adam, state, train, valid, step.reduction)
