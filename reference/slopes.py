"""Slopes S of Adam's map: the response of the update to a sample's gradient, elementwise (docs/method.md 4).

==================  ==============================  ============================================================
paper / method 4    name                            meaning
==================  ==============================  ============================================================
x_i, g              ``x``, ``g``                    sample i's contribution to the batch gradient; Σ_i x_i
S                   ``SLOPE_FUNCTIONS[slope]``      the slope of one parameter
σ                   ``partial_sum_deviation``       √(n/(n − 1) · max(Σ_i x_i² − g²/n, 0))
==================  ==============================  ============================================================

"auto" chooses between two of them for each parameter. "two_term", which has two slopes, is in the module `two_term`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adamshap.reference.adam import (
    Coefficients,
    bias_correction,
    denominator,
    divided_difference,
    step_coefficients,
    zeros,
)
from adamshap.reference.contract import Array, Params, ScoreSlope, Step, refuse, refuse_zero_denominator
from adamshap.reference.elementary import elementary
from adamshap.reference.squares import in_units


@dataclass(frozen=True)
class SlopeInput:
    """Input of one parameter's slope: Adam's coefficients, x (n, …), its sum g, and the nodes."""

    c: Coefficients
    x: Array
    g: Array
    nodes: tuple[int, int]


def sgd(given: SlopeInput) -> Array:
    """Return η: In-Run Data Shapley for SGD (arXiv 2406.11011), the baseline."""
    return np.full_like(given.g, given.c.lr)


def frozen(given: SlopeInput) -> Array:
    """Return η k / D(g): Adam with the denominator of the actual step, as if it did not depend on the samples."""
    return given.c.lr * given.c.k / denominator(given.c, given.g)


def linearized(given: SlopeInput) -> Array:
    """Return A'(0) = η k / D(0): the paper's Linearized Ghost Approximation (arXiv 2602.00329).

    With L2 decay, A'(0) at d = λ₂ θ has the second term of A[0, 0] too.
    """
    if given.c.shift is not None:
        return divided_difference(given.c, np.zeros_like(given.g), np.zeros_like(given.g))
    return given.c.lr * given.c.k / denominator(given.c, np.zeros_like(given.g))


def tangent(given: SlopeInput) -> Array:
    """Return A'(g) = A[g, g]: first order at the whole batch, suited to leave-one-out."""
    return divided_difference(given.c, given.g, given.g)


def secant(given: SlopeInput) -> Array:
    """Return A[g, 0]: the Aumann–Shapley value in closed form, ∫₀¹ A'(τ g) dτ; Σ_i S x_i = A(g) − A(0) exactly."""
    return divided_difference(given.c, given.g, np.zeros_like(given.g))


