"""Adam's step in Numba loops: alone, and with the slope "secant" and the point of the validation gradient.

Both walk over flat arrays in blocks. Without L2 decay the secant needs little more than the step itself. With r_0 = √κ,
r_g = √(κ + q g²), D = r + ε and A(g) = η (μ + k g)/D_g,

    A[g, 0] = (η/D_g) (k − μ √q s / D_0),      s = √q g / (r_g + r_0) between −1 and 1,

as D_g − D_0 = r_g − r_0 = q g²/(r_g + r_0). Nothing cancels but k and the momentum's part. A point and a state after
the step are written where they are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numba
import numpy as np

from adamshap.gpu.jit import FAST, compiled
from adamshap.gpu.kernels.numba_arguments import array_types, matrix, scalar_array
from adamshap.gpu.threads import in_parts

if TYPE_CHECKING:
    from jaxtyping import Float

    from adamshap.gpu.kernels.groups import FusedStepOut, ParameterState
    from adamshap.gpu.kernels.plan import AdamScalars
    from adamshap.reference.contract import Array

__all__ = ["FLOPS_OF_A_STEP", "adam_step", "safe_root", "secant_step"]

BLOCK = 256  # elements; the scratch slots of a block take 5 KiB in float32
FLOPS_OF_A_STEP = 200  # cost of Adam's step per element, as flops of matrix products that take as long
FLOPS_OF_A_SECANT = 280  # and with the slope


def adam_step(scalars: AdamScalars, g: Float[Array, "d_out d_in"], state: ParameterState, new: ParameterState) -> None:
    """Write Adam's update; see `Kernels.adam_step`."""
    dtype: Any = g.dtype
    flat = _flat(dtype, g, state.theta, state.m, state.v, new.theta, new.m, new.v)
    loop, how = _adam_step(dtype.type, scalars.l2 > 0), scalar_array(scalars, 1, dtype)
    in_parts(lambda low, high: loop(low, high, how, *flat), g.size, FLOPS_OF_A_STEP * g.size)


def secant_step(
    scalars: AdamScalars,
    g: Float[Array, "d_out d_in"],
    state: ParameterState,
    gamma: Float[Array, "d_out d_in"] | None,
    blend: float,
    out: FusedStepOut,
) -> None:
    """Take Adam's step and compute the slope "secant", without L2 decay; see `Kernels.fused_step`."""
    dtype: Any = g.dtype
    new = (None,) * 3 if out.new is None else (out.new.theta, out.new.m, out.new.v)
    flat = _flat(dtype, g, state.theta, state.m, state.v, gamma, out.point, *new, out.slope)
    loop, how = _secant_step(dtype.type), scalar_array(scalars, 1, dtype, blend)
    in_parts(lambda low, high: loop(low, high, how, *flat), g.size, FLOPS_OF_A_SECANT * g.size)


def _flat(dtype: Any, *given: Any) -> list[Any]:
    """Return views of one dimension, an empty one for None."""
    arrays = [matrix(array, dtype) for array in given]
    if not all(array.flags.c_contiguous for array in arrays):
        raise AssertionError("a kernel would write into copies of its outputs")
    return [array.reshape(-1) for array in arrays]


# --- the loops -------------------------------------------------------------------------------------------------------
# Every constant of a loop is of its dtype, or the loop would widen to double.


# At module level: a loop that closes over a compiled function has a different key in each process, and is never found
# in Numba's cache.
@numba.njit(error_model="numpy", fastmath=FAST)
def safe_root(one, rho, size, tiny):  # type: ignore[no-untyped-def]
    """Return √(ρ² + size²), safe where the squares underflow."""
    top = rho if rho > size else size
    top = top if top > tiny else tiny
    inverse = one / top
    x, y = rho * inverse, size * inverse
    return top * math.sqrt(x * x + y * y)


