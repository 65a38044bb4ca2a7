"""The estimators: score_i = ⟨Γ ⊙ S, x_i⟩, a validation gradient Γ times a slope S of Adam's map (docs/method.md 4).

An efficient implementation never forms x_i: these are *ghost* dot products. The oracle forms every x_i on purpose.

==================  ==============================  ============================================================
paper / method 4    name                            meaning
==================  ==============================  ============================================================
x_i, g              ``x``, ``g``                    sample i's contribution to the batch gradient; Σ_i x_i
S                   ``SLOPE_FUNCTIONS[slope]``      how much of x_i arrives in the update, elementwise
Γ                   ``GRADIENT_FUNCTIONS[...]``     gradient of the validation loss
σ                   ``partial_sum_deviation``       √(n/(n − 1) · max(Σ_i x_i² − g²/n, 0))
R, f(x_i)           in `two_term`                   slope and function of a second term
==================  ==============================  ============================================================
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adamshap.reference import network, two_term
from adamshap.reference.adam import (
    Coefficients,
    bias_correction,
    decayed,
    denominator,
    divided_difference,
    moved,
    step_coefficients,
    update_map,
    zeros,
)
from adamshap.reference.contract import (
    TWO_TERM,
    Array,
    Denominator,
    Estimator,
    Gradient,
    MarginalKind,
    Params,
    ScoreSlope,
    Slope,
    Step,
    float64_step,
    refuse,
    refuse_overflow,
    refuse_zero_denominator,
)
from adamshap.reference.squares import in_units

# --- slopes, of one parameter ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SlopeInput:
    """What the slope of one parameter is made from: Adam's coefficients, x (n, …), its sum g, and the nodes."""

    c: Coefficients
    x: Array
    g: Array
    nodes: tuple[int, int]


def sgd(given: SlopeInput) -> Array:
    """Return η: In-Run Data Shapley for SGD (arXiv 2406.11011), the baseline."""
    return np.full_like(given.g, given.c.lr)


def frozen(given: SlopeInput) -> Array:
    """Return η k / D(g): Adam with the denominator of the step that is really taken, as if no sample had moved it."""
    return given.c.lr * given.c.k / denominator(given.c, given.g)


def linearized(given: SlopeInput) -> Array:
    """Return A'(0) = η k / D(0): the paper's Linearized Ghost Approximation (arXiv 2602.00329)."""
    return given.c.lr * given.c.k / denominator(given.c, np.zeros_like(given.g))


def tangent(given: SlopeInput) -> Array:
    """Return A'(g) = A[g, g]: first order at the whole batch, for leave-one-out."""
    return divided_difference(given.c, given.g, given.g)


def secant(given: SlopeInput) -> Array:
    """Return A[g, 0]: the Aumann–Shapley value in closed form, ∫₀¹ A'(τ g) dτ; Σ_i S x_i = A(g) − A(0) exactly."""
    return divided_difference(given.c, given.g, np.zeros_like(given.g))


def random_order(given: SlopeInput) -> Array:
    r"""Return E[A'(Y)], Y the partial sum of a random prefix of the batch: the Shapley value's random arrival order.

    Sample i finds a fraction τ of the others before it, τ uniform on [0, 1]; their sum Y is near normal with mean τ g
    and variance s² = τ(1 − τ) σ² (sampling without replacement from n), and i adds A(Y + x_i) − A(Y) ≈ A'(Y) x_i. With
    Stein's identity E[A'(Y)] = E[h A(τ g + h s)] / s, h standard normal, the two signs of h make divided differences:

        S = Σ_k w_k Σ_{h>0} 2 a_h h² A[τ_k g + h s_k, τ_k g − h s_k]

    with Gauss–Legendre (τ, w) and Gauss–Hermite (h, a) nodes. No derivative at the kink of A is ever taken. For n = 1
    there is no other sample: `secant`.
    """
    if len(given.x) == 1:
        return secant(given)
    sigma = partial_sum_deviation(given.x, given.g)
    slope = np.zeros_like(given.g)
    for tau, w in zip(*unit_interval_rule(given.nodes[0]), strict=True):
        s = math.sqrt(tau * (1 - tau)) * sigma
        for h, a in zip(*positive_normal_rule(given.nodes[1]), strict=True):
            slope += w * 2 * a * h**2 * divided_difference(given.c, tau * given.g + h * s, tau * given.g - h * s)
    return slope


SLOPE_FUNCTIONS: dict[str, Callable[[SlopeInput], Array]] = {
    "sgd": sgd,
    "frozen": frozen,
    "linearized": linearized,
    "tangent": tangent,
    "secant": secant,
    "random_order": random_order,
}


