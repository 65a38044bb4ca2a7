"""The passes of `passes_numpy` as Numba loops: one walk over the arrays, in blocks that stay in the nearest cache.

A block is copied into one scratch array, worked on there and copied out: the compiler makes vector code only of loops
whose arrays it can tell apart, and constant offsets into one array are such. The nodes are taken one after another,
each in a loop over the block, so no kernel is compiled again for other nodes. The formulas and their derivation stand
in `passes_numpy`. Rows are shared out among plain threads; Numba's own pools and BLAS's get into each other's way.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np

from adamshap.gpu import passes_numpy
from adamshap.gpu.arrays import cpu_threads
from adamshap.gpu.rules import Rates, Rule

__all__ = ["activate", "adam", "attributed", "column_norms", "row_dot", "scale_by_derivative", "whitening"]

whitening = passes_numpy.whitening

BLOCK = 256  # elements; the scratch slots of a block take 14 KiB in float32
SHARED_FROM = 1 << 16  # elements of work from which a second thread pays
KINDS = {"sgd": 0, "frozen": 1, "linearized": 2, "previous": 3, "nodes": 4}


def adam(rates: Rates, g: Any, theta: Any, m: Any, v: Any, new_theta: Any, new_m: Any, new_v: Any) -> None:
    """Write Adam's update of θ, m and v into the last three; they may be the inputs themselves."""
    flat = [array.reshape(-1) for array in (g, theta, m, v, new_theta, new_m, new_v)]
    _shared(_kernels(g.dtype.type)["adam"], g.size, g.size, _numbers(rates, 1, 0.0, g.dtype), *flat)


def attributed(
    rates: Rates,
    rule: Rule,
    n: int,
    g: Any,
    theta: Any,
    m: Any,
    v: Any,
    row: Any,
    col: Any,
    square: Any,
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
    matrices = [a.reshape(g.shape) if a is not None else _nothing(dtype) for a in (square, gamma, point)]
    norms = [a if a is not None else _nothing(dtype).reshape(-1) for a in (row, col)]
    _shared(
        _kernels(dtype.type)["attributed"],
        len(g),
        g.size,
        _numbers(rates, n, blend, dtype),
        _node_table(rule, dtype),
        KINDS[rule.kind],
        rule.needs_spread,
        g,
        theta,
        m,
        v,
        *norms,
        *matrices,
        new_theta,
        new_m,
        new_v,
        slope,
    )


def activate(name: str, z: Any, bias: Any, derivative: Any) -> None:
    """Add the bias to `z`, turn it into the activation in place, and write the derivative where one is kept."""
    if name in ("relu", "gelu"):
        kernels = _kernels(z.dtype.type)
        shift = bias if bias is not None else np.zeros(z.shape[1], z.dtype)
        _shared(kernels[name], len(z), z.size, z, shift, *((derivative,) if name == "gelu" else ()))
        return
    # NumPy's exp and tanh are vector code, which Numba's are not without Intel's library.
    _shared(_activate_rows, len(z), z.size, name, z, bias, derivative)


def _activate_rows(low: int, high: int, name: str, z: Any, bias: Any, derivative: Any) -> None:
    for start in range(low, high, 64):
        rows = slice(start, min(start + 64, high))
        passes_numpy.activate(name, z[rows], bias, None if derivative is None else derivative[rows])


def scale_by_derivative(name: str, b: Any, derivative: Any) -> None:
    """Multiply `b` in place by the activation's derivative; ReLU's is read from the activation itself."""
    if name != "identity":
        _shared(_kernels(b.dtype.type)["gate" if name == "relu" else "times"], len(b), b.size, b, derivative)


def column_norms(x: Any) -> Any:
    """Return the Euclidean norm of each column; squares are added in double precision, where none is lost."""
    sums = np.zeros(x.shape[1])
    _kernels(x.dtype.type)["square_sums"](0, len(x), x, sums)
    return np.sqrt(sums).astype(x.dtype)


def row_dot(b: Any, z: Any, p: Any, out: Any) -> None:
    """Add ⟨b_i, z_i + p⟩ to ``out[i]``."""
    shift = p if p is not None else np.zeros(b.shape[1], b.dtype)
    _shared(_kernels(b.dtype.type)["row_dot"], len(b), b.size, b, z, shift, out)


# --- threads ---------------------------------------------------------------------------------------------------------


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, cpu_threads() - 1), thread_name_prefix="adamshap")


