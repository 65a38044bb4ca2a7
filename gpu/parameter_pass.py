"""Passes over the parameters: Adam's step alone, and fused with the slope and the point of the validation gradient."""

from collections.abc import Mapping
from dataclasses import dataclass

from adamshap.gpu.arrays import Arrays, BatchGradient, SlopeArrays, ValidationGradient, as_matrix, like
from adamshap.gpu.context import EngineContext
from adamshap.gpu.kernels.plan import AdamScalars, SlopePlan, slope_plan
from adamshap.gpu.norms import Norms
from adamshap.gpu.state import State, StepInput

__all__ = ["FusedOut", "end_points", "fused_step", "take_step"]


def take_step(
    context: EngineContext, scalars: Mapping[str, AdamScalars], state: State, g: BatchGradient, new: State
) -> None:
    """Write Adam's update."""
    context.now("pass over the parameters")
    for key in state.theta:
        context.passes.adam(
            scalars[key], g[key], state.theta[key], state.m[key], state.v[key], new.theta[key], new.m[key], new.v[key]
        )


@dataclass(frozen=True)
class FusedOut:
    """Where the fused step writes: the new state, the point where Γ is wanted, if it is, and the slope."""

    new: State
    point: Arrays | None
    slope: SlopeArrays


def fused_step(
    step: StepInput,
    plan: SlopePlan,
    g: BatchGradient,
    norms: Norms | None,
    gamma: ValidationGradient | None,
    blend: float,
    out: FusedOut,
) -> None:
    """Take Adam's step and compute the slope, times `gamma` where it is given; see `kernels.Passes.attributed`.

    The slope may be written in the memory of `g`, which nothing needs after this pass.
    """
    context, state, n = step.context, step.state, step.batch.n
    context.now("fused pass", slice(0, n))
    for key, gradient in g.items():
        row, col, root = (None, None, None) if norms is None else norms.of(key, n)
        context.passes.attributed(
            step.hyperparameters.scalars[key],
            plan,
            n,
            as_matrix(gradient),
            as_matrix(state.theta[key]),
            as_matrix(state.m[key]),
            as_matrix(state.v[key]),
            row,
            col,
            root,
            None if gamma is None else as_matrix(gamma[key]),
            blend,
            as_matrix(out.new.theta[key]),
            as_matrix(out.new.m[key]),
            as_matrix(out.new.v[key]),
            None if out.point is None else as_matrix(out.point[key]),
            as_matrix(out.slope[key]),
        )


def end_points(step: StepInput, g: BatchGradient) -> tuple[Arrays, Arrays]:
    """Return θ − ηλθ − A(0) and θ − ηλθ − A(g), in buffers."""
    context = step.context
    new, idle = like(context, "end 1"), like(context, "end 0")
    after = State(new, like(context, "end m"), like(context, "end v"), step.state.t)
    out = FusedOut(after, idle, SlopeArrays(like(context, "slope")))
    fused_step(step, slope_plan("sgd", (1, 2), 1), g, None, None, 0.0, out)
    return idle, new
