"""The passes of `passes_numpy` as Numba loops: one walk over the arrays, in blocks that stay in the nearest cache.

What the nodes need of a block of elements is kept in one scratch array, whose slots the compiler can tell apart, and
the nodes are taken one after another, each in a loop over the block: vector code, and no kernel is compiled again for
other nodes. Arrays are cut to the part in hand and counted from 0: an index that might be negative, for which Python
counts from the end, keeps the compiler from vector code. The formulas and their derivation stand in `passes_numpy`.
"""

import math
import os
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from adamshap.gpu import passes_numpy
from adamshap.gpu.kernels import Scaling
from adamshap.gpu.kernels.plan import AdamScalars, SlopePlan
from adamshap.gpu.threads import in_parts

__all__ = [
    "activate",
    "adam",
    "attributed",
    "between",
    "column_norms",
    "ranges",
    "roots",
    "row_dot",
    "scale_by_derivative",
    "scaled_squares",
    "whitening",
]

whitening = passes_numpy.whitening

BLOCK = 256  # elements; the scratch slots of a block take 12 KiB in float32
FLOPS_OF_A_PASS = 200  # an element's cost in Adam's pass, as products cost them; a transcendental's likewise
FLOPS_OF_A_NODE = 140  # and what each node of the slope adds
FAST = {"contract", "nsz"}
KINDS = {"sgd": 0, "frozen": 1, "linearized": 2, "previous": 3, "nodes": 4}


def adam(scalars: AdamScalars, g: Any, theta: Any, m: Any, v: Any, new_theta: Any, new_m: Any, new_v: Any) -> None:
    """Write Adam's update of θ, m and v into the last three; they may be the inputs themselves."""
    flat = [array.reshape(-1) for array in (g, theta, m, v, new_theta, new_m, new_v)]
    kernel, numbers = _kernels(g.dtype.type)["adam"], _numbers(scalars, 1, 0.0, g.dtype)
    in_parts(lambda low, high: kernel(low, high, numbers, *flat), g.size, FLOPS_OF_A_PASS * g.size)


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
    dtype = g.dtype
    matrices = [a.reshape(g.shape) if a is not None else nothing(dtype) for a in (root, gamma, point)]
    norms = [a if a is not None else nothing(dtype).reshape(-1) for a in (row, col)]
    kernel = _kernels(dtype.type)["attributed"]
    numbers, table = _numbers(scalars, n, blend, dtype), _node_table(plan, dtype)
    outputs = (new_theta, new_m, new_v, slope)

    def rows(low: int, high: int) -> None:
        how = (low, high, numbers, table, KINDS[plan.kind], plan.needs_spread)
        kernel(*how, g, theta, m, v, *norms, *matrices, *outputs)

    in_parts(rows, len(g), (FLOPS_OF_A_PASS + FLOPS_OF_A_NODE * len(table)) * g.size)


def between(tau: float, a: Any, b: Any, out: Any) -> None:
    """Write the point at `tau` of the way from `a` to `b`."""
    flat, place = [array.reshape(-1) for array in (a, b, out)], np.full(1, tau, a.dtype)
    kernel = _kernels(a.dtype.type)["between"]
    in_parts(lambda low, high: kernel(low, high, place, *flat), a.size, FLOPS_OF_A_PASS / 2 * a.size)


def activate(name: str, z: Any, bias: Any, derivative: Any) -> None:
    """Add the bias to `z`, turn it into the activation in place, and write the derivative where one is kept."""
    if name in ("relu", "gelu"):
        kernel = _kernels(z.dtype.type)[name]
        shift = bias if bias is not None else np.zeros(z.shape[1], z.dtype)
        kernel(0, len(z), z, shift, *((derivative,) if name == "gelu" else ()))
        return
    # NumPy's exp and tanh are vector code, which Numba's are not without Intel's library; blocks stay in the cache.
    for start in range(0, len(z), 64):
        rows = slice(start, start + 64)
        passes_numpy.activate(name, z[rows], bias, None if derivative is None else derivative[rows])


