"""Mistakes in the validation loss and its gradients, in efficient scores, and in the influence."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from adamshap.reference import adam, game, models, scoring, validation
from adamshap.reference.contract import Array, Params, Step
from adamshap.verify.faults import perceptron
from adamshap.verify.faults.fault import SEEN, Fault, Wrap, changes_scores, computes_with, decayed, returns, sees
from adamshap.verify.implementation import Ask, Query


def _between_with(change: Callable[[Step, str, Array, Array, float], Array]) -> Wrap:
    """Return a fault in the points of `midpoint` and `path`: ``change(step, name, A(0), A(g), fraction)``."""

    def make(right: Any) -> Any:
        def between(given: validation.GradientInput, fraction: float) -> Params:
            c = adam.step_coefficients(given.step)
            return {
                name: change(
                    given.step,
                    name,
                    adam.update_map(c[name], np.zeros_like(g)),
                    adam.update_map(c[name], g),
                    fraction,
                )
                for name, g in given.g.items()
            }

        return between

    return computes_with(validation.between, make)


def _proportionally(step: Step, query: Query, result: Array, ask: Ask) -> Array:
    if not query.options.get("efficient"):
        return result
    plain = ask(step, Query("scores", dict(query.options) | {"efficient": False}))
    size = np.abs(plain).sum(axis=0)
    part = np.divide(np.abs(plain), size, out=np.full_like(plain, 1 / step.n), where=size > 0)
    spread: Array = plain + (result.sum(axis=0) - plain.sum(axis=0)) * part
    return spread


def _to_the_whole_gain(step: Step, query: Query, result: Array, ask: Ask) -> Array:
    if not query.options.get("efficient"):
        return result
    if query.options.get("per_validation"):
        singles = [replace(step, valid=step.valid.take(np.array([j]))) for j in range(step.n_val)]
        empty = np.array([game.utility(single, np.zeros(step.n, bool)) for single in singles])
        return result + empty / step.n
    return result + game.utility(step, np.zeros(step.n, bool)) / step.n


def _influence_with(gamma_at: str, slope: Callable[..., Array]) -> Wrap:
    def change(step: Step, query: Query, result: Array, ask: Ask) -> Array:
        x, g = models.sample_gradients(step), models.batch_gradient(step)
        params = adam.update(step)[0] if gamma_at == "after" else step.params
        gamma, c = models.loss_gradient(step.net, params, step.valid), adam.step_coefficients(step)
        P = {name: (gamma[name] * slope(c[name], g[name]))[None] for name in x}
        return scoring.dot_products(x, P)[:, 0]

    return returns(change, "influence")


LOSSES: tuple[Fault, ...] = (
    Fault(
        "validation-summed",
        "the validation loss summed, not averaged",
        "the loss's reduction",
        changes_scores(
            lambda step, query, result, ask: result if query.options.get("per_validation") else result * step.n_val
        ),
    ),
    Fault(
        "per-validation-averaged",
        "columns of per_validation divided by n_val",
        "the mean's weight kept",
        changes_scores(
            lambda step, query, result, ask: result / step.n_val if query.options.get("per_validation") else result
        ),
    ),
    Fault(
        "summed-separately",
        "summed activations times summed gradients of the validation batch",
        "GhostSuite issue 8",
        computes_with(models.loss_gradient, perceptron.summed_separately),
    ),
    Fault(
        "validated-on-the-batch",
        "the training batch for the validation samples",
        SEEN,
        sees(lambda step: replace(step, valid=step.train)),
    ),
)

GRADIENTS: tuple[Fault, ...] = (
    Fault(
        "midpoint-without-momentum",
        "`midpoint` at θ − η λ θ − A(g)/2",
        "the segment starts at θ",
        _between_with(lambda step, name, empty, full, f: decayed(step, name) - f * full),
    ),
    Fault(
        "midpoint-without-decay",
        "`midpoint` and `path` without weight decay",
        SEEN,
        _between_with(lambda step, name, empty, full, f: step.params[name] - (1 - f) * empty - f * full),
    ),
    Fault(
        "midpoint-backwards",
        "`midpoint` and `path` on the other side of θ",
        "the sign of the update",
        _between_with(lambda step, name, empty, full, f: decayed(step, name) + (1 - f) * empty + f * full),
    ),
    Fault(
        "start-for-all",
        "the gradient at θ for `midpoint` and `path`",
        "one validation gradient for all",
        changes_scores(
            lambda step, query, result, ask: ask(step, Query("scores", dict(query.options) | {"gradient": "start"}))
        ),
    ),
    Fault(
        "closed-proportionally",
        "what is missing spread in proportion to the scores",
        "efficient=True",
        changes_scores(_proportionally),
    ),
    Fault(
        "closed-to-the-whole-gain",
        "scores closed to U(B) for U(B) − U(∅)",
        "efficient=True",
        changes_scores(_to_the_whole_gain),
    ),
    Fault(
        "influence-at-theta",
        "`influence` with the gradient at θ",
        "the gradient at hand",
        _influence_with("before", lambda c, g: adam.divided_difference(c, g, g)),
    ),
    Fault(
        "influence-frozen",
        "`influence` without the derivative of the denominator",
        "the denominator counted as a constant",
        _influence_with("after", lambda c, g: c.lr * c.k / adam.denominator(c, g)),
    ),
)
