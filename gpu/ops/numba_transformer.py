"""GELU, softmax and norms as Numba loops: one pass over each row while it is in the cache, all of it vector code.

Exponential and normal distribution have neither branches nor calls here, and are in double whatever the dtype: rounded
to float32, their own error is lost. They are in the file of the loops that inline them, as Numba's cache knows only the
file of a loop.

- ``exp(y) = 2^k exp(r)`` for y ≤ 0, with k the integer nearest to y log₂ e and |r| ≤ ½ log 2. The Taylor polynomial of
  degree 13 leaves 4e-18 of exp(r). Added to 1.5 · 2^52, y log₂ e is rounded to k, which is then in the number's last
  bits, from where it is shifted into another's exponent.
- ``1 − Φ(t) = exp(−t²/2) M(t) / (1 + t)`` for t ≥ 0, where M(t) is between 0.42 and 0.53. It is a polynomial in
  (t − 2)/(t + 2), which takes its values by `math.erfc` at Chebyshev's points for 0 ≤ t ≤ 15.
"""

import math
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from adamshap.gpu.jit import FAST, compiled
from adamshap.gpu.threads import in_parts

__all__ = ["causal_softmax", "gelu_of_singles", "norm_derivative", "normalise", "softmax_derivative"]

FLOPS_OF_A_GELU, FLOPS_OF_A_WEIGHT, FLOPS_OF_A_NORM = 200, 100, 100
"""Cost per element, as flops of matrix products that take as long."""


def gelu_of_singles(z: Any, bias: Any, derivative: Any) -> None:
    """Write GELU of `z` + bias to `z`, and its derivative, in float32."""
    kernel = _loops(np.float32)["gelu"]
    in_parts(lambda low, high: kernel(low, high, z, bias, derivative), len(z), FLOPS_OF_A_GELU * z.size)


def causal_softmax(scores: Any, factor: float) -> None:
    """Write softmax(factor · scores) of each row over the positions up to its own, and 0 at the others."""
    rows, kernel = scores.reshape(-1, scores.shape[-1]), _loops(scores.dtype.type)["causal_softmax"]
    in_parts(lambda low, high: kernel(low, high, factor, rows), len(rows), FLOPS_OF_A_WEIGHT * scores.size)


def softmax_derivative(s: Any, weights: Any, factor: float) -> None:
    """Write factor · W ⊙ (s − Σ W ⊙ s) of each row to `s`."""
    rows, w = (x.reshape(-1, x.shape[-1]) for x in (s, weights))
    kernel = _loops(s.dtype.type)["softmax_derivative"]
    numbers = np.full(1, factor, s.dtype)
    in_parts(lambda low, high: kernel(low, high, numbers, w, rows), len(rows), FLOPS_OF_A_WEIGHT * s.size)


def normalise(x: Any, eps: float, centred: bool, gain: Any, bias: Any, out: tuple[Any, Any, Any]) -> None:
    """Write x̂, 1/s and the output; see `Ops.normalise`."""
    normalised, inverse, output = out
    numbers = np.array([eps, centred, x.shape[1]], x.dtype)
    shift = bias if bias is not None else np.zeros(x.shape[1], x.dtype)
    arrays = (numbers, x, gain, shift, normalised, inverse.reshape(-1), output)
    kernel = _loops(x.dtype.type)["normalise"]
    in_parts(lambda low, high: kernel(low, high, *arrays), len(x), FLOPS_OF_A_NORM * x.size)


def norm_derivative(g: Any, gain: Any, normalised: Any, inverse: Any, centred: bool, out: Any) -> None:
    """Write the derivative of x̂ in x times g ⊙ gain; see `Ops.norm_derivative`."""
    numbers = np.array([centred, g.shape[1]], g.dtype)
    factor = gain if gain is not None else np.ones(g.shape[1], g.dtype)
    arrays = (numbers, g, factor, normalised, inverse.reshape(-1), out)
    kernel = _loops(g.dtype.type)["norm_derivative"]
    in_parts(lambda low, high: kernel(low, high, *arrays), len(g), FLOPS_OF_A_NORM * g.size)


