"""Tolerances of training runs: of a run's account, and of its results under perturbed samples."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adamshap.reference import carry, models
from adamshap.reference.adam import apply_gradient
from adamshap.reference.contract import AdamState, Array, Batch, Gradient, RunConfig, Slope, Step, quadrature_nodes
from adamshap.verify.models import kind_of
from adamshap.verify.tolerance import DRAWS, SAFETY, parameter_count, rounding, unit_roundoff

__all__ = ["account_bound", "run_conditioning"]


def account_bound(
    config: RunConfig,
    slope: Slope = "random_order",
    gradient: Gradient = "midpoint",
    nodes: tuple[int, int] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> float:
    """Return the bound on the gap between a run's account (scores and shares of weight decay) and the loss change.

    The account is one sum: of each step's losses, of ⟨Γ ⊙ S, x_i⟩, of weight decay, and of the credit of past samples
    for the momentum, ⟨Γ_t ⊙ M_t, β1^k x_i⟩. Errors of S, M and Γ do not matter, since each step is closed.

    Parameters
    ----------
    config : RunConfig
        The run.
    slope : {"frozen", "linearized", "tangent", "secant", "random_order"}
        As for `attribute`.
    gradient : {"start", "midpoint", "path"}
        As for `attribute`.
    nodes : tuple of two ints, optional
        As for `attribute`.
    dtype : dtype
        Dtype of the account's computation.

    Returns
    -------
    float
        Bound in units of the validation loss.
    """
    nodes, params = quadrature_nodes(nodes, slope), config.network.init(config.seed)
    state, momentum = AdamState.zeros(params), {name: np.zeros_like(p) for name, p in params.items()}
    magnitude, length = 0.0, 0
    for _, index in config.order():
        batch = config.train.take(index)
        step = Step(config.network, params, config.adam, state, batch, config.valid, config.reduction).as_float64()
        x = models.sample_gradients(step)
        g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
        after, state = apply_gradient(step, g)
        S, M = carry.splits(step, slope, x, g, nodes)
        gamma = carry.walked_gradient(step, after, gradient, nodes, each=False)
        size = {name: np.abs(x_i).sum(axis=0) for name, x_i in x.items()}
        for name, p in step.params.items():
            adam = step.settings(name)
            rate, beta1 = adam.lr * adam.weight_decay, adam.betas[0]
            terms = np.abs(S[name]) * size[name] + np.abs(M[name]) * momentum[name] + rate * np.abs(p)
            magnitude += float((np.abs(gamma[name][0]) * terms).sum())
            momentum[name] = beta1 * momentum[name] + (1 - beta1) * size[name]
        magnitude += sum(float(models.mean_loss(step.net, there, step.valid)) for there in (step.params, after))
        length += parameter_count(step) * (step.n + step.n_val)
        params = after
    return float(rounding(magnitude, length, dtype))


def run_conditioning(
    answer: Callable[[RunConfig], Sequence[Array]], config: RunConfig, dtype: npt.DTypeLike = np.float64
) -> list[float]:
    """Return the change of each array of a run's answer for relative changes u of the samples and rounded products.

    Parameters
    ----------
    answer : callable
        Function from a run's configuration to arrays, in float64.
    config : RunConfig
    dtype : dtype
        Dtype of u.

    Returns
    -------
    list of float
        For each array, the largest change of any of its numbers, for the number of products in a whole run.
    """
    generator, base, size = np.random.default_rng(1), answer(config), unit_roundoff(dtype)

    def near(array: Array) -> Array:
        return array if array.dtype.kind == "i" else array * (1 + size * generator.choice((-1.0, 1.0), array.shape))

    moved = []
    for _ in range(DRAWS):
        train, valid = (Batch(near(batch.x), near(batch.y)) for batch in (config.train, config.valid))
        changed = answer(replace(config, train=train, valid=valid))
        moved.append([float(np.abs(a - b).max()) for a, b in zip(changed, base, strict=True)])
    kind = kind_of(config.network)
    longest = max(kind.longest_sum(config.network), config.train.n, config.valid.n)
    terms = kind.products(config.network) * longest * len(list(config.order()))
    return [float(SAFETY * np.sqrt(terms) * largest) for largest in np.max(moved, axis=0)]
