"""Adam's map of one parameter, its divided difference, and the slopes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.reference.contract import Adam, Array
from adamshap.verify.candidates.variants.arithmetic import Arithmetic, fused_root

__all__ = ["AdamMap", "Scalars", "normal_rule", "unit_rule"]


@dataclass(frozen=True)
class Scalars:
    """η, β1, β2, ε, ε_root and λ, with the bias corrections c1 and c2, all in the precision of `Arithmetic.scalars`."""

    lr: Any
    beta1: Any
    beta2: Any
    eps: Any
    eps_root: Any
    weight_decay: Any
    c1: Any
    c2: Any

    @classmethod
    def of(cls, how: Arithmetic, adam: Adam, t: int, dtype: Any) -> "Scalars":
        """Return the scalars of step t."""
        cast = dtype.type if how.scalars == "dtype" else float
        lr, beta1, beta2, eps, eps_root, decay = map(
            cast, (adam.lr, *adam.betas, adam.eps, adam.eps_root, adam.weight_decay)
        )
        return cls(lr, beta1, beta2, eps, eps_root, decay, *(cast(how.power(beta, t)) for beta in (beta1, beta2)))


@dataclass(frozen=True)
class AdamMap:
    """A(g) = η (μ + k g)/D(g) of one parameter."""

    how: Arithmetic
    s: Scalars
    mu: Array
    kappa: Array

    @classmethod
    def of(cls, how: Arithmetic, s: Scalars, m: Array, v: Array) -> "AdamMap":
        """Return the map for the moments before the step."""
        return cls(how, s, s.beta1 * m / s.c1, s.beta2 * v / s.c2 + s.eps_root)

    @property
    def k(self) -> Any:
        """(1 − β1)/c1."""
        return (1 - self.s.beta1) / self.s.c1

    @property
    def q(self) -> Any:
        """(1 − β2)/c2."""
        return (1 - self.s.beta2) / self.s.c2

    def root(self, g: Array) -> Array:
        """Return r(g)."""
        if self.how.root == "hypot":
            return np.hypot(np.sqrt(self.kappa), g.dtype.type(np.sqrt(self.q)) * g)
        if self.how.root == "fused":
            return fused_root(self.kappa, g.dtype.type(self.q), g)
        return np.sqrt(self.kappa + self.q * (g * g))

    def __call__(self, g: Array) -> Array:
        """Return A(g)."""
        top, D = self.mu + self.k * g, self.root(g) + self.s.eps
        return self.s.lr * top / D if self.how.divides else self.s.lr * (top * (1 / D))

    def difference(self, a: Array, b: Array) -> Array:
        """Return A[a, b]."""
        r_a, r_b, a, b = np.broadcast_arrays(self.root(a), self.root(b), a, b)
        total = np.where(r_a + r_b > 0, r_a + r_b, 1)
        phi = self.q * ((a + b) / total)
        collected = self._angles(a, b, r_a, r_b) if self.how.slope == "angles" else self._gap(a, b, r_a, r_b)
        numerator = self.k * (self.s.eps + collected) - self.mu * phi
        D_a, D_b = r_a + self.s.eps, r_b + self.s.eps
        return self.s.lr * (numerator / np.maximum(D_a, D_b) / np.minimum(D_a, D_b))

    def _angles(self, a: Array, b: Array, r_a: Array, r_b: Array) -> Array:
        """Return (κ + r(a) r(b) − q a b)/(r(a) + r(b)), as H (cos α cos β + 1 − sin α sin β)."""
        safe_a, safe_b, safe = (np.where(r > 0, r, 1) for r in (r_a, r_b, r_a + r_b))
        s, root_q = np.sqrt(self.kappa), a.dtype.type(np.sqrt(self.q))
        cos_a, cos_b, sin_a, sin_b = s / safe_a, s / safe_b, root_q * a / safe_a, root_q * b / safe_b
        product = sin_a * sin_b
        squares = (cos_a**2 + (sin_a * cos_b) ** 2) / (1 + np.maximum(product, 0))
        return r_a / safe * r_b * (cos_a * cos_b + np.where(product > 0, squares, 1 - product))

    def _gap(self, a: Array, b: Array, r_a: Array, r_b: Array) -> Array:
        """Return the same, for a b > 0 as κ (1 + (κ + q (a² + b²))/(r(a) r(b) + q a b))/(r(a) + r(b))."""
        total, product = np.where(r_a + r_b > 0, r_a + r_b, 1), self.q * a * b
        beside = r_a * r_b + np.maximum(product, 0)
        positive = self.kappa * ((self.kappa + self.q * (a * a + b * b)) / np.where(beside > 0, beside, 1))
        return (self.kappa + np.where(product > 0, positive, r_a * r_b - product)) / total


def unit_rule(count: int) -> tuple[list[float], list[float]]:
    """Return Gauss–Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def normal_rule(count: int) -> tuple[list[float], list[float]]:
    """Return Gauss–Hermite nodes and weights of the standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes.tolist(), (weights / np.sqrt(2 * np.pi)).tolist()
