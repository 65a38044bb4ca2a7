r"""The slope "two_term" **[ours]**: two ghost terms that approximate one exact marginal (docs/method.md 4).

A sample that arrives at the sum Y of others changes the update by A(Y + x) − A(Y) = x A[Y + x, Y]. Here that change is

    S x + R f(x),      f(x) = sign(x) √|x|,

with the two coefficients fitted, coordinate by coordinate, by least squares over a normal x with the mean and variance
of the batch, and Y as in the marginal. For a linear layer's x = b aᵀ, f(x) = f(b) f(a)ᵀ is an outer product too: both
terms are ghost dot products.

===========  ====================  ==============================================================================
method 4     name                  meaning
===========  ====================  ==============================================================================
x̄, ς         ``mean``, ``spread``  g/n; ς² = Σ_i (x_i − x̄)²/n
ξ            ``size``              ξ² = x̄² + ς² = Σ_i x_i²/n
x_j, a_j     ``own``, ``a``        x̄ + h_j ς, at the nodes of the normal rule, and its weights
z_j          ``z``                 |x_j|/ξ; Σ_j a_j z_j² = 1
s_j          ``slope``             E[A[Y + x_j, Y]], over the sums Y at which x_j arrives
φ_j          (none)                f(z_j)/z_j = z_j^(−1/2), the second term's part in the slope
ω_j          ``a * z**2``          weights of the regression of s on φ, which sum to 1
N, τ         ``others``, ``tau``   n − 1; the fraction of them that has arrived
δ            ``RIDGE``             fraction of Σ ω φ² that is added to the variance of φ
===========  ====================  ==============================================================================
"""

import numpy as np

from adamshap.reference.adam import Coefficients, divided_difference
from adamshap.reference.contract import Array, MarginalKind
from adamshap.reference.elementary import elementary
from adamshap.reference.squares import in_units

OWN_NODES = 4
"""Nodes over a sample's own x. With two or three, the nodes around a mean of 0 have equal |x|, which determine only
one term; more than four gain nothing (docs/choose.md)."""

RIDGE = 1e-3
"""Ridge parameter: R tends smoothly to 0 as equal samples make f a multiple of x. Errors of s are magnified in R f(x)
by at most 1/(2 √δ) = 16."""


def signed_root(x: Array) -> Array:
    """Return f(x) = sign(x) √|x|."""
    return np.sign(x) * np.sqrt(np.abs(x))


def part_of_the_way(kind: MarginalKind, n: int) -> tuple[float, float]:
    """Return the part of the way from A(0) to A(g) that a sample takes; for "shapley", averaged over orders, all."""
    return {"first": (0.0, 1 / n), "last": (1 - 1 / n, 1.0), "shapley": (0.0, 1.0)}[kind]


def two_coefficients(kind: MarginalKind, c: Coefficients, x: Array, nodes: tuple[int, int]) -> tuple[Array, Array]:
    """Return S and R of one parameter, for the contributions `x` (n, …).

    With x scaled by ξ, S z + R f(z) ≈ z s is a regression of s on φ = f(z)/z with the weights ω = a z²:

        R = Σ ω (φ − φ̄)(s − s̄) / (Σ ω (φ − φ̄)² + δ Σ ω φ²),   S = s̄ − R φ̄,   s̄ = Σ ω s,   φ̄ = Σ ω φ,

    where every sum is written in z and √z, so that no division by z, which may be 0, is needed. In units of x, R is √ξ
    times as large, since f(x) = √ξ f(z) and x = ξ z. Where every x_i is 0, both terms are 0 for any coefficients.
    """
    mean, spread = x.mean(axis=0), own_spread(x)
    size = np.hypot(mean, spread)
    h, weights = normal_rule(OWN_NODES)
    own = np.stack([mean + h_j * spread for h_j in h])
    a = weights.reshape(-1, *[1] * mean.ndim)
    z = np.abs(own) / np.where(size > 0, size, 1.0)
    slope = np.stack([arrival_slope(kind, c, x, x_j, spread, nodes) for x_j in own])
    mean_slope, mean_phi = (a * z**2 * slope).sum(axis=0), (a * z * np.sqrt(z)).sum(axis=0)
    residual = np.sqrt(z) - mean_phi * z  # z (φ − φ̄)
    variance = (a * residual**2).sum(axis=0) + RIDGE * (a * z).sum(axis=0)
    R = (a * z * residual * (slope - mean_slope)).sum(axis=0) / np.where(variance > 0, variance, 1.0)
    return mean_slope - R * mean_phi, R * np.sqrt(size)


