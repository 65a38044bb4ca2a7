"""Steps of the kit: with one set of settings, and with every real array cast or perturbed."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt

from adamshap.reference.contract import Adam, AdamState, Array, Batch, Params, Step, of_kind, real_parts

__all__ = ["Normal", "adam_of", "in_dtype", "perturbed"]


class Normal(Protocol):
    """A source of random numbers of mean 0 and variance 1, such as NumPy's generators."""

    def standard_normal(self, size: tuple[int, ...], /) -> Any:
        """Return independent numbers."""


def adam_of(step: Step) -> Adam:
    """Return the settings that all parameters of a step share: the kit has no other steps."""
    return of_kind("Step.adam", step.adam, Adam)


def in_dtype(step: Step, dtype: npt.DTypeLike) -> Step:
    """Return the step with its real arrays in `dtype`."""
    return _changed(step, lambda array: array.astype(dtype))


def perturbed(step: Step, size: float, generator: Normal) -> Step:
    """Return `step` with every real input changed by a relative `size` times a standard normal number; zeros stay zero.

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
        The step with the same model, optimiser and labels.
    """
    return _changed(step, lambda array: array * (1 + size * generator.standard_normal(array.shape)))


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
