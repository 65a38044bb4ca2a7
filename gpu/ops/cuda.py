"""The array routines as CUDA kernels: one launch each, CuPy's ElementwiseKernel, for float and double alike.

``T`` is the dtype.
"""

from functools import cache, partial
from typing import Any

import cupy
import numpy as np

from adamshap.gpu.ops import Scaling, positions
from adamshap.gpu.ops.numpy import UNRESOLVED

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

causal_softmax, softmax_derivative, normalise, norm_derivative = (partial(f, cupy) for f in positions.FUNCTIONS)

# CUDA has no T-typed literals: T(…) makes each constant one, or float kernels would compute in double.
ACTIVATIONS = {
    "relu": "a = max(x, T(0));",
    "tanh": "T t = exp(T(-2) * abs(x)); a = tanh(x); derivative = T(4) * t / ((T(1) + t) * (T(1) + t));",
    "sigmoid": """
        T t = exp(-abs(x)), near = T(1) / (T(1) + t), far = t / (T(1) + t);
        a = x >= T(0) ? near : far; derivative = near * far;
    """,
    "silu": """
        T t = exp(-abs(x)), near = T(1) / (T(1) + t), far = t / (T(1) + t);
        T up = x >= T(0) ? near : far, down = x >= T(0) ? far : near;
        a = x * up; derivative = up * (T(1) + x * down);
    """,
    "gelu": """
        T normal = T(0.5) * erfc(-x * T(0.70710678118654752440));
        a = x * normal; derivative = normal + x * exp(T(-0.5) * x * x) * T(0.39894228040143267794);
    """,
    "identity": "a = x;",
}

ROOTS = """
    T small_b = low_b / top_b * scale, small_a = low_a / top_a * scale;
    if (square < least && small_b * small_b * (small_a * small_a) < least) {
        ptrdiff_t row = i / d_in, column = i % d_in;
        T most = T(0), total = T(0);
        for (ptrdiff_t k = 0; k < n; ++k) {
            T size = abs(b[k * d_out + row] * a[k * d_in + column]);
            most = size > most ? size : most;
        }
        for (ptrdiff_t k = 0; k < n; ++k) {
            T x = b[k * d_out + row] * a[k * d_in + column] / (most > T(0) ? most : T(1));
            total += x * x;
        }
        root = most * sqrt(total);
    } else {
        root = sqrt(square) * back * max(top_b, top_a) * (min(top_b, top_a) * root_n);
    }
"""

# One thread, for some tens of rows: G, scaled by D to a unit diagonal, is L Lᵀ, and W = D L⁻ᵀ.
WHITENING = """
    for (int j = 0; j < r; ++j) {
        double d = gram[j * r + j];
        scale[j] = d > 0 ? 1 / sqrt(d) : 0;
    }
    for (int j = 0; j < r; ++j) {
        double left = scale[j] > 0 ? 1.0 : 0.0;
        for (int k = 0; k < j; ++k) left -= lower[j * r + k] * lower[j * r + k];
        double pivot = left > unresolved * r ? 1 / sqrt(left) : 0;
        lower[j * r + j] = pivot;  // its inverse, from here on
        for (int i = j + 1; i < r; ++i) {
            double x = gram[i * r + j] * scale[i] * scale[j];
            for (int k = 0; k < j; ++k) x -= lower[i * r + k] * lower[j * r + k];
            lower[i * r + j] = x * pivot;
        }
    }
    for (int j = 0; j < r; ++j)  // column j of L⁻¹ is row j of what W needs
        for (int i = 0; i < r; ++i) {
            double x = i == j ? 1.0 : 0.0;
            for (int k = j; k < i; ++k) x -= lower[i * r + k] * white[j * r + k] / (scale[j] > 0 ? scale[j] : 1);
            white[j * r + i] = i < j ? 0 : x * lower[i * r + i] * scale[j];
        }
"""


@cache
def _whitening() -> Any:
    return cupy.ElementwiseKernel(
        "raw float64 gram, int32 r, float64 unresolved",
        "raw float64 scale, raw float64 lower, raw float64 white",
        WHITENING,
        "adamshap_whitening",
    )


@cache
def _activation(name: str) -> Any:
    kept = "" if name in ("relu", "identity") else ", T derivative"
    return cupy.ElementwiseKernel(
        "T z, T bias", "T a" + kept, "T x = z + bias;" + ACTIVATIONS[name], f"adamshap_{name}"
    )


@cache
def _between() -> Any:
    return cupy.ElementwiseKernel("T a, T b, T tau", "T c", "c = a + tau * (b - a);", "adamshap_between")


