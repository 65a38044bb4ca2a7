"""The choices in which people's code differs without being wrong, and the operations that depend on them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np

from adamshap.reference.contract import Array

__all__ = ["Arithmetic"]

BLOCK = 8
"""Terms of one partial sum of the product "blocked"."""

UNSHIFTED_LIMIT = 60.0
"""Largest size of a logit whose exponential is computed without subtracting the largest logit."""


@dataclass(frozen=True)
class Arithmetic:
    """One way to compute what the method asks for.

    Parameters
    ----------
    product : {"library", "sequential", "reversed", "pairwise", "blocked", "fused", "wide"}
        Order of the sums: the library's; one term after the other, forwards or backwards; by halves; blocks of `BLOCK`;
        with fused multiply-add; in the next wider dtype.
    root : {"hypot", "sqrt", "fused"}
        √(κ + q g²) by ``hypot``, as written, or with fused multiply-add.
    divides : bool
        Whether the update divides by its denominator, or multiplies by the reciprocal.
    slope : {"angles", "gap"}
        The form of the divided difference: with angles, or with κ + r(a) r(b) − q a b collected.
    correction : {"power", "expm1"}
        1 − β^t as written, or −expm1(t log β).
    scalars : {"float64", "dtype"}
        Precision of η, β, ε, λ and all that is computed from them alone.
    variance : {"centred", "squares"}
        Σ (x_i − g/n)², or Σ x_i² − g²/n.
    softmax : {"shifted", "log", "unshifted"}
        Minus the largest logit; by the logarithm of the sum; as written where that does not overflow.
    gelu : {"erf", "erfc"}
    sigmoid : {"exp", "tanh"}
        1/(1 + exp(−z)), or (1 + tanh(z/2))/2.
    tanh_slope : {"square", "factors", "fused"}
        1 − a², (1 − a)(1 + a), or 1 − a² with fused multiply-add.
    per_sample : bool
        Whether every x_i is formed.
    """

    product: Literal["library", "sequential", "reversed", "pairwise", "blocked", "fused", "wide"] = "library"
    root: Literal["hypot", "sqrt", "fused"] = "hypot"
    divides: bool = True
    slope: Literal["angles", "gap"] = "angles"
    correction: Literal["power", "expm1"] = "power"
    scalars: Literal["float64", "dtype"] = "float64"
    variance: Literal["centred", "squares"] = "centred"
    softmax: Literal["shifted", "log", "unshifted"] = "shifted"
    gelu: Literal["erf", "erfc"] = "erf"
    sigmoid: Literal["exp", "tanh"] = "exp"
    tanh_slope: Literal["square", "factors", "fused"] = "square"
    per_sample: bool = False

    def multiply(self, a: Array, b: Array) -> Array:
        """Return a b of matrices (n, k) and (k, m), its sums in the order of `product`."""
        return PRODUCTS[self.product](np.ascontiguousarray(a), np.ascontiguousarray(b))

    def total(self, x: Array) -> Array:
        """Return the sum over the first axis, in the order of `product`."""
        rows = x.reshape(len(x), -1)
        return self.multiply(np.ones((1, len(x)), x.dtype), rows).reshape(x.shape[1:])

    def activation(self, name: str, z: Array) -> tuple[Array, Array]:
        """Return φ(z) and φ'(z)."""
        if name == "identity":
            return z, np.ones_like(z)
        if name == "relu":
            return np.maximum(z, 0), (z > 0).astype(z.dtype)
        if name == "tanh":
            a = np.tanh(z)
            return a, TANH_SLOPES[self.tanh_slope](a)
        if name == "gelu":
            cumulative = self._normal_cumulative(z)
            density = np.exp(-z * z / 2) * z.dtype.type(1 / math.sqrt(2 * math.pi))
            return z * cumulative, cumulative + z * density
        a = 1 / (1 + np.exp(-z)) if self.sigmoid == "exp" else (1 + np.tanh(z / 2)) / 2
        slope = a * (1 - a)
        return (a, slope) if name == "sigmoid" else (z * a, a + z * slope)

    def _normal_cumulative(self, z: Array) -> Array:
        scaled = z * z.dtype.type(math.sqrt(0.5))
        return (1 + _erf(scaled)) / 2 if self.gelu == "erf" else _erfc(-scaled) / 2

    def cross_entropy(self, logits: Array, labels: Array) -> tuple[Array, Array]:
        """Return the losses (n,) and their gradients by the logits."""
        rows = np.arange(len(labels))
        top = logits.max(axis=1, keepdims=True)
        if self.softmax == "unshifted" and np.abs(logits).max() < UNSHIFTED_LIMIT:
            top = np.zeros_like(top)
        exponentials = np.exp(logits - top)
        total = exponentials.sum(axis=1, keepdims=True)
        log_total = top + np.log(total)
        gradients = np.exp(logits - log_total) if self.softmax == "log" else exponentials / total
        gradients[rows, labels] -= 1
        return log_total[:, 0] - logits[rows, labels], gradients

    def power(self, beta: Any, t: int) -> Any:
        """Return 1 − β^t."""
        if self.correction == "expm1" and beta > 0:
            return -np.expm1(t * np.log(beta))
        return 1 - beta**t


