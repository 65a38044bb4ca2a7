"""Layers of Hugging Face's transformers, found by the name of their class: transformers itself is not imported.

`Conv1D` is a linear layer with the weight (d_in, d_out). Almost every model has an RMSNorm class of its own. All are
gains: y = y₀ + w ⊙ x̂, where y₀ is 0, or x̂ in Gemma's (1 + w) ⊙ x̂. Then x̂ = y(w = 1) − y(w = 0), rounded as the
module rounds it, float32 inside a float64 model included. A scaled embedding is an embedding times a number. The last
two forms are verified on random inputs when the attribution begins.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from adamshap.gpu.captures import Capture, Dense, outer_products
from adamshap.torch.layers.registry import LAYERS, RESOLVERS, Layer, Use, over_positions, refuse_module
from adamshap.torch.layers.sums import position_sums
from adamshap.torch.memory import array_of

UNITS = 64.0
"""Roundings that the two sides of a comparison may differ by."""


def resolve(kind: type) -> Layer | None:
    """Return the layer of one of transformers' classes, or None."""
    if not kind.__module__.startswith("transformers."):
        return None
    if kind.__name__ == "Conv1D":
        return Layer(_conv1d, ("weight", "bias"))
    if kind.__name__.endswith(("RMSNorm", "LayerNorm")):
        return Layer(_gain, ("weight",), _check_gain)
    if kind.__name__.endswith("ScaledWordEmbedding"):
        return Layer(_scaled_embedding, ("weight",), _check_scaled_embedding)
    return None


RESOLVERS.append(resolve)


def _conv1d(use: Use) -> Iterable[Capture]:
    weight, bias, b = use.names.get("weight"), use.names.get("bias"), use.b.contiguous()
    if weight is not None:  # the input's and the output's places are exchanged: Σ_t a_t b_tᵀ
        yield outer_products(weight, None, array_of(b), array_of(use.a))
    if bias is not None:
        yield position_sums(bias, b)


def _gain(use: Use) -> Iterable[Capture]:
    x = use.b * _normed(use.module, use.a)
    yield Dense(use.names["weight"], array_of(over_positions(x, use.module.weight.shape)))


def _normed(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Return x̂, which the module multiplies with its gain."""
    weight = module.weight
    with torch.no_grad():
        return _output(module, x, torch.ones_like(weight)) - _output(module, x, torch.zeros_like(weight))


def _output(module: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the module's output with another gain, without calls of its hooks."""
    kept = module._parameters["weight"]
    module._parameters["weight"] = weight
    try:
        output: torch.Tensor = module.forward(x)
    finally:
        module._parameters["weight"] = kept
    return output


def _check_gain(module: Any, path: str) -> None:
    """Refuse a module that is no gain, or whose gain has its gradient in a lower precision than its own."""
    weight = module.weight.detach()
    generator = torch.Generator().manual_seed(0)
    x, b = (torch.randn((2, 3, *weight.shape), generator=generator).to(weight) for _ in range(2))
    other = torch.randn(weight.shape, generator=generator).to(weight).requires_grad_()
    needs = "y₀ + w ⊙ x̂ of its input alone, or adamshap.torch.register with captures of its own"
    try:
        with torch.enable_grad():
            got = _output(module, x, other)
        normed, zero = _normed(module, x), _output(module, x, torch.zeros_like(weight)).detach()
        expected = zero + other.detach() * normed
    except (RuntimeError, TypeError) as error:
        refuse_module(module, path, f"a forward pass that failed on an input of shape {tuple(x.shape)}: {error}", needs)
    unit = float(torch.finfo(torch.float32).eps)
    size = float(zero.abs().max() + (other.detach() * normed).abs().max())
    if got.shape != x.shape or not bool((got - expected).abs().max() <= UNITS * unit * size):
        refuse_module(module, path, "an output that is not affine in its weight, element by element", needs)
    (gradient,) = torch.autograd.grad((got * b).sum(), [other])
    terms = (b * normed).reshape(-1, *weight.shape)
    allowed = UNITS * float(torch.finfo(weight.dtype).eps) * terms.abs().sum(0)
    if bool(((gradient - terms.sum(0)).abs() > allowed).any()):
        got_dtype = str(weight.dtype).removeprefix("torch.")
        needs = "a float32 model (model.float()), or a frozen weight (requires_grad_(False))"
        refuse_module(module, path, f"{got_dtype} parameters, and their gradient in less", needs)


def _scaled_embedding(use: Use) -> Iterable[Capture]:
    return LAYERS[nn.Embedding].captures(replace(use, b=use.b * _scale(use.module)))


def _scale(module: Any) -> torch.Tensor:
    return torch.as_tensor(module.embed_scale).to(module.weight)


def _check_scaled_embedding(module: Any, path: str) -> None:
    """Refuse what is no embedding times `embed_scale`."""
    check = LAYERS[nn.Embedding].check
    if check is not None:
        check(module, path)
    ids = torch.arange(len(module.weight), device=module.weight.device)[None]
    with torch.no_grad():
        got, expected = module.forward(ids), (module.weight * _scale(module))[None]
    if got.shape != expected.shape or not torch.allclose(got, expected):
        refuse_module(module, path, "an output that is not embed_scale times its rows", "that, or nn.Embedding")
