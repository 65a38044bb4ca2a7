"""The array routines as Numba loops.

Arrays are sliced to the current part and indexed from 0: an index that might be negative, and would then count from the
end, prevents vector code.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

from adamshap.gpu.jit import compiled
from adamshap.gpu.ops import Scaling
from adamshap.gpu.ops import numpy as in_numpy
from adamshap.gpu.ops.numba_transformer import (
    causal_softmax,
    gelu_of_singles,
    norm_derivative,
    normalise,
    softmax_derivative,
)
from adamshap.gpu.threads import in_parts

__all__ = [
    "activate",
    "add_squares",
    "between",
    "causal_softmax",
    "column_norms",
    "norm_derivative",
    "normalise",
    "ranges",
    "roots",
    "row_dot",
    "scale_by_derivative",
    "scaled_squares",
    "softmax_derivative",
    "whitening",
]

whitening = in_numpy.whitening

FLOPS_OF_A_POINT = 100  # cost per element, as flops of matrix products that take as long


def between(tau: float, a: Any, b: Any, out: Any) -> None:
    """Write the point at `tau` of the way from `a` to `b`."""
    flat, place = [array.reshape(-1) for array in (a, b, out)], np.full(1, tau, a.dtype)
    kernel = _loops(a.dtype.type)["between"]
    in_parts(lambda low, high: kernel(low, high, place, *flat), a.size, FLOPS_OF_A_POINT * a.size)


def activate(name: str, z: Any, bias: Any, derivative: Any) -> None:
    """Write the activation of `z` + bias to `z`, and the derivative where one is kept."""
    if name in ("relu", "gelu"):
        kernel = _loops(z.dtype.type)[name]
        shift = bias if bias is not None else np.zeros(z.shape[1], z.dtype)
        if name == "relu":
            kernel(0, len(z), z, shift)
        elif z.dtype == np.float32:
            gelu_of_singles(z, shift, derivative)
        else:
            kernel(0, len(z), z, shift, derivative)
        return
    # NumPy's exp and tanh are vector code, which Numba's are not without Intel's library; blocks stay in the cache.
    for start in range(0, len(z), 64):
        rows = slice(start, start + 64)
        in_numpy.activate(name, z[rows], bias, None if derivative is None else derivative[rows])


def scale_by_derivative(name: str, b: Any, derivative: Any) -> None:
    """Multiply `b` in place by the activation's derivative; ReLU's is read from the activation itself."""
    if name != "identity":
        _loops(b.dtype.type)["gate" if name == "relu" else "times"](0, len(b), b, derivative)


def add_squares(x: Any, sums: Any) -> None:
    """Add the squares of `x` to `sums`, in double."""
    _loops(x.dtype.type)["add_squares"](0, x.size, x.reshape(-1), sums.reshape(-1))


def column_norms(x: Any) -> Any:
    """Return the Euclidean norm of each column; float32's squares, added in double, are not lost."""
    if x.dtype == np.float64:
        return in_numpy.column_norms(x)
    sums = np.zeros(x.shape[1])
    kernel = _loops(x.dtype.type)["square_sums"]
    in_parts(lambda low, high: kernel(low, high, x, sums), len(sums), 8 * x.size)
    return np.sqrt(sums).astype(x.dtype)


def ranges(x: Any) -> tuple[Any, Any]:
    """Return each column's largest and smallest nonzero absolute value, the latter infinity if all are 0."""
    top, low = np.zeros(x.shape[1], x.dtype), np.full(x.shape[1], math.inf, x.dtype)
    kernel = _loops(x.dtype.type)["ranges"]
    in_parts(lambda first, last: kernel(first, last, x, top, low), len(top), 8 * x.size)
    return top, low


def scaled_squares(x: Any, top: Any, scaling: Scaling) -> Any:
    """Return the squares of `x` with its columns divided by `top` and multiplied by ``scaling.scale``."""
    out, unit = np.empty_like(x), np.where(top > 0, top, x.dtype.type(1))
    kernel = _loops(x.dtype.type)["scaled_squares"]
    scale = np.full(1, scaling.scale, x.dtype)
    in_parts(lambda low, high: kernel(low, high, x, unit, scale, out), len(x), 8 * x.size)
    return out


def roots(square: Any, units: slice, b: Any, a: Any, range_b: Any, range_a: Any, scaling: Scaling) -> None:
    """Turn the product of scaled squares into √Σ b² a², in place, for some of its rows; see `Ops.roots`."""
    numbers = np.array([scaling.scale, scaling.least, scaling.back, scaling.root_n], square.dtype)
    _loops(square.dtype.type)["roots"](units.start, units.stop, numbers, b, a, *range_b, *range_a, square)


def row_dot(b: Any, z: Any, p: Any, out: Any) -> None:
    """Add ⟨b_i, z_i + p⟩ to ``out[i]``."""
    shift = p if p is not None else np.zeros(b.shape[1], b.dtype)
    _loops(b.dtype.type)["row_dot"](0, len(b), b, z, shift, out)


# --- the loops -------------------------------------------------------------------------------------------------------


@cache
def _loops(real: Any) -> dict[str, Callable[..., Any]]:
    """Return the loops compiled for one dtype; every constant is of that dtype, or the loop would widen to double."""
    zero, one, half, infinite = real(0), real(1), real(0.5), real(math.inf)
    root_half, root_two_pi = real(math.sqrt(0.5)), real(math.sqrt(2 * math.pi))
    scalar = numba.from_dtype(np.dtype(real))
    read = {d: numba.types.Array(scalar, d, "C", readonly=True) for d in (1, 2)}
    write = {d: numba.types.Array(scalar, d, "C") for d in (1, 2)}
    whole = numba.int64

    def loop(*signature: Any, sums: bool = False) -> Callable[[Any], Any]:
        return compiled(numba.void(whole, whole, *signature), sums)

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

    @loop(read[1], numba.types.Array(numba.float64, 1, "C"))
    def add_squares(low, high, x, sums):  # type: ignore[no-untyped-def]
        x_, sums_ = x[low:high], sums[low:high]
        for e in range(high - low):
            y = np.float64(x_[e])
            sums_[e] += y * y

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
                nonzero = size if size > zero else infinite
                top[j] = size if size > top[j] else top[j]
                least_[j] = nonzero if nonzero < least_[j] else least_[j]

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

    loops = (between, relu, gelu, gate, times, add_squares, square_sums, ranges, scaled_squares, roots, row_dot)
    return {function.__name__: function for function in loops}