def _term_by_term(a: Array, b: Array) -> Array:
    total = np.zeros((len(a), b.shape[1]), a.dtype)
    for k in range(a.shape[1]):
        total = total + a[:, k : k + 1] * b[k]
    return total


def _by_halves(a: Array, b: Array) -> Array:
    terms = a.T[:, :, None] * b[:, None, :]
    while len(terms) > 1:
        half = len(terms) // 2
        terms = np.concatenate([terms[:half] + terms[half : 2 * half], terms[2 * half :]])
    return terms[0]


def _in_blocks(a: Array, b: Array) -> Array:
    starts = range(0, a.shape[1], BLOCK)
    parts = [_term_by_term(a[:, start : start + BLOCK], b[start : start + BLOCK]) for start in starts]
    return np.sum(parts, axis=0, dtype=a.dtype)


def _wider(a: Array, b: Array) -> Array:
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    return (a.astype(wide) @ b.astype(wide)).astype(a.dtype)


@numba.njit(fastmath={"contract"})
def _fused(a: Array, b: Array) -> Array:
    total = np.zeros((len(a), b.shape[1]), a.dtype)
    for i in range(len(a)):
        for k in range(a.shape[1]):
            for j in range(b.shape[1]):
                total[i, j] += a[i, k] * b[k, j]
    return total


PRODUCTS: dict[str, Callable[[Array, Array], Array]] = {
    "library": np.matmul,
    "sequential": _term_by_term,
    "reversed": lambda a, b: _term_by_term(a[:, ::-1], b[::-1]),
    "pairwise": _by_halves,
    "blocked": _in_blocks,
    "fused": _fused,
    "wide": _wider,
}


@numba.vectorize(fastmath={"contract"})  # type: ignore[untyped-decorator, unused-ignore]
def _one_minus_square(a: Any) -> Any:
    return type(a)(1) - a * a


@numba.vectorize(fastmath={"contract"})  # type: ignore[untyped-decorator, unused-ignore]
def fused_root(kappa: Any, q: Any, g: Any) -> Any:
    """Return √(κ + q g²), with fused multiply-add."""
    return math.sqrt(kappa + q * g * g)


TANH_SLOPES: dict[str, Callable[[Array], Array]] = {
    "square": lambda a: 1 - a * a,
    "factors": lambda a: (1 - a) * (1 + a),
    "fused": _one_minus_square,
}


def _erf(z: Array) -> Array:
    return np.vectorize(math.erf, otypes=[z.dtype])(z)


def _erfc(z: Array) -> Array:
    return np.vectorize(math.erfc, otypes=[z.dtype])(z)
