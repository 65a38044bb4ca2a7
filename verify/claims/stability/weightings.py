"""Weights of the steps in a run's totals: each is a function of a run and of one of its scores.

"step to the fall" scales a step's scores so that their root mean square is the size of the change of the validation
loss; the last step, after which no loss is known, has the weight 0.
"""

from collections.abc import Callable, Mapping

import numpy as np

from adamshap.reference.contract import Array
from adamshap.verify.claims.stability.runs import Kept

SUM, UNIT = "sum", "unit"
"""Those of `reference.weighted`, up to the number of steps of a sample."""
RATE = "divided by η"
"""The totals of steps without their learning rates; with a constant one, those of `SUM`."""
WITHIN = "unit, within classes"
"""The totals of `UNIT` less the mean of the sample's class."""


def sizes(scores: Array) -> Array:
    """Return the root mean square (steps,) of each step's scores; 1 where all are 0."""
    size: Array = np.sqrt(np.nanmean(scores**2, axis=1))
    return np.where(size > 0, size, 1.0)


def _unit(run: Kept, score: str) -> Array:
    return 1 / sizes(run.steps[score])


def _from_step(run: Kept, first: int) -> Array:
    return (np.arange(len(run.epoch)) >= first).astype(float)


def _ramp(run: Kept) -> Array:
    """Return weights that rise over the first epoch, and are 1 from its last step on."""
    weights: Array = np.minimum(1.0, np.arange(1, len(run.epoch) + 1) / np.sum(run.epoch == 0))
    return weights


def _falls(run: Kept) -> Array:
    """Return the fall of the validation loss in each step."""
    return np.append(run.valid_loss[:-1] - run.valid_loss[1:], 0.0)


WEIGHTINGS: Mapping[str, Callable[[Kept, str], Array]] = {
    SUM: lambda run, score: np.ones(len(run.epoch)),
    "without step 1": lambda run, score: _from_step(run, 1),
    "without 10 steps": lambda run, score: _from_step(run, 10),
    "without the first epoch": lambda run, score: (run.epoch > 0).astype(float),
    "first epoch rising": lambda run, score: _ramp(run),
    "root of the size": lambda run, score: np.sqrt(_unit(run, score)),
    UNIT: _unit,
    "unit, without the first epoch": lambda run, score: _unit(run, score) * (run.epoch > 0),
    "unit, first epoch rising": lambda run, score: _unit(run, score) * _ramp(run),
    "unit, later steps more": lambda run, score: _unit(run, score) * np.arange(1, len(run.epoch) + 1),
    "step to the fall": lambda run, score: _unit(run, score) * np.abs(_falls(run)),
}


def totals(run: Kept, score: str, weighting: str) -> Array:
    """Return a run's totals (N,) of `score` with `weighting`."""
    if weighting == RATE:
        return run.total(score, 1 / np.where(run.rates > 0, run.rates, np.inf))
    return run.total(score, WEIGHTINGS[weighting](run, score))


def within_classes(values: Array, classes: Array) -> Array:
    """Return `values` (N,) less the mean of the sample's class."""
    centred = values.copy()
    for one in np.unique(classes):
        centred[classes == one] -= values[classes == one].mean()
    return centred
