"""Mistakes in layers of images; answers for perceptrons stay right."""

import math
from dataclasses import replace
from typing import Any

import autograd.numpy as anp
import numpy as np

from adamshap.reference import images, layers
from adamshap.reference.losses import constant
from adamshap.verify.faults.fault import Fault, computes_with
from adamshap.verify.faults.sequences import Layer, with_weight


def _flattened_channels_last(right: Layer) -> Layer:
    def flatten(layer: Any, params: Any, name: str, x: Any) -> Any:
        return right(layer, params, name, anp.moveaxis(x, 1, -1) if x.ndim > 2 else x)

    return flatten


def _bias_once(right: Layer) -> Layer:
    def conv2d(layer: Any, params: Any, name: str, x: Any) -> Any:
        if not layer.bias:
            return right(layer, params, name, x)
        bias = params[f"{name}.bias"]
        y = right(layer, {**params, f"{name}.bias": constant(bias)}, name, x)
        here = np.zeros(y.shape[-2:])
        here[-1, -1] = 1.0
        return y + (bias - constant(bias))[..., None, None] * here

    return conv2d


def _last_of_equals(right: Layer) -> Layer:
    def max_pool2d(layer: Any, params: Any, name: str, x: Any) -> Any:
        each = images.windows(x, layer.kernel, layer.steps)
        each = each.reshape(*each.shape[:4], -1)
        last = each.shape[-1] - 1 - np.argmax(constant(each)[..., ::-1], axis=-1)[..., None]
        return anp.sum(each * (np.arange(each.shape[-1]) == last), axis=-1)

    return max_pool2d


def _mixed_groups(layer: Any, weight: Any) -> Any:
    """Return the kernels with output channels dealt to the groups in turn."""
    order = np.arange(layer.c_out).reshape(-1, layer.groups).T.ravel()
    return weight[..., order, :, :, :]


def _captured_at_stride_1(right: Layer) -> Layer:
    """Return a convolution whose weight gradient has windows next to each other, for those that a stride leaves out."""

    def conv2d(layer: Any, params: Any, name: str, x: Any) -> Any:
        weight = params[f"{name}.weight"]
        y = right(layer, {**params, f"{name}.weight": constant(weight)}, name, x)
        near = replace(layer, stride=(1, 1), bias=False)
        gradient = right(near, {f"{name}.weight": weight - constant(weight)}, name, constant(x))
        return y + gradient[:, :, : y.shape[2], : y.shape[3]]

    return conv2d


def _of_the_first_group(right: Layer) -> Layer:
    def conv2d(layer: Any, params: Any, name: str, x: Any) -> Any:
        first = x[:, : layer.c_in // layer.groups]
        return right(layer, params, name, anp.concatenate([first] * layer.groups, axis=1))

    return conv2d


FAULTS: tuple[Fault, ...] = (
    Fault(
        "flattened-channels-last",
        "channels flattened last",
        "TensorFlow's layout",
        computes_with(layers.flatten, _flattened_channels_last),
    ),
    Fault(
        "convolution-flipped",
        "kernels flipped",
        "the mathematical convolution",
        computes_with(images.conv2d, with_weight("weight", lambda layer, weight: weight[..., ::-1, ::-1])),
    ),
    Fault(
        "groups-dealt-in-turn",
        "output channels dealt to the groups in turn",
        "channel o in group o mod groups",
        computes_with(images.conv2d, with_weight("weight", _mixed_groups)),
    ),
    Fault(
        "convolution-bias-once",
        "a convolution's bias gradient of one place",
        "the bias is summed over samples, not over places",
        computes_with(images.conv2d, _bias_once),
    ),
    Fault(
        "last-of-equal-maxima",
        "the last of equal maxima given max pooling's gradient",
        "≥ for > in the comparison",
        computes_with(images.max_pool2d, _last_of_equals),
    ),
    Fault(
        "average-pool-summed",
        "windows summed in average pooling",
        "the divisor left out",
        computes_with(
            images.avg_pool2d,
            lambda right: lambda layer, params, name, x: math.prod(layer.kernel) * right(layer, params, name, x),
        ),
    ),
    Fault(
        "stride-ignored",
        "a convolution's weight gradient from windows at stride 1",
        "F.unfold without stride, or torch.nn.grad's convolution without its dilation",
        computes_with(images.conv2d, _captured_at_stride_1),
    ),
    Fault(
        "groups-ignored",
        "the first group's input channels read by every group of a convolution",
        "groups left out where channels are sliced",
        computes_with(images.conv2d, _of_the_first_group),
    ),
)
