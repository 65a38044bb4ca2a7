"""The inputs of a step: the state before it, its samples and its hyperparameters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.gpu.arrays import Arrays, as_matrix
from adamshap.gpu.context import EngineContext
from adamshap.gpu.hyperparameters import Hyperparameters
from adamshap.gpu.kernels.groups import FirstMoment, ParameterState, SecondMoment
from adamshap.reference.contract import Optimiser, StepNumber

__all__ = ["VALIDATION", "State", "StepBatch", "StepInput"]

VALIDATION = "the validation samples"


@dataclass(frozen=True)
class State:
    """θ, m and v before step t, or the arrays for those after it."""

    theta: Arrays
    m: Mapping[str, FirstMoment]
    v: Mapping[str, SecondMoment]
    t: StepNumber

    def of(self, key: str, units: slice = slice(None)) -> ParameterState:
        """Return some units of one parameter, as matrices."""
        m, v = FirstMoment(self.m[key][units]), SecondMoment(self.v[key][units])
        return ParameterState(as_matrix(self.theta[key][units]), as_matrix(m), as_matrix(v))

    def suspects(self) -> Arrays:
        """Return the arrays that show an overflow, keyed by their names in error messages."""
        squares = {f"square of the gradient of {name!r}": v for name, v in self.v.items()}
        return squares | {f"params[{name!r}]": p for name, p in self.theta.items()}

    def is_finite(self) -> bool:
        """Whether `suspects` are all finite, and not so large that their squares overflow. Waits for a device.

        Reads each array once: faster than `first_not_finite`, which names the number if this is False.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            ends = [v.max() for v in self.v.values()] + [np.vdot(p, p) for p in self.theta.values()]
        return all(math.isfinite(end) for end in ends)


@dataclass(frozen=True)
class StepBatch:
    """A batch and the validation samples, in the backend.

    ``together`` is one array of the validation inputs followed by the training inputs, of which ``x`` and ``valid_x``
    are views. With it, both go through the model in one pass if the validation gradient at θ is wanted.
    """

    x: Any
    y: Any
    valid_x: Any
    valid_y: Any
    together: Any = None

    @property
    def n(self) -> int:
        """Number of training samples."""
        return len(self.x)

    @property
    def n_val(self) -> int:
        """Number of validation samples."""
        return len(self.valid_x)


@dataclass(frozen=True)
class StepInput:
    """The inputs of a step.

    Parameters
    ----------
    context : EngineContext
    hyperparameters : Hyperparameters
        Adam's settings at step t, by parameter.
    state : State
        State before the step.
    batch : StepBatch
    weight : float
        Weight of a sample's gradient in the batch's: 1/n or 1.
    micro_batch : int, optional
        Number of samples that go through the model at a time; None: all.
    """

    context: EngineContext
    hyperparameters: Hyperparameters
    state: State
    batch: StepBatch
    weight: float
    micro_batch: int | None = None

    @classmethod
    def of(
        cls,
        context: EngineContext,
        optimiser: Optimiser,
        state: State,
        batch: StepBatch,
        weight: float,
        micro_batch: int | None = None,
    ) -> "StepInput":
        """Return the inputs of the step at `state`, and record its number for error messages."""
        context.place.step = state.t
        return cls(context, Hyperparameters.at(context, optimiser, state.t), state, batch, weight, micro_batch)

    @property
    def chunks(self) -> list[slice]:
        """The slices of the batch that go through the model one at a time."""
        n, size = self.batch.n, self.micro_batch or self.batch.n
        return [slice(low, min(low + size, n)) for low in range(0, n, size)]