def scale_by_derivative(name: str, b: Any, derivative: Any) -> None:
    """Multiply `b` in place by the activation's derivative; ReLU's is read from the activation itself."""
    if name != "identity":
        _kernels(b.dtype.type)["gate" if name == "relu" else "times"](0, len(b), b, derivative)


def column_norms(x: Any) -> Any:
    """Return the Euclidean norm of each column; float32's squares, added in double, are not lost."""
    if x.dtype == np.float64:
        return passes_numpy.column_norms(x)
    sums = np.zeros(x.shape[1])
    kernel = _kernels(x.dtype.type)["square_sums"]
    in_parts(lambda low, high: kernel(low, high, x, sums), len(sums), 8 * x.size)
    return np.sqrt(sums).astype(x.dtype)


def ranges(x: Any) -> tuple[Any, Any]:
    """Return the largest size of an entry of each column, and the smallest that is not 0, infinity if all are 0."""
    top, low = np.zeros(x.shape[1], x.dtype), np.full(x.shape[1], math.inf, x.dtype)
    kernel = _kernels(x.dtype.type)["ranges"]
    in_parts(lambda first, last: kernel(first, last, x, top, low), len(top), 8 * x.size)
    return top, low


def scaled_squares(x: Any, top: Any, scaling: Scaling) -> Any:
    """Return the squares of `x` with its columns divided by `top` and multiplied by ``scaling.scale``."""
    out, unit = np.empty_like(x), np.where(top > 0, top, x.dtype.type(1))
    kernel = _kernels(x.dtype.type)["scaled_squares"]
    scale = np.full(1, scaling.scale, x.dtype)
    in_parts(lambda low, high: kernel(low, high, x, unit, scale, out), len(x), 8 * x.size)
    return out


def roots(square: Any, units: slice, b: Any, a: Any, of_b: Any, of_a: Any, scaling: Scaling) -> None:
    """Turn the product of scaled squares into √Σ b² a², in place, for some of its rows; see `kernels.Passes.roots`."""
    numbers = np.array([scaling.scale, scaling.least, scaling.back, scaling.root_n], square.dtype)
    _kernels(square.dtype.type)["roots"](units.start, units.stop, numbers, b, a, *of_b, *of_a, square)


def row_dot(b: Any, z: Any, p: Any, out: Any) -> None:
    """Add ⟨b_i, z_i + p⟩ to ``out[i]``."""
    shift = p if p is not None else np.zeros(b.shape[1], b.dtype)
    _kernels(b.dtype.type)["row_dot"](0, len(b), b, z, shift, out)


# --- arguments that the loops take as arrays -------------------------------------------------------------------------


@lru_cache(maxsize=8)  # of a step, for every parameter
def _numbers(scalars: AdamScalars, n: int, blend: float, dtype: Any) -> Any:
    return np.array([*vars(scalars).values(), 1 / n, n / (n - 1) if n > 1 else 0.0, blend, np.finfo(dtype).tiny], dtype)


@cache
def _node_table(plan: SlopePlan, dtype: Any) -> Any:
    return np.array(plan.nodes or np.zeros((0, 4)), dtype)


@cache
def nothing(dtype: Any) -> Any:
    """Return an empty matrix: what a loop takes for one that is not there."""
    return np.empty((0, 0), dtype)


def compiled(signature: Any, sums: bool = False) -> Callable[[Any], Any]:
    """Return the decorator that compiles a loop; with `sums`, the compiler may add in another order.

    Where no folder takes Numba's cache (RuntimeError), or the disk is full, each process compiles anew.
    """
    fast = FAST | ({"reassoc"} if sums else set())
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fast}

    def compile_loop(loop: Any) -> Any:
        try:
            return numba.njit(signature, cache=True, **options)(loop)
        except (RuntimeError, OSError):
            return numba.njit(signature, **options)(loop)

    return compile_loop


if hasattr(os, "register_at_fork"):  # a process forks when nothing is being compiled: its child could never go on
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