def _shared(kernel: Callable[..., None], rows: int, work: int, *args: Any) -> None:
    """Call ``kernel(low, high, *args)`` on parts of the rows, side by side where the work is worth it."""
    parts = min(cpu_threads(), rows) if work >= SHARED_FROM else 1
    bounds = [rows * i // parts for i in range(parts + 1)]
    others = [_helpers().submit(kernel, low, high, *args) for low, high in pairwise(bounds[1:])]
    kernel(bounds[0], bounds[1], *args)
    for other in others:
        other.result()


# --- arguments that the loops take as arrays -------------------------------------------------------------------------


def _numbers(rates: Rates, n: int, blend: float, dtype: Any) -> Any:
    return np.array([*vars(rates).values(), 1 / n, n / (n - 1) if n > 1 else 0.0, blend, np.finfo(dtype).tiny], dtype)


@cache
def _node_table(rule: Rule, dtype: Any) -> Any:
    return np.array(rule.nodes or np.zeros((0, 4)), dtype)


@cache
def _nothing(dtype: Any) -> Any:
    return np.empty((0, 0), dtype)


# --- the loops -------------------------------------------------------------------------------------------------------


@cache
def _kernels(real: Any) -> dict[str, Callable[..., Any]]:
    """Return the loops compiled for one dtype; every constant is of that dtype, or the loop would widen to double."""
    zero, one, two = real(0), real(1), real(2)
    half, least = real(0.5), real(1e-30)
    root_half, root_two_pi = real(math.sqrt(0.5)), real(math.sqrt(2 * math.pi))
    G, K, S, FM, FE, MU, TAIL, OUT, V, THETA, POINT = (BLOCK * slot for slot in range(11))
    scalar = numba.from_dtype(np.dtype(real))
    read = {d: numba.types.Array(scalar, d, "C", readonly=True) for d in (1, 2)}
    write = {d: numba.types.Array(scalar, d, "C") for d in (1, 2)}
    whole, flag = numba.int64, numba.boolean

    def loop(*signature: Any, sums: bool = False) -> Callable[[Any], Any]:
        fast = {"contract", "nsz"} | ({"reassoc"} if sums else set())
        return numba.njit(
            numba.void(whole, whole, *signature), nogil=True, cache=True, error_model="numpy", fastmath=fast
        )

    @loop(read[1], *[read[1]] * 4, *[write[1]] * 3)
    def adam(low, high, p, g, theta, m, v, new_theta, new_m, new_v):  # type: ignore[no-untyped-def]
        lr, shrink, b1, d1, b2, d2, mu, k = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
        kappa, under, root_q, eps, tiny = p[8], p[9], p[10], p[11], p[16]
        w = np.empty(4 * BLOCK, real)
        for start in range(low, high, BLOCK):
            width = min(BLOCK, high - start)
            for e in range(width):
                w[e] = g[start + e]
            for e in range(width):
                w[BLOCK + e] = m[start + e]
            for e in range(width):
                w[2 * BLOCK + e] = v[start + e]
            for e in range(width):
                w[3 * BLOCK + e] = theta[start + e]
            for e in range(width):
                ge, me, ve = w[e], w[BLOCK + e], w[2 * BLOCK + e]
                rho, size = math.sqrt(kappa * ve + under), root_q * abs(ge)
                top = rho if rho > size else size
                top = top if top > tiny else tiny
                x, y = rho / top, size / top
                step = lr * (mu * me + k * ge) / (top * math.sqrt(x * x + y * y) + eps)
                w[BLOCK + e] = b1 * me + d1 * ge
                w[2 * BLOCK + e] = b2 * ve + d2 * ge * ge
                w[3 * BLOCK + e] = w[3 * BLOCK + e] * shrink - step
            for e in range(width):
                new_m[start + e] = w[BLOCK + e]
            for e in range(width):
                new_v[start + e] = w[2 * BLOCK + e]
            for e in range(width):
                new_theta[start + e] = w[3 * BLOCK + e]

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
        square,
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
        w = np.zeros(11 * BLOCK, real)
        for i in range(low, high):
            for start in range(0, columns, BLOCK):
                width = min(BLOCK, columns - start)
                for e in range(width):
                    w[G + e] = g[i, start + e]
                for e in range(width):
                    w[MU + e] = m[i, start + e]
                for e in range(width):
                    w[V + e] = v[i, start + e]
                for e in range(width):
                    w[THETA + e] = theta[i, start + e]
                if spread:  # S: σ²'s share without the mean's, still in units of the norms; FE: 1 / the norms
                    inverse = one / row[i] if row[i] > tiny else zero
                    for e in range(width):
                        w[FM + e] = row[i] * col[start + e]
                        w[FE + e] = inverse * (one / col[start + e] if col[start + e] > tiny else zero)
                        w[S + e] = share
                    if square.size > 0:
                        for e in range(width):
                            w[S + e] = square[i, start + e]
                    for e in range(width):
                        own = w[G + e] * w[FE + e]
                        left = w[S + e] - own * own * share
                        w[S + e] = root_q * w[FM + e] * math.sqrt((left if left > zero else zero) * unbias)
                for e in range(width):
                    ge, me, ve = w[G + e], w[MU + e], w[V + e]
                    rho, size = math.sqrt(kappa * ve + under), root_q * abs(ge)
                    top = rho if rho > size else size
                    top = top if top > tiny else tiny
                    x, y = rho / top, size / top
                    below = top * math.sqrt(x * x + y * y) + eps
                    idle, step = lr * (mu * me) / (rho + eps), lr * (mu * me + k * ge) / below
                    kept = w[THETA + e] * shrink
                    w[THETA + e] = kept - step
                    w[POINT + e] = kept - ((one - blend) * idle + blend * step)
                    w[FE + e] = b1 * me + d1 * ge
                    w[FM + e] = b2 * ve + d2 * ge * ge
                    w[K + e] = rho
                    w[OUT + e] = below
                for e in range(width):
                    new_theta[i, start + e] = w[THETA + e]
                if point.size > 0:
                    for e in range(width):
                        point[i, start + e] = w[POINT + e]
                for e in range(width):
                    new_m[i, start + e] = w[FE + e]
                for e in range(width):
                    new_v[i, start + e] = w[FM + e]
                if kind == 0:
                    for e in range(width):
                        w[OUT + e] = lr
                elif kind == 1:
                    for e in range(width):
                        w[OUT + e] = lr * k / w[OUT + e]
                elif kind == 2:
                    for e in range(width):
                        w[OUT + e] = lr * k / (w[K + e] + eps)
                elif kind == 3:
                    for e in range(width):
                        w[OUT + e] = lr * k / (math.sqrt(previous * w[V + e] + under) + eps)
                else:
                    for e in range(width):
                        rho, big, s = w[K + e], root_q * w[G + e], w[S + e]
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
                        w[MU + e] = mu * w[MU + e] * tail * root_q * two
                        w[TAIL + e] = lr * tail
                        w[OUT + e] = zero
                    for node in range(len(nodes)):
                        tau, along, across, weight = nodes[node, 0], nodes[node, 1], nodes[node, 2], nodes[node, 3]
                        for e in range(width):
                            f_m, f_e, rho2 = w[FM + e], w[FE + e], w[K + e]
                            c, d = tau * w[G + e], along * w[G + e] + across * w[S + e]
                            a, b = c + d, c - d
                            aa, bb, ab = rho2 + a * a, rho2 + b * b, a * b
                            r_a, r_b = math.sqrt(aa), math.sqrt(bb)
                            R, U = r_a + r_b + least, r_a * r_b + abs(ab)
                            X = rho2 * (aa + b * b) if ab > zero else U
                            U = U if ab > zero else one
                            part = k * (f_e * R + f_m * rho2) - w[MU + e] * c
                            below = R * U * (f_m * r_a + f_e) * (f_m * r_b + f_e)
                            w[OUT + e] += weight * (part * U + k * f_m * X) / below
                    for e in range(width):
                        w[OUT + e] *= w[TAIL + e]
                if gamma.size > 0:
                    for e in range(width):
                        slope[i, start + e] = w[OUT + e] * gamma[i, start + e]
                else:
                    for e in range(width):
                        slope[i, start + e] = w[OUT + e]

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
        for i in range(low, high):
            for j in range(x.shape[1]):
                wide = np.float64(x[i, j])
                sums[j] += wide * wide

    @loop(read[2], read[2], read[1], write[1], sums=True)
    def row_dot(low, high, b, z, p, out):  # type: ignore[no-untyped-def]
        for i in range(low, high):
            total = zero
            for j in range(b.shape[1]):
                total += b[i, j] * (z[i, j] + p[j])
            out[i] += total

    loops = (adam, attributed, relu, gelu, gate, times, square_sums, row_dot)
    return {made.__name__: made for made in loops}