LEAST = -708.0
"""exp of a lower number is not normal in double, and 0 here."""

FARTHEST = 15.0
"""1 − Φ(t) of a larger t is 0 in float32, and so is exp(−t²/2)."""

MIDDLE = 2.0
DEGREE = 14  # leaves 2e-10 of M

DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)

LOG2_E = 1 / math.log(2)
LOG_2_HEAD = math.floor(math.log(2) * 2**32) / 2**32  # of so few bits that k times it is exact
LOG_2_REST = float(Decimal(2).ln() - Decimal(LOG_2_HEAD))
ROUNDING = 1.5 * 2.0**52
EXPONENT_OF_ONE = np.int64(1023) - np.float64(ROUNDING).view(np.int64)
C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13 = (1 / math.factorial(k) for k in range(2, 14))


@numba.njit(error_model="numpy", fastmath=FAST)
def exp_of_negative(y):  # type: ignore[no-untyped-def]
    """Return exp(y) of y ≤ 0; NaN of NaN."""
    held = LEAST if y < LEAST else y
    shifted = held * LOG2_E + ROUNDING
    k = shifted - ROUNDING
    r = (held - k * LOG_2_HEAD) - k * LOG_2_REST
    r2 = r * r
    r4 = r2 * r2
    low = (1.0 + r) + r2 * (C2 + r * C3)
    middle = (C4 + r * C5) + r2 * (C6 + r * C7)
    high = (C8 + r * C9) + r2 * (C10 + r * C11) + r4 * (C12 + r * C13)
    power = np.int64((np.float64(shifted).view(np.int64) + EXPONENT_OF_ONE) << np.int64(52)).view(np.float64)
    return 0.0 if y < LEAST else (low + r4 * (middle + r4 * high)) * power


def _smooth_part(u):  # type: ignore[no-untyped-def]
    """Return M at t = 2 (1 + u)/(1 − u)."""
    times = [MIDDLE * (1 + x) / (1 - x) for x in u]
    return np.array([math.erfc(t / math.sqrt(2)) / 2 * math.exp(t * t / 2) * (1 + t) for t in times])


_FITTED = Chebyshev.interpolate(_smooth_part, DEGREE, domain=[-1, (FARTHEST - MIDDLE) / (FARTHEST + MIDDLE)])
_POWERS = _FITTED.convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1]).coef
M0, M1, M2, M3, M4, M5, M6, M7, M8, M9, M10, M11, M12, M13, M14 = map(float, _POWERS)


@numba.njit(error_model="numpy", fastmath=FAST)
def upper_tail(t, density):  # type: ignore[no-untyped-def]
    """Return 1 − Φ(t) of 0 ≤ t ≤ `FARTHEST`, from exp(−t²/2), to 2e-10 of itself."""
    u = (t - MIDDLE) / (t + MIDDLE)
    u2 = u * u
    u4 = u2 * u2
    u8 = u4 * u4
    low = ((M0 + u * M1) + u2 * (M2 + u * M3)) + u4 * ((M4 + u * M5) + u2 * (M6 + u * M7))
    high = ((M8 + u * M9) + u2 * (M10 + u * M11)) + u4 * ((M12 + u * M13) + u2 * M14)
    return density * (low + u8 * high) / (1.0 + t)


