"""A model that is a function of parameters and batch: its losses, and each sample's gradient by itself."""

from typing import Any

import autograd
import numpy as np

from adamshap.reference.contract import Array, Batch, Function, Params, refuse
from adamshap.reference.losses import constant

__all__ = ["each_gradient", "outputs", "sample_losses"]

SAME = 1e-6
"""How far a loss may be from that of the sample alone, relative to the batch's largest: sums in another order."""


def outputs(model: Function, params: Params, x: Array) -> Array:
    """Refuse: there are none."""
    refuse("model", "a Function, which gives losses only", "a model with outputs")


def sample_losses(model: Function, params: Params, batch: Batch) -> Array:
    """Return what the function gives, once it is one loss a sample."""
    losses: Any = model.losses(params, batch)
    if np.shape(losses) != (batch.n,):
        refuse("Function.losses", f"a result of shape {np.shape(losses)}", f"one loss for each sample, ({batch.n},)")
    return losses  # type: ignore[no-any-return]


def each_gradient(model: Function, params: Params, batch: Batch) -> Params:
    """Return ∇ℓ(θ; z_i) of every sample, from the loss of that sample alone: one array a parameter, (n, …)."""
    together = np.asarray(constant(sample_losses(model, params, batch)))
    alone, gradients = [], []
    for i in range(batch.n):
        one = batch.take(np.array([i]))
        loss, gradient = autograd.value_and_grad(lambda p, one=one: sample_losses(model, p, one)[0])(params)
        alone.append(float(loss))
        gradients.append(gradient)
    off = np.abs(together - alone) > SAME * np.abs(together).max()
    if off.any():
        i = int(np.flatnonzero(off)[0])
        got = f"a loss of sample {i} of {together[i]} in its batch and {alone[i]} alone"
        refuse("Function.losses", got, "losses that do not depend on the other samples")
    return {name: np.stack([gradient[name] for gradient in gradients]) for name in params}
