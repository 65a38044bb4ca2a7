"""Adam's map of the gradient and its slopes (docs/method.md 1, 3 and 4), in JAX, on vectors of all parameters."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamshap.reference.contract import Array
from adamshap.verify.candidates.jax_compiling import compiled, padded

__all__ = ["AdamMap", "legendre"]

RIDGE = 1e-3
"""δ of the fit of two terms."""

Nodes = tuple[int, int]


class Coefficients(NamedTuple):
    """Coefficients of A(g); μ and κ are vectors, like g."""

    mu: Any
    k: Any
    kappa: Any
    q: Any
    lr: Any
    eps: Any


# --- compiled for a few lengths of vectors ---------------------------------------------------------------------------


def _root(c: Coefficients, g: Any) -> Any:
    return jnp.hypot(jnp.sqrt(c.kappa), jnp.sqrt(c.q) * g)


@compiled()
def _step(c: Coefficients, g: Any) -> Any:
    """Return A(g)."""
    return c.lr * (c.mu + c.k * g) / (_root(c, g) + c.eps)


@compiled()
def _held(c: Coefficients, g: Any) -> Any:
    """Return η k / D(g)."""
    return c.lr * c.k / (_root(c, g) + c.eps)


def _difference(c: Coefficients, a: Any, b: Any) -> Any:
    """Return A[a, b]; the last axes of a and b are g's."""
    r_a, r_b = _root(c, a), _root(c, b)
    total = jnp.where(r_a + r_b > 0, r_a + r_b, 1.0)
    product, beside = c.q * a * b, r_a * r_b + jnp.maximum(c.q * a * b, 0.0)
    positive = c.kappa * (c.kappa + c.q * (a * a + b * b)) / jnp.where(beside > 0, beside, 1.0)
    gap = jnp.where(product > 0, positive, r_a * r_b - product)
    numerator = c.k * (c.eps + (c.kappa + gap) / total) - c.mu * c.q * ((a + b) / total)
    return c.lr * numerator / (r_a + c.eps) / (r_b + c.eps)


_compiled_difference = compiled()(_difference)


@compiled()
def _random_order(c: Coefficients, g: Any, sigma: Any, nodes: Any) -> Any:
    """Return E[A'(Y)] from all nodes (τ, h > 0) at once: rows of `nodes` with τ, h √(τ (1 − τ)) and the weight."""
    tau, h, weight = nodes
    return weight @ _difference(c, tau[:, None] * g + h[:, None] * sigma, tau[:, None] * g - h[:, None] * sigma)


@compiled()
def _arriving(c: Coefficients, g: Any, own: Any, deviation: Any, nodes: Any) -> Any:
    """Return E[A[Y + x, Y]] for one x: rows of `nodes` with τ, the factor of the deviation, and the weight."""
    tau, h, weight = nodes
    Y = tau[:, None] * (g - own) + h[:, None] * deviation
    return weight @ _difference(c, Y + own, Y)


@compiled()
def _regression(a: Any, own: Any, s: Any, size: Any) -> tuple[Any, Any]:
    """Return S and R of the fit of S z + R f(z) to z s, without a division by z."""
    a = a[:, None]
    z = jnp.abs(own) / jnp.where(size > 0, size, 1.0)
    s_mean, phi_mean = jnp.sum(a * z**2 * s, axis=0), jnp.sum(a * z**1.5, axis=0)
    gap = jnp.sqrt(z) - z * phi_mean
    below = jnp.sum(a * (gap**2 + RIDGE * z), axis=0)
    R = jnp.sum(a * z * gap * (s - s_mean), axis=0) / jnp.where(below > 0, below, 1.0)
    return s_mean - R * phi_mean, R * jnp.sqrt(size)


# --- for vectors of any length ---------------------------------------------------------------------------------------