def random_order(given: SlopeInput) -> Array:
    r"""Return E[A'(Y)], Y the partial sum of a random prefix of the batch: the Shapley value's random arrival order.

    A fraction τ of the others arrives before sample i, τ uniform on [0, 1]; their sum Y is near normal with mean τ g
    and variance s² = τ(1 − τ) σ² (sampling without replacement from n), and i adds A(Y + x_i) − A(Y) ≈ A'(Y) x_i. With
    Stein's identity E[A'(Y)] = E[h A(τ g + h s)] / s, h standard normal, the two signs of h give divided differences:

        S = Σ_k w_k Σ_{h>0} 2 a_h h² A[τ_k g + h s_k, τ_k g − h s_k]

    with Gauss–Legendre (τ, w) and Gauss–Hermite (h, a) nodes. No derivative at the kink of A is ever taken. For n = 1,
    without other samples, it is `secant`.
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


LEAST_SHARE, FULL_SHARE = 3 / 16, 7 / 32
"""Mean squared own share of a gradient up to which "auto" is "secant", and from which it is "random_order"."""


def auto(given: SlopeInput) -> Array:
    r"""Return `secant`, `random_order`, or their mean with weights 1 − λ and λ, by the mean squared own share.

    A coordinate's own share is that of the batch's gradient in the radicand, z = q g²/(κ + q g²). For batches drawn at
    random from much more data g² is at least σ² on average, so that the two slopes are nearly equal where z is small. A
    coordinate counts by w = q g²/(κ + q g² + ε²), once to twice q g²/D(g)², the square of its part of the step:

        Q = Σ w z² / Σ w,   λ = (Q − `LEAST_SHARE`)/(`FULL_SHARE` − `LEAST_SHARE`), between 0 and 1.

    Where all contributions cancel, g² is the smallest number: z is 1 if κ is 0, else 0, as for g near 0.
    """
    denominator(given.c, np.zeros_like(given.g))  # D(0) must not be 0, whichever slope it is
    weight = random_order_weight(given.c, given.g)
    if weight == 0:
        return secant(given)
    if weight == 1:
        return random_order(given)
    return (1 - weight) * secant(given) + weight * random_order(given)


def random_order_weight(c: Coefficients, g: Array) -> float:
    """Return λ, the weight of `random_order` in `auto`."""
    own = c.q * g**2 + np.finfo(np.float64).smallest_normal
    with np.errstate(over="ignore"):  # κ may be beyond any multiple of a tiny g²
        share, weight = 1 / (1 + c.kappa / own), 1 / (1 + (c.kappa + c.eps**2) / own)
    whole = weight.sum()
    mean = float((weight * share**2).sum() / whole) if whole > 0 else 0.0
    return min(max((mean - LEAST_SHARE) / (FULL_SHARE - LEAST_SHARE), 0.0), 1.0)


SLOPE_FUNCTIONS: dict[str, Callable[[SlopeInput], Array]] = {
    "sgd": sgd,
    "frozen": frozen,
    "linearized": linearized,
    "tangent": tangent,
    "secant": secant,
    "random_order": random_order,
    "auto": auto,
}


@elementary
def partial_sum_deviation(x: Array, g: Array) -> Array:
    """Return σ = √(n/(n − 1) · max(Σ_i x_i² − g²/n, 0)): the variance of a random prefix's sum is τ(1 − τ) σ².

    Computed as √(n/(n − 1) Σ_i (x_i − g/n)²), an equal form without cancellation.
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
    positive = np.arange(count) >= (count + 1) // 2  # by position: the middle node of an odd rule is only nearly 0
    return nodes[positive], weights[positive] / math.sqrt(2 * math.pi)


def step_slopes(step: Step, slope: ScoreSlope, x: Params, g: Params, nodes: tuple[int, int]) -> Params:
    """Return S of each parameter, for the contributions `x` and their sum `g`."""
    c = step_coefficients(step)
    return {name: SLOPE_FUNCTIONS[slope](SlopeInput(c[name], x[name], g[name], nodes)) for name in x}


def linearized_previous(step: Step) -> Params:
    """Return η k / (sqrt(v̂_{t−1} + ε_root) + ε): the linearised slope as printed in secondary sources of the paper.

    v̂_{t−1} = v_{t−1} / (1 − β2^{t−1}) is the state's own bias-corrected second moment, undefined at t = 1.
    """
    for name in step.params:
        if step.settings(name).l2:
            refuse("denominator", f"'previous' with Adam.l2 {step.settings(name).l2}", "'exact', or an l2 of 0")
    if step.state.step == 0:
        refuse("denominator", "'previous' at t = 1, where 1 − β2⁰ = 0", "'exact', or a state of at least one step")
    beta2 = dict.fromkeys(step.settings(name).betas[1] for name in step.params)
    corrections = {beta: bias_correction(beta, step.state.step) for beta in beta2}
    slopes = {}
    for name, c in step_coefficients(step).items():
        adam = step.settings(name)
        v_hat = step.state.v[name] / corrections[adam.betas[1]]
        D = np.sqrt(v_hat + adam.eps_root) + adam.eps
        refuse_zero_denominator(zeros(D), "v is 0")
        slopes[name] = c.lr * c.k / D
    return slopes
