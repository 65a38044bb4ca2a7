"""Adam's map of the gradient and its slopes (docs/method.md 1, 3 and 4), in PyTorch, elementwise on tensors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["AdamMap", "fit_two_terms", "normal_rule", "path_rule", "slope_of"]

RIDGE = 1e-3
"""δ of the fit of two terms."""


@dataclass(frozen=True)
class AdamMap:
    """A(g) = η (μ + k g) / (√(κ + q g²) + ε) and its divided difference.

    Parameters
    ----------
    lr, betas, eps, eps_root : float
        η, (β1, β2), ε, ε_root.
    t : int
        Number of the step, at least 1.
    m, v : Tensor
        Moments before the step.
    """

    lr: float
    betas: tuple[float, float]
    eps: float
    eps_root: float
    t: int
    m: Tensor
    v: Tensor

    @property
    def mu(self) -> Tensor:
        """Return μ = β1 m / c1."""
        return self.betas[0] * self.m / (1 - self.betas[0] ** self.t)

    @property
    def k(self) -> float:
        """Return k = (1 − β1) / c1."""
        return (1 - self.betas[0]) / (1 - self.betas[0] ** self.t)

    @property
    def kappa(self) -> Tensor:
        """Return κ = β2 v / c2 + ε_root."""
        return self.betas[1] * self.v / (1 - self.betas[1] ** self.t) + self.eps_root

    @property
    def q(self) -> float:
        """Return q = (1 − β2) / c2."""
        return (1 - self.betas[1]) / (1 - self.betas[1] ** self.t)

    def root(self, g: Tensor) -> Tensor:
        """Return r(g)."""
        return torch.hypot(self.kappa.sqrt(), self.q**0.5 * g)

    def step(self, g: Tensor) -> Tensor:
        """Return A(g)."""
        return self.lr * (self.mu + self.k * g) / (self.root(g) + self.eps)

    def held(self, g: Tensor) -> Tensor:
        """Return η k / D(g), the slope with the denominator held."""
        return self.lr * self.k / (self.root(g) + self.eps)

    def previous(self) -> Tensor:
        """Return η k / (√(v/(1 − β2^{t−1}) + ε_root) + ε)."""
        v_hat = self.v / (1 - self.betas[1] ** (self.t - 1))
        return self.lr * self.k / ((v_hat + self.eps_root).sqrt() + self.eps)

    def difference(self, a: Tensor, b: Tensor) -> Tensor:
        """Return A[a, b], with the terms in k collected so that they do not cancel for a small κ."""
        r_a, r_b = self.root(a), self.root(b)
        product, total = self.q * a * b, torch.where(r_a + r_b > 0, r_a + r_b, 1.0)
        beside = r_a * r_b + product.clamp(min=0)
        positive = self.kappa * (self.kappa + self.q * (a * a + b * b)) / torch.where(beside > 0, beside, 1.0)
        gap = torch.where(product > 0, positive, r_a * r_b - product)
        numerator = self.k * (self.eps + (self.kappa + gap) / total) - self.mu * self.q * ((a + b) / total)
        return self.lr * numerator / (r_a + self.eps) / (r_b + self.eps)


def path_rule(count: int) -> list[tuple[float, float]]:
    """Return nodes and weights of Gauss–Legendre on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return list(zip(((nodes + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


def normal_rule(count: int) -> list[tuple[float, float]]:
    """Return nodes and weights of Gauss–Hermite for the standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return list(zip(nodes.tolist(), (weights / (2 * np.pi) ** 0.5).tolist(), strict=True))


def slope_of(kind: str, adam: AdamMap, g: Tensor, variance: Tensor, n: int, nodes: tuple[int, int]) -> Tensor:
    """Return S of any slope but "two_term", for the variance σ² of the arrivals."""
    zero = torch.zeros_like(g)
    if kind == "sgd":
        return zero + adam.lr
    if kind in ("frozen", "linearized"):
        return adam.held(g if kind == "frozen" else zero)
    if kind == "tangent":
        return adam.difference(g, g)
    if kind == "secant" or n == 1:
        return adam.difference(g, zero)
    result = zero
    upper = normal_rule(nodes[1])[(nodes[1] + 1) // 2 :]
    for tau, w in path_rule(nodes[0]):
        spread = (tau * (1 - tau) * variance).sqrt()
        for h, a in upper:
            result = result + w * 2 * a * h * h * adam.difference(tau * g + h * spread, tau * g - h * spread)
    return result


def fit_two_terms(kind: str, adam: AdamMap, x: Tensor, nodes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return S and R of the slope "two_term" for the contributions `x` (n, …)."""
    mean = x.mean(dim=0)
    deviation = (x - mean).square().mean(dim=0).sqrt()
    size = torch.hypot(mean, deviation)
    rule = normal_rule(4)
    a = [weight for _, weight in rule]
    own = [mean + h * deviation for h, _ in rule]
    s = [_arriving(kind, adam, x.sum(dim=0), each, deviation, len(x), nodes) for each in own]
    z = [each.abs() / torch.where(size > 0, size, 1.0) for each in own]
    # ω φ = a z √z, and z (φ − φ̄) = √z − z φ̄, where 1/z would be infinite at 0.
    phi_mean = torch.stack([a_j * z_j * z_j.sqrt() for a_j, z_j in zip(a, z, strict=True)]).sum(dim=0)
    s_mean = torch.stack([a_j * z_j**2 * s_j for a_j, z_j, s_j in zip(a, z, s, strict=True)]).sum(dim=0)
    above = below = torch.zeros_like(mean)
    for a_j, z_j, s_j in zip(a, z, s, strict=True):
        gap = z_j.sqrt() - z_j * phi_mean
        above = above + a_j * z_j * gap * (s_j - s_mean)
        below = below + a_j * (gap**2 + RIDGE * z_j)
    R = above / torch.where(below > 0, below, 1.0)
    return s_mean - R * phi_mean, R * size.sqrt()


def _arriving(
    kind: str, adam: AdamMap, g: Tensor, own: Tensor, deviation: Tensor, n: int, nodes: tuple[int, int]
) -> Tensor:
    """Return E[A[Y + x, Y]] for one x, over the sums Y at which it arrives."""
    if kind == "first":
        return adam.difference(own, torch.zeros_like(own))
    if kind == "last":
        return adam.difference(g, g - own)
    N = n - 1
    total = torch.zeros_like(own)
    for index, (tau, w) in enumerate(_places(n, nodes[0])):
        spread = (tau * (1 - tau) * N * N / max(N - 1, 1)) ** 0.5 * deviation
        for h, a in normal_rule(nodes[1] if index % 2 else nodes[1] - 1):
            Y = tau * (g - own) + h * spread
            total = total + w * a * adam.difference(Y + own, Y)
    return total


def _places(n: int, count: int) -> list[tuple[float, float]]:
    """Return nodes and weights of τ = k/(n − 1), k uniform on 0 … n − 1: all of them, or a Gauss rule."""
    if n <= count:
        return [(k / max(n - 1, 1), 1 / n) for k in range(n)]
    j: Any = np.arange(1, count)
    beside = np.sqrt(j**2 * (n**2 - j**2) / (4 * (4 * j**2 - 1) * (n - 1) ** 2))
    places, vectors = np.linalg.eigh(np.diag(beside, 1) + np.diag(beside, -1) + np.eye(count) / 2)
    return list(zip(places.clip(0, 1).tolist(), (vectors[0] ** 2).tolist(), strict=True))