@elementary
def own_spread(x: Array) -> Array:
    """Return ς = √(Σ_i (x_i − x̄)²/n), with the divisor n: the batch is the whole population."""
    scaled, unit = in_units(x - x.mean(axis=0))
    spread: Array = unit * np.sqrt((scaled**2).mean(axis=0))
    return spread


def arrival_slope(
    kind: MarginalKind, c: Coefficients, x: Array, own: Array, spread: Array, nodes: tuple[int, int]
) -> Array:
    """Return s = E[A[Y + x, Y]] for a sample of contribution `own`: Y is 0 for "first", g − x for "last".

    For "shapley" k of the N = n − 1 others have arrived, k uniform on 0 … N: with τ = k/N, Y has mean τ (g − x) and the
    variance of `found_variance`, and is assumed normal. Its rule alternates between ``nodes[1]`` nodes and one fewer:
    otherwise, for g near 0, positions equally far from the middle would evaluate the same sums.
    """
    g, others = x.sum(axis=0), len(x) - 1
    if kind == "first":
        return divided_difference(c, own, np.zeros_like(own))
    if kind == "last":
        return divided_difference(c, g, g - own)
    total = np.zeros_like(own)
    for place, (tau, w) in enumerate(zip(*place_rule(len(x), nodes[0]), strict=True), start=1):
        deviation = np.sqrt(found_variance(tau, others)) * spread
        for h, a in zip(*normal_rule(nodes[1] - place % 2), strict=True):
            Y = tau * (g - own) + h * deviation
            total += w * a * divided_difference(c, Y + own, Y)
    return total


def found_variance(tau: float, others: int) -> float:
    """Return Var Y/ς² = τ(1 − τ) N²/(N − 1) for τ N of N others drawn without replacement; 0 for N = 1."""
    return tau * (1 - tau) * others**2 / max(others - 1, 1)


def normal_rule(count: int) -> tuple[Array, Array]:
    """Return Gauss–Hermite nodes and weights of the standard normal: the weights sum to 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, weights / np.sqrt(2 * np.pi)


def place_rule(n: int, count: int) -> tuple[Array, Array]:
    """Return nodes and weights of τ = k/(n − 1), k uniform on 0 … n − 1: all n of them, or `gauss_places`."""
    if n <= count:
        return np.arange(n) / max(n - 1, 1), np.full(n, 1 / n)
    return gauss_places(n, count)


@elementary
def gauss_places(n: int, count: int) -> tuple[Array, Array]:
    """Return `count` < n nodes and weights of Gauss's rule for `place_rule`.

    It is exact for polynomials of degree 2 `count` − 1. Its nodes and weights come from the
    eigenvectors of the Jacobi matrix of the discrete Chebyshev polynomials (Golub & Welsch 1969), whose diagonal is ½
    and whose other elements are, squared, j² (n² − j²) / (4 (4 j² − 1) (n − 1)²). For n → ∞ it is Gauss–Legendre.
    """
    j = np.arange(1, count)
    beside = j / (2 * (n - 1)) * np.sqrt((n - j) * (n + j) / (4 * j**2 - 1))
    tau, vectors = np.linalg.eigh(np.diag(np.full(count, 0.5)) + np.diag(beside, 1) + np.diag(beside, -1))
    return tau, vectors[0] ** 2
