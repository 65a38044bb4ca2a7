"""The two slopes of `two_term`, elementwise: S and R fitted to the change that a sample makes of Adam's step.

=======  ================  =====================================================================
paper    name              meaning
=======  ================  =====================================================================
x̄, ς     ``mean``,         of the batch's contributions, made of g and Σ x² alone
         ``deviation``
ξ        ``size``          their root mean square
x_j      ``x``             x̄ + h_j ς, at a node of the normal rule, whose weight is a_j
z        ``z``             |x|/ξ
s        ``slopes``        mean of A[Y + x, Y] over the sums Y that a sample may find
S, R     ``slope``,        of the first and of the second term
         ``second``
=======  ================  =====================================================================

With r = √z and weights ω = a z² that sum to 1, the regression of s on 1/r is made of pairs of nodes j < k,

    R = Σ ω_j ω_k (1/r_j − 1/r_k)(s_j − s_k) / (Σ ω_j ω_k (1/r_j − 1/r_k)² + δ Σ a z),
    ω_j ω_k (1/r_j − 1/r_k)  = a_j a_k z_j z_k r_j r_k (r_k − r_j),
    ω_j ω_k (1/r_j − 1/r_k)² = a_j a_k z_j z_k (r_k − r_j)²,

in which equal slopes cancel to their last digit.

Written with array operations that NumPy and CuPy have alike; on the host in blocks that stay in the cache.
"""

from importlib import import_module
from itertools import combinations
from typing import Any

import numpy as np

from adamshap.gpu.passes_numpy import quotient, spread
from adamshap.gpu.rules import FitRule, Rates

__all__ = ["fit"]

BLOCK = 1 << 13
"""Elements at a time on the host: two dozen temporaries of so many fit in a core's cache."""


def fit(
    rates: Rates,
    rule: FitRule,
    n: int,
    g: Any,
    m: Any,
    v: Any,
    row: Any,
    col: Any,
    square: Any,
    slope: Any,
    second: Any,
) -> None:
    """Write S and R; see `kernels.Fit`."""
    xp = np if isinstance(g, np.ndarray) else import_module("cupy")
    size = len(g) if xp is not np else max(1, BLOCK // g.shape[1])
    for first in range(0, len(g), size):
        part = slice(first, first + size)
        g_, f = g[part], g.dtype.type
        sigma = g_ * 0 if n == 1 else spread(n, g_, row[part], col, None if square is None else square[part])
        slope[part], second[part] = _fit(xp, rates, rule, n, g_, m[part], v[part], sigma * f(rule.share))


def _fit(xp: Any, rates: Rates, rule: FitRule, n: int, g: Any, m: Any, v: Any, deviation: Any) -> tuple[Any, Any]:
    """Return S and R of some elements, `deviation` being ς."""
    f = g.dtype.type
    rho, q = xp.sqrt(f(rates.kappa) * v + f(rates.root)), f(rates.root_q)
    mean = g * f(1 / n)
    size = xp.hypot(mean, deviation)
    inverse = xp.where(size > 0, 1 / xp.where(size > 0, size, f(1)), f(0))
    z, roots, slopes = [], [], []
    for h, _ in rule.own:
        x = mean + f(h) * deviation
        slope = xp.zeros_like(g)
        for tau, across, weight in rule.arrivals:
            apart = f(across) * deviation
            b = f(tau) * (g - x) + apart
            a = f(tau) * g + (f(1) - f(tau)) * x + apart  # b + x, and g itself where all the others are there
            slope += f(weight) * _divided(xp, rates, rho, m, q * a, q * b)
        slopes.append(slope)
        z.append(abs(x) * inverse)
        roots.append(xp.sqrt(z[-1]))
    covariance, variance, mean_slope, mean_part = (xp.zeros_like(g) for _ in range(4))
    for (_, a), z_j, r_j, s_j in zip(rule.own, z, roots, slopes, strict=True):
        mean_slope += f(a) * z_j * z_j * s_j
        mean_part += f(a) * z_j * r_j
        variance += f(rule.ridge * a) * z_j
    for j, k in combinations(range(len(rule.own)), 2):
        both, gap = f(rule.own[j][1] * rule.own[k][1]) * z[j] * z[k], roots[k] - roots[j]
        covariance += both * roots[j] * roots[k] * gap * (slopes[j] - slopes[k])
        variance += both * gap * gap
    second = covariance / xp.where(variance > 0, variance, f(1))
    return mean_slope - second * mean_part, second * xp.sqrt(size)


def _divided(xp: Any, rates: Rates, rho: Any, m: Any, a: Any, b: Any) -> Any:
    """Return A[a/√q, b/√q], made in units of the largest of what stands under a root."""
    f = rho.dtype.type
    top = xp.maximum(xp.maximum(rho, xp.maximum(abs(a), abs(b))), f(np.finfo(rho.dtype).tiny))
    T = top + f(rates.eps)
    rho, mu = rho / top, f(rates.mu * rates.root_q) * (m / T)
    a, b = a / top, b / top
    return quotient(f(rates.k), rho * rho, mu, top / T, f(rates.eps) / T, a, b, a + b) * (f(rates.lr) / T)