@cache
def _gate() -> Any:
    return cupy.ElementwiseKernel("T b, T a", "T c", "c = a > T(0) ? b : T(0);", "adamshap_gate")


@cache
def _square_sums() -> Any:
    return cupy.ReductionKernel("T x", "float64 s", "double(x) * double(x)", "a + b", "s = a", "0", "adamshap_norms")


@cache
def _largest() -> Any:
    return cupy.ReductionKernel("T x", "T y", "abs(x)", "max(a, b)", "y = a", "T(0)", "adamshap_largest")


@cache
def _smallest() -> Any:
    size = "abs(x) > T(0) ? abs(x) : T(CUDART_INF)"
    return cupy.ReductionKernel("T x", "T y", size, "min(a, b)", "y = a", "T(CUDART_INF)", "adamshap_smallest")


@cache
def _scaled_squares() -> Any:
    body = "T y = x / (top > T(0) ? top : T(1)) * scale; square = y * y;"
    return cupy.ElementwiseKernel("T x, T top, T scale", "T square", body, "adamshap_scaled_squares")


@cache
def _roots() -> Any:
    inputs = "T square, T top_b, T low_b, T top_a, T low_a, raw T b, raw T a, int32 n, int32 d_out, int32 d_in"
    return cupy.ElementwiseKernel(inputs + ", T scale, T least, T back, T root_n", "T root", ROOTS, "adamshap_roots")


@cache
def _row_dot() -> Any:
    return cupy.ReductionKernel("T b, T z, T p", "T s", "b * (z + p)", "a + b", "s = a", "0", "adamshap_row_dot")


def between(tau: float, a: Any, b: Any, out: Any) -> None:
    """Write the point at `tau` of the way from `a` to `b`."""
    _between()(a, b, a.dtype.type(tau), out)


def activate(name: str, z: Any, bias: Any, derivative: Any) -> None:
    """Write the activation of `z` + bias to `z`, and the derivative where one is kept."""
    kept = () if name in ("relu", "identity") else (derivative,)
    _activation(name)(z, z.dtype.type(0) if bias is None else bias, z, *kept)


def scale_by_derivative(name: str, b: Any, derivative: Any) -> None:
    """Multiply `b` in place by the activation's derivative; ReLU's is read from the activation itself."""
    if name == "relu":
        _gate()(b, derivative, b)
    elif name != "identity":
        cupy.multiply(b, derivative, out=b)


def add_squares(x: Any, sums: Any) -> None:
    """Add the squares of `x` to `sums`, in double."""
    cupy.add(sums, cupy.multiply(x, x, dtype=np.float64), out=sums)


def column_norms(x: Any) -> Any:
    """Return the Euclidean norm of each column; float32's squares, added in double, are not lost."""
    if x.dtype != cupy.float64:
        return cupy.sqrt(_square_sums()(x, axis=0)).astype(x.dtype)
    top = abs(x).max(axis=0)
    return top * cupy.sqrt(_square_sums()(x / cupy.where(top > 0, top, 1.0), axis=0))


def ranges(x: Any) -> tuple[Any, Any]:
    """Return each column's largest and smallest nonzero absolute value, the latter infinity if all are 0."""
    return _largest()(x, axis=0), _smallest()(x, axis=0)


def scaled_squares(x: Any, top: Any, scaling: Scaling) -> Any:
    """Return the squares of `x` with its columns divided by `top` and multiplied by ``scaling.scale``."""
    return _scaled_squares()(x, top, x.dtype.type(scaling.scale))


def roots(square: Any, units: slice, b: Any, a: Any, range_b: Any, range_a: Any, scaling: Scaling) -> None:
    """Turn the product of scaled squares into √Σ b² a², in place, for some of its rows; see `Ops.roots`."""
    part, b = square[units], b[:, units]
    ends = (*(end[units, None] for end in range_b), *range_a)
    numbers = map(square.dtype.type, (scaling.scale, scaling.least, scaling.back, scaling.root_n))
    _roots()(part, *ends, b, a, *map(np.int32, (len(a), *part.shape)), *numbers, part)


def row_dot(b: Any, z: Any, p: Any, out: Any) -> None:
    """Add ⟨b_i, z_i + p⟩ to ``out[i]``."""
    out += _row_dot()(b, z, b.dtype.type(0) if p is None else p, axis=1)


def whitening(gram: Any) -> Any:
    """Return W (r, r) in double with ``Wᵀ gram W = I``; directions that double cannot resolve become 0."""
    r = len(gram)
    gram = cupy.ascontiguousarray(gram)
    scale, lower, white = cupy.empty(r), cupy.zeros((r, r)), cupy.empty((r, r))
    _whitening()(gram, r, UNRESOLVED, scale, lower, white, size=1)
    return white
