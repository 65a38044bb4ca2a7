"""JAX: per-sample gradients by ``vmap(grad)``, with the state of ``optax.adamw``.

Short code rather than little memory: every per-sample gradient is formed, as one long vector. μ, k, κ and q come from
optax's own ``mu``, ``nu`` and ``count``.

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
from jax.flatten_util import ravel_pytree

from adamshap.reference.contract import Adam, AdamState, Array, Batch, CompletedSteps, Network, Step
from adamshap.verify.candidates.parts import adam_of, network_of

Tree = dict[str, Any]

_FAST_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
"""XLA's options for functions that are compiled for every shape, and then called only a few times."""


def _compiled(*static: int) -> Callable[[Any], Any]:
    """Return a decorator: ``jax.jit`` with these arguments `static`."""
    options = _FAST_TO_COMPILE if jax.default_backend() == "cpu" else None
    return partial(jax.jit, static_argnums=static, compiler_options=options)


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),  # JAX's default is the tanh approximation
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda z: z,
}


def _loss(net: Network, params: Tree, x: Any, y: Any) -> Any:
    """Return the loss of one sample."""
    a = x
    for layer in range(net.depth):
        a = params[f"{layer}.weight"] @ a + params.get(f"{layer}.bias", 0.0)
        if layer < net.depth - 1:
            a = _ACTIVATIONS[net.activation](a)
    if net.loss == "cross_entropy":
        return -jax.nn.log_softmax(a)[y]
    return jnp.mean((a - y) ** 2)


def _each_gradient(net: Network, params: Tree, x: Any, y: Any) -> Any:
    """Return ∇ℓ of each sample, one per row."""
    gradients = jax.vmap(jax.grad(partial(_loss, net)), in_axes=(None, 0, 0))(params, x, y)
    return jax.vmap(lambda gradient: ravel_pytree(gradient)[0])(gradients)


_compiled_each_gradient = _compiled(0)(_each_gradient)


def _flat(arrays: dict[str, Array]) -> Array:
    """Return all numbers as one vector, in the order of ``ravel_pytree``."""
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def _shaped(vector: Array, like: dict[str, Array]) -> dict[str, Array]:
    """Return the inverse of `_flat`, in NumPy: outside a compiled function, JAX compiles each operation by itself."""
    ends = np.cumsum([like[name].size for name in sorted(like)])[:-1]
    return {
        name: part.reshape(like[name].shape) for name, part in zip(sorted(like), np.split(vector, ends), strict=True)
    }


def _gradients(step: Step, params: Tree, batch: Batch) -> Array:
    """Return ∇ℓ of each sample; the shorter of the two batches is padded with its first row, to compile only once."""
    index = np.append(np.arange(batch.n), np.zeros(max(step.n, step.n_val) - batch.n, int))
    return np.asarray(_compiled_each_gradient(network_of(step), params, batch.x[index], batch.y[index]))[: batch.n]


def update(step: Step) -> tuple[dict[str, Array], AdamState]:
    """Take the step with ``optax.adamw``."""
    with jax.enable_x64(step.dtype == np.float64):
        inner = optax.ScaleByAdamState(np.int32(step.state.step), step.state.m, step.state.v)
        train = step.train.x, step.train.y
        new, after = jax.device_get(_adamw(network_of(step), adam_of(step), step.params, inner, train, _weight(step)))
        # `device_get` may return views of the device's memory.
        params, m, v = ({name: a.copy() for name, a in tree.items()} for tree in (new, after.mu, after.nu))
        return params, AdamState(CompletedSteps(int(after.count)), m, v)


@_compiled(0, 1)
def _adamw(net: Network, adam: Adam, params: Tree, inner: Any, train: Any, weight: Any) -> Any:
    optimizer = optax.adamw(adam.lr, *adam.betas, eps=adam.eps, eps_root=adam.eps_root, weight_decay=adam.weight_decay)
    state = (inner, *optimizer.init(params)[1:])
    g = ravel_pytree(params)[1](weight * _each_gradient(net, params, *train).sum(axis=0))
    updates, (after, *_) = optimizer.update(g, state, params)
    return optax.apply_updates(params, updates), after


