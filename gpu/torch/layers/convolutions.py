"""Convolutions: x_i is Σ_t b_t a_tᵀ, with what a window sees at place t as a_t."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from adamshap.gpu.captures import Capture, Dense, WindowProducts
from adamshap.gpu.windows import Windows
from adamshap.torch.layers.registry import Use, over_pixels, refuse_module, register
from adamshap.torch.memory import array_of


def _check_convolution(module: Any, path: str) -> None:
    if any(step != 1 for step in module.dilation):
        refuse_module(module, path, f"dilation={module.dilation}", "a dilation of 1")
    if module.padding_mode != "zeros":
        refuse_module(module, path, f"padding_mode={module.padding_mode!r}", "padding_mode='zeros'")
    _padding(module, path)


def _padding(module: Any, path: str) -> tuple[int, ...]:
    """Return the number of zeros on each side, for each axis of the images."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "same" and any(size % 2 == 0 for size in module.kernel_size):
        refuse_module(module, path, f"padding='same' with a kernel of {module.kernel_size}", "an odd kernel")
    return tuple((size - 1) // 2 if module.padding == "same" else 0 for size in module.kernel_size)


@register(nn.Conv2d, check=_check_convolution)
def _convolution(use: Use) -> Iterable[Capture]:
    module, weight, bias = use.module, use.names.get("weight"), use.names.get("bias")
    if weight is not None:
        down, across = _padding(module, use.path)
        windows = Windows(module.kernel_size, module.stride, (down, across))
        a, b = array_of(use.a), array_of(use.b.reshape(*use.b.shape[:2], -1))
        yield WindowProducts(weight, bias, windows, module.groups, a, b)
    elif bias is not None:
        yield Dense(bias, array_of(over_pixels(use.b)))


@dataclass(frozen=True)
class AlongOneAxis(WindowProducts):
    """A convolution along one axis: one of images of height 1, whose weight has no axis for it."""

    def sum_of(self, xp: Any, name: str, units: slice, out: Any = None) -> Any:
        """Return Σ_i x_i of some output channels, of the parameter's shape."""
        found = super().sum_of(xp, name, units, out)
        return found[:, :, 0] if out is None and name == self.weight else found


@register(nn.Conv1d, check=_check_convolution)
def _convolution_along_one_axis(use: Use) -> Iterable[Capture]:
    module, weight, bias = use.module, use.names.get("weight"), use.names.get("bias")
    if weight is not None:
        (padding,) = _padding(module, use.path)
        windows = Windows((1, *module.kernel_size), (1, *module.stride), (0, padding))
        yield AlongOneAxis(weight, bias, windows, module.groups, array_of(use.a[:, :, None]), array_of(use.b))
    elif bias is not None:
        yield Dense(bias, array_of(over_pixels(use.b)))