# --- the loops -------------------------------------------------------------------------------------------------------


# Not in `_kernels`: a loop that closes over a compiled function has another key in each process, and is never found in
# Numba's cache.
@numba.njit(error_model="numpy", fastmath=FAST)
def safe_root(one, rho, size, tiny):  # type: ignore[no-untyped-def]
    """Return √(ρ² + size²), safe where the squares underflow."""
    top = rho if rho > size else size
    top = top if top > tiny else tiny
    inverse = one / top
    x, y = rho * inverse, size * inverse
    return top * math.sqrt(x * x + y * y)


@numba.njit(error_model="numpy", fastmath=FAST)
def deviation(zero, one, g, root, share, unbias):  # type: ignore[no-untyped-def]
    """Return σ of one element, as `passes_numpy.spread` does."""
    own = g / (root if root > zero else one)
    left = one - own * own * share
    return root * math.sqrt((left if left > zero else zero) * unbias)


@numba.njit(error_model="numpy", fastmath=FAST)
def quotient(zero, one, least, k, rho2, f_m, f_e, a, b, of_mu):  # type: ignore[no-untyped-def]
    """Return A[a, b]'s numerator and the three factors of its denominator, as in `passes_numpy.quotient`.

    `of_mu` is μ's part of the numerator; the last two factors are D(a) and D(b).
    """
    aa, bb, ab = rho2 + a * a, rho2 + b * b, a * b
    r_a, r_b = math.sqrt(aa), math.sqrt(bb)
    R, U = r_a + r_b + least, r_a * r_b + abs(ab)
    X = rho2 * (aa + b * b) if ab > zero else U
    U = U if ab > zero else one
    own = k * (f_e * R + f_m * rho2) - of_mu
    return own * U + k * f_m * X, R * U, f_m * r_a + f_e, f_m * r_b + f_e


