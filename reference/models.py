"""Losses and gradients of any model. All gradients are computed by autograd; none is written by hand.

=======  =======================  ==================================================
paper    name                     meaning
=======  =======================  ==================================================
θ        ``params``               parameters
ℓ(θ; z)  ``sample_losses``        loss of one sample
L(θ)     ``mean_loss``            mean loss over a batch
∇L(θ)    ``loss_gradient``        its gradient, one array per parameter
x_i      ``sample_gradients``     sample i's contribution to the batch gradient, w∇ℓ(θ; z_i), or c w∇ℓ(θ; z_i)
c        ``clip_factor``          min(1, C/(‖g‖ + ε_c)), the factor by which the norm is clipped
=======  =======================  ==================================================

A `Model` is a description without mathematics; `KINDS` holds the functions for each kind of description.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np

from adamshap.reference import function, layers, perceptron
from adamshap.reference.contract import Array, Batch, Clipped, Model, Params, Step, refuse
from adamshap.reference.elementary import elementary


@dataclass(frozen=True)
class Functions:
    """The functions of one kind of model, differentiable by autograd.

    Each takes the model, its parameters (each of its shape, or all with a leading axis n, one copy per sample), and
    inputs or a batch of n samples. Losses that take no copies, or that autograd cannot differentiate, need gradients of
    their own.
    """

    outputs: Callable[[Any, Params, Array], Array]
    sample_losses: Callable[[Any, Params, Batch], Array]
    each_gradient: Callable[[Any, Params, Batch], Params] | None = None
    loss_gradient: Callable[[Any, Params, Batch], Params] | None = None


KINDS = {
    "perceptron": Functions(perceptron.outputs, perceptron.sample_losses),
    "sequential": Functions(layers.outputs, layers.sample_losses),
    "function": Functions(function.outputs, function.sample_losses, function.each_gradient, function.loss_gradient),
}
"""The kinds of model that the oracle supports, by ``Model.kind``."""


def functions_of(model: Model) -> Functions:
    """Return the functions of `model`; refuse a kind that the oracle does not support."""
    if model.kind not in KINDS:
        refuse("model", f"the kind {model.kind!r}", "one of " + ", ".join(KINDS))
    return KINDS[model.kind]


def outputs(model: Model, params: Params, x: Array) -> Array:
    """Return the model's outputs for the inputs `x` (n, …): (n, …), logits for cross-entropy."""
    return functions_of(model).outputs(model, params, x)


def sample_losses(model: Model, params: Params, batch: Batch) -> Array:
    """Return ℓ(θ; z_i) for each sample of `batch`: array (n,)."""
    return functions_of(model).sample_losses(model, params, batch)


def mean_loss(model: Model, params: Params, batch: Batch) -> float:
    """Return L(θ), the mean loss over `batch`."""
    return anp.mean(sample_losses(model, params, batch))  # type: ignore[no-any-return]


def loss_gradient(model: Model, params: Params, batch: Batch) -> Params:
    """Return ∇L(θ), the gradient of `mean_loss`: one array per parameter, of its shape."""
    own = functions_of(model).loss_gradient
    if own is not None:
        return own(model, params, batch)
    return autograd.grad(lambda p: mean_loss(model, p, batch))(params)  # type: ignore[no-any-return]


def each_gradient(model: Model, params: Params, batch: Batch) -> Params:
    """Return ∇ℓ(θ; z_i) of every sample: one array per parameter, (n, …), materialised on purpose.

    Every sample has its own copy of the parameters, and the summed loss is differentiated with respect to the copies:
    copy i is used for sample i only, so its gradient is that of this sample's loss.
    """
    own = functions_of(model).each_gradient
    if own is not None:
        return own(model, params, batch)
    copies = {name: np.repeat(p[None], batch.n, axis=0) for name, p in params.items()}
    return autograd.grad(lambda p: anp.sum(sample_losses(model, p, batch)))(copies)  # type: ignore[no-any-return]


def sample_gradients(step: Step) -> Params:
    """Return x_i = w∇ℓ(θ; z_i) for each sample of the step's batch (docs/method.md 2): one array (n, …) per parameter.

    w is 1/n for reduction "mean" and 1 for "sum"; the batch gradient is Σ_i x_i. With clipping, x_i = c w∇ℓ(θ; z_i),
    c that of the whole batch.
    """
    x = unclipped_gradients(step)
    if not isinstance(step.adam, Clipped):
        return x
    c = clip_factor(step.adam, {name: x_i.sum(axis=0) for name, x_i in x.items()})
    return {name: c * x_i for name, x_i in x.items()}


def batch_clip_factor(step: Step) -> float:
    """Return c of the step's batch, 1 without clipping."""
    if not isinstance(step.adam, Clipped):
        return 1.0
    return clip_factor(step.adam, {name: x.sum(axis=0) for name, x in unclipped_gradients(step).items()})


def unclipped_gradients(step: Step) -> Params:
    """Return w∇ℓ(θ; z_i) for each sample of the step's batch."""
    weight = 1 / step.n if step.reduction == "mean" else 1.0
    return {name: weight * x for name, x in each_gradient(step.net, step.params, step.train).items()}


@elementary
def clip_factor(clipped: Clipped, g: Params) -> float:
    """Return c = min(1, C/(‖g‖ + ε_c)), ‖g‖ the norm over all parameters (docs/method.md 1)."""
    norm = math.hypot(*np.concatenate([array.ravel() for array in g.values()]))  # no square over- or underflows
    return 1.0 if norm + clipped.eps <= clipped.norm else clipped.norm / (norm + clipped.eps)


def batch_gradient(step: Step) -> Params:
    """Return g = Σ_i x_i, the gradient that Adam receives."""
    return {name: x.sum(axis=0) for name, x in sample_gradients(step).items()}
