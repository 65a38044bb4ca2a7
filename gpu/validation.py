"""The validation samples at points near the step: their captures, from which Γ follows, and their losses."""

from typing import Any

from adamshap.gpu.arrays import Arrays, BatchGradient, like
from adamshap.gpu.captures import Captures
from adamshap.gpu.context import EngineContext
from adamshap.gpu.parameter_pass import end_points
from adamshap.gpu.state import VALIDATION, StepInput

__all__ = ["at_point", "mean_loss", "on_segment", "utility_of_batch"]


def at_point(step: StepInput, point: Arrays, weight: float) -> Captures:
    """Return the captures of the validation samples at `point`; `weight` is that of a sample's own loss."""
    context, batch = step.context, step.batch
    context.now("forward pass", VALIDATION)
    workspace = context.stack.workspace(context, "valid", batch.valid_x)
    return context.stack.run(context, workspace, point, batch.valid_y, weight)


def mean_loss(context: EngineContext, params: Arrays, x: Any, y: Any) -> Any:
    """Return the mean loss of the validation samples, by a forward pass alone; on a device it is an array."""
    context.now("forward pass", VALIDATION)
    workspace = context.stack.workspace(context, "valid", x)
    return context.stack.losses(context, workspace, params, y).mean(dtype="float64")


def on_segment(
    step: StepInput, ends: tuple[Arrays, Arrays], nodes: tuple[tuple[float, float], ...], weight: float
) -> Captures:
    """Return the captures of the validation samples at every node of a segment, node after node, weighted.

    Parameters
    ----------
    ends : tuple of dicts of arrays
        Parameters at the start (0) and at the end (1) of the segment.
    nodes : tuple of (position, weight)
    weight : float
        Weight of a validation sample's own loss.
    """
    context, batch, n_val = step.context, step.batch, step.batch.n_val
    point = like(context, "point")
    x = batch.valid_x if len(nodes) == 1 else context.backend.xp.concatenate([batch.valid_x] * len(nodes))
    workspace = context.stack.workspace(context, "valid", x)
    for i, (tau, node_weight) in enumerate(nodes):
        context.now("pass over the parameters")
        for key, array in point.items():
            context.ops.between(tau, ends[0][key], ends[1][key], array)
        context.now("forward pass", VALIDATION)
        rows = workspace.rows(slice(i * n_val, (i + 1) * n_val))
        context.stack.run(context, rows, point, batch.valid_y, weight * node_weight)
    return workspace.captures


def utility_of_batch(step: StepInput, g: BatchGradient, per_validation: bool) -> Any:
    """Return U(B) − U(∅), in the mean loss (1,) or for each validation sample (n_val,)."""
    context, batch, losses = step.context, step.batch, []
    ends = end_points(step, g)
    context.now("forward pass", VALIDATION)
    for params in ends:
        workspace = context.stack.workspace(context, "end", batch.valid_x)
        losses.append(context.stack.losses(context, workspace, params, batch.valid_y).copy())
    gap = losses[0] - losses[1]
    return gap if per_validation else gap.mean(keepdims=True)