class AdamMap:
    """The map of one step, on vectors of any length.

    Parameters
    ----------
    adam : Adam
        Settings.
    t : int
        Number of the step, at least 1.
    m, v : array (d,)
        Moments before the step.
    """

    def __init__(self, adam: Any, t: int, m: Array, v: Array) -> None:
        self.adam, self.t, self.v, self.dtype = adam, t, v, v.dtype
        beta1, beta2 = adam.betas
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        kappa = beta2 * v / c2 + adam.eps_root
        self.k = (1 - beta1) / c1
        self.c = Coefficients(padded(beta1 * m / c1), self.k, padded(kappa), (1 - beta2) / c2, adam.lr, adam.eps)

    def _called(self, function: Any, *arguments: Array) -> Any:
        """Call a compiled function on padded vectors; cut its results."""
        found = jax.device_get(function(self.c, *map(padded, arguments)))
        return jax.tree.map(lambda array: array[..., : len(self.v)], found)

    def step(self, g: Array) -> Array:
        """Return A(g)."""
        return self._called(_step, g)

    def difference(self, a: Array, b: Array) -> Array:
        """Return A[a, b]."""
        return self._called(_compiled_difference, a, b)

    def previous(self) -> Array:
        """Return η k / (√(v/(1 − β2^{t−1}) + ε_root) + ε)."""
        root = np.sqrt(self.v / (1 - self.adam.betas[1] ** (self.t - 1)) + self.adam.eps_root)
        found: Array = (self.adam.lr * self.k / (root + self.adam.eps)).astype(self.dtype)
        return found

    def slope(self, kind: str, x: Array, nodes: Nodes) -> Array:
        """Return S of any slope but "two_term" for the contributions `x` (n, d)."""
        n, g = len(x), x.sum(axis=0)
        zero = np.zeros_like(g)
        if kind == "sgd":
            return zero + self.dtype.type(self.adam.lr)
        if kind in ("frozen", "linearized"):
            return self._called(_held, g if kind == "frozen" else zero)
        if kind == "random_order" and n > 1:
            sigma = np.sqrt(n / (n - 1) * ((x - g / n) ** 2).sum(axis=0)).astype(self.dtype)
            return self._called(partial(_with_nodes, _random_order, self._arrival_nodes(nodes)), g, sigma)
        return self.difference(g, g if kind == "tangent" else zero)

    def _arrival_nodes(self, nodes: Nodes) -> Array:
        path, path_weights = legendre(nodes[0])
        normal, normal_weights = hermite(nodes[1])
        rows = [
            (tau, h * np.sqrt(tau * (1 - tau)), w * 2 * a * h * h)
            for tau, w in zip(path, path_weights, strict=True)
            for h, a in zip(normal, normal_weights, strict=True)
            if h > 1e-9
        ]
        return np.array(rows, self.dtype).T

    def two_terms(self, kind: str, x: Array, nodes: Nodes) -> tuple[Array, Array]:
        """Return S and R of the slope "two_term" for the contributions `x` (n, d)."""
        n, g, mean = len(x), x.sum(axis=0), x.mean(axis=0)
        deviation = np.sqrt(((x - mean) ** 2).mean(axis=0))
        h, a = (rule.astype(self.dtype) for rule in hermite(4))
        own = [mean + h_j * deviation for h_j in h]
        if kind == "first":
            s = [self.difference(x_j, np.zeros_like(x_j)) for x_j in own]
        elif kind == "last":
            s = [self.difference(g, g - x_j) for x_j in own]
        else:
            arriving = partial(_with_nodes, _arriving, self._place_nodes(n, nodes))
            s = [self._called(arriving, g, x_j, deviation) for x_j in own]
        both = [np.stack([padded(each) for each in several]) for several in (own, s)]
        S, R = jax.device_get(_regression(a, *both, padded(np.hypot(mean, deviation))))
        return S[: len(g)], R[: len(g)]

    def _place_nodes(self, n: int, nodes: Nodes) -> Array:
        N = n - 1
        rows = []
        for number, (tau, w) in enumerate(zip(*places(n, nodes[0]), strict=True)):
            factor = np.sqrt(max(tau * (1 - tau), 0.0) * N * N / max(N - 1, 1))
            normal = hermite(nodes[1] - (number % 2 == 0))
            rows += [(tau, h * factor, w * a) for h, a in zip(*normal, strict=True)]
        return np.array(rows, self.dtype).T


def _with_nodes(function: Any, nodes: Array, c: Coefficients, *vectors: Array) -> Any:
    return function(c, *vectors, nodes)


def legendre(count: int) -> tuple[Array, Array]:
    """Return nodes and weights of Gauss–Legendre on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


def hermite(count: int) -> tuple[Array, Array]:
    """Return nodes and weights of Gauss–Hermite for the standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, weights / weights.sum()


def places(n: int, count: int) -> tuple[Array, Array]:
    """Return nodes and weights of τ = k/(n − 1), k uniform on 0 … n − 1: all of them, or a Gauss rule."""
    if n <= count:
        return np.arange(n) / max(n - 1, 1), np.full(n, 1 / n)
    j = np.arange(1, count)
    beside = j * np.sqrt((n**2 - j**2) / (4 * j**2 - 1)) / (2 * (n - 1))
    tau, vectors = np.linalg.eigh(np.diag(np.full(count, 0.5)) + np.diag(beside, -1), UPLO="L")
    return tau, vectors[0] ** 2
