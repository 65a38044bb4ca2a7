"""Stacks of layers by PyTorch's own functions: the loss of each sample, and its gradient by ``vmap(grad)``."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from adamshap.reference.contract import Layer, Sequential, TiedLinear

__all__ = ["each_gradient", "losses"]

Params = dict[str, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


def _attention(layer: Any, p: Params, x: Tensor) -> Tensor:
    n, T, width = x.shape
    parts = F.linear(x, p["in_proj_weight"], p.get("in_proj_bias")).chunk(3, dim=-1)
    Q, K, V = (part.view(n, T, layer.heads, width // layer.heads).transpose(1, 2) for part in parts)
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be batched by vmap
        mixed = F.scaled_dot_product_attention(Q, K, V, is_causal=True)
    mixed = mixed.transpose(1, 2).reshape(n, T, width)
    return F.linear(mixed, p["out_proj.weight"], p.get("out_proj.bias"))


LAYERS: dict[str, Callable[[Any, Params, Tensor], Tensor]] = {
    "linear": lambda layer, p, x: F.linear(x, p["weight"], p.get("bias")),
    "embedding": lambda layer, p, x: F.embedding(x, p["weight"]),
    "positions": lambda layer, p, x: x + p["weight"][: x.shape[1]],
    "layer_norm": lambda layer, p, x: F.layer_norm(x, (layer.width,), p["weight"], p.get("bias"), layer.eps),
    "rms_norm": lambda layer, p, x: F.rms_norm(x, (layer.width,), p["weight"], layer.eps),
    "attention": _attention,
    "residual": lambda layer, p, x: x + _forward(layer.layers, layer.names, p, x),
    "activation": lambda layer, p, x: ACTIVATIONS[layer.function](x),
    "conv2d": lambda layer, p, x: F.conv2d(
        x, p["weight"], p.get("bias"), layer.stride, layer.padding, groups=layer.groups
    ),
    "avg_pool2d": lambda layer, p, x: F.avg_pool2d(x, layer.kernel, layer.stride),
    "max_pool2d": lambda layer, p, x: F.max_pool2d(x, layer.kernel, layer.stride),
    "flatten": lambda layer, p, x: x.flatten(1),
    "mean_over_positions": lambda layer, p, x: x.mean(dim=1),
}
"""Each layer, from its description, its parameters by their own names, and inputs (n, …)."""


def _forward(layers: Sequence[Layer], names: Sequence[str], p: Params, x: Tensor) -> Tensor:
    for layer, name in zip(layers, names, strict=True):
        own = {key.removeprefix(f"{name}."): value for key, value in p.items() if key.startswith(f"{name}.")}
        if isinstance(layer, TiedLinear):
            x = F.linear(x, p[layer.weight], own.get("bias"))
        else:
            x = LAYERS[layer.kind](layer, own, x)
    return x


def _loss(model: Sequential, p: Params, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of one sample; PyTorch's mean is over its counted positions, those with a label above −100."""
    out = _forward(model.layers, model.names, p, x[None])[0]
    if model.loss == "mse":
        return F.mse_loss(out, y)
    return F.cross_entropy(out, y) if y.ndim else F.cross_entropy(out[None], y[None])


def losses(model: Sequential, p: Params, x: Tensor, y: Tensor) -> Tensor:
    """Return ℓ_i of each sample: (n,)."""
    return torch.func.vmap(partial(_loss, model, p))(x, y)


def each_gradient(model: Sequential, p: Params, x: Tensor, y: Tensor) -> Params:
    """Return ∇ℓ_i of each sample: one tensor (n, …) for each parameter."""
    gradient = torch.func.grad(lambda own, *sample: _loss(model, own, *sample))
    return torch.func.vmap(gradient, in_dims=(None, 0, 0))(p, x, y)
