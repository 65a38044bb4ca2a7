"""What must not type-check: each line marked is an error, or mypy reports that its mark is unused."""

from typing import Any

from adamshap.gpu.kernels import Kernels
from adamshap.gpu.kernels.groups import FirstMoment, ParameterState, SecondMoment
from adamshap.gpu.kernels.plan import AdamScalars
from adamshap.gpu.state import State
from adamshap.reference.contract import Array, StepNumber


def swapped(theta: Array, m: FirstMoment, v: SecondMoment) -> None:
    """Pass the moments in the right order, swapped, as keywords, and as arrays that nobody named."""
    state = ParameterState(theta, m, v)
    ParameterState(theta, v, m)  # type: ignore[arg-type]
    ParameterState(theta, m=state.v, v=state.m)  # type: ignore[arg-type]
    ParameterState(m, v, theta)  # type: ignore[arg-type]


def swapped_by_name(
    theta: dict[str, Any], m: dict[str, FirstMoment], v: dict[str, SecondMoment], t: StepNumber
) -> State:
    """Do the same with all parameters at once."""
    State(theta, v, m, t)  # type: ignore[arg-type]
    return State(theta, m, v, t)


def no_state(kernels: Kernels, scalars: AdamScalars, g: Array, state: ParameterState) -> None:
    """Pass a moment where a state belongs."""
    kernels.adam_step(scalars, g, state, state.m)  # type: ignore[arg-type]
    kernels.adam_step(scalars, g, state, state)
