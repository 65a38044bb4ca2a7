"""Adam's update split between the momentum and the batch, ``A(g) ≈ M ⊙ m + S ⊙ g``, elementwise (docs/method.md 6).

=======  ==================  ==================================================================
paper    name                meaning
=======  ==================  ==================================================================
S        ``slope``           what a unit of the batch's gradient moves
M        ``share``           what a unit of m moves: η β1/c1 times a mean of 1/D
Γ        ``gamma``           validation gradient on the walked step
O        ``share``           Γ ⊙ M, what the step owes to the momentum
K        ``owed``            running sum of O (`carry`)
N        ``excess``          (∫₀¹ dτ / D(τ g) − 1/D(g)) / g
ρ, s, e  ``rho, s, eps``     √κ, √q |g| and ε, divided by R = r(g) where nothing else is said
=======  ==================  ==================================================================

Written with array operations that NumPy and CuPy have alike; on the host in blocks that stay in the cache.
"""

from importlib import import_module
from typing import Any

import numpy as np

from adamshap.gpu.kernels.plan import LITTLE, SMALL_ANGLE, AdamScalars, SplitPlan, even_nodes
from adamshap.gpu.passes_numpy import spread

__all__ = ["excess", "split", "split_even"]

BLOCK = 1 << 14
"""Elements at a time on the host: a dozen temporaries of so many fit in a core's cache."""


