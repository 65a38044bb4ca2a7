"""The pass of `splits` as one Numba loop: no array of S or M is made, and each element is read and written once.

As in `passes_numba`, what the nodes need of a block of elements is kept in scratch, and the nodes are taken one after
another, each in a loop over the block: vector code. The integral of "even" is summed by quadrature for all elements of
a block, and where the closed form is wanted, which a batch's gradient large beside √v̂ asks for, it is put in its
place, one element at a time. The formulas and their derivation stand in `splits`.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, cast

import numba
import numpy as np

from adamshap.gpu.kernels.plan import LITTLE, SMALL_ANGLE, AdamScalars, SplitPlan, even_nodes
from adamshap.gpu.passes_numba import BLOCK, FAST, compiled, deviation, nothing, safe_root

__all__ = ["split"]

KINDS = {"frozen": 0, "linearized": 1, "nodes": 2, "even": 3}


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
    dtype, sums = g.dtype, np.zeros(4)
    root, theta, owed = (nothing(dtype) if a is None else a for a in (root, theta, owed))
    row, col = (nothing(dtype).reshape(-1) if a is None else a for a in (row, col))
    numbers, wide = _numbers(scalars, n, grow, less, dtype), _numbers(scalars, n, grow, less, np.dtype(np.float64))
    how = (numbers, wide, _table(plan, dtype), KINDS[plan.kind], plan.needs_spread)
    _kernel(dtype.type)(0, len(g), *how, g, theta, m, v, row, col, root, gamma, owed, product, sums)
    return sums


@lru_cache(maxsize=8)  # of a step, for every parameter
def _numbers(scalars: AdamScalars, n: int, grow: float, less: float, dtype: Any) -> Any:
    r, unbias = scalars, n / (n - 1) if n > 1 else 0.0
    adams = (r.lr, r.mu, r.k, r.kappa, r.root, r.root_q, r.eps)
    return np.array([*adams, 1 / n, unbias, np.finfo(dtype).tiny, grow, less], dtype)


@cache
def _table(plan: SplitPlan, dtype: Any) -> Any:
    if plan.kind == "even":
        return np.array([(x * x, w * x * x, 0, 0) for x, w in even_nodes(dtype)])
    return np.array(plan.nodes or np.zeros((0, 4)))


# --- the loop --------------------------------------------------------------------------------------------------------


@numba.njit(error_model="numpy", fastmath=FAST | {"reassoc"})
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for e in range(len(a)):
        total += np.float64(a[e]) * np.float64(b[e])
    return total


@numba.njit(error_model="numpy", fastmath=FAST)
def _atanh(x, gap):  # type: ignore[no-untyped-def]
    return 0.5 * math.log1p(2 * x / max(gap, 2.2250738585072014e-308))


@numba.njit(error_model="numpy", fastmath=FAST)
def _closed(c, sine, e):  # type: ignore[no-untyped-def]
    """Return the integral of `splits.excess` in closed form, for σ > 0."""
    Y, shorter = sine / (1 + c), c * c / (1 + sine)  # 1 − σ
    # The same ψ everywhere: near e = c, where it has no digits, the closed form depends on ψ² alone.
    psi = max(math.sqrt(abs(e - c) / (e + c)), LITTLE)
    if e < c:
        arc = math.atan(Y * psi) / psi
        return (2 * _atanh(Y, (c + shorter) / (1 + c)) - 2 * e / (e + c) * arc - sine / (1 + e)) / (sine * sine)
    d = (e + c) * psi
    below = 1 + e + d
    z = sine / below
    if z < 0.3:  # atanh z − z
        z2, less = z * z, 0.0
        for power in range(31, 1, -2):
            less = (less + 1 / power) * z2
        less *= z
    else:
        less = _atanh(z, (shorter + e + d) / below) - z
    gap = (c + shorter) / (1 + c) + Y * 2 * c / ((e + c) * (1 + psi))  # 1 − Y ψ
    rest = sine * (1 + c * c / (e + d)) / ((1 + e) * below)
    return (2 * less + rest - 2 * c * c * _atanh(Y * psi, gap) / (psi * (e + c) * (e + d))) / (sine * sine)


@cache
def _kernel(real: Any) -> Callable[..., Any]:
    """Return the loop compiled for one dtype; every constant is of that dtype, or the loop would widen to double."""
    zero, one, two, least = real(0), real(1), real(2), real(1e-30)
    G, S, K, FM, FE, MU, TAIL, SLOPE, SHARE = (BLOCK * slot for slot in range(9))
    C, SINE, E, NEAR, Y, SUM, BELOW, FACTOR = (BLOCK * slot for slot in range(8))
    scalar, whole = numba.from_dtype(np.dtype(real)), numba.int64
    read = {d: numba.types.Array(scalar, d, "C", readonly=True) for d in (1, 2)}
    write = numba.types.Array(scalar, 2, "C")
    doubles = {d: numba.types.Array(numba.float64, d, "C", readonly=True) for d in (1, 2)}
    total = numba.types.Array(numba.float64, 1, "C")
    how = (read[1], doubles[1], doubles[2], whole, numba.boolean)

    @compiled(numba.void(whole, whole, *how, *[read[2]] * 4, *[read[1]] * 2, *[read[2]] * 2, write, write, total))
    def split(  # type: ignore[no-untyped-def]
        low, high, p, wide, nodes, kind, spread, g, theta, m, v, row, col, root, gamma, owed, product, sums
    ):
        lr, mu, k, kappa, under, root_q, eps = p[0], p[1], p[2], p[3], p[4], p[5], p[6]
        share, unbias, tiny, grow, less = p[7], p[8], p[9], p[10], p[11]
        columns = g.shape[1]
        w = np.zeros(9 * BLOCK, real)
        d = np.ones(8 * BLOCK if kind == 3 else 0)
        for i in range(low, high):
            for start in range(0, columns, BLOCK):
                width = min(BLOCK, columns - start)
                part = slice(start, start + width)
                g_, m_, v_, gamma_ = g[i, part], m[i, part], v[i, part], gamma[i, part]
                if kind == 0:
                    for e in range(width):
                        inverse = one / (
                            safe_root(one, math.sqrt(kappa * v_[e] + under), root_q * abs(g_[e]), tiny) + eps
                        )
                        w[SLOPE + e] = lr * k * inverse
                        w[SHARE + e] = lr * mu * inverse
                elif kind == 1:
                    for e in range(width):
                        inverse = one / (math.sqrt(kappa * v_[e] + under) + eps)
                        w[SLOPE + e] = lr * k * inverse
                        w[SHARE + e] = lr * mu * inverse
                elif kind == 2:
                    if spread:
                        if root.size > 0:
                            root_ = root[i, part]
                            for e in range(width):
                                w[S + e] = root_[e]
                        else:
                            norm, col_ = row[i], col[part]
                            for e in range(width):
                                w[S + e] = norm * col_[e]
                        for e in range(width):
                            w[S + e] = root_q * deviation(zero, one, g_[e], w[S + e], share, unbias)
                    for e in range(width):
                        rho, big, s = math.sqrt(kappa * v_[e] + under), root_q * g_[e], w[S + e]
                        top = rho if rho > abs(big) else abs(big)
                        top = top if top > s else s
                        top = top if top > tiny else tiny
                        inverse, tail = one / top, one / (top + eps)
                        rho *= inverse
                        w[G + e] = big * inverse
                        w[S + e] = s * inverse
                        w[K + e] = rho * rho
                        w[FM + e] = top * tail
                        w[FE + e] = eps * tail
                        w[MU + e] = mu * m_[e] * tail * root_q * two
                        w[TAIL + e] = lr * tail
                        w[SLOPE + e] = zero
                        w[SHARE + e] = zero
                    for node in range(len(nodes)):
                        tau, across = real(nodes[node, 0]), real(nodes[node, 1])
                        weight, each = real(nodes[node, 2]), real(nodes[node, 3])
                        for e in range(width):
                            f_m, f_e, rho2 = w[FM + e], w[FE + e], w[K + e]
                            c, apart = tau * w[G + e], across * w[S + e]
                            a, b = c + apart, c - apart
                            aa, bb, ab = rho2 + a * a, rho2 + b * b, a * b
                            r_a, r_b = math.sqrt(aa), math.sqrt(bb)
                            D_a, D_b = f_m * r_a + f_e, f_m * r_b + f_e
                            R, U = r_a + r_b + least, r_a * r_b + abs(ab)
                            X = rho2 * (aa + b * b) if ab > zero else U
                            U = U if ab > zero else one
                            of_k, of_mu = k * (f_e * R + f_m * rho2), tau * w[MU + e] * c
                            inverse = one / (R * U * D_a * D_b)
                            w[SLOPE + e] += weight * ((of_k - of_mu) * U + k * f_m * X) * inverse
                            w[SHARE + e] += each * (D_a + D_b) * (R * U) * inverse
                    for e in range(width):
                        w[SLOPE + e] *= w[TAIL + e]
                        w[SHARE + e] *= w[TAIL + e] * mu
                else:
                    for e in range(width):
                        rho, big = math.sqrt(wide[3] * v_[e] + wide[4]), wide[5] * g_[e]
                        R = safe_root(1.0, rho, abs(big), wide[9])
                        d[BELOW + e] = R + wide[6]
                        # Far below ε, D is ε; squares of ε/R would overflow. Where R and ε are 0 so is g, and N.
                        R = max(R, wide[6] * LITTLE)
                        R = 1 / (R if R > 0.0 else 1.0)
                        c, sine = rho * R, big * R
                        angle = abs(sine) / (1 + c)
                        d[C + e] = c
                        d[SINE + e] = sine
                        d[E + e] = wide[6] * R
                        d[Y + e] = angle
                        near = angle if angle < SMALL_ANGLE else SMALL_ANGLE
                        d[NEAR + e] = near * near
                        d[SUM + e] = 0.0
                        d[FACTOR + e] = wide[5] * R * R
                    for node in range(len(nodes)):
                        x2, weight = nodes[node, 0], nodes[node, 1]
                        for e in range(width):
                            y2 = x2 * d[NEAR + e]
                            q = d[C + e] * (1 + y2) + d[E + e] * (1 - y2)
                            d[SUM + e] += weight / ((1 - y2) * q * q)
                    for e in range(width):
                        ratio = d[C + e] / (1 + d[C + e])
                        d[SUM + e] *= 8 * ratio * ratio / (1 + d[C + e]) * d[SINE + e]
                    for e in range(width):
                        if not d[Y + e] < SMALL_ANGLE:
                            size = abs(d[SINE + e])
                            d[SUM + e] = math.copysign(_closed(d[C + e], size, d[E + e]), d[SINE + e])
                    for e in range(width):
                        inverse, N = 1 / d[BELOW + e], d[SUM + e] * d[FACTOR + e]
                        w[SLOPE + e] = real(wide[0] * (wide[2] * inverse - wide[1] * m_[e] * N))
                        w[SHARE + e] = real(wide[0] * wide[1] * (inverse + g_[e] * N))
                for e in range(width):
                    w[SLOPE + e] *= gamma_[e]
                    w[SHARE + e] *= gamma_[e]
                slope_, share_ = w[SLOPE : SLOPE + width], w[SHARE : SHARE + width]
                sums[0] += _dot(slope_, g_)
                sums[1] += _dot(share_, m_)
                sums[2] += _dot(share_, share_)
                if theta.size > 0:
                    sums[3] += _dot(gamma_, theta[i, part])
                if owed.size > 0:
                    owed_ = owed[i, part]
                    for e in range(width):
                        w[SHARE + e] = owed_[e] + w[SHARE + e] * grow
                        w[SLOPE + e] -= w[SHARE + e] * less
                    owed[i, part] = share_
                product[i, part] = slope_

    return cast(Callable[..., Any], split)