@cache
def _loops(real: Any) -> dict[str, Callable[..., Any]]:
    """Return the loops compiled for one dtype."""
    zero, one = real(0), real(1)
    integer = np.int32 if real is np.float32 else np.int64
    all_but_sign = integer(np.iinfo(integer).max)
    last_bit = integer(8 * np.dtype(real).itemsize - 1)
    least_of_all = real(-math.inf).view(integer) ^ all_but_sign
    scalar = numba.from_dtype(np.dtype(real))
    read = {d: numba.types.Array(scalar, d, "C", readonly=True) for d in (1, 2)}
    write = {d: numba.types.Array(scalar, d, "C") for d in (1, 2)}
    whole = numba.int64

    def loop(*signature: Any, sums: bool = True) -> Callable[[Any], Any]:
        return compiled(numba.void(whole, whole, *signature), sums)

    @loop(write[2], read[1], write[2], sums=False)
    def gelu(low, high, z, bias, derivative):  # type: ignore[no-untyped-def]
        for i in range(low, high):
            z_, derivative_ = z[i], derivative[i]
            for j in range(len(z_)):
                x = np.float64(z_[j] + bias[j])
                size = abs(x)
                near = FARTHEST if size > FARTHEST else size
                density = 0.0 if size > FARTHEST else exp_of_negative(-0.5 * x * x)
                tail = upper_tail(near, density)
                normal = 1.0 - tail if x > 0.0 else tail
                derivative_[j] = real(normal + x * density * DENSITY_AT_0)
                z_[j] = real(x * normal)

    @loop(numba.float64, write[2])
    def causal_softmax(low, high, factor, scores):  # type: ignore[no-untyped-def]
        positions = scores.shape[1]
        for i in range(low, high):
            seen = i % positions + 1
            x, rest, total, most = scores[i, :seen], scores[i, seen:], zero, least_of_all
            # The largest by its bits, those of a negative number turned over: integers have the numbers' order, and
            # NaN comes last. A maximum of floats is no vector code, as it depends on their order if NaN is among them.
            for j in range(len(x)):
                bits = real(x[j]).view(integer)
                ordered = bits ^ ((bits >> last_bit) & all_but_sign)
                most = ordered if ordered > most else most
            top = np.float64(integer(most ^ ((most >> last_bit) & all_but_sign)).view(real))
            for j in range(len(x)):
                e = real(exp_of_negative((np.float64(x[j]) - top) * factor))
                x[j] = e
                total += e
            for j in range(len(x)):
                x[j] /= total
            for j in range(len(rest)):
                rest[j] = zero

    @loop(read[1], read[2], write[2])
    def softmax_derivative(low, high, numbers, weights, s):  # type: ignore[no-untyped-def]
        positions, factor = s.shape[1], numbers[0]
        for i in range(low, high):
            seen = i % positions + 1
            w, x, rest, along = weights[i, :seen], s[i, :seen], s[i, seen:], zero
            for j in range(len(x)):
                along += w[j] * x[j]
            for j in range(len(x)):
                x[j] = (x[j] - along) * w[j] * factor
            for j in range(len(rest)):
                rest[j] = zero

    @loop(read[1], read[2], read[1], read[1], write[2], write[1], write[2])
    def normalise(low, high, numbers, x, gain, bias, normalised, inverse, out):  # type: ignore[no-untyped-def]
        eps, centred, count = numbers[0], numbers[1], numbers[2]
        for i in range(low, high):
            x_, normalised_, out_, total, squares = x[i], normalised[i], out[i], zero, zero
            for j in range(len(x_)):
                total += x_[j]
            mean = total / count * centred
            for j in range(len(x_)):
                y = x_[j] - mean
                squares += y * y
            scale = one / math.sqrt(squares / count + eps)
            inverse[i] = scale
            for j in range(len(x_)):
                y = (x_[j] - mean) * scale
                normalised_[j] = y
                out_[j] = y * gain[j] + bias[j]

    @loop(read[1], read[2], read[1], read[2], read[1], write[2])
    def norm_derivative(low, high, numbers, g, gain, normalised, inverse, out):  # type: ignore[no-untyped-def]
        centred, count = numbers[0], numbers[1]
        for i in range(low, high):
            g_, normalised_, out_, total, along = g[i], normalised[i], out[i], zero, zero
            for j in range(len(g_)):
                y = g_[j] * gain[j]
                total += y
                along += y * normalised_[j]
            mean, along, scale = total / count * centred, along / count, inverse[i]
            for j in range(len(g_)):
                out_[j] = (g_[j] * gain[j] - mean - normalised_[j] * along) * scale

    loops = (gelu, causal_softmax, softmax_derivative, normalise, norm_derivative)
    return {function.__name__: function for function in loops}