@cache
def _adam_step(real: Any, decays: bool = False) -> Callable[..., Any]:
    """Return the loop compiled for one dtype, with L2 decay if it `decays`."""
    one, whole = real(1), numba.int64
    read, write = array_types(numba.from_dtype(np.dtype(real)))

    @compiled(numba.void(whole, whole, read[1], *[read[1]] * 4, *[write[1]] * 3))
    def adam_step(low, high, p, g, theta, m, v, new_theta, new_m, new_v):  # type: ignore[no-untyped-def]
        lr, shrink, b1, d1, b2, d2, mu, k = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
        kappa, under, root_q, eps, l2, tiny = p[8], p[9], p[10], p[11], p[13], p[16]
        w = np.empty(3 * BLOCK, real)
        for start in range(low, high, BLOCK):
            width = min(BLOCK, high - start)
            part = slice(start, start + width)
            g_, theta_, m_, v_ = g[part], theta[part], m[part], v[part]
            for e in range(width):  # into scratch: outputs may be the inputs, and aliases prevent vector code
                ge, me, ve = g_[e] + l2 * theta_[e] if decays else g_[e], m_[e], v_[e]
                below = safe_root(one, math.sqrt(kappa * ve + under), root_q * abs(ge), tiny) + eps
                w[e] = theta_[e] * shrink - lr * (mu * me + k * ge) / below
                w[BLOCK + e] = b1 * me + d1 * ge
                w[2 * BLOCK + e] = b2 * ve + d2 * ge * ge
            new_theta[part] = w[:width]
            new_m[part] = w[BLOCK : BLOCK + width]
            new_v[part] = w[2 * BLOCK : 2 * BLOCK + width]

    return cast(Callable[..., Any], adam_step)


@cache
def _secant_step(real: Any) -> Callable[..., Any]:
    """Return the loop compiled for one dtype."""
    one, whole = real(1), numba.int64
    THETA, M, V, POINT, SLOPE = (BLOCK * slot for slot in range(5))
    read, write = array_types(numba.from_dtype(np.dtype(real)))

    @compiled(numba.void(whole, whole, read[1], *[read[1]] * 5, *[write[1]] * 5))
    def secant_step(low, high, p, g, theta, m, v, gamma, point, new_theta, new_m, new_v, slope):  # type: ignore[no-untyped-def]
        lr, shrink, b1, d1, b2, d2, mu, k = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
        kappa, under, root_q, eps, tiny, blend = p[8], p[9], p[10], p[11], p[16], p[17]
        w = np.empty(5 * BLOCK, real)
        for start in range(low, high, BLOCK):
            width = min(BLOCK, high - start)
            part = slice(start, start + width)
            g_, theta_, m_, v_ = g[part], theta[part], m[part], v[part]
            for e in range(width):  # into scratch, as in `adam_step`; θ⁺ has the same bits as with other slopes
                ge, me, ve = g_[e], m_[e], v_[e]
                rho, first, kept = math.sqrt(kappa * ve + under), mu * me, theta_[e] * shrink
                own = root_q * ge
                top = rho if rho > abs(own) else abs(own)
                top = top if top > tiny else tiny
                inverse = one / top
                x, y = rho * inverse, own * inverse
                length = math.sqrt(x * x + y * y)  # r_g / top, at least 1 unless both are 0
                below, at_rest = top * length + eps, rho + eps
                step, idle = lr * (first + k * ge) / below, lr * first / at_rest
                share = y / (length + x + tiny)
                w[THETA + e] = kept - step
                w[M + e] = b1 * me + d1 * ge
                w[V + e] = b2 * ve + d2 * ge * ge
                w[POINT + e] = kept - ((one - blend) * idle + blend * step)
                w[SLOPE + e] = lr * (k - root_q * share * first / at_rest) / below
            if point.size > 0:
                point[part] = w[POINT : POINT + width]
            if new_theta.size > 0:
                new_theta[part] = w[THETA : THETA + width]
                new_m[part] = w[M : M + width]
                new_v[part] = w[V : V + width]
            if gamma.size > 0:
                gamma_ = gamma[part]
                for e in range(width):
                    w[SLOPE + e] *= gamma_[e]
            slope[part] = w[SLOPE : SLOPE + width]

    return cast(Callable[..., Any], secant_step)
