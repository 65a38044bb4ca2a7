"""The captures of PyTorch's layers: one short function for each class of module, found in `LAYERS`.

======  ===========  ==================================================
paper   name         meaning
======  ===========  ==================================================
a       ``Use.a``    input of one call of a module (n, …)
b       ``Use.b``    gradient in its output (n, …), as the backward pass had it
======  ===========  ==================================================
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from adamshap.gpu.captures import Capture, Dense, Gather, WindowProducts, outer_products
from adamshap.gpu.windows import Windows
from adamshap.reference.contract import Array, refuse

__all__ = ["LAYERS", "Layer", "Use", "array_of", "register"]


@dataclass(frozen=True)
class Use:
    """One call of a module in the forward pass, and the gradient that came back to it.

    Parameters
    ----------
    module : torch.nn.Module
    path : str
        The module's name in the model.
    names : dict of str
        The module's trainable parameters: from its own name for each, such as "weight", to the model's.
    a : tensor (n, …)
        Input.
    b : tensor (n, …)
        Gradient of the loss in the output.
    """

    module: Any
    path: str
    names: Mapping[str, str]
    a: torch.Tensor
    b: torch.Tensor

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.b)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its parameters."""
        dtype: torch.dtype = getattr(self.module, next(iter(self.names))).dtype
        return dtype

    def refuse(self, got: str, needs: str) -> NoReturn:
        """Raise the error about this module.

        Parameters
        ----------
        got : str
            What the module has.
        needs : str
            What it needs.
        """
        _refuse_module(self.module, self.path, got, needs)


Function = Callable[[Use], Iterable[Capture]]


@dataclass(frozen=True)
class Layer:
    """How a class of modules is captured.

    Parameters
    ----------
    captures : callable
        Function from a `Use` to the captures of the parameters in ``use.names``.
    parameters : tuple of str
        The parameters that it knows.
    check : callable, optional
        Function of (module, path) that refuses settings which the captures do not have.
    """

    captures: Function
    parameters: tuple[str, ...]
    check: Callable[[Any, str], None] | None = None


LAYERS: dict[type, Layer] = {}
"""The layers by the exact class of module: a subclass may compute something else."""


def register(
    *classes: type,
    parameters: tuple[str, ...] = ("weight", "bias"),
    check: Callable[[Any, str], None] | None = None,
) -> Callable[[Function], Function]:
    """Return a decorator that registers a function as the captures of some classes of modules.

    Parameters
    ----------
    *classes : type
        Classes of modules with one input and one output, whose first axis is that of the samples.
    parameters : tuple of str
        The parameters of such a module that the function knows; any other trainable one is refused.
    check : callable, optional
        Function of (module, path) that refuses settings which the function does not have.

    Returns
    -------
    callable
        The decorator. Its function takes a `Use` and returns captures (`adamshap.gpu.captures`), which together hold
        each x_i of the parameters in ``use.names``.
    """

    def decorated(function: Function) -> Function:
        for one in classes:
            LAYERS[one] = Layer(function, parameters, check)
        return function

    return decorated


def array_of(tensor: torch.Tensor) -> Array:
    """Return a tensor as a C-contiguous NumPy array, of the same memory if it is so already.

    Parameters
    ----------
    tensor : tensor
        On the CPU; its gradient is ignored.

    Returns
    -------
    array
        Of its shape and dtype.
    """
    return np.ascontiguousarray(tensor.detach().numpy())


# --- linear layers ---------------------------------------------------------------------------------------------------


@register(nn.Linear)
def _linear(use: Use) -> Iterable[Capture]:
    weight, bias = use.names.get("weight"), use.names.get("bias")
    if weight is not None:
        yield outer_products(weight, bias, array_of(use.a), array_of(use.b))
    elif bias is not None:
        yield Dense(bias, array_of(_over_positions(use.b, use.b.shape[-1:])))


def _check_embedding(module: Any, path: str) -> None:
    if module.max_norm is not None:
        _refuse_module(module, path, f"max_norm={module.max_norm}, which edits the weight", "max_norm=None")
    for name in ("scale_grad_by_freq", "sparse"):
        if getattr(module, name):
            _refuse_module(module, path, f"{name}=True", f"{name}=False")


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


# --- norms: x_i of a gain is Σ_t b_t ⊙ x̂_t ---------------------------------------------------------------------------


@register(nn.LayerNorm)
def _layer_norm(use: Use) -> Iterable[Capture]:
    shape = use.module.normalized_shape
    normed = functional.layer_norm(use.a, shape, None, None, use.module.eps)
    return _gain_and_bias(use, normed, lambda x: _over_positions(x, shape))


@register(nn.RMSNorm, parameters=("weight",))
def _rms_norm(use: Use) -> Iterable[Capture]:
    shape = use.module.normalized_shape
    normed = functional.rms_norm(use.a, shape, None, use.module.eps)
    return _gain_and_bias(use, normed, lambda x: _over_positions(x, shape))


@register(nn.GroupNorm)
def _group_norm(use: Use) -> Iterable[Capture]:
    normed = functional.group_norm(use.a, use.module.num_groups, None, None, use.module.eps)
    return _gain_and_bias(use, normed, _over_pixels)


@register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(use: Use) -> Iterable[Capture]:
    module = use.module
    normed = functional.batch_norm(use.a, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)
    return _gain_and_bias(use, normed, _over_pixels)


def _gain_and_bias(use: Use, normed: torch.Tensor, summed: Callable[[torch.Tensor], torch.Tensor]) -> Iterable[Capture]:
    for local, x in (("weight", lambda: use.b * normed), ("bias", lambda: use.b)):
        if local in use.names:
            yield Dense(use.names[local], array_of(summed(x())))


def _over_positions(x: torch.Tensor, shape: Iterable[int]) -> torch.Tensor:
    """Return the sum of each sample's positions, whose last axes are `shape`."""
    return x.reshape(len(x), -1, *shape).sum(1)


def _over_pixels(x: torch.Tensor) -> torch.Tensor:
    """Return the sum of each sample's and channel's pixels: (n, c)."""
    return x.reshape(*x.shape[:2], -1).sum(2)


# --- convolutions ----------------------------------------------------------------------------------------------------


def _check_convolution(module: Any, path: str) -> None:
    if any(step != 1 for step in module.dilation):
        _refuse_module(module, path, f"dilation={module.dilation}", "a dilation of 1")
    if module.padding_mode != "zeros":
        _refuse_module(module, path, f"padding_mode={module.padding_mode!r}", "padding_mode='zeros'")
    _padding(module, path)


def _padding(module: Any, path: str) -> tuple[int, ...]:
    """Return the number of zeros on each side, for each axis of the images."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "same" and any(size % 2 == 0 for size in module.kernel_size):
        _refuse_module(module, path, f"padding='same' with a kernel of {module.kernel_size}", "an odd kernel")
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
        yield Dense(bias, array_of(_over_pixels(use.b)))


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
        yield Dense(bias, array_of(_over_pixels(use.b)))


def _refuse_module(module: object, path: str, got: str, needs: str) -> NoReturn:
    refuse(f"model module {path!r}", f"{type(module).__name__} with {got}", needs)
