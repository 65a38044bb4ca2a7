"""Linear layers, and PReLU."""

from collections.abc import Iterable

import torch
from torch import nn

from adamshap.gpu.captures import Capture, Dense, outer_products
from adamshap.torch.layers.registry import Use, register
from adamshap.torch.memory import array_of

__all__ = ["linear_captures"]


def linear_captures(weight: str | None, bias: str | None, a: torch.Tensor, b: torch.Tensor) -> Iterable[Capture]:
    """Return the captures of ``W a + p`` with the gradients b; None for a parameter that is not trained."""
    gradients = array_of(b)
    if weight is not None:
        yield outer_products(weight, None, array_of(a), gradients)
    if bias is not None:  # summed while b is in the cache; the self-check and the scores read the sums
        yield Dense(bias, gradients.reshape(len(gradients), -1, gradients.shape[-1]).sum(axis=1))


@register(nn.Linear)
def _linear(use: Use) -> Iterable[Capture]:
    return linear_captures(use.names.get("weight"), use.names.get("bias"), use.a, use.b)


@register(nn.PReLU, parameters=("weight",))
def _prelu(use: Use) -> Iterable[Capture]:
    slopes = (use.b * use.a.clamp(max=0)).reshape(use.n, use.a.shape[1], -1).sum(2)
    yield Dense(use.names["weight"], array_of(slopes.sum(1, keepdim=True) if len(use.module.weight) == 1 else slopes))