def split(
    scalars: AdamScalars,
    plan: SplitPlan,
    n: int,
    g: Any,
    theta: Any,
    m: Any,
    v: Any,
    row: Any,
    col: Any,
    root: Any,
    gamma: Any,
    grow: float,
    less: float,
    owed: Any,
    product: Any,
) -> Any:
    """Split, weigh with Γ, add up what is owed and what it amounts to; see `kernels.Split`."""
    xp = np if isinstance(g, np.ndarray) else import_module("cupy")
    size = len(g) if xp is not np else max(1, BLOCK // g.shape[1])
    sums = xp.zeros(4)
    for first in range(0, len(g), size):
        part = slice(first, first + size)
        g_, m_, gamma_ = g[part], m[part], gamma[part]
        sigma = None
        if plan.needs_spread:
            row_, root_ = (None if x is None else x[part] for x in (row, root))
            sigma = spread(n, g_, row_, col, root_)
        slope, share = _split(xp, scalars, plan, g_, m_, v[part], sigma)
        slope *= gamma_
        share *= gamma_
        pairs = [(slope, g_), (share, m_), (share, share)] + ([] if theta is None else [(gamma_, theta[part])])
        for number, (a, b) in enumerate(pairs):
            sums[number] += (a.astype("float64") * b).sum()
        if owed is not None:
            f, sum_ = g.dtype.type, owed[part]
            share *= f(grow)
            sum_ += share
            slope -= f(less) * sum_
        product[part] = slope
    return sums


def _split(xp: Any, scalars: AdamScalars, plan: SplitPlan, g: Any, m: Any, v: Any, sigma: Any) -> tuple[Any, Any]:
    """Return S and M."""
    f = g.dtype.type
    if plan.kind == "even":
        slope, inverse = split_even(xp, scalars, g, m, v)
        return slope, inverse * f(scalars.lr * scalars.mu)
    rho = xp.sqrt(f(scalars.kappa) * v + f(scalars.root))
    if plan.kind == "nodes":
        slope, inverse = _at_nodes(xp, scalars, plan, g, m, rho, xp.zeros_like(g) if sigma is None else sigma)
    else:
        r = rho if plan.kind == "linearized" else xp.hypot(rho, f(scalars.root_q) * g)
        inverse = 1 / (r + f(scalars.eps))
        slope = f(scalars.lr * scalars.k) * inverse
    return slope, inverse * f(scalars.lr * scalars.mu)


def _at_nodes(xp: Any, scalars: AdamScalars, plan: SplitPlan, g: Any, m: Any, rho: Any, sigma: Any) -> tuple[Any, Any]:
    """Return S and the mean of 1/D as sums over nodes.

    With everything under a root divided by the largest of its parts, ``top``, and T = top + ε, the divided difference
    of η (μ + k g)/(r + ε) is that of `passes_numpy`: a sum of non-negative terms times k, less μ's.
    """
    f = g.dtype.type
    G, s = f(scalars.root_q) * g, f(scalars.root_q) * sigma
    top = xp.maximum(xp.maximum(xp.maximum(rho, abs(G)), s), f(np.finfo(g.dtype).tiny))
    T = top + f(scalars.eps)
    rho, G, s, part, e = rho / top, G / top, s / top, top / T, f(scalars.eps) / T
    kappa, mu = rho * rho, f(scalars.mu * scalars.root_q) * (m / T)
    slope, inverse = xp.zeros_like(g), xp.zeros_like(g)
    for tau, across, weight, each in plan.nodes:
        c, d = f(tau) * G, f(across) * s
        a, b = c + d, c - d
        aa, bb, ab = a * a, b * b, a * b
        r_a, r_b = xp.sqrt(kappa + aa), xp.sqrt(kappa + bb)
        D_a, D_b = part * r_a + e, part * r_b + e
        inverse += f(each) * (1 / D_a + 1 / D_b)
        if weight:
            R, U = r_a + r_b + f(1e-30), r_a * r_b + abs(ab)
            X = xp.where(ab > 0, kappa * (kappa + aa + bb) / xp.where(U > 0, U, f(1)), U)
            of_k = f(scalars.k) * (e * R + part * (kappa + X))
            slope += f(weight) * ((of_k - f(2 * tau) * mu * c) / (R * D_a * D_b))
    return slope * (f(scalars.lr) / T), inverse / T


# --- "secant": momentum and batch arrive evenly ----------------------------------------------------------------------


def split_even(xp: Any, scalars: AdamScalars, g: Any, m: Any, v: Any) -> tuple[Any, Any]:
    """Return S = η (k/D − μ N) and 1/D + g N, computed in double precision."""
    wide = [a.astype(np.float64) for a in (g, m, v)]
    rho, G = xp.sqrt(scalars.kappa * wide[2] + scalars.root), scalars.root_q * wide[0]
    R = xp.hypot(rho, G)
    inverse = 1 / (R + scalars.eps)
    # Far below ε, D is ε; squares of ε/R would overflow. Where R and ε are 0 so is g, and N.
    R = xp.maximum(R, scalars.eps * LITTLE)
    R = xp.where(R > 0, R, 1.0)
    N = excess(xp, rho / R, G / R, scalars.eps / R, even_nodes(g.dtype)) * (scalars.root_q / R / R)
    slope = scalars.lr * (scalars.k * inverse - scalars.mu * wide[1] * N)
    return slope.astype(g.dtype), (inverse + wide[0] * N).astype(g.dtype)


def excess(xp: Any, c: Any, sine: Any, e: Any, nodes: tuple[tuple[float, float], ...]) -> Any:
    r"""Return ∫₀¹ τ² σ / (r (r + e)²) dτ with r² = c² + σ² τ², c² + σ² = 1, σ of g's sign.

    With y = tanh(u/2), σ τ = c sinh u, and Y = σ/(1 + c), it is 1/σ² times

        8 c² ∫₀^Y y² / ((1 − y²) Q²) dy,   Q = c (1 + y²) + e (1 − y²),
        = 2 atanh Y − (2 e/(e + c)) ∫₀^Y … − σ/(1 + e)   in closed form:

    for e < c the inner integral is an arc tangent; for e ≥ c all of it is, with d = √(e² − c²), z = σ/(1 + e + d) and
    ψ = √((e − c)/(e + c)),

        2 (atanh z − z) + σ (1 + e − d)/((1 + e)(1 + e + d)) − 2 c² atanh(Y ψ)/(ψ (e + c)(e + d)),

    in which 1/e cancels nowhere. The closed forms are used from Y = `SMALL_ANGLE` on, where they keep their digits.
    """
    size = abs(sine)
    Y = size / (1 + c)
    small = Y < SMALL_ANGLE
    near = xp.where(small, Y, SMALL_ANGLE)
    total = xp.zeros_like(c)
    for x, w in nodes:
        y2 = (x * near) ** 2
        q = c * (1 + y2) + e * (1 - y2)
        total += (w * x * x) / ((1 - y2) * xp.where(small, q, 1.0) ** 2)
    by_quadrature = 8 * (c / (1 + c)) ** 2 / (1 + c) * total  # times σ³/σ²

    far = xp.where(small, 1.0, size)  # σ where the closed form is used; any number elsewhere
    c = xp.where(small, 0.0, c)
    e_ = xp.where(small, 1.0, e)
    Y = far / (1 + c)
    above = e_ >= c
    # The same ψ everywhere: near e = c, where it has no digits, the closed form depends on ψ² alone.
    psi = xp.maximum(xp.sqrt(abs(e_ - c) / (e_ + c)), LITTLE)
    low = 2 * _atanh(xp, Y, (c + c * c / (1 + far)) / (1 + c))
    low = low - 2 * e_ / (e_ + c) * xp.arctan(Y * psi) / psi - far / (1 + e_)
    d = (e_ + c) * psi
    below = 1 + e_ + d
    z, rest = far / below, (c * c / (1 + far) + e_ + d) / below
    high = 2 * _atanh_less(xp, z, rest) + far * (1 + c * c / (e_ + d)) / ((1 + e_) * below)
    gap = (c + c * c / (1 + far)) / (1 + c) + Y * 2 * c / ((e_ + c) * (1 + psi))  # 1 − Y ψ
    high = high - 2 * c * c * _atanh(xp, Y * psi, gap) / (psi * (e_ + c) * (e_ + d))
    return xp.where(small, by_quadrature * sine, xp.where(above, high, low) / far**2 * xp.sign(sine))


def _atanh(xp: Any, x: Any, gap: Any) -> Any:
    """Return atanh x for 0 ≤ x ≤ 1, `gap` being 1 − x without cancellation."""
    return 0.5 * xp.log1p(2 * x / xp.maximum(gap, np.finfo(np.float64).tiny))


def _atanh_less(xp: Any, x: Any, gap: Any) -> Any:
    """Return atanh x − x; by its series where x is small."""
    x2 = xp.minimum(x, 0.3) ** 2
    series = xp.zeros_like(x)
    for power in range(31, 1, -2):
        series = (series + 1 / power) * x2
    return xp.where(x < 0.3, series * x, _atanh(xp, x, gap) - x)
