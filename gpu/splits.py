"""Adam's update split between the momentum and the batch, ``A(g) ≈ M ⊙ m + S ⊙ g``, elementwise (docs/method.md 6).

=======  ==================  ==================================================================
paper    name                meaning
=======  ==================  ==================================================================
S        ``slope``           what a unit of the batch's gradient moves
M        ``share``           what a unit of m moves: η β1/c1 times a mean of 1/D
N        ``excess``          (∫₀¹ dτ / D(τ g) − 1/D(g)) / g
ρ, s, e  ``rho, s, eps``     √κ, √q |g| and ε, divided by R = r(g) where nothing else is said
=======  ==================  ==================================================================

Written with array operations that NumPy and CuPy have alike; on the host in blocks that stay in the cache.
"""

import math
from functools import cache
from typing import Any

import numpy as np

from adamshap.gpu.layers import Workshop
from adamshap.gpu.parallel import in_parts
from adamshap.gpu.passes_numpy import spread
from adamshap.gpu.rules import Rates, path_nodes
from adamshap.gpu.step import Arrays, Norms

__all__ = ["SPLIT_SLOPES", "split_update"]

SPLIT_SLOPES = ("frozen", "linearized", "tangent", "secant", "random_order")

BLOCK = 1 << 14
"""Elements at a time on the host: a dozen temporaries of so many fit in a core's cache."""

FLOPS_AN_ELEMENT = 200

Node = tuple[float, float, float, float, float]


