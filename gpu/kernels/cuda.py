"""The kernels for CUDA: CuPy's ElementwiseKernel, for float and double alike.

``T`` is the dtype. Adam's step, the fused step and the fit are one launch each; the split takes one for Γ ⊙ S and
Γ ⊙ M, one for the running sum of O, and reductions. Nodes are read from an array, the same number by all threads: a
kernel is compiled once for any nodes. `kernels.numpy` derives the formulas, `kernels.numba` explains
`tiny`, and the tests compare all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import cupy
import numpy as np

from adamshap.gpu.kernels.groups import FusedStepOut, GradientNorms, OwedSum, ParameterState, TwoTermOut
from adamshap.gpu.kernels.plan import (
    NEGLIGIBLE,
    OWN_SHARES,
    SMALL_ANGLE,
    AdamScalars,
    FitPlan,
    SlopePlan,
    SplitPlan,
    blended_nodes,
    even_squares,
    largest_square,
)

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from adamshap.reference.contract import Array

__all__ = ["adam_step", "auto_plans", "fused_step", "momentum_split", "two_term_fit"]


# --- sources ---------------------------------------------------------------------------------------------------------
# CUDA has no T-typed literals: T(…) makes each constant one, or float kernels would compute in double.

SCALARS = ", ".join(f"T {name}" for name in AdamScalars.__dataclass_fields__) + ", T tiny, T per_sample, T unbias"
NODES = "raw T nodes, int32 count, "

RHO = "T rho = sqrt(kappa * v + root);"
ADAM = (
    RHO
    + """
    T decay = l2 * theta, received = g + decay;
    T size = root_q * abs(received), size_at_rest = root_q * abs(decay);
    T top = max(max(rho, size), tiny), top_at_rest = max(max(rho, size_at_rest), tiny);
    T x = rho / top, y = size / top, x_at_rest = rho / top_at_rest, y_at_rest = size_at_rest / top_at_rest;
    T below = top * sqrt(x * x + y * y) + eps;
    T idle = lr * (mu * m + k * decay) / (top_at_rest * sqrt(x_at_rest * x_at_rest + y_at_rest * y_at_rest) + eps);
    T step = lr * (mu * m + k * received) / below;
    T kept = theta * shrink;
"""
)
# Outputs may be the inputs themselves, which are read before.
WRITE_STATE = """
    new_m = b1 * m + d1 * received;
    new_v = b2 * v + d2 * received * received;
    new_theta = kept - step;
"""
SPREAD = """
    T spread = T(0);
    {
        T whole = row * col, own = g / (whole > T(0) ? whole : T(1));
        T left = max(T(1) - own * own * per_sample, T(0));
        spread = root_q * (whole * sqrt(left * unbias));
    }
"""
SCALE = """
    T most = max(max(max(max(rho, abs(big)), spread), abs(rest)), tiny);
    T one_by = T(1) / most, tail = T(1) / (most + eps);
    T G = big * one_by, S = spread * one_by, rested = rest * one_by, rho2 = (rho * one_by) * (rho * one_by);
    T f_m = most * tail, f_e = eps * tail, mu2 = mu * m * tail * root_q * T(2);
    T s = T(0);
"""
APART = "    T big = root_q * g, rest = root_q * (l2 * theta);"
"""The samples' gradient and the L2 decay, in the units of `SCALE`, which are added to each other last."""
TOGETHER = "    T big = root_q * received, rest = T(0);"
LEAST_EPS = "    f_e = max(f_e, tiny);"
QUOTIENT = """
        T aa = rho2 + a * a, bb = rho2 + b * b, ab = a * b;
        T r_a = sqrt(aa), r_b = sqrt(bb);
        T R = r_a + r_b + T(1e-30), U = r_a * r_b + abs(ab);
        T X = ab > T(0) ? rho2 * (aa + b * b) : U;
        U = ab > T(0) ? U : T(1);
        T above = (k * (f_e * R + f_m * rho2) - of_mu) * U + k * f_m * X;
        T scale = R * U, D_a = f_m * r_a + f_e, D_b = f_m * r_b + f_e;
"""

