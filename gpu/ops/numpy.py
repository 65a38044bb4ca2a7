"""The array routines in plain NumPy: used where Numba is missing."""

import math
from functools import partial
from typing import Any

import numpy as np

from adamshap.gpu.ops import Scaling, positions

__all__ = [
    "UNRESOLVED",
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

RECOMPUTED = 1 << 16
"""Number of products computed at a time where roots are recomputed."""

causal_softmax, softmax_derivative, normalise, norm_derivative = (partial(f, np) for f in positions.FUNCTIONS)

UNRESOLVED = 1e-14  # eigenvalue per row that double does not resolve, of a Gram matrix of unit diagonal


def between(tau: float, a: Any, b: Any, out: Any) -> None:
    """Write the point at `tau` of the way from `a` to `b`."""
    np.subtract(b, a, out=out)
    out *= out.dtype.type(tau)
    out += a


def activate(name: str, z: Any, bias: Any, derivative: Any) -> None:
    """Write the activation of `z` + bias to `z`, and the derivative where one is kept."""
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


def add_squares(x: Any, sums: Any) -> None:
    """Add the squares of `x` to `sums`, in double."""
    np.add(sums, np.multiply(x, x, dtype=np.float64), out=sums)


def column_norms(x: Any) -> Any:
    """Return the Euclidean norm of each column; float32's squares, added in double, are not lost."""
    return _norms(x) if x.dtype == np.float64 else _norms(x.astype(np.float64)).astype(x.dtype)


def _norms(x: Any) -> Any:
    """Return the Euclidean norm of each column, in units of its largest entry."""
    top = abs(x).max(axis=0)
    return top * np.sqrt(np.square(x / np.where(top > 0, top, x.dtype.type(1))).sum(axis=0))


def ranges(x: Any) -> tuple[Any, Any]:
    """Return each column's largest and smallest nonzero absolute value, the latter infinity if all are 0."""
    size = abs(x)
    return size.max(axis=0), np.where(size > 0, size, x.dtype.type(math.inf)).min(axis=0)


def scaled_squares(x: Any, top: Any, scaling: Scaling) -> Any:
    """Return the squares of `x` with its columns divided by `top` and multiplied by ``scaling.scale``."""
    scaled = x / np.where(top > 0, top, x.dtype.type(1))
    scaled *= x.dtype.type(scaling.scale)
    scaled *= scaled
    return scaled


def roots(square: Any, units: slice, b: Any, a: Any, range_b: Any, range_a: Any, scaling: Scaling) -> None:
    """Turn the product of scaled squares into √Σ b² a², in place, for some of its rows; see `Ops.roots`."""
    f, part, b = square.dtype.type, square[units], b[:, units]
    top_b, top_a = range_b[0][units, None], range_a[0]
    row, col = np.nonzero(part < f(scaling.least))
    small_b, small_a = (
        low[where] / np.where(top[where] > 0, top[where], f(1)) * f(scaling.scale)
        for (top, low), where in (((range_b[0][units], range_b[1][units]), row), (range_a, col))
    )
    lost = (small_b < math.inf) & (small_a < math.inf)
    lost[lost] = np.square(small_b[lost]) * np.square(small_a[lost]) < f(scaling.least)
    np.sqrt(part, out=part)
    part *= f(scaling.back)
    part *= np.maximum(top_b, top_a)
    part *= np.minimum(top_b, top_a) * f(scaling.root_n)
    row, col = row[lost], col[lost]
    block = max(RECOMPUTED // len(a), 1)
    for first in range(0, len(row), block):
        here = row[first : first + block], col[first : first + block]
        part[here] = _norms(b[:, here[0]] * a[:, here[1]])


def row_dot(b: Any, z: Any, p: Any, out: Any) -> None:
    """Add ⟨b_i, z_i + p⟩ to ``out[i]``."""
    out += np.einsum("no,no->n", b, z)
    if p is not None:
        out += b @ p


def whitening(gram: Any) -> Any:
    """Return W (r, r) in double with ``Wᵀ gram W = I``; directions that double cannot resolve become 0."""
    if not np.isfinite(gram).all():  # a run diverged: scores become NaN, instead of an error from LAPACK
        return np.full_like(gram, np.nan)
    scale = np.sqrt(np.diagonal(gram))
    scale = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    values, vectors = np.linalg.eigh(gram * scale[:, None] * scale[None, :])
    kept = values > UNRESOLVED * len(gram)
    return scale[:, None] * vectors * np.divide(1, np.sqrt(abs(values)), out=np.zeros_like(values), where=kept)
