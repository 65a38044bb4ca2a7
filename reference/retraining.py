"""Training again with other sample weights: leave-one-out retraining and the metagradient.

==============  ==================  ==========================================================================
method 7        name                meaning
==============  ==================  ==========================================================================
ω_i             ``weights``         sample i's weight in every batch that has it; 1 in the run itself
g(ω)            ``batch_gradient``  Σ_i ω_i x_i over a batch, its divisor unchanged, clipped by its own norm
L(θ_T(ω))       ``final_loss``      mean validation loss after the last step
θ̄, m̄, v̄, ω̄  ``adjoint``         derivatives of L(θ_T) by the state before a step, and by the weights
==============  ==================  ==========================================================================

The batches, their divisor n and the seed are always those of the run: a weight of 0 only removes the sample's
contribution to the batch gradient, like leaving it out of a coalition within one step.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np

from adamshap.reference.adam import apply_gradient, bias_correction
from adamshap.reference.contract import (
    AdamState,
    Array,
    Batch,
    Clipped,
    Function,
    Params,
    Run,
    RunConfig,
    Step,
    positive_integer,
    refuse,
    shown,
)
from adamshap.reference.models import each_gradient, loss_gradient, mean_loss, sample_losses

State = tuple[Params, AdamState]


def retrained(run: Run, samples: Sequence[int] | Array) -> Array:
    """Return the increase of the final validation loss when the run is trained again without a sample.

    Same seed, same batches, same divisor; only the sample's contribution to its batches' gradients is missing.

    Parameters
    ----------
    run : Run
        A run of the oracle or the engine; either is trained again in float64.
    samples : sequence of ints
        Indices of the training samples to leave out, one at a time.

    Returns
    -------
    array (len(samples),)
        L without the sample minus L of the run; positive means that the sample lowered it, as for scores.

    Raises
    ------
    ValueError, TypeError
        A run without its configuration; an index without a training sample.
    """
    config = config_of(run)
    count = config.train.n
    a_number = isinstance(samples, np.ndarray) and samples.ndim == 0
    if a_number or isinstance(samples, str | bytes) or not isinstance(samples, Sequence | np.ndarray):
        refuse("samples", shown(samples), "a sequence of indices of samples", TypeError)
    chosen = [positive_integer(f"samples[{i}]", sample, minimum=0) for i, sample in enumerate(samples)]
    for i, sample in enumerate(chosen):
        if sample >= count:
            refuse(f"samples[{i}]", sample, f"a training sample, 0 to {count - 1}")
    everybody = np.ones(count)
    base = final_loss(config, everybody)
    without = [final_loss(config, np.where(np.arange(count) == sample, 0.0, everybody)) for sample in chosen]
    return np.array([loss - base for loss in without])


def metagradient(run: Run) -> Array:
    """Return the rate at which the final validation loss falls as a sample's weight grows from 1: −dL(θ_T)/dω_i.

    Reverse-mode differentiation through every step of the run, second moment included. About 2√T states are kept at a
    time: those at the starts of √T segments, and those within the current segment, which are recomputed.

    Parameters
    ----------
    run : Run
        A run with its `config`.

    Returns
    -------
    array (N,)
        Minus the derivative; positive means that more of the sample would lower the loss, as for `influence`.
    """
    config = config_of(run)
    if _own_gradients(config):
        refuse("run", "a run of a Function with gradients of its own", "a model that autograd can differentiate twice")
    order, weights = batches_of(config), np.ones(config.train.n)
    length = math.isqrt(len(order) - 1) + 1  # √T, rounded up
    starts = range(0, len(order), length)
    state, checkpoints = initial_state(config), []
    for first in starts:
        checkpoints.append(state)
        for index in order[first : first + length]:
            state = weighted_step(config, state, index, weights)
    adjoint: tuple[Params, ...] = (loss_gradient(config.network, state[0], config.valid), *_zeros(config, 2))
    total = np.zeros(config.train.n)
    for first in reversed(starts):
        indices, states = order[first : first + length], [checkpoints.pop()]
        for index in indices[:-1]:
            states.append(weighted_step(config, states[-1], index, weights))
        for index, before in zip(reversed(indices), reversed(states), strict=True):
            *into_state, in_weights = _step_adjoint(config, before, index, weights[index], adjoint)
            adjoint = tuple(into_state)
            total[index] += in_weights
    return -total


# --- training again --------------------------------------------------------------------------------------------------


def config_of(run: Run) -> RunConfig:
    """Return the configuration of `run` in float64; refuse anything but a `Run` that has one."""
    if not isinstance(run, Run):
        refuse("run", type(run).__name__, "a Run", TypeError)
    config = run.config
    if config is None:
        refuse("run.config", None, "the run's RunConfig, to train again")
    params = config.network.init(config.seed)
    step = Step(config.network, params, config.adam, AdamState.zeros(params), config.train, config.valid).as_float64()
    return replace(config, adam=step.adam, train=step.train, valid=step.valid)


def _own_gradients(config: RunConfig) -> bool:
    return isinstance(config.network, Function) and config.network.gradients is not None


def batches_of(config: RunConfig) -> list[Array]:
    """Return the samples of each step."""
    return [index for _, index in config.order()]


def initial_state(config: RunConfig) -> State:
    """Return θ_0 and Adam's state before the first step."""
    params = config.network.init(config.seed)
    return params, AdamState.zeros(params)


