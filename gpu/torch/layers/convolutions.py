"""Convolutions: x_i is Σ_t b_t a_tᵀ, where a_t is what a window sees at place t.

A transposed convolution adds each input pixel's a_t w to a window of the output, at place t. In its x_i the window sees
the gradients instead: x_i = Σ_t a_t b_tᵀ, which is that of a convolution with a and b exchanged.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from adamshap.gpu.captures import Capture, Dense, WindowProducts
from adamshap.gpu.windows import Windows
from adamshap.torch.layers.registry import Use, over_pixels, register
from adamshap.torch.memory import array_of

Sides = list[tuple[int, int]]
"""The number of pixels before and after, for each axis of the images."""


@register(nn.Conv1d, nn.Conv2d, nn.Conv3d, channels=True)
def _convolution(use: Use) -> Iterable[Capture]:
    module, weight, bias = use.module, use.names.get("weight"), use.names.get("bias")
    _refuse_unbatched(use)
    if weight is not None:
        padded, padding = _padded(use.a, _sides(module), module.padding_mode)
        windows = Windows(module.kernel_size, module.stride, padding, module.dilation)
        yield WindowProducts(weight, bias, windows, module.groups, array_of(padded), array_of(use.b.flatten(2)))
    elif bias is not None:
        yield Dense(bias, array_of(over_pixels(use.b)))


@register(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, channels=True)
def _transposed_convolution(use: Use) -> Iterable[Capture]:
    module, weight, bias = use.module, use.names.get("weight"), use.names.get("bias")
    _refuse_unbatched(use)
    if weight is not None:
        sides = []
        for size, k, s, p, d, out in zip(
            use.a.shape[2:],
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            use.b.shape[2:],
            strict=True,
        ):
            covered = (size - 1) * s + d * (k - 1) + 1  # by the windows of all input pixels
            sides.append((p, covered - p - out))  # less than p with output_padding
        padded, padding = _padded(use.b, sides, "zeros")
        windows = Windows(module.kernel_size, module.stride, padding, module.dilation)
        yield WindowProducts(weight, None, windows, module.groups, array_of(padded), array_of(use.a.flatten(2)))
    if bias is not None:
        yield Dense(bias, array_of(over_pixels(use.b)))


def _sides(module: Any) -> Sides:
    """Return the padding of a convolution."""
    if module.padding == "valid":
        return [(0, 0) for _ in module.kernel_size]
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in module.padding]


def _padded(images: torch.Tensor, sides: Sides, mode: str) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return images and the zeros that windows add on both sides; other padding is in the images."""
    if mode == "zeros" and all(before == after >= 0 for before, after in sides):
        return images, tuple(before for before, _ in sides)
    flat = [size for pair in reversed(sides) for size in pair]
    return functional.pad(images, flat, "constant" if mode == "zeros" else mode), (0,) * len(sides)


def _refuse_unbatched(use: Use) -> None:
    if use.a.ndim != len(use.module.kernel_size) + 2:
        use.refuse(f"an input of shape {tuple(use.a.shape)}", "an axis of samples before that of channels")
