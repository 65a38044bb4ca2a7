"""A model defined by a function: its losses, and each sample's gradient, by autograd or by a second function."""

from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np

from adamshap.reference.contract import Array, Batch, Function, Params, named_arrays, refuse
from adamshap.reference.losses import constant

__all__ = ["each_gradient", "loss_gradient", "outputs", "sample_losses"]

SAME = 1e-6
"""Largest rounding difference between a loss in a batch and alone, relative to the largest in the batch."""


def outputs(model: Function, params: Params, x: Array) -> Array:
    """Refuse: a function returns losses only."""
    refuse("model", "a Function, which gives losses only", "a model with outputs")


def sample_losses(model: Function, params: Params, batch: Batch) -> Array:
    """Return the losses from the function, checked to be one per sample."""
    losses: Any = model.losses(params, batch)
    if np.shape(losses) != (batch.n,):
        refuse("Function.losses", f"a result of shape {np.shape(losses)}", f"one loss for each sample, ({batch.n},)")
    return losses  # type: ignore[no-any-return]


def each_gradient(model: Function, params: Params, batch: Batch) -> Params:
    """Return ∇ℓ(θ; z_i) of every sample, from the loss of that sample alone: one array per parameter, (n, …)."""
    together = np.asarray(constant(sample_losses(model, params, batch)))
    ones = [batch.take(np.array([i])) for i in range(batch.n)]
    if model.gradients is not None:
        _refuse_interaction(together, [float(sample_losses(model, params, one)[0]) for one in ones])
        shapes = {name: (batch.n, *shape) for name, shape in model.shapes.items()}
        given = named_arrays("Function.gradients", model.gradients(params, batch), shapes)
        return {name: x.astype(np.float64) for name, x in given.items()}
    found = [autograd.value_and_grad(lambda p, one=one: sample_losses(model, p, one)[0])(params) for one in ones]
    _refuse_interaction(together, [float(loss) for loss, _ in found])
    return {name: np.stack([gradient[name] for _, gradient in found]) for name in params}


def loss_gradient(model: Function, params: Params, batch: Batch) -> Params:
    """Return ∇L(θ), for gradients from a function the mean of the samples'."""
    if model.gradients is None:
        return autograd.grad(lambda p: anp.mean(sample_losses(model, p, batch)))(params)  # type: ignore[no-any-return]
    return {name: x.mean(axis=0) for name, x in each_gradient(model, params, batch).items()}


def _refuse_interaction(together: Array, alone: list[float]) -> None:
    off = np.abs(together - alone) > SAME * np.abs(together).max()
    if off.any():
        i = int(np.flatnonzero(off)[0])
        got = f"a loss of sample {i} of {together[i]} in its batch and {alone[i]} alone"
        refuse("Function.losses", got, "losses that do not depend on the other samples")
