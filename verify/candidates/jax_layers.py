"""Stacks of layers in JAX: the loss of one sample, and losses and gradients of a batch by ``vmap(value_and_grad)``.

A layer sees one sample, without a leading axis n.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamshap.reference.contract import NOT_COUNTED, Layer, Sequential, TiedLinear
from adamshap.verify.candidates.jax_compiling import compiled

__all__ = ["losses_and_gradients"]

Tree = dict[str, Any]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),  # JAX's default is the tanh approximation
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda z: z,
}


def _affine(weight: Any, bias: Any, x: Any) -> Any:
    return x @ weight.T if bias is None else x @ weight.T + bias


def _layer_norm(layer: Any, p: Tree, x: Any) -> Any:
    centred = x - x.mean(axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(x.var(axis=-1, keepdims=True) + layer.eps) * p["weight"]
    return y + p["bias"] if layer.bias else y


def _rms_norm(layer: Any, p: Tree, x: Any) -> Any:
    return x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + layer.eps) * p["weight"]


def _attention(layer: Any, p: Tree, x: Any) -> Any:
    T, width = x.shape
    size = width // layer.heads
    projected = _affine(p["in_proj_weight"], p.get("in_proj_bias"), x).reshape(T, 3, layer.heads, size)
    Q, K, V = projected[:, 0], projected[:, 1], projected[:, 2]
    scores = jnp.einsum("thd,uhd->htu", Q, K) / np.sqrt(size).astype(x.dtype)
    weights = jax.nn.softmax(jnp.where(np.tril(np.ones((T, T), bool)), scores, -jnp.inf), axis=-1)
    mixed = jnp.einsum("htu,uhd->thd", weights, V).reshape(T, width)
    return _affine(p["out_proj.weight"], p.get("out_proj.bias"), mixed)


def _conv2d(layer: Any, p: Tree, x: Any) -> Any:
    padding = [(size, size) for size in layer.padding]
    y = jax.lax.conv_general_dilated(
        x[None], p["weight"], layer.stride, padding, feature_group_count=layer.groups, precision="highest"
    )[0]
    return y + p["bias"][:, None, None] if layer.bias else y


def _windows(layer: Any, x: Any, start: float, combine: Any) -> Any:
    return jax.lax.reduce_window(x, np.array(start, x.dtype), combine, (1, *layer.kernel), (1, *layer.steps), "VALID")


LAYERS: dict[str, Callable[[Any, Tree, Any], Any]] = {
    "linear": lambda layer, p, x: _affine(p["weight"], p.get("bias"), x),
    "embedding": lambda layer, p, x: p["weight"][x],
    "positions": lambda layer, p, x: x + p["weight"][: len(x)],
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "attention": _attention,
    "residual": lambda layer, p, x: x + _forward(layer.layers, layer.names, p, x),
    "activation": lambda layer, p, x: ACTIVATIONS[layer.function](x),
    "conv2d": _conv2d,
    "avg_pool2d": lambda layer, p, x: _windows(layer, x, 0.0, jax.lax.add) / (layer.kernel[0] * layer.kernel[1]),
    "max_pool2d": lambda layer, p, x: _windows(layer, x, -np.inf, jax.lax.max),
    "flatten": lambda layer, p, x: x.ravel(),
    "mean_over_positions": lambda layer, p, x: x.mean(axis=0),
}
"""Each layer, from its description, its parameters by their own names, and one sample."""


def _forward(layers: Sequence[Layer], names: Sequence[str], p: Tree, x: Any) -> Any:
    for layer, name in zip(layers, names, strict=True):
        own = {key.removeprefix(f"{name}."): value for key, value in p.items() if key.startswith(f"{name}.")}
        if isinstance(layer, TiedLinear):
            x = _affine(p[layer.weight], own.get("bias"), x)
        else:
            x = LAYERS[layer.kind](layer, own, x)
    return x


def _loss(model: Sequential, p: Tree, x: Any, y: Any) -> Any:
    """Return the loss of one sample: of a sequence, the mean over its counted positions."""
    out = _forward(model.layers, model.names, p, x)
    if model.loss == "mse":
        return jnp.mean((out - y) ** 2)
    counted = y != NOT_COUNTED
    label = jnp.where(counted, y, 0)[..., None]
    each = -jnp.take_along_axis(jax.nn.log_softmax(out), label, axis=-1)[..., 0]
    return jnp.sum(jnp.where(counted, each, 0.0)) / jnp.sum(counted)


@compiled(0)
def losses_and_gradients(model: Sequential, params: Tree, x: Any, y: Any) -> tuple[Any, Tree]:
    """Return ℓ_i (n,) and ∇ℓ_i, one array (n, …) for each parameter."""
    each = jax.value_and_grad(lambda p, *sample: _loss(model, p, *sample))
    return jax.vmap(each, in_axes=(None, 0, 0))(params, x, y)
