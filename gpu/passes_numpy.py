"""The elementwise passes in plain NumPy: slower than their twins and easy to read; used where Numba is missing.

What each computes, for one coordinate (symbols in `plan`). Everything under a root is first divided by the largest of
its parts, so that a gradient of 1e-25, whose square float32 cannot hold, still has its root:

    ρ = √κ,   G = √q g,   s = √q σ,   M = max(ρ, |G|, s),   r(g) = M √((ρ/M)² + (G/M)²)

The divided difference of A(g) = η (μ + k g) / (r(g) + ε) between a and b. With R = r_a + r_b,

    r_b − r_a = −q (a−b)(a+b) / R,
    a r_b − b r_a = (a−b) (κ + r_a r_b − q a b) / R,

    A[a, b] = η ( k (ε + (κ + X) / R) − μ q (a+b) / R ) / (D_a D_b),      X = r_a r_b − q a b.

X is never computed as that difference where a and b have one sign. As (r_a r_b)² − (q a b)² = κ (κ + q a² + q b²),

    X = κ (κ + q a² + q b²) / (r_a r_b + q a b)  where a b > 0,   else   X = r_a r_b + q |a b|:

every term of k's factor is then non-negative. a + b is 2c, exactly, as a and b come as c ± d. The result is brought to
one fraction; with T = M + ε its denominators D/T lie between 0 and 1, and nothing overflows before the result does.
"""

import math
from typing import Any

import numpy as np

from adamshap.gpu.kernels import Scaling
from adamshap.gpu.kernels.plan import AdamScalars, SlopePlan

__all__ = [
    "activate",
    "adam",
    "attributed",
    "between",
    "column_norms",
    "quotient",
    "ranges",
    "roots",
    "row_dot",
    "scale_by_derivative",
    "scaled_squares",
    "spread",
    "whitening",
]

AGAIN = 1 << 16
"""Products of entries that are made at a time where roots are computed again."""

UNRESOLVED = 1e-14  # of a Gram matrix in double with a diagonal of ones


def adam(scalars: AdamScalars, g: Any, theta: Any, m: Any, v: Any, new_theta: Any, new_m: Any, new_v: Any) -> None:
    """Write Adam's update of θ, m and v into the last three; they may be the inputs themselves."""
    f = g.dtype.type
    step = _step(scalars, g, m, v)
    np.multiply(theta, f(scalars.shrink), out=new_theta)
    np.subtract(new_theta, step, out=new_theta)
    new_m[...] = f(scalars.b1) * m + f(scalars.d1) * g
    new_v[...] = f(scalars.b2) * v + f(scalars.d2) * g * g


def attributed(
    scalars: AdamScalars,
    plan: SlopePlan,
    n: int,
    g: Any,
    theta: Any,
    m: Any,
    v: Any,
    row: Any,
    col: Any,
    root: Any,
    gamma: Any,
    blend: float,
    new_theta: Any,
    new_m: Any,
    new_v: Any,
    point: Any,
    slope: Any,
) -> None:
    """Take Adam's step and make the slope, both in one pass; see `kernels.Passes.attributed`."""
    f = g.dtype.type
    rho = np.sqrt(f(scalars.kappa) * v + f(scalars.root))
    idle = f(scalars.lr) * (f(scalars.mu) * m) / (rho + f(scalars.eps))  # A(0)
    moved = _step(scalars, g, m, v)
    result = _slope(scalars, plan, n, g, m, v, rho, row, col, root)
    if gamma is not None:
        result = result * gamma
    if point is not None:
        point[...] = theta * f(scalars.shrink) - ((f(1) - f(blend)) * idle + f(blend) * moved)
    adam(scalars, g, theta, m, v, new_theta, new_m, new_v)
    slope[...] = result


def _step(scalars: AdamScalars, g: Any, m: Any, v: Any) -> Any:
    """Return A(g)."""
    f = g.dtype.type
    rho = np.sqrt(f(scalars.kappa) * v + f(scalars.root))
    return f(scalars.lr) * (f(scalars.mu) * m + f(scalars.k) * g) / (_root(rho, f(scalars.root_q) * g) + f(scalars.eps))


def _root(rho: Any, scaled: Any) -> Any:
    """Return √(ρ² + G²), safe where the squares underflow."""
    top = np.maximum(np.maximum(rho, abs(scaled)), np.finfo(rho.dtype).tiny)
    return top * np.sqrt((rho / top) ** 2 + (scaled / top) ** 2)