SLOPES = {
    "sgd": "T s = lr;",
    "frozen": "T s = lr * k / below;",
    "linearized": "T s = lr * k / (rho + eps);",
    "previous": "T s = lr * k / (sqrt(previous * v + root) + eps);",
    # A'(d) = η (k (ε + κ/r) − μ q d/r)/D², at r = 0 η k/ε
    "at_rest": """
    T decayed = root_q * (l2 * theta), larger = max(max(rho, abs(decayed)), tiny);
    T cosine = rho / larger, sine = decayed / larger, length = sqrt(cosine * cosine + sine * sine);
    T D = larger * length + eps, inverse = T(1) / (length > T(0) ? length : T(1));
    T above = k * (eps + rho * (cosine * inverse)) - mu * m * root_q * (sine * inverse);
    T s = lr * (above / D) / D;
""",
    "nodes": APART
    + SCALE
    + LEAST_EPS
    + """
    for (int node = 0; node < count; ++node) {
        if (nodes[4 * node + 3] == T(0)) continue;
        T c = nodes[4 * node] * G, h = nodes[4 * node + 1] * G + nodes[4 * node + 2] * S;
        T a = c + h + rested, b = c - h + rested, of_mu = mu2 * (c + rested);
"""
    + QUOTIENT
    + """
        s += nodes[4 * node + 3] * above / (scale * D_a * D_b);
    }
    s *= lr * tail;
""",
}

# The integral of "even" is computed in double, whatever T is.
EVEN = f"""
    double wide_rho = sqrt(wide_kappa * double(v) + wide_root), big = wide_root_q * double(received);
    double r = hypot(wide_rho, big), by_D = 1.0 / (r + wide_eps);
    r = max(r, wide_eps * {NEGLIGIBLE!r});
    r = 1.0 / (r > 0.0 ? r : 1.0);
    double c = wide_rho * r, size = abs(big) * r, e = wide_eps * r, Y = size / (1.0 + c), total = 0.0;
    if (Y < {SMALL_ANGLE!r}) {{
        for (int node = 0; node < count; ++node) {{
            double y2 = nodes[2 * node] * Y * Y, q = c * (1.0 + y2) + e * (1.0 - y2);
            total += nodes[2 * node + 1] / ((1.0 - y2) * q * q);
        }}
        double part = c / (1.0 + c);
        total *= 8.0 * part * part / (1.0 + c) * size;
    }} else if (Y >= {SMALL_ANGLE!r}) {{
        double shorter = c * c / (1.0 + size), psi = max(sqrt(abs(e - c) / (e + c)), {NEGLIGIBLE!r});
        double gap = (c + shorter) / (1.0 + c);
        if (e < c) {{
            total = log1p(2.0 * Y / max(gap, 2.2250738585072014e-308)) - 2.0 * e / (e + c) * (atan(Y * psi) / psi)
                  - size / (1.0 + e);
        }} else {{
            double d = (e + c) * psi, below = 1.0 + e + d, z = size / below, less_z = 0.0;
            if (z < 0.3) {{
                for (int power = 31; power > 1; power -= 2) less_z = (less_z + 1.0 / power) * (z * z);
                less_z *= z;
            }} else {{
                less_z = 0.5 * log1p(2.0 * z / ((shorter + e + d) / below)) - z;
            }}
            gap += Y * 2.0 * c / ((e + c) * (1.0 + psi));
            total = 2.0 * less_z + size * (1.0 + c * c / (e + d)) / ((1.0 + e) * below)
                  - c * c * log1p(2.0 * (Y * psi) / max(gap, 2.2250738585072014e-308)) / (psi * (e + c) * (e + d));
        }}
        total /= size * size;
    }} else {{
        total = Y;
    }}
    double N = (big < 0.0 ? -total : total) * wide_root_q * r * r;
    T s = T(wide_k * by_D - wide_mu * double(m) * N), inverse = T(by_D + double(received) * N);
"""
SPLITS = {
    "frozen": """
    T big = root_q * abs(received), top = max(max(rho, big), tiny), x = rho / top, y = big / top;
    T inverse = T(1) / (top * sqrt(x * x + y * y) + eps), s = k * inverse;
""",
    "linearized": "T inverse = T(1) / (rho + eps), s = k * inverse;",
    "nodes": TOGETHER
    + SCALE
    + """
    T inverse = T(0);
    for (int node = 0; node < count; ++node) {
        T tau = nodes[4 * node], c = tau * G, h = nodes[4 * node + 1] * S;
        T a = c + h, b = c - h, of_mu = tau * mu2 * c;
"""
    + QUOTIENT
    + """
        T one_in = T(1) / (scale * D_a * D_b);
        s += nodes[4 * node + 2] * above * one_in;
        inverse += nodes[4 * node + 3] * (D_a + D_b) * scale * one_in;
    }
    s *= tail;
    inverse *= tail;
""",
    "even": EVEN,
}
WIDE = ("lr", "mu", "k", "kappa", "root", "root_q", "eps")

