"""JAX: per-sample gradients by ``vmap(grad)``, with the state of ``optax.adamw``.

Short rather than lean: every per-sample gradient is formed. μ, k, κ and q come from optax's own ``mu``, ``nu`` and
``count``.

    adamshap verify adamshap.verify.candidates.jax_vmap

Not supported: ``denominator="previous"``, ``efficient``, the gradient "path".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamshap.reference.problem import AdamState, Array, Network, Step

Tree = dict[str, Any]

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),  # JAX's default is the tanh approximation
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda z: z,
}


def _loss(net: Network, params: Tree, x: Any, y: Any) -> Any:
    """The loss of one sample."""
    a = x
    for layer in range(net.depth):
        a = params[f"{layer}.weight"] @ a + params.get(f"{layer}.bias", 0.0)
        if layer < net.depth - 1:
            a = _ACTIVATIONS[net.activation](a)
    if net.loss == "cross_entropy":
        return -jax.nn.log_softmax(a)[y]
    return jnp.mean((a - y) ** 2)


@partial(jax.jit, static_argnums=0)
def _each_gradient(net: Network, params: Tree, x: Any, y: Any) -> Tree:
    return jax.vmap(jax.grad(partial(_loss, net)), in_axes=(None, 0, 0))(params, x, y)


def _tree(arrays: dict[str, Array]) -> Tree:
    return {name: jnp.asarray(np.array(array)) for name, array in arrays.items()}


def _gradients(step: Step, params: Tree, batch: Any) -> Tree:
    """∇ℓ of each sample of the batch, with a leading axis."""
    return _each_gradient(step.net, params, jnp.asarray(np.array(batch.x)), jnp.asarray(np.array(batch.y)))


def _contributions(step: Step) -> Tree:
    weight = 1 / step.n if step.reduction == "mean" else 1.0
    return {name: weight * x for name, x in _gradients(step, _tree(step.params), step.train).items()}


def update(step: Step) -> tuple[dict[str, Array], AdamState]:
    """Take the step with ``optax.adamw``."""
    with jax.enable_x64(step.params["0.weight"].dtype == np.float64):
        adam, params = step.adam, _tree(step.params)
        optimizer = optax.adamw(
            adam.lr, *adam.betas, eps=adam.eps, eps_root=adam.eps_root, weight_decay=adam.weight_decay
        )
        inner = optax.ScaleByAdamState(jnp.asarray(step.state.step), _tree(step.state.m), _tree(step.state.v))
        state = (inner, *optimizer.init(params)[1:])
        g = {name: x.sum(axis=0) for name, x in _contributions(step).items()}
        updates, (after, *_) = optimizer.update(g, state, params)
        new = optax.apply_updates(params, updates)
        arrays = ({name: np.asarray(a) for name, a in tree.items()} for tree in (new, after.mu, after.nu))
        theta, m, v = arrays
        return theta, AdamState(int(after.count), m, v)


class _Adam(NamedTuple):
    """What A(g) of one parameter needs beside g."""

    mu: Any
    k: Any
    kappa: Any
    q: Any
    lr: Any
    eps: Any


def _adam(step: Step, m: Any, v: Any) -> _Adam:
    (beta1, beta2), t = step.adam.betas, step.state.step + 1
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    kappa = beta2 * v / c2 + step.adam.eps_root
    return _Adam(beta1 * m / c1, (1 - beta1) / c1, kappa, (1 - beta2) / c2, step.adam.lr, step.adam.eps)


def _root(c: _Adam, g: Any) -> Any:
    return jnp.hypot(jnp.sqrt(c.kappa), jnp.sqrt(c.q) * g)


@jax.jit
def _update_map(c: _Adam, g: Any) -> Any:
    """A(g)."""
    return c.lr * (c.mu + c.k * g) / (_root(c, g) + c.eps)


@jax.jit
def _frozen(c: _Adam, g: Any) -> Any:
    """η k / D(g)."""
    return c.lr * c.k / (_root(c, g) + c.eps)


@jax.jit
def _divided_difference(c: _Adam, a: Any, b: Any) -> Any:
    """A[a, b]."""
    r_a, r_b = _root(c, a), _root(c, b)
    total = jnp.where(r_a + r_b > 0, r_a + r_b, 1.0)
    product, beside = c.q * a * b, r_a * r_b + jnp.maximum(c.q * a * b, 0.0)
    positive = c.kappa * (c.kappa + c.q * (a * a + b * b)) / jnp.where(beside > 0, beside, 1.0)
    gap = jnp.where(product > 0, positive, r_a * r_b - product)
    numerator = c.k * (c.eps + (c.kappa + gap) / total) - c.mu * c.q * ((a + b) / total)
    return c.lr * numerator / (r_a + c.eps) / (r_b + c.eps)


def scores(
    step: Step,
    slope: str = "random_order",
    gradient: str = "midpoint",
    efficient: bool = False,
    per_validation: bool = False,
    nodes: tuple[int, int] = (4, 4),
    denominator: str = "exact",
) -> Array:
    """Return ⟨Γ ⊙ S, x_i⟩ with x_i formed."""
    if efficient:
        raise NotImplementedError("efficient")
    if denominator != "exact":
        raise NotImplementedError("denominator='previous'")
    if gradient == "path":
        raise NotImplementedError("gradient 'path'")
    with jax.enable_x64(step.params["0.weight"].dtype == np.float64):
        x, at, m, v = _contributions(step), _tree(step.params), _tree(step.state.m), _tree(step.state.v)
        slopes: Tree = {}
        for name, x_i in x.items():
            c = _adam(step, m[name], v[name])
            g = x_i.sum(axis=0)
            zero = jnp.zeros_like(g)
            if slope == "sgd":
                slopes[name] = zero + step.adam.lr
            elif slope in ("frozen", "linearized"):
                slopes[name] = _frozen(c, g if slope == "frozen" else zero)
            elif slope == "random_order" and step.n > 1:
                slopes[name] = _random_order(c, g, x_i, nodes)
            else:
                slopes[name] = _divided_difference(c, g, g if slope == "tangent" else zero)
            if gradient == "midpoint":
                decayed = at[name] * (1 - step.adam.lr * step.adam.weight_decay)
                at[name] = decayed - (_update_map(c, zero) + _update_map(c, g)) / 2
        gamma = _gradients(step, at, step.valid)
        total = sum(x[name].reshape(step.n, -1) @ (gamma[name] * slopes[name]).reshape(step.n_val, -1).T for name in x)
        return np.asarray(total if per_validation else total.mean(axis=1))


@partial(jax.jit, static_argnums=3)
def _random_order(c: _Adam, g: Any, x: Any, nodes: tuple[int, int]) -> Any:
    n = len(x)
    sigma = jnp.sqrt(n / (n - 1) * ((x - g / n) ** 2).sum(axis=0))
    path, path_weights = np.polynomial.legendre.leggauss(nodes[0])
    normal, normal_weights = np.polynomial.hermite_e.hermegauss(nodes[1])
    result = jnp.zeros_like(g)
    for tau, w in zip((path + 1) / 2, path_weights / 2, strict=True):
        for h, a in zip(normal, normal_weights / np.sqrt(2 * np.pi), strict=True):
            if h > 1e-9:
                spread = h * np.sqrt(tau * (1 - tau)) * sigma
                result = result + float(w * 2 * a * h * h) * _divided_difference(c, tau * g + spread, tau * g - spread)
    return result
