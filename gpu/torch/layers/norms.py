"""Norms: x_i of a gain is Σ_t b_t ⊙ x̂_t, that of a bias Σ_t b_t."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional

from adamshap.gpu.captures import Capture, Dense
from adamshap.torch.layers.registry import Use, over_pixels, over_positions, register
from adamshap.torch.memory import array_of

AXES = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
"""Axes of an input with samples: PyTorch takes one without, too."""


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


@register(nn.GroupNorm, channels=True)
def _group_norm(use: Use) -> Iterable[Capture]:
    normed = functional.group_norm(use.a, use.module.num_groups, None, None, use.module.eps)
    return _gain_and_bias(use, normed, over_pixels)


@register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, channels=True)
def _batch_norm(use: Use) -> Iterable[Capture]:
    module = use.module
    normed = functional.batch_norm(use.a, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)
    return _gain_and_bias(use, normed, over_pixels)


@register(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, channels=True)
def _instance_norm(use: Use) -> Iterable[Capture]:
    module = use.module
    if use.a.ndim != AXES[type(module)]:
        use.refuse(f"an input of shape {tuple(use.a.shape)}", "an axis of samples before that of channels")
    if module.training or not module.track_running_stats:  # by the sample's own statistics
        normed = functional.instance_norm(use.a, eps=module.eps)
    else:
        mean, var = module.running_mean, module.running_var
        normed = functional.instance_norm(use.a, mean, var, use_input_stats=False, eps=module.eps)
    return _gain_and_bias(use, normed, over_pixels)


def _gain_and_bias(use: Use, normed: torch.Tensor, summed: Callable[[torch.Tensor], torch.Tensor]) -> Iterable[Capture]:
    for local, x in (("weight", lambda: normed.mul_(use.b)), ("bias", lambda: use.b)):
        if local in use.names:
            yield Dense(use.names[local], array_of(summed(x())))
