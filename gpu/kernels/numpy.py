"""The kernels in plain NumPy: slower than their twins and easy to read; used where Numba is missing.

Formulas are for one coordinate, with the symbols of `plan`. Every radicand is first divided by its largest part, so
that a gradient of 1e-25, whose square float32 cannot hold, still has its root:

    ρ = √κ,   G = √q g,   s = √q σ,   M = max(ρ, |G|, s),   r(g) = M √((ρ/M)² + (G/M)²)

The divided difference of A(g) = η (μ + k g) / (r(g) + ε) between a and b. With R = r_a + r_b,

    r_b − r_a = −q (a−b)(a+b) / R,
    a r_b − b r_a = (a−b) (κ + r_a r_b − q a b) / R,

    A[a, b] = η ( k (ε + (κ + X) / R) − μ q (a+b) / R ) / (D_a D_b),      X = r_a r_b − q a b.

X is never computed as that difference where a and b have one sign. As (r_a r_b)² − (q a b)² = κ (κ + q a² + q b²),

    X = κ (κ + q a² + q b²) / (r_a r_b + q a b)  where a b > 0,   else   X = r_a r_b + q |a b|:

every term of k's factor is then non-negative. a + b is 2c, exactly, as a and b come as c ± h. L2 decay d = λ₂ θ, which
A receives too, is added to both of them last, so that b is d itself where c = h; M is then at least √q |d|. The result
is brought to one fraction; with T = M + ε its denominators D/T are at most a few, and nothing overflows before the
result does.

The split ``A(g) ≈ M ⊙ m + S ⊙ g`` (docs/method.md 6):

====  ==================  ==================================================================
S     ``slope``           step per unit of the batch's gradient
M     ``momentum_slope``  step per unit of m: η β1/c1 times a mean of 1/D
Γ     ``gamma``           validation gradient on the walked step
O     ``owed_now``        Γ ⊙ M, the credit owed to the momentum
K     ``owed.total``      running sum of O
N     ``excess``          (∫₀¹ dτ / D(τ g) − 1/D(g)) / g
====  ==================  ==================================================================

The fit of "two_term" (docs/method.md 4):

====  ======================  ==============================================================
x̄, ς  ``mean, deviation``     mean and deviation of the contributions, from g and Σ x²
ξ     ``size``                their root mean square
x_j   ``x``                   x̄ + h_j ς, at a Gauss–Hermite node of weight a_j
z     ``z``                   |x|/ξ
s     ``slopes``              mean of A[Y + x, Y] over the sums Y of the samples before
S, R  ``slope, second``       slopes of the first and of the second term
====  ======================  ==============================================================

With r = √z and weights ω = a z² that sum to 1, the regression of s on 1/r is a sum over pairs of nodes j < k,

    R = Σ ω_j ω_k (1/r_j − 1/r_k)(s_j − s_k) / (Σ ω_j ω_k (1/r_j − 1/r_k)² + δ Σ a z),
    ω_j ω_k (1/r_j − 1/r_k)  = a_j a_k z_j z_k r_j r_k (r_k − r_j),
    ω_j ω_k (1/r_j − 1/r_k)² = a_j a_k z_j z_k (r_k − r_j)²,

in which equal slopes cancel to their last digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from adamshap.gpu.kernels.groups import FusedStepOut, GradientNorms, OwedSum, ParameterState, TwoTermOut
from adamshap.gpu.kernels.plan import (
    NEGLIGIBLE,
    SHARE_BLOCK,
    SMALL_ANGLE,
    AdamScalars,
    FitPlan,
    SlopePlan,
    SplitPlan,
    blended,
    even_nodes,
    largest_square,
)

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from adamshap.gpu.kernels.groups import FirstMoment, SecondMoment
    from adamshap.reference.contract import Array

__all__ = ["adam_step", "auto_plans", "excess", "fused_step", "momentum_split", "split_even", "two_term_fit"]

SPLIT_BLOCK = 1 << 14
"""Elements of the split at a time: a dozen temporaries of this size fit in a core's cache."""


FIT_BLOCK = 1 << 13
"""Elements of the fit at a time, which has two dozen temporaries."""


