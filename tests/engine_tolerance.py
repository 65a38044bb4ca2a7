"""How close the engine must be to the oracle: `verify.tolerance`'s two parts, put together for each result."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import adamshap.reference as oracle
from adamshap.reference import models, scoring, slopes
from adamshap.reference.adam import apply_gradient, decayed
from adamshap.reference.contract import Array, Params, Step
from adamshap.verify.tolerance import conditioning, parameter_count, rounding, score_magnitude

SEEDS = (0, 1, 2)
"""Of a spread's draws: where few numbers enter, all four changes of one seed can happen to be small."""

SIGMAS = 5
"""Standard errors between two sampled means: of a dozen normal deviates, one in some hundred thousand draws has one."""


def underflow(dtype: Any) -> float:
    """Return the smallest normal number: what is smaller may be lost."""
    return float(np.finfo(dtype).tiny)


def spread(answer: Callable[[Step], Any], step: Step, dtype: Any) -> Array:
    """Return how far the oracle's answer moves with its inputs, and with what is rounded on the way.

    Each of the 2·depth matrix products rounds again, sums of up to `longest` terms, as if its inputs had been changed:
    errors of random sign, which add up as the square root of their number.
    """
    longest = max(*step.net.sizes, step.n, step.n_val)
    moved = [conditioning(lambda s: np.asarray(answer(s)), step, dtype, seed=seed) for seed in SEEDS]
    return np.sqrt(2 * step.net.depth * longest) * np.max(moved, axis=0)


def share(got: Any, expected: Any, bound_: Any) -> float:
    """Return the largest error as a share of its bound, which a receipt records."""
    error = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64))
    return float(np.max(np.divide(error, bound_, out=np.zeros_like(error), where=np.asarray(bound_) > 0), initial=0))


def length(step: Step) -> int:
    """Return the length of a score's sums: over the parameters, each a sum over both batches."""
    return parameter_count(step) * (step.n + step.n_val)


def bound(
    step: Step,
    slope: Any,
    gradient: Any,
    nodes: tuple[int, int],
    dtype: Any,
    *,
    per_validation: bool = False,
    kind: Any = "shapley",
) -> Array:
    """Return how far scores computed in `dtype` may honestly be from the oracle's."""
    magnitude = score_magnitude(step, slope, gradient, nodes, per_validation=per_validation, kind=kind)

    def answer(given: Step) -> Array:
        return oracle.scores(given, slope, gradient, nodes=nodes, per_validation=per_validation, kind=kind)

    return rounding(magnitude, length(step), dtype) + spread(answer, step, dtype)


def influence_bound(step: Step, dtype: Any) -> Array:
    """Return the like for `influence`."""
    x = models.sample_gradients(step)
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    S = slopes.step_slopes(step, "tangent", x, g, (4, 4))
    gamma = models.loss_gradient(step.net, oracle.update(step)[0], step.valid)
    magnitude = scoring.dot_products(
        {name: np.abs(x_i) for name, x_i in x.items()}, {name: np.abs(gamma[name] * S[name])[None] for name in x}
    )[:, 0]
    return rounding(magnitude, length(step), dtype) + spread(oracle.influence, step, dtype)


def utility_bound(step: Step, coalition: Array, dtype: Any, *, each: bool = False) -> Array:
    """Return the like for U(S): a difference of two losses, each rounded as itself.

    With `each`, for each validation sample's own loss.
    """

    def losses(given: Step) -> Array:
        x = models.sample_gradients(given)
        after = apply_gradient(given, {name: x_i[coalition].sum(axis=0) for name, x_i in x.items()})[0]
        both = np.array([models.sample_losses(given.net, p, given.valid) for p in (given.params, after)])
        return both if each else both.mean(axis=1)

    scale = np.abs(losses(step)).sum(axis=0)
    return rounding(scale, length(step), dtype) + spread(losses, step, dtype).sum(axis=0)


def first_order_bound(step: Step, coalitions: Iterable[Array], dtype: Any) -> Array:
    """Return the like for U₁(S), the largest over `coalitions`."""
    x = models.sample_gradients(step)
    gamma = models.loss_gradient(step.net, step.params, step.valid)
    start = decayed(step)

    def magnitude(coalition: Array) -> float:
        after = apply_gradient(step, {name: x_i[coalition].sum(axis=0) for name, x_i in x.items()})[0]
        return float(sum((np.abs(gamma[name]) * np.abs(start[name] - after[name])).sum() for name in x))

    return rounding(max(map(magnitude, coalitions)), length(step), dtype)


def update_bounds(step: Step, dtype: Any) -> tuple[Params, Params, Params]:
    """Return the like for θ⁺, m⁺ and v⁺; what underflows in `dtype` may be off by its smallest normal number."""
    x = models.sample_gradients(step)
    params, state = oracle.update(step)
    theta, m, v = {}, {}, {}
    for name in params:
        total, absolute = np.abs(x[name].sum(axis=0)), np.abs(x[name]).sum(axis=0)
        moved = np.abs(step.params[name] - params[name])
        moments = (lambda s, n=name: oracle.update(s)[1].m[n]), (lambda s, n=name: oracle.update(s)[1].v[n])
        theta[name] = rounding(np.abs(params[name]) + moved, length(step), dtype)
        theta[name] = theta[name] + spread(lambda s, n=name: oracle.update(s)[0][n], step, dtype)
        m[name] = rounding(np.abs(step.state.m[name]) + absolute, length(step), dtype) + spread(moments[0], step, dtype)
        v[name] = rounding(state.v[name] + 2 * total * absolute, length(step), dtype) + underflow(dtype)
        v[name] = v[name] + spread(moments[1], step, dtype)
    return theta, m, v