def final_loss(config: RunConfig, weights: Array) -> float:
    """Return L(θ_T(ω)) for the samples' weights (N,)."""
    state = initial_state(config)
    for index in batches_of(config):
        state = weighted_step(config, state, index, weights)
    return float(mean_loss(config.network, state[0], config.valid))


def weighted_step(config: RunConfig, state: State, index: Array, weights: Array) -> State:
    """Take the step of the samples `index`, each with its weight."""
    params, moments = state
    batch = config.train.take(index)
    step = Step(config.network, params, config.adam, moments, batch, config.valid, config.reduction)
    return apply_gradient(step, batch_gradient(config, params, batch, weights[index]))


def batch_gradient(config: RunConfig, params: Any, batch: Batch, weights: Any) -> Any:
    """Return g(ω) = Σ_i ω_i w ∇ℓ(θ; z_i), or c g(ω), c that of g(ω).

    It is differentiable in `params` and in `weights` (n,) where autograd gives it.
    """
    g = _unclipped(config, params, batch, weights)
    if not isinstance(config.adam, Clipped):
        return g
    factor = clip_factor(config.adam, g)
    return {name: factor * array for name, array in g.items()}


def clip_factor(clipped: Clipped, g: Any) -> Any:
    """Return c = min(1, C/(‖g‖ + ε_c)), differentiable in `g`; where both are equal, the derivative is that of 1."""
    norm = _root(sum(anp.sum(array**2) for array in g.values()))
    return 1.0 if norm + clipped.eps <= clipped.norm else clipped.norm / (norm + clipped.eps)


def _unclipped(config: RunConfig, params: Any, batch: Batch, weights: Any) -> Any:
    divisor = batch.n if config.reduction == "mean" else 1
    if _own_gradients(config):
        x = each_gradient(config.network, params, batch)
        return {name: np.tensordot(weights / divisor, x_i, axes=1) for name, x_i in x.items()}
    return autograd.grad(lambda p: anp.sum(weights * sample_losses(config.network, p, batch)) / divisor)(params)


# --- one step, backwards ---------------------------------------------------------------------------------------------


def _step_adjoint(
    config: RunConfig, before: State, index: Array, weights: Array, after: tuple[Params, ...]
) -> tuple[Any, ...]:
    """Return (θ̄, m̄, v̄, ω̄) before a step from (θ̄, m̄, v̄) after it: the gradient of ⟨after, step(θ, m, v, ω)⟩."""
    params, moments = before
    batch, t = config.train.take(index), moments.next_step

    def paired(theta: Any, m: Any, v: Any, given: Any) -> Any:
        g = batch_gradient(config, theta, batch, given)
        total = 0.0
        for name in params:
            adam = config.adam.at(t, name)
            (beta1, beta2), lr = adam.betas, adam.lr
            received = g[name] + adam.l2 * theta[name] if adam.l2 else g[name]
            c1, c2 = bias_correction(beta1, t), bias_correction(beta2, t)
            new_m = beta1 * m[name] + (1 - beta1) * received
            new_v = beta2 * v[name] + (1 - beta2) * received**2
            update = lr * (new_m / c1) / (_root(new_v / c2 + adam.eps_root) + adam.eps)
            new_theta = theta[name] * (1 - lr * adam.weight_decay) - update
            for weight, new in zip(after, (new_theta, new_m, new_v), strict=True):
                total = total + anp.sum(weight[name] * new)
        return total

    found: tuple[Any, ...] = autograd.grad(paired, (0, 1, 2, 3))(params, moments.m, moments.v, weights)
    return found


def _root(x: Any) -> Any:
    """Return √x, with the derivative 0 where x is 0: the symmetric derivative of √(q g²)."""
    positive = x > 0
    return anp.where(positive, anp.sqrt(anp.where(positive, x, 1.0)), 0.0)


def _zeros(config: RunConfig, count: int) -> list[Params]:
    return [{name: np.zeros(shape) for name, shape in config.network.shapes.items()} for _ in range(count)]