# --- Adam's step and the slope ---------------------------------------------------------------------------------------


def adam_step(scalars: AdamScalars, g: Float[Array, "d_out d_in"], state: ParameterState, new: ParameterState) -> None:
    """Write Adam's update; see `Kernels.adam_step`."""
    f, m, v = g.dtype.type, state.m, state.v
    g = _received(scalars, g, state)
    step = _step(scalars, g, m, v)
    np.multiply(state.theta, f(scalars.shrink), out=new.theta)
    np.subtract(new.theta, step, out=new.theta)
    new.m[...] = f(scalars.b1) * m + f(scalars.d1) * g
    new.v[...] = f(scalars.b2) * v + f(scalars.d2) * g * g


def fused_step(
    scalars: AdamScalars,
    plan: SlopePlan,
    g: Float[Array, "d_out d_in"],
    state: ParameterState,
    norms: GradientNorms,
    gamma: Float[Array, "d_out d_in"] | None,
    blend: float,
    out: FusedStepOut,
) -> None:
    """Take Adam's step and compute the slope; see `Kernels.fused_step`."""
    f, m, v = g.dtype.type, state.m, state.v
    rho = np.sqrt(f(scalars.kappa) * v + f(scalars.root))
    decay = _received(scalars, np.zeros_like(g), state)
    idle = _step(scalars, decay, m, v)  # A(0), or A(d)
    moved = _step(scalars, _received(scalars, g, state), m, v)
    result = _slope(scalars, plan, g, decay, m, v, rho, norms)
    if gamma is not None:
        result = result * gamma
    if out.point is not None:
        out.point[...] = state.theta * f(scalars.shrink) - ((f(1) - f(blend)) * idle + f(blend) * moved)
    if out.new is not None:
        adam_step(scalars, g, state, out.new)
    out.slope[...] = result


def _received(scalars: AdamScalars, g: Float[Array, "d_out d_in"], state: ParameterState) -> Any:
    """Return d + g, what Adam receives for the samples' gradient `g`."""
    return g + g.dtype.type(scalars.l2) * state.theta if scalars.l2 else g


def auto_plans(
    scalars: Mapping[str, AdamScalars], order: SlopePlan, g: Mapping[str, Array], v: Mapping[str, Array]
) -> dict[str, SlopePlan]:
    """Return the plans of "auto"; see `Kernels.auto_plans`."""
    return {name: blended(order, _mean_share(scalars[name], array, v[name])) for name, array in g.items()}


def _mean_share(scalars: AdamScalars, g: Array, v: Array) -> float:
    """Return the mean squared own share of a parameter's coordinates.

    A coordinate's own share is z = q g²/(κ + q g²), its weight w = q g²/(κ + q g² + ε²); the mean is Σ w z²/Σ w. A
    square that the dtype does not hold is the largest or smallest that it does hold: z is 1 where κ and g are 0.
    """
    f, whole, part = g.dtype.type, 0.0, 0.0
    for first in range(0, g.size, SHARE_BLOCK):
        some = slice(first, first + SHARE_BLOCK)
        with np.errstate(over="ignore"):
            own = np.minimum((f(scalars.root_q) * g.reshape(-1)[some]) ** 2, f(largest_square(g.dtype)))
        own += np.finfo(f).tiny
        radicand = f(scalars.kappa) * v.reshape(-1)[some] + f(scalars.root) + own
        weight, share = own / (radicand + f(scalars.eps) * f(scalars.eps)), own / radicand
        whole += float(weight.sum(dtype=np.float64))
        part += float((weight * share * share).sum(dtype=np.float64))
    return part / whole if whole > 0 else 0.0


def _step(
    scalars: AdamScalars,
    g: Float[Array, "d_out d_in"],
    m: Float[FirstMoment, "d_out d_in"],
    v: Float[SecondMoment, "d_out d_in"],
) -> Any:
    """Return A(g)."""
    f = g.dtype.type
    rho = np.sqrt(f(scalars.kappa) * v + f(scalars.root))
    return f(scalars.lr) * (f(scalars.mu) * m + f(scalars.k) * g) / (_root(rho, f(scalars.root_q) * g) + f(scalars.eps))