def split_update(
    shop: Workshop,
    rates: Rates,
    slope: str,
    nodes: tuple[int, int],
    n: int,
    g: Arrays,
    m: Arrays,
    v: Arrays,
    norms: Norms | None,
    into_slope: Arrays,
    into_share: Arrays,
) -> None:
    """Write S and M of every parameter, for the state before the step.

    Parameters
    ----------
    slope : str
        One of `SPLIT_SLOPES`.
    n : int
        Samples of the batch; "random_order" of a single one is "secant".
    norms : Norms, or None
        For σ, which "random_order" needs.
    into_slope, into_share : dicts of arrays
        Written.
    """
    kind = "secant" if slope == "random_order" and n == 1 else slope
    for key, whole in g.items():
        layer, of = key.split(".")
        row = col = square = None
        if kind == "random_order" and norms is not None:
            row, col = norms.row[int(layer)], norms.col[int(layer)]
            square = norms.square.get(int(layer)) if of == "weight" else None
            if of == "bias":
                row, col = shop.space.xp.full(1, math.sqrt(n), whole.dtype), row
        arrays = [a if a.ndim == 2 else a[None, :] for a in (whole, m[key], v[key], into_slope[key], into_share[key])]
        rows, width = arrays[0].shape
        size = rows if shop.space.on_cuda else max(1, BLOCK // width)

        def some(low: int, high: int, arrays: Any = arrays, given: Any = (row, col, square), size: int = size) -> None:
            for first in range(low, high, size):
                part = slice(first, min(first + size, high))
                g_, m_, v_, slope_, share_ = (a[part] for a in arrays)
                row_, col_, square_ = given
                sigma = None
                if row_ is not None:
                    sigma = spread(n, g_, row_[part], col_, None if square_ is None else square_[part])
                slope_[...], inverse = _split(shop.space.xp, rates, kind, nodes, g_, m_, v_, sigma)
                np.multiply(inverse, inverse.dtype.type(rates.lr * rates.mu), out=share_)

        in_parts(some, rows, FLOPS_AN_ELEMENT * rows * width)


def _split(
    xp: Any, rates: Rates, kind: str, nodes: tuple[int, int], g: Any, m: Any, v: Any, sigma: Any
) -> tuple[Any, Any]:
    """Return S and the mean of 1/D."""
    f = g.dtype.type
    rho = xp.sqrt(f(rates.kappa) * v + f(rates.root))
    if kind == "linearized":
        inverse = 1 / (rho + f(rates.eps))
        return f(rates.lr * rates.k) * inverse, inverse
    if kind == "secant":
        return _even(xp, rates, g, m, v)
    if kind == "frozen":
        inverse = 1 / (xp.hypot(rho, f(rates.root_q) * g) + f(rates.eps))
        return f(rates.lr * rates.k) * inverse, inverse
    table = ((1.0, 0.0, 1.0, 1.0, 0.5),) if kind == "tangent" else _arrivals(*nodes)
    return _at_nodes(xp, rates, table, g, m, rho, xp.zeros_like(g) if sigma is None else sigma)


@cache
def _arrivals(path: int, normal: int) -> tuple[Node, ...]:
    """Return (τ, h √(τ(1−τ)), arrived, weight of A[·,·], weight of each of the two 1/D) of "random_order".

    ``arrived`` is the part of the momentum that is there, τ.
    """
    h, a = np.polynomial.hermite_e.hermegauss(normal)
    a = a / a.sum()
    table = []
    for tau, w in path_nodes(path):
        for h_j, a_j in list(zip(h.tolist(), a.tolist(), strict=True))[normal // 2 :]:
            middle = normal % 2 == 1 and h_j == h[normal // 2]
            across = 0.0 if middle else h_j * math.sqrt(tau * (1 - tau))
            table.append((tau, across, tau, 0.0 if middle else 2 * w * a_j * h_j**2, w * a_j / (2 if middle else 1)))
    return tuple(table)


def _at_nodes(xp: Any, rates: Rates, table: tuple[Node, ...], g: Any, m: Any, rho: Any, sigma: Any) -> tuple[Any, Any]:
    """Return S and the mean of 1/D as sums over nodes.

    With everything under a root divided by the largest of its parts, ``top``, and T = top + ε, the divided difference
    of η (μ + k g)/(r + ε) is that of `passes_numpy`: a sum of non-negative terms times k, less μ's.
    """
    f = g.dtype.type
    G, s = f(rates.root_q) * g, f(rates.root_q) * sigma
    top = xp.maximum(xp.maximum(xp.maximum(rho, abs(G)), s), f(np.finfo(g.dtype).tiny))
    T = top + f(rates.eps)
    rho, G, s, part, e = rho / top, G / top, s / top, top / T, f(rates.eps) / T
    kappa, mu = rho * rho, f(rates.mu * rates.root_q) * (m / T)
    slope, inverse = xp.zeros_like(g), xp.zeros_like(g)
    for tau, across, arrived, weight, each in table:
        c, d = f(tau) * G, f(across) * s
        a, b = c + d, c - d
        aa, bb, ab = a * a, b * b, a * b
        r_a, r_b = xp.sqrt(kappa + aa), xp.sqrt(kappa + bb)
        D_a, D_b = part * r_a + e, part * r_b + e
        inverse += f(each) * (1 / D_a + 1 / D_b)
        if weight:
            R, U = r_a + r_b + f(1e-30), r_a * r_b + abs(ab)
            X = xp.where(ab > 0, kappa * (kappa + aa + bb) / xp.where(U > 0, U, f(1)), U)
            of_k = f(rates.k) * (e * R + part * (kappa + X))
            slope += f(weight) * ((of_k - f(2 * arrived) * mu * c) / (R * D_a * D_b))
    return slope * (f(rates.lr) / T), inverse / T


# --- "secant": momentum and batch arrive evenly ----------------------------------------------------------------------

SMALL_ANGLE = 0.5
"""Of tan(φ/2), tan φ = s/√κ: below, the integral is summed by quadrature, above, it is the closed form."""

NODES = 12
"""For y up to `SMALL_ANGLE`: Gauss–Legendre errs by 5.8⁻²⁴, times 24² as the nearest pole, at 1, may be triple."""


LITTLE = 1e-100


def _even(xp: Any, rates: Rates, g: Any, m: Any, v: Any) -> tuple[Any, Any]:
    """Return S = η (k/D − μ N) and 1/D + g N, computed in double precision."""
    wide = [a.astype(np.float64) for a in (g, m, v)]
    rho, G = xp.sqrt(rates.kappa * wide[2] + rates.root), rates.root_q * wide[0]
    R = xp.hypot(rho, G)
    inverse = 1 / (R + rates.eps)
    # Far below ε, D is ε; squares of ε/R would overflow. Where R and ε are 0 so is g, and N.
    R = xp.maximum(R, rates.eps * LITTLE)
    R = xp.where(R > 0, R, 1.0)
    N = _excess(xp, rho / R, G / R, rates.eps / R) * (rates.root_q / R / R)
    slope = rates.lr * (rates.k * inverse - rates.mu * wide[1] * N)
    return slope.astype(g.dtype), (inverse + wide[0] * N).astype(g.dtype)


def _excess(xp: Any, c: Any, sine: Any, e: Any) -> Any:
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
    for x, w in path_nodes(NODES):
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