FIT = (
    RHO
    + SPREAD
    + APART
    + SCALE
    + LEAST_EPS
    + """
    T mean = per_sample * big, apart = of_sigma * spread;
    T larger = max(max(abs(mean), apart), tiny), x0 = mean / larger, y0 = apart / larger;
    T size = sqrt(x0 * x0 + y0 * y0), by = size > T(0) ? T(1) / size : T(0);
    T phi = T(0), up = T(0), down = T(0);
    S *= of_sigma;
    T z[OWN], root_z[OWN], found[OWN];
    #pragma unroll
    for (int j = 0; j < OWN; ++j) {
        T h = own[2 * j], a_j = own[2 * j + 1], x = per_sample * G + h * S, others = G - x, sum = T(0);
        for (int node = 0; node < count; ++node) {
            T tau = nodes[3 * node], across = nodes[3 * node + 1] * S;
            T b = tau * others + across + rested, a = tau * G + (T(1) - tau) * x + across + rested;
            T of_mu = T(0.5) * mu2 * (a + b);
"""
    + QUOTIENT
    + """
            sum += nodes[3 * node + 2] * above / (scale * max(D_a, D_b) + tiny) / min(D_a, D_b);
        }
        T z_j = abs(x0 * by + h * (y0 * by)), r_j = sqrt(z_j);
        s += a_j * z_j * z_j * sum;
        phi += a_j * z_j * r_j;
        down += ridge * a_j * z_j;
        #pragma unroll
        for (int i = 0; i < j; ++i) {
            T pair = own[2 * i + 1] * a_j * z[i] * z_j, gap = r_j - root_z[i];
            up += pair * root_z[i] * r_j * gap * (found[i] - sum);
            down += pair * gap * gap;
        }
        z[j] = z_j;
        root_z[j] = r_j;
        found[j] = sum;
    }
    T ratio = up * (lr * tail) / (down > T(0) ? down : T(1));
    slope = s * (lr * tail) - ratio * phi;
    second = ratio * sqrt(larger * size / root_q);
"""
)


# --- compiled kernels ------------------------------------------------------------------------------------------------


@cache
def _adam_step() -> Any:
    inputs, outputs = f"T g, T theta, T m, T v, {SCALARS}", "T new_theta, T new_m, T new_v"
    return cupy.ElementwiseKernel(inputs, outputs, ADAM + WRITE_STATE, "adamshap_adam_step")


@cache
def _fused_step(kind: str, with_spread: bool, with_gamma: bool, with_point: bool, with_new: bool) -> Any:
    nodes = NODES if kind == "nodes" else ""
    inputs = f"T g, T theta, T m, T v, T row, T col, T gamma, {nodes}{SCALARS}, T blend"
    outputs = ("T new_theta, T new_m, T new_v, " if with_new else "") + "T slope" + (", T point" if with_point else "")
    body = ADAM + (SPREAD if with_spread else "T spread = T(0);") + SLOPES[kind]
    body += "point = kept - ((T(1) - blend) * idle + blend * step);" if with_point else ""
    body += WRITE_STATE if with_new else ""
    body += "slope = s * gamma;" if with_gamma else "slope = s;"
    return cupy.ElementwiseKernel(inputs, outputs, body, f"adamshap_fused_{kind}")


