"""Convolution and pooling in autograd, from the windows of each image; arguments as in `layers`."""

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defjvp

from adamshap.reference import contract
from adamshap.reference.contract import Array, Params
from adamshap.reference.elementary import elementary
from adamshap.reference.losses import constant
from adamshap.reference.perceptron import product

# Of all operations used here, autograd lacks a forward-mode rule for this one only.
defjvp(anp.pad, lambda g, ans, x, width, mode: anp.pad(g, width, mode))


def windows(x: Any, kernel: tuple[int, int], stride: tuple[int, int]) -> Any:
    """Return every window of `x` (n, c, h, w): (n, c, places down, places across, kernel height, kernel width)."""
    starts = [np.arange(0, size - k + 1, s) for size, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    rows, columns = (start[:, None] + np.arange(k) for start, k in zip(starts, kernel, strict=True))
    return x[:, :, rows[:, None, :, None], columns[None, :, None, :]]


def conv2d(layer: contract.Conv2d, params: Params, name: str, x: Any) -> Any:
    """Return the sum of each window times the kernel, for each output channel, plus a bias."""
    down, across = layer.padding
    padded = anp.pad(x, ((0, 0), (0, 0), (down, down), (across, across)), mode="constant")
    seen = anp.transpose(windows(padded, layer.kernel, layer.stride), (0, 2, 3, 1, 4, 5))
    n, places = len(x), seen.shape[1:3]
    weight: Any = params[f"{name}.weight"]
    copies = weight.shape[:-4]
    c_in, c_out = layer.c_in // layer.groups, layer.c_out // layer.groups
    outs = []
    for group in range(layer.groups):
        own = seen[:, :, :, group * c_in : (group + 1) * c_in].reshape(n, places[0] * places[1], -1)
        kernels = weight[..., group * c_out : (group + 1) * c_out, :, :, :].reshape(*copies, c_out, -1)
        outs.append(product(kernels, own))
    y = anp.transpose(anp.concatenate(outs, axis=2), (0, 2, 1)).reshape(n, layer.c_out, *places)
    return y + params[f"{name}.bias"][..., None, None] if layer.bias else y


def avg_pool2d(layer: contract.AvgPool2d, params: Params, name: str, x: Any) -> Any:
    """Return the mean of each window."""
    return anp.mean(windows(x, layer.kernel, layer.steps), axis=(4, 5))


def max_pool2d(layer: contract.MaxPool2d, params: Params, name: str, x: Any) -> Any:
    """Return the largest of each window; of equal ones the first counts, as in PyTorch."""
    each = windows(x, layer.kernel, layer.steps)
    each = each.reshape(*each.shape[:4], -1)
    chosen = place_of_largest(constant(each))[..., None]
    return anp.sum(each * (np.arange(each.shape[-1]) == chosen), axis=-1)


@elementary
def place_of_largest(each: Array) -> Array:
    """Return the place of the largest number along the last axis; of equal ones the first."""
    return np.argmax(each, axis=-1)  # type: ignore[no-any-return]
