"""Linear layers and embeddings."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from adamshap.gpu.captures import Capture, Dense, Gather, outer_products
from adamshap.torch.layers.registry import Use, refuse_module, register
from adamshap.torch.memory import array_of


@register(nn.Linear)
def _linear(use: Use) -> Iterable[Capture]:
    weight, bias = use.names.get("weight"), use.names.get("bias")
    if weight is not None:
        yield outer_products(weight, None, array_of(use.a), array_of(use.b))
    if bias is not None:  # summed while b is in the cache; the self-check and the scores read the sums
        b = array_of(use.b)
        yield Dense(bias, b.reshape(use.n, -1, b.shape[-1]).sum(axis=1))


def _check_embedding(module: Any, path: str) -> None:
    if module.max_norm is not None:
        refuse_module(module, path, f"max_norm={module.max_norm}, which edits the weight", "max_norm=None")
    for name in ("scale_grad_by_freq", "sparse"):
        if getattr(module, name):
            refuse_module(module, path, f"{name}=True", f"{name}=False")


@register(nn.Embedding, parameters=("weight",), check=_check_embedding)
def _embedding(use: Use) -> Iterable[Capture]:
    b, ids = use.b, use.a
    if use.module.padding_idx is not None:
        b = b.masked_fill((ids == use.module.padding_idx)[..., None], 0)
    positions = math.prod(ids.shape[1:])
    yield Gather(
        use.names["weight"],
        array_of(ids.reshape(use.n, positions).long()),
        array_of(b.reshape(use.n, positions, b.shape[-1])),
    )