@cache
def _momentum_split(kind: str, with_spread: bool) -> Any:
    nodes = {"nodes": NODES, "even": "raw float64 nodes, int32 count, "}.get(kind, "")
    wide = ", ".join(f"float64 wide_{name}" for name in WIDE)
    inputs = f"T g, T theta, T m, T v, T row, T col, T gamma, {nodes}{SCALARS}, {wide}"
    body = RHO + "T received = g + l2 * theta;" + (SPREAD if with_spread else "T spread = T(0);") + SPLITS[kind]
    body += "slope = lr * s * gamma; due = lr * mu * inverse * gamma;"
    return cupy.ElementwiseKernel(inputs, "T slope, T due", body, f"adamshap_split_{kind}")


@cache
def _dot() -> Any:
    return cupy.ReductionKernel("T a, T b", "float64 s", "double(a) * double(b)", "a + b", "s = a", "0", "adamshap_dot")


@cache
def _own_share(kind: str) -> Any:
    """Return the sum over coordinates: of w z² for "squared", of w for "weight"."""
    own = "(min((root_q * g) * (root_q * g), largest) + tiny)"
    radicand = f"(kappa * v + root + {own})"
    weight, share = f"{own} / ({radicand} + eps * eps)", f"({own} / {radicand})"
    return cupy.ReductionKernel(
        "T g, T v, T kappa, T root, T root_q, T eps, T tiny, T largest",
        "float64 s",
        f"double({weight}{f' * {share} * {share}' if kind == 'squared' else ''})",
        "a + b",
        "s = a",
        "0",
        f"adamshap_own_share_{kind}",
    )


@cache
def _blend() -> Any:
    inputs = "float64 part, float64 whole, T secant, T arrivals, float64 low, float64 steepness"
    body = """
        double share = whole > 0.0 ? part / whole : 0.0;
        T weight = T(min(max((share - low) * steepness, 0.0), 1.0));
        nodes = secant + weight * (arrivals - secant);
    """
    return cupy.ElementwiseKernel(inputs, "T nodes", body, "adamshap_blend")


@cache
def _owe() -> Any:
    body = "K = owed + grow * due; product = slope - less * K;"
    return cupy.ElementwiseKernel("T slope, T due, T owed, T grow, T less", "T K, T product", body, "adamshap_owe")


@cache
def _two_term_fit(own: int) -> Any:
    inputs = f"T g, T theta, T m, T v, T row, T col, raw T own, {NODES}{SCALARS}, T of_sigma, T ridge"
    body = FIT.replace("OWN", str(own))
    return cupy.ElementwiseKernel(inputs, "T slope, T second", body, "adamshap_two_term_fit")


# --- their arguments -------------------------------------------------------------------------------------------------


def _numbers(scalars: AdamScalars, n: int, dtype: Any, *more: float) -> list[Any]:
    """Return the values of `SCALARS`, and a kernel's own numbers."""
    unbias = n / (n - 1) if n > 1 else 0.0
    return [dtype.type(x) for x in (*vars(scalars).values(), cupy.finfo(dtype).tiny, 1 / n, unbias, *more)]


def _nodes(nodes: tuple[tuple[float, ...], ...], dtype: Any) -> tuple[Any, Any]:
    return _table(nodes, np.dtype(dtype), cupy.cuda.Device().id), np.int32(len(nodes))


def _planned_nodes(plan: SlopePlan, dtype: Any) -> tuple[Any, Any]:
    if plan.table is None:
        return _nodes(plan.nodes, dtype)
    return plan.table, np.int32(len(plan.nodes))


@cache
def _table(nodes: tuple[tuple[float, ...], ...], dtype: Any, _device: int) -> Any:
    """Return the nodes as one array on the current device, whose number is part of the key."""
    table = cupy.asarray(np.array(nodes, dtype).ravel())
    cupy.cuda.get_current_stream().synchronize()  # later calls may come on other streams
    return table


def _two_factors(norms: GradientNorms, dtype: Any) -> tuple[Any, Any]:
    """Return √Σx² as two factors that a kernel multiplies: norms, or `root` and 1, or zeros without either."""
    if norms.root is not None:
        return norms.root, dtype.type(1)
    if norms.row is None or norms.col is None:
        return dtype.type(0), dtype.type(0)
    return norms.row[:, None], norms.col[None, :]


# --- entry points -----------------------------------------------------------------------------------------------------


