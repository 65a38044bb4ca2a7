"""The pass of `fits` as one CUDA kernel for all rules of one size of a sample's own nodes.

As in `passes_cuda`, ``T`` is the dtype. What a sample may find depends on the batch's size, and is much: it is not
unrolled into the source but read from an array, the same number by all threads. The formulas and their derivation stand
in `fits`, and what `tiny` is for in `fits_numba`.
"""

from functools import cache, lru_cache
from typing import Any

import cupy
import numpy as np

from adamshap.gpu.kernels.plan import AdamScalars, FitPlan
from adamshap.gpu.passes_cuda import QUOTIENT, SCALE, SPREAD, two_factors

__all__ = ["fit"]

BEFORE = """
    T mean = share * big, apart = of_sigma * spread;
    T larger = max(max(abs(mean), apart), tiny), x0 = mean / larger, y0 = apart / larger;
    T size = sqrt(x0 * x0 + y0 * y0), by = size > T(0) ? T(1) / size : T(0);
    T phi = T(0), up = T(0), down = T(0);
    S *= of_sigma;
    f_e = max(f_e, tiny);
"""
NODES = """
    T z[COUNT], root[COUNT], found[COUNT];
    #pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        T h = own[2 * j], a_j = own[2 * j + 1], x = share * G + h * S, rest = G - x, sum = T(0);
        for (int node = 0; node < places; ++node) {
            T tau = arrivals[3 * node], across = arrivals[3 * node + 1] * S;
            T b = tau * rest + across, a = tau * G + (T(1) - tau) * x + across;
            T of_mu = T(0.5) * mu2 * (a + b);
            QUOTIENT
            sum += arrivals[3 * node + 2] * above / (scale * max(D_a, D_b) + tiny) / min(D_a, D_b);
        }
        T z_j = abs(x0 * by + h * (y0 * by)), r_j = sqrt(z_j);
        s += a_j * z_j * z_j * sum;
        phi += a_j * z_j * r_j;
        down += ridge * a_j * z_j;
        #pragma unroll
        for (int i = 0; i < j; ++i) {
            T both = own[2 * i + 1] * a_j * z[i] * z_j, gap = r_j - root[i];
            up += both * root[i] * r_j * gap * (found[i] - sum);
            down += both * gap * gap;
        }
        z[j] = z_j;
        root[j] = r_j;
        found[j] = sum;
    }
    T ratio = up * (lr * tail) / (down > T(0) ? down : T(1));
    slope = s * (lr * tail) - ratio * phi;
    second = ratio * sqrt(larger * size / root_q);
"""
NUMBERS = ("lr", "mu", "k", "kappa", "under", "root_q", "eps", "tiny", "share", "unbias", "of_sigma", "ridge")


@cache
def _fitted(count: int) -> Any:
    nodes = NODES.replace("COUNT", str(count)).replace("QUOTIENT", QUOTIENT)
    body = "T rho = sqrt(kappa * v + under);" + SPREAD + SCALE + BEFORE + nodes
    inputs = ["T g, T m, T v, T row, T col, raw T own, raw T arrivals, int32 places"]
    inputs += [f"T {name}" for name in NUMBERS]
    return cupy.ElementwiseKernel(", ".join(inputs), "T slope, T second", body, "adamshap_fit")


@lru_cache(maxsize=8)
def _tables(plan: FitPlan, dtype: Any, _device: int) -> tuple[Any, Any]:  # on that device, which the key has to tell
    return cupy.asarray(np.array(plan.own, dtype).ravel()), cupy.asarray(np.array(plan.arrivals, dtype).ravel())


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
    f, r = g.dtype.type, scalars
    own, arrivals = _tables(plan, g.dtype, cupy.cuda.Device().id)
    each, unbias = 1 / n, n / (n - 1) if n > 1 else 0.0
    numbers = (r.lr, r.mu, r.k, r.kappa, r.root, r.root_q, r.eps, np.finfo(g.dtype).tiny, each, unbias)
    _fitted(len(plan.own))(
        g,
        m,
        v,
        *two_factors(row, col, root, g.dtype),
        own,
        arrivals,
        np.int32(len(plan.arrivals)),
        *map(f, (*numbers, plan.share, plan.ridge)),
        slope,
        second,
    )
