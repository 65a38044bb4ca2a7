"""Stacks of layers in PyTorch's functions, in any dtype, in place of the oracle's own losses and gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adamshap.reference import models
from adamshap.reference.contract import Array, Batch, Params, Sequential, Step
from adamshap.verify.implementation import Implementation, Query
from adamshap.verify.oracle import ORACLE

torch = pytest.importorskip("torch", reason="extra `peers`: torch")
F = torch.nn.functional

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


def attention(layer: Any, p: Any, x: Any) -> Any:
    n, T, width = x.shape
    parts = F.linear(x, p["in_proj_weight"], p.get("in_proj_bias")).chunk(3, dim=-1)
    Q, K, V = (part.view(n, T, layer.heads, width // layer.heads).transpose(1, 2) for part in parts)
    mixed = F.scaled_dot_product_attention(Q, K, V, is_causal=True).transpose(1, 2).reshape(n, T, width)
    return F.linear(mixed, p["out_proj.weight"], p.get("out_proj.bias"))


LAYERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "linear": lambda layer, p, x: F.linear(x, p["weight"], p.get("bias")),
    "embedding": lambda layer, p, x: F.embedding(x, p["weight"]),
    "positions": lambda layer, p, x: x + p["weight"][: x.shape[1]],
    "layer_norm": lambda layer, p, x: F.layer_norm(x, (layer.width,), p["weight"], p.get("bias"), layer.eps),
    "rms_norm": lambda layer, p, x: F.rms_norm(x, (layer.width,), p["weight"], layer.eps),
    "attention": attention,
    "residual": lambda layer, p, x: x + forward(layer.layers, layer.names, p, x),
    "activation": lambda layer, p, x: ACTIVATIONS[layer.function](x),
    "conv2d": lambda layer, p, x: F.conv2d(
        x, p["weight"], p.get("bias"), layer.stride, layer.padding, groups=layer.groups
    ),
    "avg_pool2d": lambda layer, p, x: F.avg_pool2d(x, layer.kernel, layer.stride),
    "max_pool2d": lambda layer, p, x: F.max_pool2d(x, layer.kernel, layer.stride),
    "flatten": lambda layer, p, x: x.flatten(1),
    "mean_over_positions": lambda layer, p, x: x.mean(dim=1),
}


def forward(layers: Any, names: Any, p: Any, x: Any) -> Any:
    for layer, name in zip(layers, names, strict=True):
        own = {key[len(name) + 1 :]: value for key, value in p.items() if key.startswith(f"{name}.")}
        if layer.kind == "tied_linear":
            x = F.linear(x, p[layer.weight], own.get("bias"))
        else:
            x = LAYERS[layer.kind](layer, own, x)
    return x


class Stacks:
    """The functions of the oracle's table of models, computed by PyTorch."""

    def __init__(self, dtype: str) -> None:
        self.dtype = getattr(torch, dtype)

    def tensor(self, array: Array) -> Any:
        made = torch.as_tensor(np.array(array))
        return made.to(self.dtype) if made.is_floating_point() else made

    def losses(self, model: Sequential, p: Any, batch: Batch) -> Any:
        out = forward(model.layers, model.names, p, self.tensor(batch.x))
        y = self.tensor(batch.y)
        if model.loss == "mse":
            return F.mse_loss(out, y, reduction="none").flatten(1).mean(dim=1)
        each = F.cross_entropy(out.transpose(1, -1), y, reduction="none")
        return each if each.ndim == 1 else each.sum(dim=1) / (y != -100).sum(dim=1)

    def each(self, model: Sequential, params: Params, batch: Batch) -> Params:
        names, rows = list(params), []
        for i in range(batch.n):
            p = {name: self.tensor(params[name]).requires_grad_() for name in names}
            loss = self.losses(model, p, batch.take(np.array([i])))[0]
            found = torch.autograd.grad(loss, list(p.values()), allow_unused=True, materialize_grads=True)
            rows.append([g.numpy().astype(np.float64) for g in found])
        return {name: np.stack([row[k] for row in rows]) for k, name in enumerate(names)}

    def outputs(self, model: Sequential, params: Params, x: Array) -> Array:
        p = {name: self.tensor(value) for name, value in params.items()}
        return forward(model.layers, model.names, p, self.tensor(x)).numpy().astype(np.float64)  # type: ignore[no-any-return]

    def sample_losses(self, model: Sequential, params: Params, batch: Batch) -> Array:
        p = {name: self.tensor(value) for name, value in params.items()}
        return self.losses(model, p, batch).numpy().astype(np.float64)  # type: ignore[no-any-return]

    def mean(self, model: Sequential, params: Params, batch: Batch) -> Params:
        return {name: x.mean(axis=0) for name, x in self.each(model, params, batch).items()}


@contextmanager
def in_torch(dtype: str) -> Iterator[None]:
    right, own = models.KINDS["sequential"], Stacks(dtype)
    models.KINDS["sequential"] = models.Functions(own.outputs, own.sample_losses, own.each, own.mean)
    try:
        yield
    finally:
        models.KINDS["sequential"] = right


def candidate(dtype: str) -> Implementation:
    """Return the oracle with the losses and gradients of PyTorch."""

    def ask(step: Step, query: Query) -> Any:
        with in_torch(dtype):
            return ORACLE.ask(step, query)

    return replace(ORACLE, name=f"PyTorch in {dtype}", ask=ask)
