"""Embeddings, and bags of embeddings."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from adamshap.gpu.captures import Capture, Gather
from adamshap.torch.layers.registry import Use, refuse_module, register
from adamshap.torch.layers.rewrites import Recorder, rewrite
from adamshap.torch.memory import array_of


def _check(module: Any, path: str) -> None:
    if module.max_norm is not None:
        refuse_module(module, path, f"max_norm={module.max_norm}, which edits the weight", "max_norm=None")
    for name in ("scale_grad_by_freq", "sparse"):
        if getattr(module, name):
            refuse_module(module, path, f"{name}=True", f"{name}=False")


@register(nn.Embedding, parameters=("weight",), check=_check)
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


@rewrite(nn.EmbeddingBag, check=_check)
def _embedding_bag(
    recorder: Recorder,
    input: torch.Tensor,
    offsets: torch.Tensor | None = None,
    per_sample_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the module's own output: only its input is not one row for each sample."""
    module = recorder.module
    output: torch.Tensor = type(module).forward(module, input, offsets, per_sample_weights)
    recorder.refuse_input(output, 0, 2)
    ids, weights = (
        _bags(values, offsets, module.include_last_offset)
        for values in (input.long(), torch.ones_like(input, dtype=output.dtype))
    )
    if per_sample_weights is not None:
        weights = _bags(per_sample_weights.detach(), offsets, module.include_last_offset)
    if module.padding_idx is not None:
        weights = weights.masked_fill(ids == module.padding_idx, 0)
    if module.mode == "mean":
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    recorder.record(output, ids, ("weight",), partial(_of_bags, weights))
    return output


def _bags(values: torch.Tensor, offsets: torch.Tensor | None, include_last: bool) -> torch.Tensor:
    """Return the values of each bag, (bags, longest), with 0 at the end of shorter ones."""
    if offsets is None:
        return values
    ends = offsets[1:].tolist() if include_last else [*offsets[1:].tolist(), len(values)]
    starts = offsets[: len(ends)].tolist()
    return pad_sequence([values[start:end] for start, end in zip(starts, ends, strict=True)], batch_first=True)


def _of_bags(weights: torch.Tensor, use: Use) -> Iterable[Capture]:
    shares = weights[:, :, None]
    if use.module.mode == "max" and use.a.shape[1]:  # each unit is that of one id, the first of the largest
        rows = use.module.weight.detach()[use.a].masked_fill(shares == 0, -math.inf)
        shares = shares * torch.zeros_like(rows).scatter_(1, rows.argmax(1, keepdim=True), 1.0)
    yield Gather(use.names["weight"], array_of(use.a), array_of(shares * use.b[:, None]))
