"""The slopes S of docs/method.md 4, and S and R of "two_term"."""

import math

import numpy as np

from adamshap.reference.contract import Array
from adamshap.verify.candidates.variants.adam_map import AdamMap, normal_rule, unit_rule

__all__ = ["signed_root", "slope_of", "two_terms"]

RIDGE = 1e-3


def slope_of(slope: str, A: AdamMap, g: Array, squares: Array, n: int, nodes: tuple[int, int]) -> Array:
    """Return S of one parameter, for the gradient g and Σ (x_i − g/n)² over the n samples."""
    zero = np.zeros_like(g)
    if slope == "sgd":
        return zero + A.s.lr
    if slope in ("frozen", "linearized"):
        return zero + A.s.lr * A.k / (A.root(g if slope == "frozen" else zero) + A.s.eps)
    if slope == "tangent":
        return A.difference(g, g)
    if slope == "secant" or n == 1:
        return A.difference(g, zero)
    sigma, total = np.sqrt(squares * (n / (n - 1))), zero
    for tau, w in zip(*unit_rule(nodes[0]), strict=True):
        s = math.sqrt(tau * (1 - tau)) * sigma
        for h, a in list(zip(*normal_rule(nodes[1]), strict=True))[(nodes[1] + 1) // 2 :]:
            total = total + (2 * w * a * h * h) * A.difference(tau * g + h * s, tau * g - h * s)
    return total


def signed_root(x: Array) -> Array:
    """Return sign(x) √|x|."""
    return np.sign(x) * np.sqrt(np.abs(x))


def two_terms(kind: str, A: AdamMap, g: Array, squares: Array, n: int, nodes: tuple[int, int]) -> tuple[Array, Array]:
    """Return S and R of one parameter, for the gradient g and Σ (x_i − g/n)² over the n samples."""
    mean, spread = g / n, np.sqrt(squares / n)
    size = np.hypot(mean, spread)
    rule = list(zip(*normal_rule(4), strict=True))
    owns = [mean + h * spread for h, _ in rule]
    zs = [np.abs(own) / np.where(size > 0, size, 1) for own in owns]
    weights = [a * z * z for (_, a), z in zip(rule, zs, strict=True)]
    # φ ω = a z^(3/2), and ω φ² = a z: no division by z.
    s = [_arrival(kind, A, g, own, spread, n, nodes) for own in owns]
    mean_s = sum(w * s_j for w, s_j in zip(weights, s, strict=True))
    mean_phi = sum(a * z * np.sqrt(z) for (_, a), z in zip(rule, zs, strict=True))
    top, bottom = np.zeros_like(g), np.zeros_like(g)
    for (_, a), z, s_j in zip(rule, zs, s, strict=True):
        off = np.sqrt(z) - z * mean_phi
        top = top + a * z * off * (s_j - mean_s)
        bottom = bottom + a * off * off + (RIDGE * a) * z
    R = top / np.where(bottom > 0, bottom, 1)
    return mean_s - R * mean_phi, R * np.sqrt(size)


def _arrival(kind: str, A: AdamMap, g: Array, own: Array, spread: Array, n: int, nodes: tuple[int, int]) -> Array:
    """Return E[A[Y + x, Y]]."""
    if kind == "first":
        return A.difference(own, np.zeros_like(own))
    if kind == "last":
        return A.difference(g, g - own)
    others, total = n - 1, np.zeros_like(own)
    for place, (tau, w) in enumerate(zip(*_places(n, nodes[0]), strict=True)):
        deviation = math.sqrt(tau * (1 - tau) * others**2 / max(others - 1, 1)) * spread
        for h, a in zip(*normal_rule(nodes[1] if place % 2 else nodes[1] - 1), strict=True):
            Y = tau * (g - own) + h * deviation
            total = total + (w * a) * A.difference(Y + own, Y)
    return total


def _places(n: int, count: int) -> tuple[list[float], list[float]]:
    """Return nodes and weights of the uniform distribution on k/(n − 1)."""
    if n <= count:
        return [k / max(n - 1, 1) for k in range(n)], [1 / n] * n
    j = np.arange(1.0, count)
    beside = np.sqrt(j**2 * (n**2 - j**2) / (4 * (4 * j**2 - 1) * (n - 1) ** 2))
    tau, vectors = np.linalg.eigh(np.diag(np.full(count, 0.5)) + np.diag(beside, 1) + np.diag(beside, -1))
    return np.maximum(tau, 0).tolist(), (vectors[0] ** 2).tolist()
