"""Passes over the parameters: Adam's step alone, and fused with the slope and the point of the validation gradient."""

from collections.abc import Mapping
from dataclasses import dataclass

from adamshap.gpu.arrays import Arrays, BatchGradient, SlopeArrays, ValidationGradient, as_matrix, like
from adamshap.gpu.context import EngineContext
from adamshap.gpu.kernels.groups import NO_NORMS, FusedStepOut
from adamshap.gpu.kernels.plan import AdamScalars, SlopePlan, slope_plan
from adamshap.gpu.norms import Norms
from adamshap.gpu.state import State, StepInput

__all__ = ["FusedOut", "end_points", "fused_step", "slope_plans", "take_step"]


def take_step(
    context: EngineContext, scalars: Mapping[str, AdamScalars], state: State, g: BatchGradient, new: State
) -> None:
    """Write Adam's update."""
    context.now("pass over the parameters")
    for key in state.theta:
        context.kernels.adam_step(scalars[key], as_matrix(g[key]), state.of(key), new.of(key))


def slope_plans(step: StepInput, plan: SlopePlan, g: BatchGradient, *, chooses: bool) -> dict[str, SlopePlan]:
    """Return the slope's plan of each parameter: `plan`, or, if the gradient `chooses`, that of "auto"."""
    if not chooses:
        return dict.fromkeys(g, plan)
    step.context.now("pass over the parameters")
    return step.context.kernels.auto_plans(step.hyperparameters.scalars, plan, g, step.state.v)


@dataclass(frozen=True)
class FusedOut:
    """The outputs of the fused step: the new state and the point where Γ is wanted, if any, and the slope."""

    new: State | None
    point: Arrays | None
    slope: SlopeArrays


def fused_step(
    step: StepInput,
    plans: Mapping[str, SlopePlan],
    g: BatchGradient,
    norms: Norms | None,
    gamma: ValidationGradient | None,
    blend: float,
    out: FusedOut,
) -> None:
    """Take Adam's step and compute the slope, times `gamma` if given; see `Kernels.fused_step`.

    `plans` has the slope's plan of each parameter, and `norms` those that take part.

    The slope may be written in the memory of `g`, which nothing needs after this pass.
    """
    context, state, n = step.context, step.state, step.batch.n
    context.now("fused pass", slice(0, n))
    for key, gradient in g.items():
        scalars = step.hyperparameters.scalars[key]
        norms_of_key = NO_NORMS if norms is None or key not in norms else norms.of(key, n)
        factor = None if gamma is None else as_matrix(gamma[key])
        point = None if out.point is None else as_matrix(out.point[key])
        new = None if out.new is None else out.new.of(key)
        written = FusedStepOut(new, point, as_matrix(out.slope[key]))
        own_plan = plans[key].with_decay(scalars.l2)
        context.kernels.fused_step(
            scalars, own_plan, as_matrix(gradient), state.of(key), norms_of_key, factor, blend, written
        )


def end_points(step: StepInput, g: BatchGradient) -> tuple[Arrays, Arrays]:
    """Return θ − ηλθ − A(0) and θ − ηλθ − A(g), in buffers."""
    context = step.context
    new, idle = like(context, "end 1"), like(context, "end 0")
    after = State(new, like(context, "end m"), like(context, "end v"), step.state.t)
    out = FusedOut(after, idle, SlopeArrays(like(context, "slope")))
    fused_step(step, dict.fromkeys(g, slope_plan("sgd", (1, 2), 1)), g, None, None, 0.0, out)
    return idle, new
