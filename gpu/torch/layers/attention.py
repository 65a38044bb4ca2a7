"""Multi-head attention: PyTorch hands its weights to one function, so that no hook sees a projection."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from adamshap.torch.layers.registry import refuse_module
from adamshap.torch.layers.rewrites import Recorder, rewrite


def _check(module: Any, path: str) -> None:
    if type(module.out_proj) is not NonDynamicallyQuantizableLinear:
        refuse_module(module, path, f"an out_proj of class {type(module.out_proj).__name__}", "its own out_proj")


@rewrite(nn.MultiheadAttention, check=_check)
def _attention(
    recorder: Recorder,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what the module returns, by the operations of F.multi_head_attention_forward in their order.

    All arrays have PyTorch's shapes and strides, so that dropout draws the same random numbers, here and in the next
    modules: steps first, whatever ``batch_first`` says.
    """
    module = recorder.module
    axis = 0 if module.batch_first else 1
    for x in (query, key, value):
        recorder.refuse_input(x, axis, 3)
    if is_causal and attn_mask is None:
        recorder.refuse("is_causal=True without attn_mask", "attn_mask, of which is_causal is a hint")
    causal_alone = is_causal and key_padding_mask is None and not need_weights
    q, k, v = _projections(recorder, *_with_steps_first(axis, query, key, value))
    mask = None if causal_alone else _float_mask(attn_mask, query.dtype)
    padding = _float_mask(key_padding_mask, query.dtype)
    if module.bias_k is not None:
        k, v = (torch.cat([x, recorder.rows(name).transpose(0, 1)]) for x, name in ((k, "bias_k"), (v, "bias_v")))
    q, k, v = (_by_head(x, module.num_heads) for x in (q, k, v))
    if module.add_zero_attn:
        k, v = (functional.pad(x, (0, 0, 0, 1)) for x in (k, v))
    mask = _merged(mask, padding, q, k)
    dropout = module.dropout if module.training else 0.0
    weights = None
    if need_weights:
        scaled = q * math.sqrt(1.0 / q.shape[-1])
        products = scaled @ k.transpose(2, 3)
        weights = (products if mask is None else products + mask).softmax(-1)
        if dropout > 0.0:
            weights = functional.dropout(weights, dropout)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal_alone)
    output = recorder.linear(mixed.permute(2, 0, 1, 3).flatten(2), "out_proj.weight", "out_proj.bias", axis=1)
    return output.transpose(0, 1) if module.batch_first else output, weights


def _with_steps_first(
    axis: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the inputs with samples along the second axis; those that were one tensor still are."""
    if axis == 1:
        return query, key, value
    moved = {id(x): x.transpose(0, 1) for x in (query, key, value)}
    return moved[id(query)], moved[id(key)], moved[id(value)]


def _projections(
    recorder: Recorder, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k and v (…, n, d): by one product for inputs that are the same tensor."""
    module = recorder.module
    size = module.embed_dim
    q, k, v = (slice(i * size, (i + 1) * size) for i in range(3))
    if not module._qkv_same_embed_dim:
        return (
            _separately(recorder, query, "q_proj_weight", q),
            _separately(recorder, key, "k_proj_weight", k),
            _separately(recorder, value, "v_proj_weight", v),
        )
    packed = ("in_proj_weight", "in_proj_bias")
    if query is key is value:
        first, second, third = recorder.linear(query, *packed, axis=1).split(size, -1)
    elif key is value:
        first = recorder.linear(query, *packed, q, 1)
        second, third = recorder.linear(key, *packed, slice(size, 3 * size), 1).split(size, -1)
    else:
        first, second, third = (
            recorder.linear(x, *packed, units, 1) for x, units in ((query, q), (key, k), (value, v))
        )
    return first, second, third


def _separately(recorder: Recorder, x: torch.Tensor, weight: str, units: slice) -> torch.Tensor:
    """Return a projection by a weight of its own and a part of the bias."""
    z = recorder.linear(x, weight, None, axis=1)
    bias = recorder.parameter("in_proj_bias")
    if bias is None:
        return z
    z = z + bias[units]
    recorder.record_linear(z, x, None, "in_proj_bias", units, 1)
    return z


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Return x (T, n, d) as (n, heads, T, d / heads)."""
    return x.unflatten(2, (heads, -1)).permute(1, 2, 0, 3)


def _float_mask(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Return a mask as what is added to the products: −∞ where a boolean one is True."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -math.inf)


def _merged(
    mask: torch.Tensor | None, padding: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor
) -> torch.Tensor | None:
    """Return the sum of a mask (T, S) or (n · heads, T, S) and one of padding (n, S), four axes.

    Keys that the module adds are never masked.
    """
    if mask is not None:
        mask = mask[None, None] if mask.ndim == 2 else mask.unflatten(0, q.shape[:2])
    if padding is not None:
        padding = padding[:, None, None]
        mask = padding if mask is None else mask + padding
    return None if mask is None else functional.pad(mask, (0, k.shape[2] - mask.shape[-1]))