def _slope(
    scalars: AdamScalars, plan: SlopePlan, n: int, g: Any, m: Any, v: Any, rho: Any, row: Any, col: Any, root: Any
) -> Any:
    f = g.dtype.type
    if plan.kind == "sgd":
        return np.full_like(g, scalars.lr)
    if plan.kind == "frozen":
        return f(scalars.lr) * f(scalars.k) / (_root(rho, f(scalars.root_q) * g) + f(scalars.eps))
    if plan.kind == "linearized":
        return f(scalars.lr) * f(scalars.k) / (rho + f(scalars.eps))
    if plan.kind == "previous":
        return f(scalars.lr) * f(scalars.k) / (np.sqrt(f(scalars.previous) * v + f(scalars.root)) + f(scalars.eps))
    tiny = np.finfo(g.dtype).tiny
    G = f(scalars.root_q) * g
    s = f(scalars.root_q) * spread(n, g, row, col, root) if plan.needs_spread else np.zeros_like(g)
    M = np.maximum(np.maximum(np.maximum(rho, abs(G)), s), tiny)
    T = M + f(scalars.eps)
    rho, G, s, f_m = rho / M, G / M, s / M, M / T
    f_e = np.maximum(f(scalars.eps) / T, tiny)  # beside a huge gradient ε/T underflows, and D(0) with it
    kappa = rho * rho
    mu = f(scalars.mu) * m / T * f(scalars.root_q)
    total = np.zeros_like(g)
    for tau, along, across, weight in plan.nodes:
        c, d = f(tau) * G, f(along) * G + f(across) * s
        total += f(weight) * quotient(f(scalars.k), kappa, mu, f_m, f_e, c + d, c - d, c + c)
    return total * (f(scalars.lr) / T)


def quotient(k: Any, kappa: Any, mu: Any, f_m: Any, f_e: Any, a: Any, b: Any, both: Any) -> Any:
    """Return A[a, b] in units of η/T, for a, b and a + b in units of M/√q: κ in units of M², μ of T/√q.

    Of NumPy's arrays or CuPy's, which NumPy's functions hand on.
    """
    f = kappa.dtype.type
    aa, ab = a * a, a * b
    r_a, r_b = np.sqrt(kappa + aa), np.sqrt(kappa + b * b)
    R, U = r_a + r_b + f(1e-30), r_a * r_b + abs(ab)
    one_sign = ab > 0
    X = np.where(one_sign, kappa * (r_b * r_b + aa), U)
    U = np.where(one_sign, U, f(1))
    k_part = k * (f_e * R + f_m * kappa) - mu * both
    D_a, D_b = f_m * r_a + f_e, f_m * r_b + f_e
    # One after the other, the larger first: where κ and b are 0, D_b is ε, and the product of all four underflows.
    return (k_part * U + k * f_m * X) / (R * U * np.maximum(D_a, D_b)) / np.minimum(D_a, D_b)


def spread(n: int, g: Any, row: Any, col: Any, root: Any) -> Any:
    """Return σ = R √((1 − (g/R)²/n) n/(n − 1)), where R = √Σx² is `root` or, of rank one, the product of the norms.

    Of NumPy's arrays or CuPy's, which NumPy's functions hand on.
    """
    f = g.dtype.type
    root = row[:, None] * col[None, :] if root is None else root
    with np.errstate(over="ignore"):  # of rank one, the product may be far below g
        own = g / np.where(root > 0, root, f(1))
        left = np.maximum(f(1) - own * own * f(1 / n), f(0))
    return root * np.sqrt(left * f(n / (n - 1)))


def between(tau: float, a: Any, b: Any, out: Any) -> None:
    """Write the point at `tau` of the way from `a` to `b`."""
    np.subtract(b, a, out=out)
    out *= out.dtype.type(tau)
    out += a


