"""Parameters of the elementwise kernels, as plain numbers: Adam's scalars and the nodes of slopes.

Both are computed on the host in double precision, once a step; the kernels then work in the run's dtype.

======  ================  ======================================================
paper   name              meaning
======  ================  ======================================================
η       lr                learning rate
λ       shrink            weight decay, as the factor ``1 − η λ``
λ₂      l2                L2 decay: Adam receives ``d + g``, d = λ₂ θ
β1, β2  b1, b2            decay of the moments; ``d1``, ``d2`` are ``1 − β``
μ       mu · m            bias-corrected momentum term of the numerator
k       k                 weight of the gradient in the numerator
κ       kappa · v + root  second moment's part of the radicand
q       root_q ** 2       weight of the squared gradient under the root
ε       eps               added to the root
======  ================  ======================================================
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from adamshap.reference.contract import AUTO, Adam, StepNumber

__all__ = [
    "NEGLIGIBLE",
    "OWN_SHARES",
    "SECANT_PLAN",
    "SHARE_BLOCK",
    "SMALL_ANGLE",
    "SPLIT_SLOPES",
    "AdamScalars",
    "Arrival",
    "FitPlan",
    "Node",
    "SlopePlan",
    "SplitPlan",
    "adam_scalars",
    "blended",
    "blended_nodes",
    "even_nodes",
    "even_squares",
    "largest_square",
    "path_nodes",
    "slope_plan",
    "split_plan",
]

Node = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)  # equal if identical: kernels look up their arguments by it
class AdamScalars:
    """Adam's numbers at step t, in the order in which the kernels take them."""

    lr: float
    shrink: float
    b1: float
    d1: float
    b2: float
    d2: float
    mu: float
    k: float
    kappa: float
    root: float
    root_q: float
    eps: float
    previous: float  # 1 / (1 − β2^(t−1)), for the secondary sources' denominator; 0 at t = 1
    l2: float


def adam_scalars(adam: Adam, t: StepNumber) -> AdamScalars:
    """Return the scalars of step `t`; ``1 − β^t`` through expm1, which keeps its digits where β is close to 1."""
    b1, b2 = adam.betas
    c1, c2, before = (_one_minus_power(b, s) for b, s in ((b1, t), (b2, t), (b2, t - 1)))
    return AdamScalars(
        lr=adam.lr,
        shrink=1 - adam.lr * adam.weight_decay,
        b1=b1,
        d1=1 - b1,
        b2=b2,
        d2=1 - b2,
        mu=b1 / c1,
        k=(1 - b1) / c1,
        kappa=b2 / c2,
        root=adam.eps_root,
        root_q=math.sqrt((1 - b2) / c2),
        eps=adam.eps,
        previous=1 / before if before > 0 else 0.0,
        l2=adam.l2,
    )


def _one_minus_power(beta: float, t: int) -> float:
    return -math.expm1(t * math.log(beta)) if beta > 0 and t > 0 else float(t > 0)


@dataclass(frozen=True)
class SlopePlan:
    """How an elementwise slope is computed.

    ``kind`` "nodes" is the mean of divided differences of Adam's map between ``c + h`` and ``c − h``, where
    ``c = τ g`` and ``h = along · g + across · σ`` for each node ``(τ, along, across, weight)``; L2 decay is added to
    both. The others are closed forms: "sgd", "frozen" (denominator of the step taken), "linearized" (at zero gradient
    and decay), "previous", and "at_rest", the derivative A'(d) at L2 decay d alone. On a device `table` may hold the
    nodes with other weights, that the host does not know.
    """

    kind: str
    nodes: tuple[Node, ...] = ()
    table: Any = None

    @property
    def needs_spread(self) -> bool:
        """Whether σ takes part."""
        return any(across for _, _, across, _ in self.nodes)

    @property
    def needs_idle(self) -> bool:
        """Whether the slope divides by D(0), the denominator at zero gradient."""
        from_zero = any(tau == abs(along) and not across for tau, along, across, _ in self.nodes)
        return self.kind in ("linearized", "previous", "at_rest") or from_zero

    def with_decay(self, l2: float) -> "SlopePlan":
        """Return the plan for a parameter with L2 decay `l2`: "linearized" is then the derivative at d, not at 0."""
        return SlopePlan("at_rest") if l2 and self.kind == "linearized" else self


