"""The kernels as Numba loops: one walk over the arrays, in blocks that stay in the nearest cache.

One scratch array holds the quantities of a block of elements, in slots that the compiler can tell apart. The nodes come
one after another, each in a loop over the block: the code is vectorised, and other nodes need no compilation.
`kernels.numpy` derives the formulas. Adam's step alone, and with the slope "secant", are in `numba_steps`.

The split's integral of "even" is summed by quadrature for all elements of a block. Where the gradient is large compared
with √v̂, the closed form then replaces the sum, one element at a time.

With L2 decay a loop is compiled anew: without, it has none of its operations.

The fit divides radicands by the largest of √κ, √q |g| and √q σ, once per element and not once per node. A sample's own
x may be tiny compared with that, and the sum of the samples before it 0: `tiny` keeps the denominator from underflowing
to 0. Where κ and one of the two arguments are 0, D is ε there and divides a small numerator: so ε/T is at least `tiny`,
and the smaller D divides last. The regression pairs each new node with all nodes before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numba
import numpy as np

from adamshap.gpu.jit import FAST, compiled
from adamshap.gpu.kernels.groups import FusedStepOut, GradientNorms, OwedSum, ParameterState, TwoTermOut
from adamshap.gpu.kernels.numba_arguments import array_types, matrix, norms_of, scalar_array, table
from adamshap.gpu.kernels.numba_steps import FLOPS_OF_A_STEP, adam_step, safe_root, secant_step
from adamshap.gpu.kernels.plan import (
    NEGLIGIBLE,
    SECANT_PLAN,
    SHARE_BLOCK,
    SMALL_ANGLE,
    AdamScalars,
    FitPlan,
    SlopePlan,
    SplitPlan,
    blended,
    even_squares,
    largest_square,
)
from adamshap.gpu.threads import in_parts

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from adamshap.reference.contract import Array

__all__ = ["adam_step", "auto_plans", "fused_step", "momentum_split", "two_term_fit"]

BLOCK = 256  # elements; the scratch slots of a block take 13 KiB in float32
FLOPS_OF_A_NODE = 140  # cost of a node of the slope per element, as flops of matrix products that take as long
FLOPS_OF_A_SHARE = 60  # and of the element's own share for "auto"
SLOPE_KINDS = {"sgd": 0, "frozen": 1, "linearized": 2, "previous": 3, "nodes": 4, "at_rest": 5}
SPLIT_KINDS = {"frozen": 0, "linearized": 1, "nodes": 2, "even": 3}


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
    if plan is SECANT_PLAN and not scalars.l2:
        secant_step(scalars, g, state, gamma, blend, out)
        return
    dtype: Any = g.dtype
    loop, nodes = _fused_step(dtype.type, scalars.l2 > 0), table(plan.nodes, dtype)
    numbers = scalar_array(scalars, norms.n, dtype, blend)
    inputs = (g, state.theta, state.m, state.v, *norms_of(norms, dtype), matrix(gamma, dtype))
    new = (None,) * 3 if out.new is None else (out.new.theta, out.new.m, out.new.v)
    outputs = (*(matrix(array, dtype) for array in (out.point, *new)), out.slope)

    def rows(low: int, high: int) -> None:
        loop(low, high, numbers, nodes, SLOPE_KINDS[plan.kind], plan.needs_spread, *inputs, *outputs)

    in_parts(rows, len(g), (FLOPS_OF_A_STEP + FLOPS_OF_A_NODE * len(nodes)) * g.size)


def auto_plans(
    scalars: Mapping[str, AdamScalars], order: SlopePlan, g: Mapping[str, Array], v: Mapping[str, Array]
) -> dict[str, SlopePlan]:
    """Return the plans of "auto"; see `Kernels.auto_plans`."""
    plans, of_one = {}, np.empty((2, 1))
    for name, array in g.items():
        dtype: Any = array.dtype
        loop, numbers = _auto_plans(dtype.type), scalar_array(scalars[name], 1, dtype, largest_square(dtype))
        flat = array.reshape(-1), v[name].reshape(-1)
        if array.size <= SHARE_BLOCK:  # as in small models, whose steps are so short that every call counts
            loop(0, 1, numbers, *flat, of_one)
            part, whole = of_one[0, 0], of_one[1, 0]
        else:
            part, whole = _share_sums(loop, numbers, *flat)
        plans[name] = blended(order, part / whole if whole > 0 else 0.0)
    return plans


def _share_sums(loop: Any, numbers: Array, g: Array, v: Array) -> Array:
    """Return Σ w z² and Σ w over several blocks."""
    sums = np.empty((2, -(-g.size // SHARE_BLOCK)))
    in_parts(lambda low, high: loop(low, high, numbers, g, v, sums), sums.shape[1], FLOPS_OF_A_SHARE * g.size)
    total: Array = sums.sum(axis=1)
    return total


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
    dtype: Any = g.dtype
    double, sums = np.dtype(np.float64), np.zeros(4)
    grow, less, total = (0.0, 0.0, None) if owed is None else (owed.grow, owed.less, owed.total)
    numbers, wide = (scalar_array(scalars, norms.n, kind, grow, less) for kind in (dtype, double))
    nodes = even_squares(dtype) if plan.kind == "even" else plan.nodes
    how = (numbers, wide, table(nodes, double), SPLIT_KINDS[plan.kind], plan.needs_spread)
    theta = matrix(state.theta if scalars.shrink < 1 or scalars.l2 else None, dtype)
    inputs = (g, theta, state.m, state.v, *norms_of(norms, dtype), gamma)
    _momentum_split(dtype.type, scalars.l2 > 0)(0, len(g), *how, *inputs, matrix(total, dtype), product, sums)
    return sums


def two_term_fit(
    scalars: AdamScalars,
    plan: FitPlan,
    g: Float[Array, "d_out d_in"],
    state: ParameterState,
    norms: GradientNorms,
    out: TwoTermOut,
) -> None:
    """Write S and R; see `Kernels.two_term_fit`."""
    dtype: Any = g.dtype
    numbers = scalar_array(scalars, norms.n, dtype, plan.relative_deviation, plan.ridge)
    tables = (table(plan.own, dtype), table(plan.arrivals, dtype))
    arrays = (g, state.theta, state.m, state.v, *norms_of(norms, dtype), out.slope, out.second)
    _two_term_fit(dtype.type, scalars.l2 > 0)(0, len(g), numbers, *tables, *arrays)


# --- functions that the loops call -----------------------------------------------------------------------------------


# At module level: a loop that closes over a compiled function has a different key in each process, and is never found
# in Numba's cache.
@numba.njit(error_model="numpy", fastmath=FAST)
def _deviation(zero, one, g, root, per_sample, unbias):  # type: ignore[no-untyped-def]
    """Return σ of one element, as `_spread` of `kernels.numpy` does."""
    own = g / (root if root > zero else one)
    left = one - own * own * per_sample
    return root * math.sqrt((left if left > zero else zero) * unbias)


@numba.njit(error_model="numpy", fastmath=FAST)
def _quotient(zero, one, least, k, rho2, f_m, f_e, a, b, of_mu):  # type: ignore[no-untyped-def]
    """Return A[a, b]'s numerator and the three factors of its denominator, as in `_quotient` of `kernels.numpy`.

    `of_mu` is μ's part of the numerator; the last two factors are D(a) and D(b).
    """
    aa, bb, ab = rho2 + a * a, rho2 + b * b, a * b
    r_a, r_b = math.sqrt(aa), math.sqrt(bb)
    R, U = r_a + r_b + least, r_a * r_b + abs(ab)
    X = rho2 * (aa + b * b) if ab > zero else U
    U = U if ab > zero else one
    own = k * (f_e * R + f_m * rho2) - of_mu
    return own * U + k * f_m * X, R * U, f_m * r_a + f_e, f_m * r_b + f_e


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
    """Return the integral of `excess` of `kernels.numpy` in closed form, for σ > 0."""
    Y, shorter = sine / (1 + c), c * c / (1 + sine)  # 1 − σ
    # The same ψ everywhere: near e = c, where it has no digits, the closed form depends on ψ² alone.
    psi = max(math.sqrt(abs(e - c) / (e + c)), NEGLIGIBLE)
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


# --- the loops -------------------------------------------------------------------------------------------------------
# Every constant of a loop is of its dtype, or the loop would widen to double.


@cache
def _auto_plans(real: Any) -> Callable[..., Any]:
    """Return the loop compiled for one dtype."""
    whole = numba.int64
    read, _ = array_types(numba.from_dtype(np.dtype(real)))
    _, write = array_types(numba.float64)

    @compiled(numba.void(whole, whole, read[1], read[1], read[1], write[2]), sums=True)
    def auto_plans(low, high, p, g, v, sums):  # type: ignore[no-untyped-def]
        kappa, under, root_q, eps, tiny, largest = p[8], p[9], p[10], p[11], p[16], p[17]
        for block in range(low, high):
            part = slice(block * SHARE_BLOCK, min((block + 1) * SHARE_BLOCK, g.size))
            g_, v_ = g[part], v[part]
            shares, weights = 0.0, 0.0
            for e in range(len(g_)):
                scaled = root_q * g_[e]
                own = scaled * scaled
                own = (own if own < largest else largest) + tiny
                radicand = kappa * v_[e] + under + own
                weight, share = own / (radicand + eps * eps), own / radicand
                weights += np.float64(weight)
                shares += np.float64(weight * share * share)
            sums[0, block], sums[1, block] = shares, weights

    return cast(Callable[..., Any], auto_plans)


@cache
def _fused_step(real: Any, decays: bool = False) -> Callable[..., Any]:
    """Return the loop compiled for one dtype, with L2 decay if it `decays`."""
    zero, one, two, least = real(0), real(1), real(2), real(1e-30)
    G, K, S, FM, FE, MU, TAIL, OUT, POINT, THETA, M, V, DECAY = (BLOCK * slot for slot in range(13))
    whole, flag = numba.int64, numba.boolean
    read, write = array_types(numba.from_dtype(np.dtype(real)))
    how = (read[1], read[2], whole, flag)

    @compiled(numba.void(whole, whole, *how, *[read[2]] * 4, read[1], read[1], read[2], read[2], *[write[2]] * 5))
    def fused_step(  # type: ignore[no-untyped-def]
        low,
        high,
        p,
        nodes,
        kind,
        spread,
        g,
        theta,
        m,
        v,
        row,
        col,
        root,
        gamma,
        point,
        new_theta,
        new_m,
        new_v,
        slope,
    ):
        lr, shrink, b1, d1, b2, d2, mu, k = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
        kappa, under, root_q, eps, previous = p[8], p[9], p[10], p[11], p[12]
        l2, per_sample, unbias, tiny, blend = p[13], p[14], p[15], p[16], p[17]
        columns = g.shape[1]
        w = np.zeros(13 * BLOCK, real)
        for i in range(low, high):
            for start in range(0, columns, BLOCK):
                width = min(BLOCK, columns - start)
                part = slice(start, start + width)
                g_, theta_, m_, v_ = g[i, part], theta[i, part], m[i, part], v[i, part]
                slope_ = slope[i, part]
                # The slope reads the old state first: Adam's step may overwrite it.
                if kind == 0:
                    for e in range(width):
                        w[OUT + e] = lr
                elif kind == 1:
                    for e in range(width):
                        size = root_q * abs(g_[e] + l2 * theta_[e] if decays else g_[e])
                        below = safe_root(one, math.sqrt(kappa * v_[e] + under), size, tiny) + eps
                        w[OUT + e] = lr * k / below
                elif kind == 2:
                    for e in range(width):
                        w[OUT + e] = lr * k / (math.sqrt(kappa * v_[e] + under) + eps)
                elif kind == 3:
                    for e in range(width):
                        w[OUT + e] = lr * k / (math.sqrt(previous * v_[e] + under) + eps)
                elif kind == 5:
                    for e in range(width):  # A'(d) = η (k (ε + κ/r) − μ q d/r)/D², at r = 0 η k/ε
                        rho, rest = math.sqrt(kappa * v_[e] + under), root_q * (l2 * theta_[e])
                        r = safe_root(one, rho, abs(rest), tiny)
                        below, safe = r + eps, r if r > zero else one
                        above = k * (eps + rho * (rho / safe)) - mu * m_[e] * root_q * (rest / safe)
                        w[OUT + e] = lr * (above / below) / below
                else:
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
                            w[S + e] = root_q * _deviation(zero, one, g_[e], w[S + e], per_sample, unbias)
                    for e in range(width):
                        rho, big, s = math.sqrt(kappa * v_[e] + under), root_q * g_[e], w[S + e]
                        top = rho if rho > abs(big) else abs(big)
                        top = top if top > s else s
                        if decays:
                            rest = root_q * (l2 * theta_[e])
                            top = top if top > abs(rest) else abs(rest)
                        top = top if top > tiny else tiny
                        inverse, tail = one / top, one / (top + eps)
                        rho *= inverse
                        w[G + e] = big * inverse
                        w[S + e] = s * inverse
                        if decays:
                            w[DECAY + e] = rest * inverse
                        w[K + e] = rho * rho
                        w[FM + e] = top * tail
                        scaled_eps = eps * tail
                        w[FE + e] = scaled_eps if scaled_eps > tiny else tiny
                        w[MU + e] = mu * m_[e] * tail * root_q * two
                        w[TAIL + e] = lr * tail
                        w[OUT + e] = zero
                for e in range(width):  # into scratch: outputs may be the inputs, and aliases prevent vector code
                    ge, me, ve = g_[e] + l2 * theta_[e] if decays else g_[e], m_[e], v_[e]
                    rho, first, kept = math.sqrt(kappa * ve + under), mu * me, theta_[e] * shrink
                    below = safe_root(one, rho, root_q * abs(ge), tiny) + eps
                    if decays:
                        rest = l2 * theta_[e]
                        idle = lr * (first + k * rest) / (safe_root(one, rho, root_q * abs(rest), tiny) + eps)
                    else:
                        idle = lr * first / (rho + eps)
                    step = lr * (first + k * ge) / below
                    w[POINT + e] = kept - ((one - blend) * idle + blend * step)
                    w[THETA + e] = kept - step
                    w[M + e] = b1 * me + d1 * ge
                    w[V + e] = b2 * ve + d2 * ge * ge
                if point.size > 0:
                    point[i, part] = w[POINT : POINT + width]
                if new_theta.size > 0:
                    new_theta[i, part] = w[THETA : THETA + width]
                    new_m[i, part] = w[M : M + width]
                    new_v[i, part] = w[V : V + width]
                if kind == 4:
                    for node in range(len(nodes)):
                        tau, along, across, weight = nodes[node, 0], nodes[node, 1], nodes[node, 2], nodes[node, 3]
                        for e in range(width):
                            f_m, f_e, rho2 = w[FM + e], w[FE + e], w[K + e]
                            c, h = tau * w[G + e], along * w[G + e] + across * w[S + e]
                            a, b = c + h, c - h
                            if decays:  # last, so that neither loses its digits
                                a, b, c = a + w[DECAY + e], b + w[DECAY + e], c + w[DECAY + e]
                            of_mu = w[MU + e] * c
                            above, scale, D_a, D_b = _quotient(zero, one, least, k, rho2, f_m, f_e, a, b, of_mu)
                            w[OUT + e] += weight * above / (scale * D_a * D_b)
                    for e in range(width):
                        w[OUT + e] *= w[TAIL + e]
                if gamma.size > 0:
                    gamma_ = gamma[i, part]
                    for e in range(width):
                        slope_[e] = w[OUT + e] * gamma_[e]
                else:
                    for e in range(width):
                        slope_[e] = w[OUT + e]

    return cast(Callable[..., Any], fused_step)


@cache
def _momentum_split(real: Any, decays: bool = False) -> Callable[..., Any]:
    """Return the loop compiled for one dtype, with L2 decay if it `decays`."""
    zero, one, two, least = real(0), real(1), real(2), real(1e-30)
    G, S, K, FM, FE, MU, TAIL, SLOPE, MOMENTUM, RECEIVED = (BLOCK * slot for slot in range(10))
    C, SINE, E, NEAR, Y, SUM, BELOW, FACTOR = (BLOCK * slot for slot in range(8))
    whole = numba.int64
    read, write = array_types(numba.from_dtype(np.dtype(real)))
    wide_read, wide_write = array_types(numba.float64)
    how = (read[1], wide_read[1], wide_read[2], whole, numba.boolean)
    arrays = (*[read[2]] * 4, *[read[1]] * 2, *[read[2]] * 2, *[write[2]] * 2)

    @compiled(numba.void(whole, whole, *how, *arrays, wide_write[1]))
    def momentum_split(  # type: ignore[no-untyped-def]
        low, high, p, wide, nodes, kind, spread, g, theta, m, v, row, col, root, gamma, owed, product, sums
    ):
        lr, mu, k, kappa, under, root_q, eps = p[0], p[6], p[7], p[8], p[9], p[10], p[11]
        l2, per_sample, unbias, tiny, grow, less = p[13], p[14], p[15], p[16], p[17], p[18]
        columns = g.shape[1]
        w = np.zeros(10 * BLOCK, real)
        d = np.ones(8 * BLOCK if kind == 3 else 0)
        for i in range(low, high):
            for start in range(0, columns, BLOCK):
                width = min(BLOCK, columns - start)
                part = slice(start, start + width)
                g_, m_, v_, gamma_ = g[i, part], m[i, part], v[i, part], gamma[i, part]
                if decays:
                    theta_ = theta[i, part]
                    for e in range(width):
                        w[RECEIVED + e] = g_[e] + l2 * theta_[e]
                if kind == 0:
                    for e in range(width):
                        size = root_q * abs(w[RECEIVED + e] if decays else g_[e])
                        inverse = one / (safe_root(one, math.sqrt(kappa * v_[e] + under), size, tiny) + eps)
                        w[SLOPE + e] = lr * k * inverse
                        w[MOMENTUM + e] = lr * mu * inverse
                elif kind == 1:
                    for e in range(width):
                        inverse = one / (math.sqrt(kappa * v_[e] + under) + eps)
                        w[SLOPE + e] = lr * k * inverse
                        w[MOMENTUM + e] = lr * mu * inverse
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
                            w[S + e] = root_q * _deviation(zero, one, g_[e], w[S + e], per_sample, unbias)
                    for e in range(width):
                        rho, s = math.sqrt(kappa * v_[e] + under), w[S + e]
                        big = root_q * (w[RECEIVED + e] if decays else g_[e])
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
                        w[MOMENTUM + e] = zero
                    for node in range(len(nodes)):
                        tau, across = real(nodes[node, 0]), real(nodes[node, 1])
                        weight, inverse_weight = real(nodes[node, 2]), real(nodes[node, 3])
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
                            w[MOMENTUM + e] += inverse_weight * (D_a + D_b) * (R * U) * inverse
                    for e in range(width):
                        w[SLOPE + e] *= w[TAIL + e]
                        w[MOMENTUM + e] *= w[TAIL + e] * mu
                else:
                    for e in range(width):
                        rho, received = math.sqrt(wide[8] * v_[e] + wide[9]), w[RECEIVED + e] if decays else g_[e]
                        big = wide[10] * received
                        R = safe_root(1.0, rho, abs(big), wide[16])
                        d[BELOW + e] = R + wide[11]
                        # Far below ε, D is ε; squares of ε/R would overflow. Where R and ε are 0 so is g, and N.
                        R = max(R, wide[11] * NEGLIGIBLE)
                        R = 1 / (R if R > 0.0 else 1.0)
                        c, sine = rho * R, big * R
                        angle = abs(sine) / (1 + c)
                        d[C + e] = c
                        d[SINE + e] = sine
                        d[E + e] = wide[11] * R
                        d[Y + e] = angle
                        near = angle if angle < SMALL_ANGLE else SMALL_ANGLE
                        d[NEAR + e] = near * near
                        d[SUM + e] = 0.0
                        d[FACTOR + e] = wide[10] * R * R
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
                        w[SLOPE + e] = real(wide[0] * (wide[7] * inverse - wide[6] * m_[e] * N))
                        received = w[RECEIVED + e] if decays else g_[e]
                        w[MOMENTUM + e] = real(wide[0] * wide[6] * (inverse + received * N))
                for e in range(width):
                    w[SLOPE + e] *= gamma_[e]
                    w[MOMENTUM + e] *= gamma_[e]
                slope_, owed_now = w[SLOPE : SLOPE + width], w[MOMENTUM : MOMENTUM + width]
                sums[0] += _dot(slope_, g_)
                sums[1] += _dot(owed_now, m_)
                sums[2] += _dot(owed_now, owed_now)
                if decays:
                    sums[3] += _dot(slope_, theta[i, part])
                elif theta.size > 0:
                    sums[3] += _dot(gamma_, theta[i, part])
                if owed.size > 0:
                    owed_ = owed[i, part]
                    for e in range(width):
                        w[MOMENTUM + e] = owed_[e] + w[MOMENTUM + e] * grow
                        w[SLOPE + e] -= w[MOMENTUM + e] * less
                    owed[i, part] = owed_now
                product[i, part] = slope_

    return cast(Callable[..., Any], momentum_split)


@cache
def _two_term_fit(real: Any, decays: bool = False) -> Callable[..., Any]:
    """Return the loop compiled for one dtype, with L2 decay if it `decays`."""
    zero, one, least = real(0), real(1), real(1e-30)
    G, S, K, FM, FE, MU, TAIL, MEAN, PART, ROOT = (BLOCK * slot for slot in range(10))
    X, REST, Z, R, OUT, SLOPE, PHI, UP, DOWN, DECAY = (BLOCK * slot for slot in range(10, 20))
    whole = numba.int64
    read, write = array_types(numba.from_dtype(np.dtype(real)))

    @compiled(numba.void(whole, whole, read[1], *[read[2]] * 6, *[read[1]] * 2, read[2], *[write[2]] * 2))
    def two_term_fit(  # type: ignore[no-untyped-def]
        low, high, p, own, arrivals, g, theta, m, v, row, col, root, slope, second
    ):
        lr, mu, k, kappa, under, root_q, eps = p[0], p[6], p[7], p[8], p[9], p[10], p[11]
        l2, per_sample, unbias, tiny, of_sigma, ridge = p[13], p[14], p[15], p[16], p[17], p[18]
        columns = g.shape[1]
        w = np.zeros(20 * BLOCK, real)
        before = np.zeros((len(own), 3, BLOCK), real)  # z, √z and s of the nodes so far
        for i in range(low, high):
            for start in range(0, columns, BLOCK):
                width = min(BLOCK, columns - start)
                part = slice(start, start + width)
                g_, m_, v_ = g[i, part], m[i, part], v[i, part]
                if decays:
                    theta_ = theta[i, part]
                if root.size > 0:
                    root_ = root[i, part]
                    for e in range(width):
                        w[S + e] = root_[e]
                else:
                    norm, col_ = row[i], col[part]
                    for e in range(width):
                        w[S + e] = norm * col_[e]
                for e in range(width):
                    s = _deviation(zero, one, g_[e], w[S + e], per_sample, unbias)
                    mean, apart = per_sample * g_[e], of_sigma * s
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
                    if decays:
                        rest = root_q * (l2 * theta_[e])
                        top = top if top > abs(rest) else abs(rest)
                    top = top if top > tiny else tiny
                    inverse, tail = one / top, one / (top + eps)
                    rho *= inverse
                    w[G + e] = big * inverse
                    w[S + e] = of_sigma * s * inverse
                    if decays:
                        w[DECAY + e] = rest * inverse
                    w[K + e] = rho * rho
                    w[FM + e] = top * tail
                    scaled_eps = eps * tail
                    w[FE + e] = scaled_eps if scaled_eps > tiny else tiny
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
                        w[X + e] = per_sample * w[G + e] + h * w[S + e]
                        w[REST + e] = w[G + e] - w[X + e]
                        w[OUT + e] = zero
                    for node in range(len(arrivals)):
                        tau, across, weight = arrivals[node, 0], arrivals[node, 1], arrivals[node, 2]
                        left = one - tau
                        for e in range(width):
                            apart = across * w[S + e]
                            b = tau * w[REST + e] + apart
                            a = tau * w[G + e] + left * w[X + e] + apart  # b + x; g itself if all others come before
                            if decays:
                                a, b = a + w[DECAY + e], b + w[DECAY + e]
                            above, scale, D_a, D_b = _quotient(
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
                            pair, gap = weight * z_[e] * w[Z + e], w[R + e] - r_[e]
                            w[UP + e] += pair * r_[e] * w[R + e] * gap * (s_[e] - w[OUT + e])
                            w[DOWN + e] += pair * gap * gap
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

    return cast(Callable[..., Any], two_term_fit)