def partial_sum_deviation(x: Array, g: Array) -> Array:
    """Return σ = √(n/(n − 1) · max(Σ_i x_i² − g²/n, 0)): the variance of a random prefix's sum is τ(1 − τ) σ².

    Written √(n/(n − 1) Σ_i (x_i − g/n)²), which is the same and never negative.
    """
    n = len(x)
    scaled, unit = in_units(x - g / n)
    sigma: Array = unit * np.sqrt(n / (n - 1) * (scaled**2).sum(axis=0))
    return sigma


def unit_interval_rule(count: int) -> tuple[Array, Array]:
    """Return Gauss–Legendre nodes and weights on [0, 1]: the weights sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


def positive_normal_rule(count: int) -> tuple[Array, Array]:
    """Return the positive nodes, with their weights, of the `count`-point Gauss–Hermite rule of the standard normal.

    With both signs, and with the node 0 of an odd `count`, the weights sum to 1.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    positive = np.arange(count) >= (count + 1) // 2  # by place: the middle node of an odd rule is 0 but for rounding
    return nodes[positive], weights[positive] / math.sqrt(2 * math.pi)


def linearized_previous(step: Step) -> Params:
    """Return η k / (sqrt(v̂_{t−1} + ε_root) + ε): the linearised slope with the denominator as printed elsewhere.

    v̂_{t−1} = v_{t−1} / (1 − β2^{t−1}) is the state's own bias-corrected second moment, undefined at t = 1;
    so secondary sources print the paper's formula.
    """
    if step.state.step == 0:
        refuse("denominator", "'previous' at t = 1, where 1 − β2⁰ = 0", "'exact', or a state of at least one step")
    correction = bias_correction(step.adam.betas[1], step.state.step)
    slopes = {}
    for name, c in step_coefficients(step).items():
        D = np.sqrt(step.state.v[name] / correction + step.adam.eps_root) + step.adam.eps
        refuse_zero_denominator(zeros(D), "v is 0")
        slopes[name] = c.lr * c.k / D
    return slopes


# --- validation gradients --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradientInput:
    """What Γ is made from: the step, the batch gradient g, the path's nodes, and the part of the way that is judged."""

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

    Of a part of the way, in the middle of that part.
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


# --- scores ----------------------------------------------------------------------------------------------------------


def scores(
    step: Step,
    slope: ScoreSlope = "random_order",
    gradient: Gradient = "midpoint",
    efficient: bool = False,
    per_validation: bool = False,
    nodes: tuple[int, int] | None = None,
    denominator: Denominator = "exact",
    kind: MarginalKind = "shapley",
) -> Array:
    """Return each training sample's score for this step: score_i = ⟨Γ ⊙ S, x_i⟩ (docs/method.md 4).

    With slope "two_term", ⟨Γ ⊙ S, x_i⟩ + ⟨Γ ⊙ R, sign(x_i) √|x_i|⟩.

    Parameters
    ----------
    step : Step
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "two_term"}
        S, a function of this module each; "two_term" is a module of its own.
    gradient : {"start", "midpoint", "path"}
        Γ, likewise. With "two_term", "midpoint" and "path" are those of the sample's own part of the step:
        the first or the last n-th of the way, or, for "shapley", all of it.
    efficient : bool
        Spread what is missing to U(B) − U(∅) equally over the batch, so that the scores sum to it exactly.
    per_validation : bool
        Score against each validation sample's own loss: (n, n_val), whose mean over columns is the score.
    nodes : tuple of two ints, optional
        (path, normal): Gauss–Legendre nodes of "random_order" and of "path", Gauss–Hermite nodes of "random_order".
        Of "two_term" with "shapley" likewise, over what a sample finds; places of arrival are counted for n ≤ path.
        By default (4, 4), for "two_term" (8, 2).
    denominator : {"exact", "previous"}
        Of "linearized": "previous" is the formula as secondary sources print the paper's, with v̂_{t−1}.
    kind : {"first", "last", "shapley"}
        Of "two_term": which of `marginals` the scores are made for.

    Returns
    -------
    array (n,) or (n, n_val)
        In units of the validation loss; positive means that the sample lowered it.

    Raises
    ------
    ValueError, TypeError
        An unknown name, bad nodes; ``denominator="previous"`` at t = 1 or with another slope; another `kind` with
        another slope; a denominator of 0; results that float64 does not hold.
    """
    estimator = Estimator(slope, gradient, efficient, per_validation, nodes, denominator, kind)
    step = float64_step(step)
    with np.errstate(over="ignore", invalid="ignore"):  # the results are checked below
        values = unchecked_scores(step, estimator)
    refuse_overflow({"scores": values}, np.float64)
    return values


