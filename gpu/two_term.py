"""The slope "two_term": S and R for ``⟨Γ ⊙ S, x_i⟩ + ⟨Γ ⊙ R, sign(x_i) √|x_i|⟩``, elementwise (docs/method.md 4).

========  =================  ======================================================
paper     name               meaning
========  =================  ======================================================
S, R      ``out``            slopes of the first and of the second term
h_j, a_j  ``OWN``            nodes and weights of a sample's own x
τ         ``arrivals``       part of the others that comes before, and their sum
ς²        no name            Σ (x − x̄)²/n; σ² is n²/(n − 1) times as large
δ         ``RIDGE``          ridge of the regression
========  =================  ======================================================

The second term is a contraction with the captures of sign(x) √|x| (`captures.Captures.signed_roots`).

The elementwise work is a kernel of its own (`Kernels.two_term_fit`).
"""

import math
from functools import cache, partial
from itertools import cycle
from typing import Any

import numpy as np

from adamshap.gpu.arrays import BatchGradient, SlopeArrays, as_matrix
from adamshap.gpu.context import EngineContext
from adamshap.gpu.kernels.groups import GradientNorms, ParameterState, TwoTermOut
from adamshap.gpu.kernels.plan import AdamScalars, Arrival, FitPlan
from adamshap.gpu.norms import Norms
from adamshap.gpu.state import StepInput
from adamshap.gpu.threads import in_parts

__all__ = ["arrivals", "fit_plan", "may_come_first", "own_segment", "two_slopes"]

FLOPS_OF_A_NODE = 140
"""Cost of a divided difference per element, as flops of matrix products that take as long."""

OWN: tuple[tuple[float, float], ...] = tuple(
    (sign * math.sqrt(3 - side * math.sqrt(6)), (3 + side * math.sqrt(6)) / 12) for side in (1, -1) for sign in (1, -1)
)
"""Nodes and weights of a sample's own x: the Gauss–Hermite rule of four."""

RIDGE = 1e-3


def two_slopes(
    step: StepInput, plan: FitPlan, g: BatchGradient, norms: Norms, out: tuple[SlopeArrays, SlopeArrays]
) -> None:
    """Write S and R of every parameter to `out`, for the state before the step; `norms` gives ς."""
    context, n = step.context, step.batch.n
    context.now("slopes of two terms", slice(0, n))
    differences = len(plan.own) * len(plan.arrivals)
    for key, whole in g.items():
        matrix, written = as_matrix(whole), TwoTermOut(as_matrix(out[0][key]), as_matrix(out[1][key]))
        scalars, state = step.hyperparameters.scalars[key], step.state.of(key)
        fit = partial(_fit_units, context, scalars, plan, matrix, state, norms.of(key, n), written)
        in_parts(fit, len(matrix), FLOPS_OF_A_NODE * differences * matrix.size)


def _fit_units(
    context: EngineContext,
    scalars: AdamScalars,
    plan: FitPlan,
    g: Any,
    state: ParameterState,
    norms: GradientNorms,
    out: TwoTermOut,
    low: int,
    high: int,
) -> None:
    units = slice(low, high)
    context.kernels.two_term_fit(scalars, plan, g[units], state.rows(units), norms.rows(units), out.rows(units))


@cache
def fit_plan(kind: str, n: int, nodes: tuple[int, int]) -> FitPlan:
    """Return the kernel's plan: ς² is Σ (x − x̄)²/n, and σ² is n/(n − 1) Σ (x − x̄)²."""
    return FitPlan(OWN, arrivals(kind, n, nodes), math.sqrt(n - 1) / n, RIDGE)


def own_segment(kind: str, n: int) -> tuple[float, float]:
    """Return a sample's own part of the way from A(0) to A(g): for "shapley", on average all of it."""
    if kind == "shapley":
        return 0.0, 1.0
    return (0.0, 1 / n) if kind == "first" else ((n - 1) / n, 1.0)


def may_come_first(kind: str, n: int, path: int) -> bool:
    """Whether a sample may come first, so that its change of the step begins at A(0)."""
    return any(tau == across == 0 for tau, across, _ in arrivals(kind, n, (path, 2))) or n == 1


@cache
def arrivals(kind: str, n: int, nodes: tuple[int, int]) -> tuple[Arrival, ...]:
    """Return the nodes of the sum of the samples before one's own.

    k of the N = n − 1 others come before, each number equally likely. Their sum has variance k (N − k)/(N − 1) ς².
    The normal has one node fewer at every second k, starting with the first.
    """
    if kind == "first":
        return ((0.0, 0.0, 1.0),)
    if kind == "last":
        return ((1.0, 0.0, 1.0),)
    path, normal = nodes
    rules = [np.polynomial.hermite_e.hermegauss(normal - fewer) for fewer in (1, 0)]
    table = []
    for (before, w), (h, a) in zip(_number_nodes(n, path), cycle(rules), strict=False):
        left = n - 1 - before
        part = math.sqrt(before * left / max(n - 2, 1))
        if part == 0:
            table.append((before / max(n - 1, 1), 0.0, w))
        else:
            table += [
                (before / (n - 1), part * float(h_j), w * float(a_j / a.sum())) for h_j, a_j in zip(h, a, strict=True)
            ]
    return tuple(table)


def _number_nodes(n: int, count: int) -> list[tuple[float, float]]:
    """Return nodes and weights of k, uniform on 0 … n − 1: all values, or a Gauss rule of `count` nodes.

    Stieltjes's procedure computes the polynomials that are orthonormal on the n points, one from another. The zeros of
    the one of degree `count` are the nodes, and 1/Σ p_j² over those of lower degree the weights. By symmetry about the
    middle the recurrence has one coefficient, the norm.
    """
    if n <= count:
        return [(float(k), 1 / n) for k in range(n)]
    middle = (n - 1) / 2
    points = (np.arange(n) - middle) / middle
    before, now, norms = np.zeros(n), np.full(n, n**-0.5), [0.0]
    for _ in range(count - 1):
        after = points * now - norms[-1] * before
        norms.append(float(np.linalg.norm(after)))
        before, now = now, after / norms[-1]
    off_diagonal = norms[1:]
    zeros = np.linalg.eigvalsh(np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)) if off_diagonal else np.zeros(1)
    before, now, total = np.zeros(count), np.full(count, n**-0.5), np.full(count, 1 / n)
    for norm_before, norm in zip(norms, off_diagonal, strict=False):
        before, now = now, (zeros * now - norm_before * before) / norm
        total += now**2
    return [(middle * (1 + z), 1 / (n * w)) for z, w in zip(zeros.tolist(), total.tolist(), strict=True)]