def _root(rho: Any, scaled: Any) -> Any:
    """Return √(ρ² + G²), safe where the squares underflow."""
    top = np.maximum(np.maximum(rho, abs(scaled)), np.finfo(rho.dtype).tiny)
    return top * np.sqrt((rho / top) ** 2 + (scaled / top) ** 2)


def _slope(
    scalars: AdamScalars,
    plan: SlopePlan,
    g: Float[Array, "d_out d_in"],
    decay: Float[Array, "d_out d_in"],
    m: Float[FirstMoment, "d_out d_in"],
    v: Float[SecondMoment, "d_out d_in"],
    rho: Any,
    norms: GradientNorms,
) -> Any:
    f = g.dtype.type
    if plan.kind == "sgd":
        return np.full_like(g, scalars.lr)
    if plan.kind == "frozen":
        return f(scalars.lr) * f(scalars.k) / (_root(rho, f(scalars.root_q) * (decay + g)) + f(scalars.eps))
    if plan.kind == "linearized":
        return f(scalars.lr) * f(scalars.k) / (rho + f(scalars.eps))
    if plan.kind == "previous":
        return f(scalars.lr) * f(scalars.k) / (np.sqrt(f(scalars.previous) * v + f(scalars.root)) + f(scalars.eps))
    tiny = np.finfo(g.dtype).tiny
    G, rest = f(scalars.root_q) * g, f(scalars.root_q) * decay
    if plan.kind == "at_rest":
        return _derivative(scalars, rho, rest, m)
    s = f(scalars.root_q) * _spread(g, norms) if plan.needs_spread else np.zeros_like(g)
    M = np.maximum(np.maximum(np.maximum(np.maximum(rho, abs(G)), s), abs(rest)), tiny)
    T = M + f(scalars.eps)
    rho, G, s, rest, f_m = rho / M, G / M, s / M, rest / M, M / T
    f_e = np.maximum(f(scalars.eps) / T, tiny)  # next to a huge gradient ε/T underflows, and D(0) with it
    kappa = rho * rho
    mu = f(scalars.mu) * m / T * f(scalars.root_q)
    total = np.zeros_like(g)
    for tau, along, across, weight in plan.nodes:
        c, h = f(tau) * G, f(along) * G + f(across) * s
        a, b = (c + h) + rest, (c - h) + rest
        total += f(weight) * _quotient(f(scalars.k), kappa, mu, f_m, f_e, a, b, f(2) * (c + rest))
    return total * (f(scalars.lr) / T)


def _derivative(scalars: AdamScalars, rho: Any, rest: Any, m: Any) -> Any:
    """Return A'(d) = η (k (ε + κ/r) − μ q d/r)/D², where √κ is `rho` and √q d is `rest`; at r = 0 it is η k/ε."""
    f = rho.dtype.type
    r = _root(rho, rest)
    safe = np.where(r > 0, r, f(1))
    D = r + f(scalars.eps)
    above = f(scalars.k) * (f(scalars.eps) + rho * (rho / safe)) - f(scalars.mu) * m * f(scalars.root_q) * (rest / safe)
    return f(scalars.lr) * (above / D) / D


def _quotient(k: Any, kappa: Any, mu: Any, f_m: Any, f_e: Any, a: Any, b: Any, a_plus_b: Any) -> Any:
    """Return A[a, b] in units of η/T, for a, b and a + b in units of M/√q: κ in units of M², μ of T/√q."""
    f = kappa.dtype.type
    aa, ab = a * a, a * b
    r_a, r_b = np.sqrt(kappa + aa), np.sqrt(kappa + b * b)
    R, U = r_a + r_b + f(1e-30), r_a * r_b + abs(ab)
    one_sign = ab > 0
    X = np.where(one_sign, kappa * (r_b * r_b + aa), U)
    U = np.where(one_sign, U, f(1))
    k_part = k * (f_e * R + f_m * kappa) - mu * a_plus_b
    D_a, D_b = f_m * r_a + f_e, f_m * r_b + f_e
    # One after the other, the larger first: where κ and b are 0, D_b is ε, and the product of all four underflows.
    return (k_part * U + k * f_m * X) / (R * U * np.maximum(D_a, D_b)) / np.minimum(D_a, D_b)


