"""Tails of the normal and of Student's t distribution, and quantiles of the latter, without SciPy."""

import math
from statistics import NormalDist

import numpy as np

from adamshap.reference.contract import Array

__all__ = ["normal_tails", "student_quantile", "student_tails"]

AS_GOOD_AS_NORMAL = 1e6
"""Degrees of freedom from which on Student's t is taken for normal: at |t| = 6 the tail is off by 0.03 %."""

MOST_TERMS = 10_000
MOST_STEPS = 200
TINY = 1e-300


def normal_tails(z: Array) -> Array:
    """Return P(Z > z) for each element of `z`, with Z ~ N(0, 1)."""
    flat = [math.erfc(value / math.sqrt(2)) / 2 for value in np.ravel(z).tolist()]
    return np.reshape(np.array(flat, float), np.shape(z))


def student_tails(t: Array, degrees: Array | float) -> Array:
    """Return P(T > t) for each element of `t`, with T of Student's t distribution; `degrees` > 0 may be infinite.

    P(T > t) = I_x(ν/2, 1/2) / 2 for t ≥ 0, with x = ν / (ν + t²) and the regularised incomplete beta function I.
    `t` and `degrees` are broadcast.
    """
    t, degrees = np.broadcast_arrays(np.asarray(t, float), np.asarray(degrees, float))
    finite = np.minimum(degrees, AS_GOOD_AS_NORMAL)
    square = np.square(t)
    tails = _incomplete_beta(finite / 2, 0.5, finite / (finite + square), square / (finite + square)) / 2
    return np.where(degrees > AS_GOOD_AS_NORMAL, normal_tails(t), np.where(t >= 0, tails, 1 - tails))


def student_quantile(p: float, degrees: Array | float) -> Array:
    """Return t with P(T ≤ t) = p, 1/2 ≤ p < 1, for each element of `degrees`, by Newton's method.

    The tail is convex for t ≥ 0, and the normal quantile is at most Student's, so the steps approach it from below.
    """
    degrees = np.asarray(degrees, float)
    finite = np.minimum(degrees, AS_GOOD_AS_NORMAL)
    log_front = _log_gamma((finite + 1) / 2) - _log_gamma(finite / 2) - np.log(finite * np.pi) / 2
    t = np.full(degrees.shape, NormalDist().inv_cdf(p))
    for _ in range(MOST_STEPS):
        density = np.exp(log_front - (finite + 1) / 2 * np.log1p(np.square(t) / finite))
        step = np.where(degrees > AS_GOOD_AS_NORMAL, 0.0, (student_tails(t, degrees) - (1 - p)) / density)
        t = t + step
        if np.all(np.abs(step) <= 1e-12 * t):
            break
    return t


def _log_gamma(x: Array) -> Array:
    return np.reshape(np.array([math.lgamma(value) for value in np.ravel(x).tolist()], float), np.shape(x))


def _incomplete_beta(a: Array, b: float, x: Array, rest: Array) -> Array:
    """Return I_x(a, b) by Lentz's continued fraction; `rest` is 1 - x, which the caller knows without cancellation."""
    log_beta = _log_gamma(a) + math.lgamma(b) - _log_gamma(a + b)
    with np.errstate(divide="ignore"):
        front = np.exp(a * np.log(x) + b * np.log(rest) - log_beta)
    near = x < (a + 1) / (a + b + 2)  # where the fraction converges fast; elsewhere that of 1 - x does
    result = np.empty(np.shape(x))
    result[near] = front[near] * _fraction(a[near], b, x[near]) / a[near]
    result[~near] = 1 - front[~near] * _fraction(b, a[~near], rest[~near]) / b
    return result


def _fraction(a: Array | float, b: Array | float, x: Array) -> Array:
    c, d = np.ones_like(x), 1 - (a + b) * x / (a + 1)
    d = 1 / np.where(np.abs(d) < TINY, TINY, d)
    value = d.copy()
    for m in range(1, MOST_TERMS):
        before = value.copy()
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            c = 1 + term / c
            d = 1 / np.where(np.abs(d) < TINY, TINY, d)
            c = np.where(np.abs(c) < TINY, TINY, c)
            value = value * c * d
        if np.all(np.abs(value - before) <= 1e-14 * np.abs(value)):
            break
    return value