TANGENT: Node = (1.0, 0.0, 0.0, 1.0)  # a = b = g
SECANT: Node = (0.5, 0.5, 0.0, 1.0)  # a = g, b = 0
SECANT_PLAN = SlopePlan("nodes", (SECANT,))


@cache
def slope_plan(slope: str, nodes: tuple[int, int], n: int, denominator: str = "exact") -> SlopePlan:
    """Return the plan of the slope named `slope` for a batch of `n`; of "auto", that of "random_order"."""
    if slope == "linearized" and denominator == "previous":
        return SlopePlan("previous")
    if slope == "tangent":
        return SlopePlan("nodes", (TANGENT,))
    if slope == "secant" or (slope in ("random_order", AUTO) and n == 1):
        return SECANT_PLAN
    if slope in ("random_order", AUTO):
        return SlopePlan("nodes", _arrival_nodes(*nodes))
    return SlopePlan(slope)


# --- "auto": "secant" where the batch's own gradient has a small part in the radicand ---------------------------------

OWN_SHARES = (3 / 16, 7 / 32)
"""Mean squared own share up to which "auto" is "secant", and from which it is "random_order" (docs/method.md 4)."""
SHARE_BLOCK = 1 << 16
"""Elements whose own shares the host sums at a time, so that no sum depends on the number of threads."""


@cache
def largest_square(dtype: Any) -> float:
    """Return the square of a gradient beyond which its own share is 1 in `dtype`, far below the largest number."""
    return float(np.finfo(dtype).max) / 64


def blended(order: SlopePlan, share: float) -> SlopePlan:
    """Return the plan of "auto" for a mean squared own share; `order` is that of "random_order"."""
    low, high = OWN_SHARES
    weight = (share - low) / (high - low)
    if weight <= 0:
        return SECANT_PLAN
    return order if weight >= 1 else SlopePlan("nodes", blended_nodes(order.nodes, weight))


def blended_nodes(nodes: tuple[Node, ...], weight: float) -> tuple[Node, ...]:
    """Return the nodes of "secant", weighted by 1 − `weight`, and these ones, weighted by `weight`."""
    parts = ((SECANT,), 1 - weight), (nodes, weight)
    return tuple((*node, part * own) for some, part in parts for *node, own in some)  # type: ignore[misc]


