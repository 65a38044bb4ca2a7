"""The validation gradient Γ: ∇L at a point of the step, or its mean over the step (docs/method.md 4)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adamshap.reference import models
from adamshap.reference.adam import decayed, step_coefficients, update_map
from adamshap.reference.contract import Gradient, Params, Step
from adamshap.reference.slopes import unit_interval_rule


@dataclass(frozen=True)
class GradientInput:
    """Input of Γ: the step, the batch gradient g, the nodes of "path", and the part of the way from A(0) to A(g)."""

    step: Step
    g: Params
    nodes: tuple[int, int]
    part: tuple[float, float] = (0.0, 1.0)


Gradients = Callable[[Params], Params]
"""θ to gradient, with a leading axis: 1 for the mean validation loss, n_val for each sample's own."""


def start(given: GradientInput, gradient_at: Gradients) -> Params:
    """Return ∇L(θ)."""
    return gradient_at(given.step.params)


def midpoint(given: GradientInput, gradient_at: Gradients) -> Params:
    """Return ∇L at θ − η λ θ − (A(0) + A(g))/2, between U(∅)'s point and U(B)'s: second order at `start`'s cost.

    If only a part of the way is given, the point is the middle of that part.
    """
    return gradient_at(between(given, sum(given.part) / 2))


def path(given: GradientInput, gradient_at: Gradients) -> Params:
    """Return the mean of ∇L from θ − η λ θ − A(0) to θ − η λ θ − A(g), by Gauss–Legendre with ``nodes[0]`` nodes.

    With `secant`, Σ_i score_i = ⟨mean ∇L, A(g) − A(0)⟩ = U(B) − U(∅), the fundamental theorem of calculus.
    """
    total: Params = {}
    low, high = given.part
    for tau, w in zip(*unit_interval_rule(given.nodes[0]), strict=True):
        for name, gradient in gradient_at(between(given, low + tau * (high - low))).items():
            total[name] = total.get(name, 0.0) + w * gradient
    return total


GRADIENT_FUNCTIONS: dict[str, Callable[[GradientInput, Gradients], Params]] = {
    "start": start,
    "midpoint": midpoint,
    "path": path,
}


def between(given: GradientInput, fraction: float) -> Params:
    """Return the point at `fraction` of the way from the end of the momentum step to the end of the step."""
    c, after_decay = step_coefficients(given.step), decayed(given.step)
    points = {}
    for name, g in given.g.items():
        empty, full = update_map(c[name], np.zeros_like(g)), update_map(c[name], g)
        points[name] = after_decay[name] - ((1 - fraction) * empty + fraction * full)
    return points


def validation_gradients(
    step: Step,
    gradient: Gradient,
    g: Params,
    nodes: tuple[int, int],
    *,
    each: bool,
    part: tuple[float, float] = (0.0, 1.0),
) -> Params:
    """Return Γ of each parameter with a leading axis: 1 for the mean loss, n_val for `each` sample's own."""
    given = GradientInput(step, g, nodes, part)
    return GRADIENT_FUNCTIONS[gradient](given, lambda params: gradient_at(step, params, each=each))


def gradient_at(step: Step, params: Params, *, each: bool) -> Params:
    """Return the validation gradient at `params`, with the leading axis of `validation_gradients`."""
    if each:
        return models.each_gradient(step.net, params, step.valid)
    return {name: mean[None] for name, mean in models.loss_gradient(step.net, params, step.valid).items()}
