"""The pass of `splits` as CUDA kernels: one makes Γ ⊙ S and Γ ⊙ M, one adds up what is owed, and sums are reductions.

As in `passes_cuda`, ``T`` is the dtype, and a plan's nodes are unrolled into the source as constants, so that a kernel
is made for each plan and kept. The formulas and their derivation stand in `splits`.
"""

from functools import cache
from typing import Any

import cupy

from adamshap.gpu.kernels.plan import LITTLE, SMALL_ANGLE, AdamScalars, SplitPlan, even_nodes
from adamshap.gpu.passes_cuda import SPREAD, two_factors

__all__ = ["split"]

CLOSED = {
    "frozen": """
        T big = root_q * abs(g), top = max(max(rho, big), tiny), x = rho / top, y = big / top;
        T inverse = T(1) / (top * sqrt(x * x + y * y) + eps), s = k * inverse;
    """,
    "linearized": "T inverse = T(1) / (rho + eps), s = k * inverse;",
}
SCALE = """
    T big = root_q * g, most = max(max(max(rho, abs(big)), spread), tiny);
    T one_by = T(1) / most, tail = T(1) / (most + eps);
    T G = big * one_by, S = spread * one_by, rho2 = (rho * one_by) * (rho * one_by);
    T f_m = most * tail, f_e = eps * tail, mu2 = mu * m * tail * root_q * T(2);
    T s = T(0), inverse = T(0);
"""
NODE = """
    {{
        T c = T({tau!r}) * G, d = T({across!r}) * S;
        T a = c + d, b = c - d, ab = a * b;
        T aa = rho2 + a * a, bb = rho2 + b * b;
        T r_a = sqrt(aa), r_b = sqrt(bb);
        T D_a = f_m * r_a + f_e, D_b = f_m * r_b + f_e;
        T R = r_a + r_b + T(1e-30), U = r_a * r_b + abs(ab);
        T X = ab > T(0) ? rho2 * (aa + b * b) : U;
        U = ab > T(0) ? U : T(1);
        T of_k = k * (f_e * R + f_m * rho2), of_mu = T({tau!r}) * mu2 * c;
        T one_in = T(1) / (R * U * D_a * D_b);
        s += T({weight!r}) * ((of_k - of_mu) * U + k * f_m * X) * one_in;
        inverse += T({each!r}) * (D_a + D_b) * (R * U) * one_in;
    }}
"""
# In double throughout, whatever T is.
EVEN = """
    double wide_rho = sqrt(wide_kappa * double(v) + wide_root), big = wide_root_q * double(g);
    double r = hypot(wide_rho, big), by_D = 1.0 / (r + wide_eps);
    r = max(r, wide_eps * {little!r});
    r = 1.0 / (r > 0.0 ? r : 1.0);
    double c = wide_rho * r, size = abs(big) * r, e = wide_eps * r, Y = size / (1.0 + c), total = 0.0;
    if (Y < {small!r}) {{
        {sum}
        double part = c / (1.0 + c);
        total *= 8.0 * part * part / (1.0 + c) * size;
    }} else if (Y >= {small!r}) {{
        double shorter = c * c / (1.0 + size), psi = max(sqrt(abs(e - c) / (e + c)), {little!r});
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
    T s = T(wide_k * by_D - wide_mu * double(m) * N), inverse = T(by_D + double(g) * N);
"""
TERM = "{{ double y2 = {x2!r} * Y * Y, q = c * (1.0 + y2) + e * (1.0 - y2); total += {w!r} / ((1.0 - y2) * q * q); }}"
WRITE = "slope = lr * s * gamma; due = lr * mu * inverse * gamma;"
NUMBERS = ("lr", "mu", "k", "kappa", "root", "root_q", "eps")


@cache
def _weighed(plan: SplitPlan, dtype: Any) -> Any:
    body = "T rho = sqrt(kappa * v + root);"
    if plan.kind == "even":
        terms = (TERM.format(x2=x * x, w=w * x * x) for x, w in even_nodes(dtype))
        body += EVEN.format(little=LITTLE, small=SMALL_ANGLE, sum="\n        ".join(terms))
    elif plan.kind == "nodes":
        body += (SPREAD if plan.needs_spread else "T spread = T(0);") + SCALE
        for tau, across, weight, each in plan.nodes:
            body += NODE.format(tau=tau, across=across, weight=weight, each=each)
        body += "s *= tail; inverse *= tail;"
    else:
        body += CLOSED[plan.kind]
    numbers = [*(f"T {name}" for name in NUMBERS), *(f"float64 wide_{name}" for name in NUMBERS)]
    inputs = ["T g, T m, T v, T row, T col, T gamma", *numbers, "T tiny, T share, T unbias"]
    return cupy.ElementwiseKernel(", ".join(inputs), "T slope, T due", body + WRITE, f"adamshap_split_{plan.kind}")


@cache
def _dot() -> Any:
    return cupy.ReductionKernel("T a, T b", "float64 s", "double(a) * double(b)", "a + b", "s = a", "0", "adamshap_dot")


@cache
def _owe() -> Any:
    body = "K = owed + grow * due; product = slope - less * K;"
    return cupy.ElementwiseKernel("T slope, T due, T owed, T grow, T less", "T K, T product", body, "adamshap_owe")


def split(
    scalars: AdamScalars,
    plan: SplitPlan,
    n: int,
    g: Any,
    theta: Any,
    m: Any,
    v: Any,
    row: Any,
    col: Any,
    root: Any,
    gamma: Any,
    grow: float,
    less: float,
    owed: Any,
    product: Any,
) -> Any:
    """Split, weigh with Γ, add up what is owed and what it amounts to; see `kernels.Split`."""
    f, wide = g.dtype.type, [getattr(scalars, name) for name in NUMBERS]
    unbias = f(n / (n - 1) if n > 1 else 0.0)
    slope, due = cupy.empty_like(g), cupy.empty_like(g)
    _weighed(plan, g.dtype)(
        g,
        m,
        v,
        *two_factors(row, col, root, g.dtype),
        gamma,
        *map(f, wide),
        *wide,
        f(cupy.finfo(g.dtype).tiny),
        f(1 / n),
        unbias,
        slope,
        due,
    )
    sums = cupy.zeros(4)
    pairs = [(slope, g), (due, m), (due, due)] + ([] if theta is None else [(gamma, theta)])
    for number, (a, b) in enumerate(pairs):
        sums[number] = _dot()(a, b)
    if owed is None:
        product[...] = slope
    else:
        _owe()(slope, due, owed, f(grow), f(less), owed, product)
    return sums