def _spread(g: Float[Array, "d_out d_in"], norms: GradientNorms) -> Any:
    """Return σ = R √((1 − (g/R)²/n) n/(n − 1)), where R = √Σx² is `root` or, of rank one, the product of the norms."""
    f, n = g.dtype.type, norms.n
    root = norms.root
    if root is None:
        root = cast("Array", norms.row)[:, None] * cast("Array", norms.col)[None, :]
    with np.errstate(over="ignore"):  # a rank-one root may be far below g
        own = g / np.where(root > 0, root, f(1))
        left = np.maximum(f(1) - own * own * f(1 / n), f(0))
    return root * np.sqrt(left * f(n / (n - 1)))


# --- the split between momentum and batch ----------------------------------------------------------------------------


def momentum_split(
    scalars: AdamScalars,
    plan: SplitPlan,
    g: Float[Array, "d_out d_in"],
    state: ParameterState,
    norms: GradientNorms,
    gamma: Float[Array, "d_out d_in"],
    owed: OwedSum | None,
    product: Float[Array, "d_out d_in"],
) -> Float64[Array, " 4"]:
    """Split Adam's map, multiply by Γ and add to K; see `Kernels.momentum_split`."""
    size = max(1, SPLIT_BLOCK // g.shape[1])
    sums = np.zeros(4)
    for first in range(0, len(g), size):
        part = slice(first, first + size)
        g_, state_, gamma_ = g[part], state.rows(part), gamma[part]
        sigma = _spread(g_, norms.rows(part)) if plan.needs_spread else None
        slope, owed_now = _split(scalars, plan, _received(scalars, g_, state_), state_.m, state_.v, sigma)
        slope *= gamma_
        owed_now *= gamma_
        pairs = [(slope, g_), (owed_now, state_.m), (owed_now, owed_now)]
        if scalars.l2:
            pairs.append((slope, state_.theta))
        elif scalars.shrink < 1:
            pairs.append((gamma_, state_.theta))
        for number, (a, b) in enumerate(pairs):
            sums[number] += (a.astype("float64") * b).sum()
        if owed is not None:
            f, total = g.dtype.type, owed.total[part]
            owed_now *= f(owed.grow)
            total += owed_now
            slope -= f(owed.less) * total
        product[part] = slope
    return sums


def _split(
    scalars: AdamScalars,
    plan: SplitPlan,
    g: Float[Array, "d_out d_in"],
    m: Float[FirstMoment, "d_out d_in"],
    v: Float[SecondMoment, "d_out d_in"],
    sigma: Any,
) -> tuple[Any, Any]:
    """Return S and M."""
    f = g.dtype.type
    if plan.kind == "even":
        slope, inverse = split_even(scalars, g, m, v)
        return slope, inverse * f(scalars.lr * scalars.mu)
    rho = np.sqrt(f(scalars.kappa) * v + f(scalars.root))
    if plan.kind == "nodes":
        slope, inverse = _at_nodes(scalars, plan, g, m, rho, np.zeros_like(g) if sigma is None else sigma)
    else:
        r = rho if plan.kind == "linearized" else np.hypot(rho, f(scalars.root_q) * g)
        inverse = 1 / (r + f(scalars.eps))
        slope = f(scalars.lr * scalars.k) * inverse
    return slope, inverse * f(scalars.lr * scalars.mu)


def _at_nodes(scalars: AdamScalars, plan: SplitPlan, g: Any, m: Any, rho: Any, sigma: Any) -> tuple[Any, Any]:
    """Return S and the mean of 1/D as sums over nodes.

    With radicands divided by their largest part, ``top``, and T = top + ε, the divided difference
    of η (μ + k g)/(r + ε) is that of `fused_step`: a sum of non-negative terms times k, less μ's.
    """
    f = g.dtype.type
    G, s = f(scalars.root_q) * g, f(scalars.root_q) * sigma
    top = np.maximum(np.maximum(np.maximum(rho, abs(G)), s), f(np.finfo(g.dtype).tiny))
    T = top + f(scalars.eps)
    rho, G, s, part, e = rho / top, G / top, s / top, top / T, f(scalars.eps) / T
    kappa, mu = rho * rho, f(scalars.mu * scalars.root_q) * (m / T)
    slope, inverse = np.zeros_like(g), np.zeros_like(g)
    for tau, across, weight, inverse_weight in plan.nodes:
        c, d = f(tau) * G, f(across) * s
        a, b = c + d, c - d
        aa, bb, ab = a * a, b * b, a * b
        r_a, r_b = np.sqrt(kappa + aa), np.sqrt(kappa + bb)
        D_a, D_b = part * r_a + e, part * r_b + e
        inverse += f(inverse_weight) * (1 / D_a + 1 / D_b)
        if weight:
            R, U = r_a + r_b + f(1e-30), r_a * r_b + abs(ab)
            X = np.where(ab > 0, kappa * (kappa + aa + bb) / np.where(U > 0, U, f(1)), U)
            of_k = f(scalars.k) * (e * R + part * (kappa + X))
            slope += f(weight) * ((of_k - f(2 * tau) * mu * c) / (R * D_a * D_b))
    return slope * (f(scalars.lr) / T), inverse / T


# --- "secant": momentum and batch arrive evenly


def split_even(
    scalars: AdamScalars,
    g: Float[Array, "d_out d_in"],
    m: Float[FirstMoment, "d_out d_in"],
    v: Float[SecondMoment, "d_out d_in"],
) -> tuple[Any, Any]:
    """Return S = η (k/D − μ N) and 1/D + g N, computed in double precision."""
    wide = [a.astype(np.float64) for a in (g, m, v)]
    rho, G = np.sqrt(scalars.kappa * wide[2] + scalars.root), scalars.root_q * wide[0]
    R = np.hypot(rho, G)
    inverse = 1 / (R + scalars.eps)
    # Far below ε, D is ε; squares of ε/R would overflow. Where R and ε are 0 so is g, and N.
    R = np.maximum(R, scalars.eps * NEGLIGIBLE)
    R = np.where(R > 0, R, 1.0)
    N = excess(rho / R, G / R, scalars.eps / R, even_nodes(g.dtype)) * (scalars.root_q / R / R)
    slope = scalars.lr * (scalars.k * inverse - scalars.mu * wide[1] * N)
    return slope.astype(g.dtype), (inverse + wide[0] * N).astype(g.dtype)


def excess(c: Any, sine: Any, e: Any, nodes: tuple[tuple[float, float], ...]) -> Any:
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
    near = np.where(small, Y, SMALL_ANGLE)
    total = np.zeros_like(c)
    for x, w in nodes:
        y2 = (x * near) ** 2
        q = c * (1 + y2) + e * (1 - y2)
        total += (w * x * x) / ((1 - y2) * np.where(small, q, 1.0) ** 2)
    by_quadrature = 8 * (c / (1 + c)) ** 2 / (1 + c) * total  # times σ³/σ²

    far = np.where(small, 1.0, size)  # σ where the closed form is used; any number elsewhere
    c = np.where(small, 0.0, c)
    e_ = np.where(small, 1.0, e)
    Y = far / (1 + c)
    above = e_ >= c
    # The same ψ everywhere: near e = c, where it has no digits, the closed form depends on ψ² alone.
    psi = np.maximum(np.sqrt(abs(e_ - c) / (e_ + c)), NEGLIGIBLE)
    low = 2 * _atanh(Y, (c + c * c / (1 + far)) / (1 + c))
    low = low - 2 * e_ / (e_ + c) * np.arctan(Y * psi) / psi - far / (1 + e_)
    d = (e_ + c) * psi
    below = 1 + e_ + d
    z, rest = far / below, (c * c / (1 + far) + e_ + d) / below
    high = 2 * _atanh_less(z, rest) + far * (1 + c * c / (e_ + d)) / ((1 + e_) * below)
    gap = (c + c * c / (1 + far)) / (1 + c) + Y * 2 * c / ((e_ + c) * (1 + psi))  # 1 − Y ψ
    high = high - 2 * c * c * _atanh(Y * psi, gap) / (psi * (e_ + c) * (e_ + d))
    return np.where(small, by_quadrature * sine, np.where(above, high, low) / far**2 * np.sign(sine))


def _atanh(x: Any, gap: Any) -> Any:
    """Return atanh x for 0 ≤ x ≤ 1, `gap` being 1 − x without cancellation."""
    return 0.5 * np.log1p(2 * x / np.maximum(gap, np.finfo(np.float64).tiny))


def _atanh_less(x: Any, gap: Any) -> Any:
    """Return atanh x − x; by its series where x is small."""
    x2 = np.minimum(x, 0.3) ** 2
    series = np.zeros_like(x)
    for power in range(31, 1, -2):
        series = (series + 1 / power) * x2
    return np.where(x < 0.3, series * x, _atanh(x, gap) - x)


# --- two slopes for one marginal -------------------------------------------------------------------------------------


def two_term_fit(
    scalars: AdamScalars,
    plan: FitPlan,
    g: Float[Array, "d_out d_in"],
    state: ParameterState,
    norms: GradientNorms,
    out: TwoTermOut,
) -> None:
    """Write S and R; see `Kernels.two_term_fit`."""
    size = max(1, FIT_BLOCK // g.shape[1])
    for first in range(0, len(g), size):
        part = slice(first, first + size)
        g_, state_, f = g[part], state.rows(part), g.dtype.type
        sigma = g_ * 0 if norms.n == 1 else _spread(g_, norms.rows(part))
        deviation = sigma * f(plan.relative_deviation)
        decay = _received(scalars, np.zeros_like(g_), state_)
        out.slope[part], out.second[part] = _fit(scalars, plan, norms.n, g_, decay, state_.m, state_.v, deviation)


def _fit(
    scalars: AdamScalars,
    plan: FitPlan,
    n: int,
    g: Float[Array, "d_out d_in"],
    decay: Float[Array, "d_out d_in"],
    m: Float[FirstMoment, "d_out d_in"],
    v: Float[SecondMoment, "d_out d_in"],
    deviation: Any,
) -> tuple[Any, Any]:
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
            a = f(tau) * g + (f(1) - f(tau)) * x + apart  # b + x; g itself if all others come before
            slope += f(weight) * _divided_difference(scalars, rho, m, q * (a + decay), q * (b + decay))
        slopes.append(slope)
        z.append(abs(x) * inverse)
        roots.append(np.sqrt(z[-1]))
    covariance, variance, mean_slope, mean_part = (np.zeros_like(g) for _ in range(4))
    for (_, a), z_j, r_j, s_j in zip(plan.own, z, roots, slopes, strict=True):
        mean_slope += f(a) * z_j * z_j * s_j
        mean_part += f(a) * z_j * r_j
        variance += f(plan.ridge * a) * z_j
    for j, k in combinations(range(len(plan.own)), 2):
        pair, gap = f(plan.own[j][1] * plan.own[k][1]) * z[j] * z[k], roots[k] - roots[j]
        covariance += pair * roots[j] * roots[k] * gap * (slopes[j] - slopes[k])
        variance += pair * gap * gap
    second = covariance / np.where(variance > 0, variance, f(1))
    return mean_slope - second * mean_part, second * np.sqrt(size)


def _divided_difference(scalars: AdamScalars, rho: Any, m: Any, a: Any, b: Any) -> Any:
    """Return A[a/√q, b/√q], computed in units of the largest part of a radicand."""
    f = rho.dtype.type
    top = np.maximum(np.maximum(rho, np.maximum(abs(a), abs(b))), f(np.finfo(rho.dtype).tiny))
    T = top + f(scalars.eps)
    rho, mu = rho / top, f(scalars.mu * scalars.root_q) * (m / T)
    a, b = a / top, b / top
    f_e = np.maximum(f(scalars.eps) / T, f(np.finfo(rho.dtype).tiny))  # D where κ and an argument are 0
    return _quotient(f(scalars.k), rho * rho, mu, top / T, f_e, a, b, a + b) * (f(scalars.lr) / T)