class _Adam(NamedTuple):
    """Coefficients of A(g); μ and κ are vectors, like g."""

    mu: Any
    k: Any
    kappa: Any
    q: Any
    lr: Any
    eps: Any


def _adam(step: Step) -> _Adam:
    adam = adam_of(step)
    (beta1, beta2), t = adam.betas, step.state.next_step
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    m, v = (_flat(tree) for tree in (step.state.m, step.state.v))
    kappa = beta2 * v / c2 + adam.eps_root
    return _Adam(beta1 * m / c1, (1 - beta1) / c1, kappa, (1 - beta2) / c2, adam.lr, adam.eps)


def _root(c: _Adam, g: Any) -> Any:
    return jnp.hypot(jnp.sqrt(c.kappa), jnp.sqrt(c.q) * g)


def _update_map(c: _Adam, g: Any) -> Any:
    """Return A(g)."""
    return c.lr * (c.mu + c.k * g) / (_root(c, g) + c.eps)


def _divided_difference(c: _Adam, a: Any, b: Any) -> Any:
    """Return A[a, b]."""
    r_a, r_b = _root(c, a), _root(c, b)
    total = jnp.where(r_a + r_b > 0, r_a + r_b, 1.0)
    product, beside = c.q * a * b, r_a * r_b + jnp.maximum(c.q * a * b, 0.0)
    positive = c.kappa * (c.kappa + c.q * (a * a + b * b)) / jnp.where(beside > 0, beside, 1.0)
    gap = jnp.where(product > 0, positive, r_a * r_b - product)
    numerator = c.k * (c.eps + (c.kappa + gap) / total) - c.mu * c.q * ((a + b) / total)
    return c.lr * numerator / (r_a + c.eps) / (r_b + c.eps)


def _random_order(c: _Adam, g: Any, x: Any, nodes: tuple[int, int]) -> Any:
    """Return E[A'(Y)], over all nodes (τ, h > 0) at once."""
    n = len(x)
    sigma = jnp.sqrt(n / (n - 1) * ((x - g / n) ** 2).sum(axis=0))
    path, path_weights = np.polynomial.legendre.leggauss(nodes[0])
    normal, normal_weights = np.polynomial.hermite_e.hermegauss(nodes[1])
    tau, h = (grid.reshape(-1, 1).astype(g.dtype) for grid in np.meshgrid((path + 1) / 2, normal[normal > 1e-9]))
    w, a = (grid.ravel() for grid in np.meshgrid(path_weights / 2, normal_weights[normal > 1e-9]))
    weight = (w * 2 * a / np.sqrt(2 * np.pi) * h.ravel() ** 2).astype(g.dtype)
    spread = h * np.sqrt(tau * (1 - tau)) * sigma
    return weight @ _divided_difference(c, tau * g + spread, tau * g - spread)


@_compiled(2, 3)
def _slope_and_midway(c: _Adam, x: Any, slope: str, nodes: tuple[int, int]) -> tuple[Any, Any]:
    """Return S, and half of A(0) + A(g)."""
    g = x.sum(axis=0)
    zero = jnp.zeros_like(g)
    midway = (_update_map(c, zero) + _update_map(c, g)) / 2
    if slope == "sgd":
        return zero + c.lr, midway
    if slope in ("frozen", "linearized"):  # η k / D
        return c.lr * c.k / (_root(c, g if slope == "frozen" else zero) + c.eps), midway
    if slope == "random_order" and len(x) > 1:
        return _random_order(c, g, x, nodes), midway
    return _divided_difference(c, g, g if slope == "tangent" else zero), midway


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
    with jax.enable_x64(step.dtype == np.float64):
        x = _weight(step) * _gradients(step, step.params, step.train)
        S, midway = (np.asarray(a) for a in _slope_and_midway(_adam(step), x, slope, tuple(nodes)))
        at = step.params
        if gradient == "midpoint":
            adam = adam_of(step)
            kept = 1 - adam.lr * adam.weight_decay
            at = _shaped(_flat(at) * kept - midway, at)
        total: Array = x @ (_gradients(step, at, step.valid) * S).T
        return total if per_validation else total.mean(axis=1)


def _weight(step: Step) -> float:
    return 1 / step.n if step.reduction == "mean" else 1.0
