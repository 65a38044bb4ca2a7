"""The option `validation_every` of a run: the steps that take the validation gradient anew, and those that keep it."""

from typing import Any

import numpy as np

from adamshap.reference.contract.arrays import Array
from adamshap.reference.contract.checks import positive_integer
from adamshap.reference.contract.estimator import Gradient
from adamshap.reference.contract.optimiser import CompletedSteps, StepNumber
from adamshap.reference.contract.refusal import refuse
from adamshap.reference.contract.run import Credit

__all__ = ["is_validated", "last_validated", "only_validated", "recorded_interval", "validation_interval"]


def validation_interval(value: object, gradient: Gradient, *, credit: Credit = "step", efficient: bool = False) -> int:
    """Return the option `validation_every` as an int, or refuse it.

    Parameters
    ----------
    value : object
        Number of steps for which Γ is kept; 1: every step has its own.
    gradient, credit, efficient
        The run's options of these names.

    Raises
    ------
    ValueError, TypeError
        No positive integer; more than 1 with an option whose scores add up to something, for which every step needs its
        own Γ.
    """
    every = positive_integer("validation_every", value)
    if every == 1:
        return every
    if gradient == "path":
        needs = "1, or gradient 'midpoint': the mean of Γ along one step's path has no meaning for another step"
        refuse("validation_every", f"{every} with gradient 'path'", needs)
    if credit == "carry":
        needs = "1, or credit 'step': with 'carry', scores add up to the change of the loss, by each step's own Γ"
        refuse("validation_every", f"{every} with credit 'carry'", needs)
    if efficient:
        needs = "1, or efficient=False: the gain of every step takes two passes of the validation samples"
        refuse("validation_every", f"{every} with efficient=True", needs)
    return every


def is_validated(completed: CompletedSteps, every: int) -> bool:
    """Whether the step after `completed` steps takes the validation gradient anew: the first one of each interval."""
    return completed % every == 0


def last_validated(completed: CompletedSteps, every: int) -> StepNumber:
    """Return the last of the steps 1 to `completed` that took the validation gradient; 1 if none did."""
    return StepNumber(max(completed - 1, 0) // every * every + 1)


def recorded_interval(every: int) -> dict[str, Any]:
    """Return `validation_every` as a run's settings record it: not where it is 1, as in runs of earlier versions."""
    return {} if every == 1 else {"validation_every": every}


def only_validated(values: Array, every: int) -> Array:
    """Return a copy of `values` (steps,) with NaN for the steps without a pass of the validation samples."""
    known = values.copy()
    known[np.arange(len(known)) % every > 0] = np.nan
    return known
