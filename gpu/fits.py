"""The two slopes of `two_term`, elementwise: S and R fitted to the change that a sample makes of Adam's step.

=======  ================  =====================================================================
paper    name              meaning
=======  ================  =====================================================================
x̄, ς     ``mean``,         of the batch's contributions, made of g and Σ x² alone
         ``deviation``
ξ        ``size``          their root mean square
x_j      ``x``             x̄ + h_j ς, at a node of the normal plan, whose weight is a_j
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

Written with NumPy's array operations, in blocks that stay in the cache; used where Numba is missing.
"""

from itertools import combinations
from typing import Any

import numpy as np

from adamshap.gpu.kernels.plan import AdamScalars, FitPlan
from adamshap.gpu.passes_numpy import quotient, spread

__all__ = ["fit"]

BLOCK = 1 << 13
"""Elements at a time: two dozen temporaries of so many fit in a core's cache."""


def fit(
    scalars: AdamScalars,
    plan: FitPlan,
    n: int,
    g: Any,
    m: Any,
    v: Any,
    row: Any,
    col: Any,
    root: Any,
    slope: Any,
    second: Any,
) -> None:
    """Write S and R; see `kernels.Fit`."""
    size = max(1, BLOCK // g.shape[1])
    for first in range(0, len(g), size):
        part = slice(first, first + size)
        g_, f = g[part], g.dtype.type
        row_, root_ = (None if x is None else x[part] for x in (row, root))
        sigma = g_ * 0 if n == 1 else spread(n, g_, row_, col, root_)
        slope[part], second[part] = _fit(scalars, plan, n, g_, m[part], v[part], sigma * f(plan.share))


def _fit(scalars: AdamScalars, plan: FitPlan, n: int, g: Any, m: Any, v: Any, deviation: Any) -> tuple[Any, Any]:
    """Return S and R of some elements, `deviation` being ς."""
    f = g.dtype.type
    rho, q = np.sqrt(f(scalars.kappa) * v + f(scalars.root)), f(scalars.root_q)
    mean = g * f(1 / n)
    size = np.hypot(mean, deviation)
    inverse = np.where(size > 0, 1 / np.where(size > 0, size, f(1)), f(0))
    z, roots, slopes = [], [], []
    for h, _ in plan.own:
        x = mean + f(h) * deviation
        slope = np.zeros_like(g)
        for tau, across, weight in plan.arrivals:
            apart = f(across) * deviation
            b = f(tau) * (g - x) + apart
            a = f(tau) * g + (f(1) - f(tau)) * x + apart  # b + x, and g itself where all the others are there
            slope += f(weight) * _divided(scalars, rho, m, q * a, q * b)
        slopes.append(slope)
        z.append(abs(x) * inverse)
        roots.append(np.sqrt(z[-1]))
    covariance, variance, mean_slope, mean_part = (np.zeros_like(g) for _ in range(4))
    for (_, a), z_j, r_j, s_j in zip(plan.own, z, roots, slopes, strict=True):
        mean_slope += f(a) * z_j * z_j * s_j
        mean_part += f(a) * z_j * r_j
        variance += f(plan.ridge * a) * z_j
    for j, k in combinations(range(len(plan.own)), 2):
        both, gap = f(plan.own[j][1] * plan.own[k][1]) * z[j] * z[k], roots[k] - roots[j]
        covariance += both * roots[j] * roots[k] * gap * (slopes[j] - slopes[k])
        variance += both * gap * gap
    second = covariance / np.where(variance > 0, variance, f(1))
    return mean_slope - second * mean_part, second * np.sqrt(size)


def _divided(scalars: AdamScalars, rho: Any, m: Any, a: Any, b: Any) -> Any:
    """Return A[a/√q, b/√q], made in units of the largest of what stands under a root."""
    f = rho.dtype.type
    top = np.maximum(np.maximum(rho, np.maximum(abs(a), abs(b))), f(np.finfo(rho.dtype).tiny))
    T = top + f(scalars.eps)
    rho, mu = rho / top, f(scalars.mu * scalars.root_q) * (m / T)
    a, b = a / top, b / top
    f_e = np.maximum(f(scalars.eps) / T, f(np.finfo(rho.dtype).tiny))  # D where κ and a sum are 0
    return quotient(f(scalars.k), rho * rho, mu, top / T, f_e, a, b, a + b) * (f(scalars.lr) / T)