def unchecked_scores(step: Step, estimator: Estimator) -> Array:
    """Return `scores` of a step in float64, finite or not."""
    x = network.sample_gradients(step)
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    slope, nodes, each = estimator.slope, estimator.nodes, estimator.per_validation
    previous = estimator.denominator == "previous"
    terms = [(x, linearized_previous(step))] if previous else terms_of(step, slope, x, g, nodes, estimator.kind)
    part = part_of(slope, estimator.kind, step.n)
    gamma = validation_gradients(step, estimator.gradient, g, nodes, each=each, part=part)
    values: Array = np.sum(
        [dot_products(f, {name: gamma[name] * coefficient[name] for name in f}) for f, coefficient in terms],
        axis=0,
    )
    if estimator.efficient:
        values = values + (_gain_of_the_data(step, g, each=each) - values.sum(axis=0)) / step.n
    return values if each else values[:, 0]


def terms_of(
    step: Step, slope: ScoreSlope, x: Params, g: Params, nodes: tuple[int, int], kind: MarginalKind
) -> list[tuple[Params, Params]]:
    """Return what a score is the sum of: (x, S), and for "two_term" (f(x), R) too; see `scores`."""
    if slope != TWO_TERM:
        return [(x, slopes(step, slope, x, g, nodes))]
    c = step_coefficients(step)
    both = {name: two_term.two_coefficients(kind, c[name], x_i, nodes) for name, x_i in x.items()}
    first, second = ({name: pair[term] for name, pair in both.items()} for term in (0, 1))
    return [(x, first), ({name: two_term.signed_root(x_i) for name, x_i in x.items()}, second)]


def part_of(slope: ScoreSlope, kind: MarginalKind, n: int) -> tuple[float, float]:
    """Return the part of the way from A(0) to A(g) that Γ is taken on: all of it, but for "two_term"."""
    return two_term.part_of_the_way(kind, n) if slope == TWO_TERM else (0.0, 1.0)


def slopes(step: Step, slope: Slope, x: Params, g: Params, nodes: tuple[int, int]) -> Params:
    """Return S of each parameter, for the contributions `x` and their sum `g`."""
    c = step_coefficients(step)
    return {name: SLOPE_FUNCTIONS[slope](SlopeInput(c[name], x[name], g[name], nodes)) for name in x}


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
        return network.each_gradient(step.net, params, step.valid)
    return {name: mean[None] for name, mean in network.loss_gradient(step.net, params, step.valid).items()}


def dot_products(x: Params, P: Params) -> Array:
    """Return ⟨P_j, x_i⟩ over all parameters: (n, J) for contributions x (n, …) and score matrices P (J, …)."""
    parts = [x_i.reshape(len(x_i), -1) @ P[name].reshape(len(P[name]), -1).T for name, x_i in x.items()]
    total: Array = np.sum(parts, axis=0)
    return total


def _gain_of_the_data(step: Step, g: Params, *, each: bool) -> Array:
    """Return U(B) − U(∅), (1,), or that of each validation sample's own loss, (n_val,)."""
    ends = (between(GradientInput(step, g, (1, 2)), fraction) for fraction in (0.0, 1.0))
    empty, full = (network.sample_losses(step.net, end, step.valid) for end in ends)
    return empty - full if each else np.array([np.mean(empty) - np.mean(full)])


def influence(step: Step) -> Array:
    """Return ⟨∇L(θ⁺), A'(g) ⊙ x_i⟩: how fast the loss after the step falls as sample i's weight grows from 1.

    Parameters
    ----------
    step : Step

    Returns
    -------
    array (n,)
        Minus the derivative of L(θ⁺) in the weight; positive means that more of the sample would lower the loss.

    Raises
    ------
    ValueError
        A denominator of 0; results that float64 does not hold.
    """
    step = float64_step(step)
    with np.errstate(over="ignore", invalid="ignore"):  # the results are checked below
        x = network.sample_gradients(step)
        g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
        after, _, _ = moved(step, g)
        gamma = network.loss_gradient(step.net, after, step.valid)
        c = step_coefficients(step)
        P = {name: (gamma[name] * divided_difference(c[name], g[name], g[name]))[None] for name in x}
        values = dot_products(x, P)[:, 0]
    refuse_overflow({"influence": values}, np.float64)
    return values