def adam_step(scalars: AdamScalars, g: Float[Array, "d_out d_in"], state: ParameterState, new: ParameterState) -> None:
    """Write Adam's update; see `Kernels.adam_step`."""
    numbers = _numbers(scalars, 1, g.dtype)
    _adam_step()(g, state.theta, state.m, state.v, *numbers, new.theta, new.m, new.v)


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
    """Take Adam's step and compute the slope, in one launch; see `Kernels.fused_step`."""
    kernel = _fused_step(plan.kind, plan.needs_spread, gamma is not None, out.point is not None, out.new is not None)
    kernel(
        g,
        state.theta,
        state.m,
        state.v,
        *_two_factors(norms, g.dtype),
        g.dtype.type(0) if gamma is None else gamma,
        *(_planned_nodes(plan, g.dtype) if plan.kind == "nodes" else ()),
        *_numbers(scalars, norms.n, g.dtype, blend),
        *(() if out.new is None else (out.new.theta, out.new.m, out.new.v)),
        out.slope,
        *(() if out.point is None else (out.point,)),
    )


def auto_plans(
    scalars: Mapping[str, AdamScalars], order: SlopePlan, g: Mapping[str, Array], v: Mapping[str, Array]
) -> dict[str, SlopePlan]:
    """Return the plans of "auto", whose weights stay on the device; see `Kernels.auto_plans`."""
    return {name: _auto_plan(scalars[name], order, array, v[name]) for name, array in g.items()}


def _auto_plan(scalars: AdamScalars, order: SlopePlan, g: Array, v: Array) -> SlopePlan:
    """Return the plan of "auto" of one parameter."""
    f, dtype = g.dtype.type, np.dtype(g.dtype)
    numbers = [f(x) for x in (scalars.kappa, scalars.root, scalars.root_q, scalars.eps)]
    numbers += [f(cupy.finfo(dtype).tiny), f(largest_square(dtype))]
    part, whole = (_own_share(kind)(g, v, *numbers) for kind in ("squared", "weight"))
    both = blended_nodes(order.nodes, 1.0)
    secant, arrivals = (_nodes(blended_nodes(order.nodes, weight), dtype)[0] for weight in (0.0, 1.0))
    table = cupy.empty_like(arrivals)
    low, high = OWN_SHARES
    _blend()(part, whole, secant, arrivals, low, 1 / (high - low), table)
    return SlopePlan("nodes", both, table)


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
    f, nodes = g.dtype.type, cast(tuple[Any, ...], ())
    if plan.kind == "nodes":
        nodes = _nodes(plan.nodes, g.dtype)
    elif plan.kind == "even":
        nodes = _nodes(even_squares(g.dtype), np.float64)
    slope, owed_now = cupy.empty_like(g), cupy.empty_like(g)
    _momentum_split(plan.kind, plan.needs_spread)(
        g,
        state.theta if scalars.l2 else f(0),
        state.m,
        state.v,
        *_two_factors(norms, g.dtype),
        gamma,
        *nodes,
        *_numbers(scalars, norms.n, g.dtype),
        *(getattr(scalars, name) for name in WIDE),
        slope,
        owed_now,
    )
    sums: Array = cupy.zeros(4)
    pairs = [(slope, g), (owed_now, state.m), (owed_now, owed_now)]
    if scalars.l2:
        pairs.append((slope, state.theta))
    elif scalars.shrink < 1:
        pairs.append((gamma, state.theta))
    for number, (a, b) in enumerate(pairs):
        sums[number] = _dot()(a, b)
    if owed is None:
        product[...] = slope
    else:
        _owe()(slope, owed_now, owed.total, f(owed.grow), f(owed.less), owed.total, product)
    return sums


def two_term_fit(
    scalars: AdamScalars,
    plan: FitPlan,
    g: Float[Array, "d_out d_in"],
    state: ParameterState,
    norms: GradientNorms,
    out: TwoTermOut,
) -> None:
    """Write S and R, in one launch; see `Kernels.two_term_fit`."""
    own, _ = _nodes(plan.own, g.dtype)
    _two_term_fit(len(plan.own))(
        g,
        state.theta if scalars.l2 else g.dtype.type(0),
        state.m,
        state.v,
        *_two_factors(norms, g.dtype),
        own,
        *_nodes(plan.arrivals, g.dtype),
        *_numbers(scalars, norms.n, g.dtype, plan.relative_deviation, plan.ridge),
        out.slope,
        out.second,
    )
