"""Norms: x_i of a gain is Σ_t b_t ⊙ x̂_t, that of a bias Σ_t b_t."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional

from adamshap.gpu.captures import Capture, Dense
from adamshap.torch.layers.registry import Use, over_pixels, over_positions, register
from adamshap.torch.memory import array_of


@register(nn.LayerNorm)
def _layer_norm(use: Use) -> Iterable[Capture]:
    shape = use.module.normalized_shape
    normed = functional.layer_norm(use.a, shape, None, None, use.module.eps)
    return _gain_and_bias(use, normed, lambda x: over_positions(x, shape))


@register(nn.RMSNorm, parameters=("weight",))
def _rms_norm(use: Use) -> Iterable[Capture]:
    shape = use.module.normalized_shape
    normed = functional.rms_norm(use.a, shape, None, use.module.eps)
    return _gain_and_bias(use, normed, lambda x: over_positions(x, shape))


@register(nn.GroupNorm)
def _group_norm(use: Use) -> Iterable[Capture]:
    normed = functional.group_norm(use.a, use.module.num_groups, None, None, use.module.eps)
    return _gain_and_bias(use, normed, over_pixels)


@register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(use: Use) -> Iterable[Capture]:
    module = use.module
    normed = functional.batch_norm(use.a, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)
    return _gain_and_bias(use, normed, over_pixels)


def _gain_and_bias(use: Use, normed: torch.Tensor, summed: Callable[[torch.Tensor], torch.Tensor]) -> Iterable[Capture]:
    for local, x in (("weight", lambda: normed.mul_(use.b)), ("bias", lambda: use.b)):
        if local in use.names:
            yield Dense(use.names[local], array_of(summed(x())))
