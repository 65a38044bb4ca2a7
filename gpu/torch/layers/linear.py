"""Linear layers, and PReLU."""

from collections.abc import Iterable

import torch
from torch import nn

from adamshap.gpu.captures import Capture, Dense, outer_products
from adamshap.torch.layers.registry import Use, register
from adamshap.torch.layers.sums import position_sums
from adamshap.torch.memory import array_of

__all__ = ["linear_captures"]


def linear_captures(weight: str | None, bias: str | None, a: torch.Tensor, b: torch.Tensor) -> Iterable[Capture]:
    """Return the captures of ``W a + p`` with the gradients b; None for a parameter that is not trained."""
    b = b.contiguous()
    apart = bias is not None and (weight is None or b.ndim > 2)
    if weight is not None:
        yield outer_products(weight, None if apart else bias, array_of(a), array_of(b))
    if bias is not None and apart:  # summed once, while b is in the cache; the scores read the sums
        yield position_sums(bias, b)


@register(nn.Linear)
def _linear(use: Use) -> Iterable[Capture]:
    return linear_captures(use.names.get("weight"), use.names.get("bias"), use.a, use.b)


@register(nn.PReLU, parameters=("weight",))
def _prelu(use: Use) -> Iterable[Capture]:
    slopes = (use.b * use.a.clamp(max=0)).reshape(use.n, use.a.shape[1], -1).sum(2)
    yield Dense(use.names["weight"], array_of(slopes.sum(1, keepdim=True) if len(use.module.weight) == 1 else slopes))