@cache
def _kernels(real: Any) -> dict[str, Callable[..., Any]]:
    """Return the loops compiled for one dtype; every constant is of that dtype, or the loop would widen to double."""
    zero, one, two = real(0), real(1), real(2)
    half, least, infinite = real(0.5), real(1e-30), real(math.inf)
    root_half, root_two_pi = real(math.sqrt(0.5)), real(math.sqrt(2 * math.pi))
    G, K, S, FM, FE, MU, TAIL, OUT, POINT, THETA, M, V = (BLOCK * slot for slot in range(12))
    scalar = numba.from_dtype(np.dtype(real))
    read = {d: numba.types.Array(scalar, d, "C", readonly=True) for d in (1, 2)}
    write = {d: numba.types.Array(scalar, d, "C") for d in (1, 2)}
    whole, flag = numba.int64, numba.boolean

    def loop(*signature: Any, sums: bool = False) -> Callable[[Any], Any]:
        return compiled(numba.void(whole, whole, *signature), sums)

    @loop(read[1], *[read[1]] * 4, *[write[1]] * 3)
    def adam(low, high, p, g, theta, m, v, new_theta, new_m, new_v):  # type: ignore[no-untyped-def]
        lr, shrink, b1, d1, b2, d2, mu, k = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
        kappa, under, root_q, eps, tiny = p[8], p[9], p[10], p[11], p[16]
        w = np.empty(3 * BLOCK, real)
        for start in range(low, high, BLOCK):
            width = min(BLOCK, high - start)
            part = slice(start, start + width)
            g_, theta_, m_, v_ = g[part], theta[part], m[part], v[part]
            for e in range(width):  # into scratch: outputs may be the inputs, of which the compiler would be wary
                ge, me, ve = g_[e], m_[e], v_[e]
                below = safe_root(one, math.sqrt(kappa * ve + under), root_q * abs(ge), tiny) + eps
                w[e] = theta_[e] * shrink - lr * (mu * me + k * ge) / below
                w[BLOCK + e] = b1 * me + d1 * ge
                w[2 * BLOCK + e] = b2 * ve + d2 * ge * ge
            new_theta[part] = w[:width]
            new_m[part] = w[BLOCK : BLOCK + width]
            new_v[part] = w[2 * BLOCK : 2 * BLOCK + width]

    @loop(read[1], read[2], whole, flag, *[read[2]] * 4, read[1], read[1], read[2], read[2], *[write[2]] * 5)
    def attributed(  # type: ignore[no-untyped-def]
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
        share, unbias, blend, tiny = p[13], p[14], p[15], p[16]
        columns = g.shape[1]
        w = np.zeros(12 * BLOCK, real)
        for i in range(low, high):
            for start in range(0, columns, BLOCK):
                width = min(BLOCK, columns - start)
                part = slice(start, start + width)
                g_, theta_, m_, v_ = g[i, part], theta[i, part], m[i, part], v[i, part]
                slope_ = slope[i, part]
                # First whatever the slope takes from the old state: Adam may write the new one over it.
                if kind == 0:
                    for e in range(width):
                        w[OUT + e] = lr
                elif kind == 1:
                    for e in range(width):
                        below = safe_root(one, math.sqrt(kappa * v_[e] + under), root_q * abs(g_[e]), tiny) + eps
                        w[OUT + e] = lr * k / below
                elif kind == 2:
                    for e in range(width):
                        w[OUT + e] = lr * k / (math.sqrt(kappa * v_[e] + under) + eps)
                elif kind == 3:
                    for e in range(width):
                        w[OUT + e] = lr * k / (math.sqrt(previous * v_[e] + under) + eps)
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
                        little = eps * tail
                        w[FE + e] = little if little > tiny else tiny
                        w[MU + e] = mu * m_[e] * tail * root_q * two
                        w[TAIL + e] = lr * tail
                        w[OUT + e] = zero
                for e in range(width):  # into scratch: outputs may be the inputs, of which the compiler would be wary
                    ge, me, ve = g_[e], m_[e], v_[e]
                    rho, first, kept = math.sqrt(kappa * ve + under), mu * me, theta_[e] * shrink
                    below = safe_root(one, rho, root_q * abs(ge), tiny) + eps
                    idle, step = lr * first / (rho + eps), lr * (first + k * ge) / below
                    w[POINT + e] = kept - ((one - blend) * idle + blend * step)
                    w[THETA + e] = kept - step
                    w[M + e] = b1 * me + d1 * ge
                    w[V + e] = b2 * ve + d2 * ge * ge
                if point.size > 0:
                    point[i, part] = w[POINT : POINT + width]
                new_theta[i, part] = w[THETA : THETA + width]
                new_m[i, part] = w[M : M + width]
                new_v[i, part] = w[V : V + width]
                if kind == 4:
                    for node in range(len(nodes)):
                        tau, along, across, weight = nodes[node, 0], nodes[node, 1], nodes[node, 2], nodes[node, 3]
                        for e in range(width):
                            f_m, f_e, rho2 = w[FM + e], w[FE + e], w[K + e]
                            c, d = tau * w[G + e], along * w[G + e] + across * w[S + e]
                            a, b = c + d, c - d
                            above, scale, D_a, D_b = quotient(zero, one, least, k, rho2, f_m, f_e, a, b, w[MU + e] * c)
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

    @loop(read[1], *[read[1]] * 2, write[1])
    def between(low, high, place, a, b, out):  # type: ignore[no-untyped-def]
        a_, b_, out_, tau = a[low:high], b[low:high], out[low:high], place[0]
        for e in range(high - low):
            out_[e] = a_[e] + tau * (b_[e] - a_[e])

    @loop(write[2], read[1])
    def relu(low, high, z, bias):  # type: ignore[no-untyped-def]
        for i in range(low, high):
            for j in range(z.shape[1]):
                x = z[i, j] + bias[j]
                z[i, j] = x if x > zero else zero

    @loop(write[2], read[1], write[2])
    def gelu(low, high, z, bias, derivative):  # type: ignore[no-untyped-def]
        for i in range(low, high):
            for j in range(z.shape[1]):
                x = z[i, j] + bias[j]
                normal = half * math.erfc(-x * root_half)
                derivative[i, j] = normal + x * math.exp(-half * x * x) / root_two_pi
                z[i, j] = x * normal

    @loop(write[2], read[2])
    def gate(low, high, b, a):  # type: ignore[no-untyped-def]
        for i in range(low, high):
            for j in range(b.shape[1]):
                b[i, j] = b[i, j] if a[i, j] > zero else zero

    @loop(write[2], read[2])
    def times(low, high, b, derivative):  # type: ignore[no-untyped-def]
        for i in range(low, high):
            for j in range(b.shape[1]):
                b[i, j] *= derivative[i, j]

    @loop(read[2], numba.types.Array(numba.float64, 1, "C"))
    def square_sums(low, high, x, sums):  # type: ignore[no-untyped-def]
        sums = sums[low:high]
        fours = len(x) // 4 * 4
        for i in range(0, fours, 4):
            x0, x1, x2, x3 = x[i, low:high], x[i + 1, low:high], x[i + 2, low:high], x[i + 3, low:high]
            for j in range(len(sums)):
                y0, y1, y2, y3 = np.float64(x0[j]), np.float64(x1[j]), np.float64(x2[j]), np.float64(x3[j])
                sums[j] += (y0 * y0 + y1 * y1) + (y2 * y2 + y3 * y3)
        for i in range(fours, len(x)):
            x0 = x[i, low:high]
            for j in range(len(sums)):
                y0 = np.float64(x0[j])
                sums[j] += y0 * y0

    @loop(read[2], write[1], write[1])
    def ranges(low, high, x, top, least_):  # type: ignore[no-untyped-def]
        top, least_ = top[low:high], least_[low:high]
        for i in range(len(x)):
            x_ = x[i, low:high]
            for j in range(len(top)):
                size = abs(x_[j])
                some = size if size > zero else infinite
                top[j] = size if size > top[j] else top[j]
                least_[j] = some if some < least_[j] else least_[j]

    @loop(read[2], read[1], read[1], write[2])
    def scaled_squares(low, high, x, top, scale, out):  # type: ignore[no-untyped-def]
        by = scale[0]
        for i in range(low, high):
            for j in range(x.shape[1]):
                y = x[i, j] / top[j] * by
                out[i, j] = y * y

    @loop(read[1], read[2], read[2], *[read[1]] * 4, write[2])
    def roots(low, high, p, b, a, top_b, low_b, top_a, low_a, square):  # type: ignore[no-untyped-def]
        scale, least_, back, root_n = p[0], p[1], p[2], p[3]
        lost = np.empty(square.shape[1], np.int64)
        for i in range(low, high):
            square_, top, count = square[i], top_b[i], 0
            lowest = low_b[i] / top * scale
            for j in range(len(square_)):
                if square_[j] < least_:
                    small = low_a[j] / top_a[j] * scale
                    if lowest * lowest * (small * small) < least_:
                        lost[count] = j
                        count += 1
            for j in range(len(square_)):
                larger, smaller = (top, top_a[j]) if top > top_a[j] else (top_a[j], top)
                square_[j] = math.sqrt(square_[j]) * back * larger * (smaller * root_n)
            for j in lost[:count]:
                most = zero
                for k in range(len(a)):
                    size = abs(b[k, i] * a[k, j])
                    most = size if size > most else most
                unit, total = most if most > zero else one, zero
                for k in range(len(a)):
                    x = b[k, i] * a[k, j] / unit
                    total += x * x
                square_[j] = most * math.sqrt(total)

    @loop(read[2], read[2], read[1], write[1], sums=True)
    def row_dot(low, high, b, z, p, out):  # type: ignore[no-untyped-def]
        for i in range(low, high):
            total = zero
            for j in range(b.shape[1]):
                total += b[i, j] * (z[i, j] + p[j])
            out[i] += total

    loops = (adam, attributed, between, relu, gelu, gate, times, square_sums, ranges, scaled_squares, roots, row_dot)
    return {made.__name__: made for made in loops}