@cache
def path_nodes(count: int) -> tuple[tuple[float, float], ...]:
    """Return the Gauss–Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return tuple((float(a + 1) / 2, float(b) / 2) for a, b in zip(x, w, strict=True))


def _arrival_nodes(path: int, normal: int) -> tuple[Node, ...]:
    """Return the nodes of a sample that arrives at a random time τ, after a near-normal sum of earlier ones.

    The sum has mean τ g and variance τ(1−τ) σ². By Stein's identity the mean of A' over a normal z is that of
    z A(τ g + s z) / s; the plan's nodes ±h together make it ``2 a_h h² A[τ g + s h, τ g − s h]``.
    """
    h, a = np.polynomial.hermite_e.hermegauss(normal)
    a = a / a.sum()
    return tuple(
        (tau, 0.0, float(hj) * math.sqrt(tau * (1 - tau)), w * 2 * float(aj) * float(hj) ** 2)
        for tau, w in path_nodes(path)
        for hj, aj in list(zip(h, a, strict=True))[(normal + 1) // 2 :]
    )


# --- the split between momentum and batch ----------------------------------------------------------------------------

SPLIT_SLOPES = ("frozen", "linearized", "tangent", "secant", "random_order")


@dataclass(frozen=True)
class SplitPlan:
    """How Adam's map is split between momentum and batch, ``A(g) ≈ M ⊙ m + S ⊙ g``.

    g is what Adam receives, L2 decay included, which arrives as evenly as the momentum (docs/method.md 9).
    ``kind`` "nodes" is a sum over nodes ``(τ, across, weight, inverse_weight)``: with ``c = τ g``, ``h = across · σ``
    and the part τ of the momentum, S has ``weight`` times the divided difference of Adam's map between ``c + h`` and
    ``c − h``, and M has ``inverse_weight`` times the sum of the two inverse denominators there. "even" is momentum and
    batch arriving evenly, an integral computed in double precision. The others are closed forms: "frozen" and
    "linearized".
    """

    kind: str
    nodes: tuple[Node, ...] = ()

    @property
    def needs_spread(self) -> bool:
        """Whether σ takes part."""
        return any(across for _, across, _, _ in self.nodes)


@cache
def split_plan(slope: str, nodes: tuple[int, int], n: int) -> SplitPlan:
    """Return the plan of one of `SPLIT_SLOPES` for a batch of `n`; "random_order" of a single sample is "secant"."""
    if slope == "secant" or (slope == "random_order" and n == 1):
        return SplitPlan("even")
    if slope == "tangent":
        return SplitPlan("nodes", ((1.0, 0.0, 1.0, 0.5),))
    if slope == "random_order":
        return SplitPlan("nodes", _arrivals(*nodes))
    return SplitPlan(slope)


def _arrivals(path: int, normal: int) -> tuple[Node, ...]:
    """Return the nodes of "random_order" as `_arrival_nodes` does; an odd number's middle one has weight in M alone."""
    h, a = np.polynomial.hermite_e.hermegauss(normal)
    a = a / a.sum()
    table = []
    for tau, w in path_nodes(path):
        for h_j, a_j in list(zip(h.tolist(), a.tolist(), strict=True))[normal // 2 :]:
            middle = normal % 2 == 1 and h_j == h[normal // 2]
            across = 0.0 if middle else h_j * math.sqrt(tau * (1 - tau))
            table.append((tau, across, 0.0 if middle else 2 * w * a_j * h_j**2, w * a_j / (2 if middle else 1)))
    return tuple(table)


SMALL_ANGLE = 0.5
"""Value of tan(φ/2), tan φ = √q |g| / √κ, from which on the integral of "even" is computed in closed form."""

NEGLIGIBLE = 1e-100
"""Fraction of ε below which R has no effect; also the substitute for ψ = 0."""


@cache
def even_nodes(dtype: Any) -> tuple[tuple[float, float], ...]:
    """Return nodes and weights on [0, 1] for the integral of "even" up to `SMALL_ANGLE`, for a result in `dtype`.

    With N nodes Gauss–Legendre errs by 5.8⁻²ᴺ, times (2N)² as the nearest pole, at 1, may be triple.
    """
    return path_nodes(12 if np.dtype(dtype) == np.float64 else 7)


@cache
def even_squares(dtype: Any) -> tuple[tuple[float, float], ...]:
    """Return x² and w x² for each of `even_nodes`."""
    return tuple((x * x, w * x * x) for x, w in even_nodes(dtype))


# --- two slopes for one marginal -------------------------------------------------------------------------------------

Arrival = tuple[float, float, float]
"""(τ, part of ς, weight): the samples before one of contribution x sum to τ (g − x) plus this part of ς."""


@dataclass(frozen=True)
class FitPlan:
    """How the two slopes of "two_term" are computed.

    ``own`` holds the nodes and weights of a sample's own x, normally distributed, ``arrivals`` those of the sum of the
    samples before it; ``relative_deviation`` is ς/σ, and ``ridge`` δ.
    """

    own: tuple[tuple[float, float], ...]
    arrivals: tuple[Arrival, ...]
    relative_deviation: float
    ridge: float
