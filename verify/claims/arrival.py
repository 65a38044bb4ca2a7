"""Slopes made for one question each, and a second ghost term: experiments, not part of the estimators' interface.

When sample i arrives and finds the partial sum Y, the step changes by A(Y + x_i) − A(Y) = x_i A[Y + x_i, Y]. A ghost
dot product has one slope S for all samples of the batch. The best one, coordinate by coordinate and in least squares
over the samples, is

    S = Σ_i x_i² A[Y_i + x_i, Y_i] / Σ_i x_i².

The sums over samples would need every x_i. Taking x as normal with the batch's own mean g/n and variance
ς² = Σ_i (x_i − g/n)²/n, as `random_order` takes Y, both are expectations over Gauss–Hermite nodes, made of g and
Σ x_i² alone, which an engine has:

    S = Σ_h a_h x_h² E[A[Y + x_h, Y]] / Σ_h a_h x_h²,      x_h = g/n + h ς.

Y is 0 for `first`, g − x for `last`; for the Shapley value it is a random part of the others: of k of the N = n − 1
others, k uniform on 0 … N, with mean (k/N)(g − x) and variance (k/N)(1 − k/N) N²/(N − 1) ς².

Where Γ is taken. The loss changes from the point after the step A(Y) to that after A(Y + x_i), and for a quadratic loss
the gradient in the middle of that segment is exact. On the way from A(0) to A(g), the whole batch's, a sample is about
1/n; so the middle of its own part is at 1/(2n) for `first`, at 1 − 1/(2n) for `last`, and at ½ on average for Shapley.

Two terms. A linear layer's x_i is an outer product b aᵀ (one position), so every multiplicative function of x_i is an
outer product too: sign(x)|x|^p = (sign(b)|b|^p)(sign(a)|a|^p)ᵀ. Hence ⟨Γ ⊙ R, sign(x_i)|x_i|^p⟩ is a ghost dot product
as well, at the cost of one more contraction, and A(Y + x_i) − A(Y) ≈ S x_i + R sign(x_i)|x_i|^p may be fitted with two
coefficients, from the 2×2 normal equations under the same normal x. At t = 1, where A(x) = η sign(x) but for ε, p = 0
is exact for `first`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from adamshap.reference.adam import Coefficients, divided_difference, step_coefficients
from adamshap.reference.ghost import GradientInput, between, unit_interval_rule
from adamshap.reference.network import loss_gradient
from adamshap.reference.problem import Array, Params, Step

Arrival = Literal["first", "last", "shapley"]
ARRIVALS: tuple[Arrival, ...] = get_args(Arrival)
COUNTED_ARRIVALS = 9  # up to so many samples every place of arrival is a node; above, Gauss–Legendre


@dataclass(frozen=True)
class Nodes:
    """How many: of τ (in large batches), of Y's normal and of x's normal; even numbers, which have no node at 0."""

    path: int = 4
    others: int = 4
    own: int = 4


def normal_rule(count: int) -> Iterator[tuple[float, float]]:
    """Yield (node, weight) of the Gauss–Hermite rule of the standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    yield from zip(nodes.tolist(), (weights / math.sqrt(2 * math.pi)).tolist(), strict=True)


def found(
    arrival: Arrival, n: int, g: Array, variance: Array, own: Array, nodes: Nodes
) -> Iterator[tuple[float, Array]]:
    """Yield (weight, Y), what a sample of contribution `own` finds when it arrives."""
    if arrival == "first" or n == 1:
        yield 1.0, np.zeros_like(g)
        return
    if arrival == "last":
        yield 1.0, g - own
        return
    others = n - 1
    if n <= COUNTED_ARRIVALS:
        places = [(k / others, 1 / n) for k in range(n)]
    else:
        places = list(zip(*(rule.tolist() for rule in unit_interval_rule(nodes.path)), strict=True))
    for tau, weight in places:
        mean = tau * (g - own)
        if tau in (0.0, 1.0):
            yield weight, mean
            continue
        deviation = np.sqrt(tau * (1 - tau) * others**2 / (others - 1) * variance)
        for h, a in normal_rule(nodes.others):
            yield weight * a, mean + h * deviation


def coefficients_of(
    arrival: Arrival, c: Coefficients, x: Array, power: float | None = None, nodes: Nodes | None = None
) -> tuple[Array, Array]:
    """Return S, and R of the second term (0 without a `power`), of one parameter with contributions `x` (n, …)."""
    nodes = Nodes() if nodes is None else nodes
    n, g = len(x), x.sum(axis=0)
    variance = ((x - g / n) ** 2).mean(axis=0)
    xx, xf, ff, xc, fc = (np.zeros_like(g) for _ in range(5))
    for h, a in normal_rule(nodes.own):
        own = g / n + h * np.sqrt(variance)
        slope = np.zeros_like(g)
        for weight, Y in found(arrival, n, g, variance, own, nodes):
            slope += weight * divided_difference(c, Y + own, Y)
        other = np.zeros_like(own) if power is None else np.sign(own) * np.abs(own) ** power
        xx += a * own**2
        xf += a * own * other
        ff += a * other**2
        xc += a * own**2 * slope
        fc += a * other * own * slope
    if power is None:
        return _ratio(xc, xx), np.zeros_like(g)
    determinant = xx * ff - xf**2
    # Where all contributions are nearly equal, the two terms cannot be told apart: one is enough.
    apart = determinant > 1e-9 * xx * ff
    S = np.where(apart, _ratio(ff * xc - xf * fc, determinant), _ratio(xc, xx))
    return S, np.where(apart, _ratio(xx * fc - xf * xc, determinant), 0.0)


def _ratio(a: Array, b: Array) -> Array:
    return a / np.where(b > 0, b, np.inf)


def arrival_gradient(step: Step, g: Params, arrival: Arrival) -> Params:
    """Return ∇L where the arrival's part of the step is half done."""
    fraction = {"first": 1 / (2 * step.n), "last": 1 - 1 / (2 * step.n), "shapley": 0.5}[arrival]
    return loss_gradient(step.net, between(GradientInput(step, g, (4, 4)), fraction), step.valid)


def arrival_scores(
    step: Step, x: Params, g: Params, arrival: Arrival, power: float | None = None, nodes: Nodes | None = None
) -> Array:
    """Return ⟨Γ ⊙ S, x_i⟩ + ⟨Γ ⊙ R, sign(x_i)|x_i|^power⟩ with Γ in the middle of the arrival: (n,)."""
    gamma = arrival_gradient(step, g, arrival)
    c = step_coefficients(step)
    total = np.zeros(step.n)
    for name, x_i in x.items():
        S, R = coefficients_of(arrival, c[name], x_i, power, nodes)
        change = S * x_i if power is None else S * x_i + R * np.sign(x_i) * np.abs(x_i) ** power
        total += (gamma[name] * change).reshape(step.n, -1).sum(axis=1)
    return total
