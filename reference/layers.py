"""The layers of `Sequential` in autograd, one short function each, and the losses of a stack of them.

===========  ==========  ===================================================================
method 8     name        meaning
===========  ==========  ===================================================================
z_i          ``x[i]``    one sample: all of its positions, channels and places
θ            ``params``  each of its shape, or all with a leading axis n: sample i has copy i
T            no name     positions of a sequence
===========  ==========  ===================================================================

Every function takes the description, all parameters, the layer's full name and inputs (n, …). With copies of the
parameters the same lines give each sample's gradient.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np

from adamshap.reference import contract, images, losses
from adamshap.reference.contract import Array, Batch, Layer, Params
from adamshap.reference.elementary import elementary
from adamshap.reference.perceptron import ACTIVATION_FUNCTIONS, product

__all__ = ["FORWARD", "outputs", "sample_losses"]


def along_last(p: Any, x: Any) -> Any:
    """Return the vector `p` (d,), or its copies (n, d), so that it meets the last axis of `x` (n, …, d)."""
    return p if p.ndim == 1 else p.reshape(len(p), *[1] * (x.ndim - 2), p.shape[1])


def affine(params: Params, weight: str, bias: str | None, x: Any) -> Any:
    """Return x Wᵀ + b over the last axis of `x`."""
    y = product(params[weight], x)
    return y if bias is None else y + along_last(params[bias], y)


def linear(layer: contract.Linear, params: Params, name: str, x: Any) -> Any:
    """Return x Wᵀ + b at every position."""
    return affine(params, f"{name}.weight", f"{name}.bias" if layer.bias else None, x)


def tied_linear(layer: contract.TiedLinear, params: Params, name: str, x: Any) -> Any:
    """Return x Wᵀ + b with the W of another layer."""
    return affine(params, layer.weight, f"{name}.bias" if layer.bias else None, x)


def embedding(layer: contract.Embedding, params: Params, name: str, tokens: Array) -> Any:
    """Return the row of each token."""
    weight: Any = params[f"{name}.weight"]
    return weight[tokens] if weight.ndim == 2 else weight[np.arange(len(tokens))[:, None], tokens]


def positions(layer: contract.Positions, params: Params, name: str, x: Any) -> Any:
    """Return x with row t of the weight added at position t."""
    return x + params[f"{name}.weight"][..., : x.shape[1], :]


def layer_norm(layer: contract.LayerNorm, params: Params, name: str, x: Any) -> Any:
    """Return (x − mean)/√(variance + ε) ⊙ gain + bias, over the last axis."""
    y = standardized(x, layer.eps) * along_last(params[f"{name}.weight"], x)
    return y + along_last(params[f"{name}.bias"], x) if layer.bias else y


@elementary
def standardized(x: Any, eps: float) -> Any:
    """Return (x − mean)/√(variance + ε), over the last axis."""
    centred = x - anp.mean(x, axis=-1, keepdims=True)
    return centred / anp.sqrt(anp.mean(centred**2, axis=-1, keepdims=True) + eps)


def rms_norm(layer: contract.RMSNorm, params: Params, name: str, x: Any) -> Any:
    """Return x/√(mean square + ε) ⊙ gain, over the last axis."""
    return over_root_mean_square(x, layer.eps) * along_last(params[f"{name}.weight"], x)


@elementary
def over_root_mean_square(x: Any, eps: float) -> Any:
    """Return x/√(mean square + ε), over the last axis."""
    return x / anp.sqrt(anp.mean(x**2, axis=-1, keepdims=True) + eps)


def attention(layer: contract.Attention, params: Params, name: str, x: Any) -> Any:
    """Return softmax(Q Kᵀ/√d) V of each head, position t seeing positions up to t, projected."""
    n, T, width = x.shape
    bias = f"{name}.in_proj_bias" if layer.bias else None
    projected = affine(params, f"{name}.in_proj_weight", bias, x)
    # (n, T, 3 width) to query, key and value, each (n, heads, T, d)
    split = projected.reshape(n, T, 3, layer.heads, width // layer.heads)
    Q, K, V = (anp.transpose(split[:, :, part], (0, 2, 1, 3)) for part in range(3))
    weights = causal_softmax(products(Q, anp.swapaxes(K, 2, 3)) / math.sqrt(width // layer.heads))
    mixed = anp.transpose(products(weights, V), (0, 2, 1, 3)).reshape(n, T, width)
    return affine(params, f"{name}.out_proj.weight", f"{name}.out_proj.bias" if layer.bias else None, mixed)


@elementary
def products(a: Any, b: Any) -> Any:
    """Return a b for each of a stack of matrices."""
    return a @ b


@elementary
def causal_softmax(scores: Any) -> Any:
    """Return the softmax over the last axis of `scores` (…, T, T) at and before the diagonal, 0 after it."""
    seen = np.tril(np.ones(scores.shape[-2:], bool))
    scores = anp.where(seen, scores, -np.inf)
    e = anp.exp(scores - np.max(losses.constant(scores), axis=-1, keepdims=True))
    return e / anp.sum(e, axis=-1, keepdims=True)


def residual(layer: contract.Residual, params: Params, name: str, x: Any) -> Any:
    """Return x plus its layers' output."""
    return x + stack(layer.layers, [f"{name}.{inner}" for inner in layer.names], params, x)


def activation(layer: contract.Activation, params: Params, name: str, x: Any) -> Any:
    """Return the function of each element."""
    return ACTIVATION_FUNCTIONS[layer.function](x)


def flatten(layer: contract.Flatten, params: Params, name: str, x: Any) -> Any:
    """Return each sample in one axis."""
    return x.reshape(len(x), -1)


def mean_over_positions(layer: contract.MeanOverPositions, params: Params, name: str, x: Any) -> Any:
    """Return the mean over a sequence's positions."""
    return anp.mean(x, axis=1)


FORWARD: dict[str, Callable[[Any, Params, str, Any], Any]] = {
    "linear": linear,
    "tied_linear": tied_linear,
    "embedding": embedding,
    "positions": positions,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "attention": attention,
    "residual": residual,
    "activation": activation,
    "conv2d": images.conv2d,
    "avg_pool2d": images.avg_pool2d,
    "max_pool2d": images.max_pool2d,
    "flatten": flatten,
    "mean_over_positions": mean_over_positions,
}
"""The forward pass of each layer, by `Layer.kind`."""


def stack(layers: Sequence[Layer], names: Sequence[str], params: Params, x: Any) -> Any:
    """Return the output of `layers`, one after the other; `names` are their full names."""
    for layer, name in zip(layers, names, strict=True):
        x = FORWARD[layer.kind](layer, params, name, x)
    return x


def outputs(model: contract.Sequential, params: Params, x: Array) -> Array:
    """Return the outputs (n, …) for the inputs `x` (n, …), logits for cross-entropy."""
    return stack(model.layers, model.names, params, x)  # type: ignore[no-any-return]


def sample_losses(model: contract.Sequential, params: Params, batch: Batch) -> Array:
    """Return ℓ(θ; z_i) for each sample: (n,); of a sequence, the mean over its counted positions."""
    out: Any = outputs(model, params, batch.x)
    if model.loss == "mse":
        return losses.squared_error(out.reshape(batch.n, -1), batch.y.reshape(batch.n, -1))  # type: ignore[no-any-return]
    loss = losses.cross_entropy if out.ndim == 2 else losses.mean_cross_entropy
    return loss(out, batch.y)  # type: ignore[no-any-return]