def activate(name: str, z: Any, bias: Any, derivative: Any) -> None:
    """Add the bias to `z`, turn it into the activation in place, and write the derivative where one is kept."""
    if bias is not None:
        z += bias
    f = z.dtype.type
    if name == "relu":
        np.maximum(z, f(0), out=z)
    elif name == "tanh":  # sech² = 4t/(1+t)², t = exp(−2|z|): 1 − tanh² has no digits left where tanh is near 1
        t = np.exp(f(-2) * abs(z))
        np.divide(f(4) * t, (f(1) + t) ** 2, out=derivative)
        np.tanh(z, out=z)
    elif name in ("sigmoid", "silu"):
        t = np.exp(-abs(z))
        near, far = f(1) / (f(1) + t), t / (f(1) + t)  # of ±|z|
        positive = z >= 0
        up, down = np.where(positive, near, far), np.where(positive, far, near)  # σ(z), 1 − σ(z)
        if name == "sigmoid":
            np.multiply(up, down, out=derivative)
            z[...] = up
        else:
            np.multiply(up, f(1) + z * down, out=derivative)
            z *= up
    elif name == "gelu":
        normal = np.asarray(_normal_cdf(z), z.dtype)
        density = np.exp(f(-0.5) * z * z) * f(1 / math.sqrt(2 * math.pi))
        np.add(normal, z * density, out=derivative)
        z *= normal


_normal_cdf = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)), otypes=[np.float64])


def scale_by_derivative(name: str, b: Any, derivative: Any) -> None:
    """Multiply `b` in place by the activation's derivative; ReLU's is read from the activation itself."""
    if name == "relu":
        b *= derivative > 0
    elif name != "identity":
        b *= derivative


def column_norms(x: Any) -> Any:
    """Return the Euclidean norm of each column; float32's squares, added in double, are not lost."""
    return _norms(x) if x.dtype == np.float64 else _norms(x.astype(np.float64)).astype(x.dtype)


def _norms(x: Any) -> Any:
    """Return the Euclidean norm of each column, in units of its largest entry."""
    top = abs(x).max(axis=0)
    return top * np.sqrt(np.square(x / np.where(top > 0, top, x.dtype.type(1))).sum(axis=0))


def ranges(x: Any) -> tuple[Any, Any]:
    """Return the largest size of an entry of each column, and the smallest that is not 0, infinity if all are 0."""
    size = abs(x)
    return size.max(axis=0), np.where(size > 0, size, x.dtype.type(math.inf)).min(axis=0)


def scaled_squares(x: Any, top: Any, scaling: Scaling) -> Any:
    """Return the squares of `x` with its columns divided by `top` and multiplied by ``scaling.scale``."""
    scaled = x / np.where(top > 0, top, x.dtype.type(1))
    scaled *= x.dtype.type(scaling.scale)
    scaled *= scaled
    return scaled


def roots(square: Any, units: slice, b: Any, a: Any, of_b: Any, of_a: Any, scaling: Scaling) -> None:
    """Turn the product of scaled squares into √Σ b² a², in place, for some of its rows; see `kernels.Passes.roots`."""
    f, part, b = square.dtype.type, square[units], b[:, units]
    top_b, top_a = of_b[0][units, None], of_a[0]
    row, col = np.nonzero(part < f(scaling.least))
    small_b, small_a = (
        low[where] / np.where(top[where] > 0, top[where], f(1)) * f(scaling.scale)
        for (top, low), where in (((of_b[0][units], of_b[1][units]), row), (of_a, col))
    )
    lost = (small_b < math.inf) & (small_a < math.inf)
    lost[lost] = np.square(small_b[lost]) * np.square(small_a[lost]) < f(scaling.least)
    np.sqrt(part, out=part)
    part *= f(scaling.back)
    part *= np.maximum(top_b, top_a)
    part *= np.minimum(top_b, top_a) * f(scaling.root_n)
    row, col = row[lost], col[lost]
    some = max(AGAIN // len(a), 1)
    for first in range(0, len(row), some):
        here = row[first : first + some], col[first : first + some]
        part[here] = _norms(b[:, here[0]] * a[:, here[1]])


def row_dot(b: Any, z: Any, p: Any, out: Any) -> None:
    """Add ⟨b_i, z_i + p⟩ to ``out[i]``."""
    out += np.einsum("no,no->n", b, z)
    if p is not None:
        out += b @ p


def whitening(gram: Any) -> Any:
    """Return W (r, r) in double with ``Wᵀ gram W = I``; what double precision cannot resolve becomes 0."""
    if not np.isfinite(gram).all():  # a run that diverged: its scores are to be NaN, not an error of LAPACK's
        return np.full_like(gram, np.nan)
    scale = np.sqrt(np.diagonal(gram))
    scale = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    values, vectors = np.linalg.eigh(gram * scale[:, None] * scale[None, :])
    kept = values > UNRESOLVED * len(gram)
    return scale[:, None] * vectors * np.divide(1, np.sqrt(abs(values)), out=np.zeros_like(values), where=kept)
