"""The pass of `fits` as one Numba loop: no array of a node is made, and each element is read and written once.

As in `passes_numba`, what the nodes need of a block of elements is kept in scratch, and the nodes are taken one after
another, each in a loop over the block: vector code. What stands under a root is divided by the largest of √κ, √q |g|
and √q σ, once for each element and not for each node. A sample's own x may be tiny beside that, and what it finds
nothing: `tiny` keeps the denominator from underflowing to 0. Where κ is 0 and one of two sums is nothing, D is ε there,
and A[a, b] the ratio of a small numerator to it: so ε/T is at least `tiny`, and the smaller D divides last.

The pairs of the regression are taken as their nodes come: each new one with all before it. The formulas and their
derivation stand in `fits`.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, cast

import numba
import numpy as np

from adamshap.gpu.kernels.plan import AdamScalars, FitPlan
from adamshap.gpu.passes_numba import BLOCK, compiled, deviation, nothing, quotient

__all__ = ["fit"]


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
    dtype = g.dtype
    root = nothing(dtype) if root is None else root
    row, col = (nothing(dtype).reshape(-1) if x is None else x for x in (row, col))
    numbers, (own, arrivals) = _numbers(scalars, plan, n, dtype), _tables(plan, dtype)
    _kernel(dtype.type)(0, len(g), numbers, own, arrivals, g, m, v, row, col, root, slope, second)


@lru_cache(maxsize=8)  # of a step, for every parameter
def _numbers(scalars: AdamScalars, plan: FitPlan, n: int, dtype: Any) -> Any:
    r, unbias = scalars, n / (n - 1) if n > 1 else 0.0
    adams = (r.lr, r.mu, r.k, r.kappa, r.root, r.root_q, r.eps)
    return np.array([*adams, 1 / n, unbias, np.finfo(dtype).tiny, plan.share, plan.ridge], dtype)


@lru_cache(maxsize=8)
def _tables(plan: FitPlan, dtype: Any) -> tuple[Any, Any]:
    return np.array(plan.own, dtype), np.array(plan.arrivals, dtype)


@cache
def _kernel(real: Any) -> Callable[..., Any]:
    """Return the loop compiled for one dtype; every constant is of that dtype, or the loop would widen to double."""
    zero, one, least = real(0), real(1), real(1e-30)
    G, S, K, FM, FE, MU, TAIL, MEAN, PART, ROOT = (BLOCK * slot for slot in range(10))
    X, REST, Z, R, OUT, SLOPE, PHI, UP, DOWN = (BLOCK * slot for slot in range(10, 19))
    scalar, whole = numba.from_dtype(np.dtype(real)), numba.int64
    read = {d: numba.types.Array(scalar, d, "C", readonly=True) for d in (1, 2)}
    write = numba.types.Array(scalar, 2, "C")

    @compiled(numba.void(whole, whole, read[1], *[read[2]] * 5, *[read[1]] * 2, read[2], write, write))
    def fit(low, high, p, own, arrivals, g, m, v, row, col, root, slope, second):  # type: ignore[no-untyped-def]
        lr, mu, k, kappa, under, root_q, eps = p[0], p[1], p[2], p[3], p[4], p[5], p[6]
        share, unbias, tiny, of_sigma, ridge = p[7], p[8], p[9], p[10], p[11]
        columns = g.shape[1]
        w = np.zeros(19 * BLOCK, real)
        before = np.zeros((len(own), 3, BLOCK), real)  # z, √z and s of the nodes so far
        for i in range(low, high):
            for start in range(0, columns, BLOCK):
                width = min(BLOCK, columns - start)
                part = slice(start, start + width)
                g_, m_, v_ = g[i, part], m[i, part], v[i, part]
                if root.size > 0:
                    root_ = root[i, part]
                    for e in range(width):
                        w[S + e] = root_[e]
                else:
                    norm, col_ = row[i], col[part]
                    for e in range(width):
                        w[S + e] = norm * col_[e]
                for e in range(width):
                    s = deviation(zero, one, g_[e], w[S + e], share, unbias)
                    mean, apart = share * g_[e], of_sigma * s
                    most = abs(mean) if abs(mean) > apart else apart
                    most = most if most > tiny else tiny
                    x, y = mean / most, apart / most
                    size = math.sqrt(x * x + y * y)
                    inverse = one / size if size > zero else zero
                    w[MEAN + e] = x * inverse
                    w[PART + e] = y * inverse
                    w[ROOT + e] = math.sqrt(most * size)
                    rho, big, s = math.sqrt(kappa * v_[e] + under), root_q * g_[e], root_q * s
                    top = rho if rho > abs(big) else abs(big)
                    top = top if top > s else s
                    top = top if top > tiny else tiny
                    inverse, tail = one / top, one / (top + eps)
                    rho *= inverse
                    w[G + e] = big * inverse
                    w[S + e] = of_sigma * s * inverse
                    w[K + e] = rho * rho
                    w[FM + e] = top * tail
                    part_of_eps = eps * tail
                    w[FE + e] = part_of_eps if part_of_eps > tiny else tiny
                    w[MU + e] = mu * m_[e] * tail * root_q
                    w[TAIL + e] = lr * tail
                    w[SLOPE + e] = zero
                    w[PHI + e] = zero
                    w[UP + e] = zero
                    w[DOWN + e] = zero
                for j in range(len(own)):
                    h, a_j = own[j, 0], own[j, 1]
                    for e in range(width):
                        z = abs(w[MEAN + e] + h * w[PART + e])
                        w[Z + e] = z
                        w[R + e] = math.sqrt(z)
                        w[X + e] = share * w[G + e] + h * w[S + e]
                        w[REST + e] = w[G + e] - w[X + e]
                        w[OUT + e] = zero
                    for node in range(len(arrivals)):
                        tau, across, weight = arrivals[node, 0], arrivals[node, 1], arrivals[node, 2]
                        left = one - tau
                        for e in range(width):
                            apart = across * w[S + e]
                            b = tau * w[REST + e] + apart
                            a = tau * w[G + e] + left * w[X + e] + apart  # b + x; g itself where all others are there
                            above, scale, D_a, D_b = quotient(
                                zero, one, least, k, w[K + e], w[FM + e], w[FE + e], a, b, w[MU + e] * (a + b)
                            )
                            larger, smaller = (D_a, D_b) if D_a > D_b else (D_b, D_a)
                            w[OUT + e] += weight * above / (scale * larger + tiny) / smaller
                    for e in range(width):
                        z, s = w[Z + e], w[OUT + e]
                        w[SLOPE + e] += a_j * z * z * s
                        w[PHI + e] += a_j * z * w[R + e]
                        w[DOWN + e] += ridge * a_j * z
                    for other in range(j):
                        weight = own[other, 1] * a_j
                        z_, r_, s_ = before[other, 0, :width], before[other, 1, :width], before[other, 2, :width]
                        for e in range(width):
                            both, gap = weight * z_[e] * w[Z + e], w[R + e] - r_[e]
                            w[UP + e] += both * r_[e] * w[R + e] * gap * (s_[e] - w[OUT + e])
                            w[DOWN + e] += both * gap * gap
                    before[j, 0, :width] = w[Z : Z + width]
                    before[j, 1, :width] = w[R : R + width]
                    before[j, 2, :width] = w[OUT : OUT + width]
                for e in range(width):
                    down = w[DOWN + e]
                    ratio = w[UP + e] * w[TAIL + e] / (down if down > zero else one)
                    w[SLOPE + e] = w[SLOPE + e] * w[TAIL + e] - ratio * w[PHI + e]
                    w[UP + e] = ratio * w[ROOT + e]
                slope[i, part] = w[SLOPE : SLOPE + width]
                second[i, part] = w[UP : UP + width]

    return cast(Callable[..., Any], fit)
