"""Layers of images (c, h, w): convolution and pooling, with PyTorch's names, layouts and defaults."""

import math
from dataclasses import dataclass, field

import numpy as np

from adamshap.reference.contract.arrays import Array
from adamshap.reference.contract.layer import Layer, Shape, flag_field, integer_fields, pair_fields, uniform
from adamshap.reference.contract.refusal import refuse

__all__ = ["AvgPool2d", "Conv2d", "MaxPool2d"]


@dataclass(frozen=True)
class Conv2d(Layer):
    """A two-dimensional convolution (cross-correlation), as ``nn.Conv2d``.

    Parameters
    ----------
    c_in, c_out : int
        Channels of input and output.
    kernel : int or (int, int)
        Height and width; one number for both, here as in the next two.
    stride : int or (int, int)
        Distance between places.
    padding : int or (int, int)
        Zeros on each side.
    groups : int
        Divides both channels; the output channels of a group see only its input channels.
    bias : bool
        Whether each output channel has a bias.
    """

    c_in: int
    c_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    bias: bool = True
    kind: str = field(default="conv2d", init=False, repr=False)

    def __post_init__(self) -> None:
        integer_fields(self, "c_in", "c_out", "groups")
        pair_fields(self, "kernel", "stride")
        pair_fields(self, "padding", minimum=0)
        flag_field(self, "bias")
        if self.c_in % self.groups or self.c_out % self.groups:
            refuse("Conv2d.groups", self.groups, f"a divisor of both channels, {self.c_in} and {self.c_out}")

    @property
    def shapes(self) -> dict[str, Shape]:
        """``weight`` (c_out, c_in/groups, height, width), and ``bias`` (c_out,) if it has one."""
        weight = (self.c_out, self.c_in // self.groups, *self.kernel)
        return {"weight": weight} | ({"bias": (self.c_out,)} if self.bias else {})

    @property
    def takes(self) -> str:
        """Images (c_in, h, w) that the kernel fits into."""
        smallest = [max(k - 2 * p, 1) for k, p in zip(self.kernel, self.padding, strict=True)]
        return f"({self.c_in}, h, w) with h of at least {smallest[0]} and w of at least {smallest[1]}"

    def _out(self, shape: Shape) -> Shape | None:
        places = _places(shape, self.kernel, self.stride, self.padding)
        return (self.c_out, *places) if places and shape[0] == self.c_in else None

    def _fresh(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        return uniform(shape, math.prod(self.shapes["weight"][1:]), generator)


@dataclass(frozen=True)
class _Pool(Layer):
    kernel: tuple[int, int]
    stride: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        pair_fields(self, "kernel")
        if self.stride is None:
            object.__setattr__(self, "stride", self.kernel)
        pair_fields(self, "stride")

    @property
    def steps(self) -> tuple[int, int]:
        """The stride, whether given or the kernel's."""
        return self.stride or self.kernel

    @property
    def takes(self) -> str:
        """Images (c, h, w) that the window fits into."""
        return f"(c, h, w) with h of at least {self.kernel[0]} and w of at least {self.kernel[1]}"

    def _out(self, shape: Shape) -> Shape | None:
        places = _places(shape, self.kernel, self.steps, (0, 0))
        return (shape[0], *places) if places else None


@dataclass(frozen=True)
class AvgPool2d(_Pool):
    """The mean of each window, as ``nn.AvgPool2d``; a remainder at the edge is left out.

    Parameters
    ----------
    kernel : int or (int, int)
        Height and width of a window.
    stride : int or (int, int), optional
        Distance between windows; by default the kernel.
    """

    kind: str = field(default="avg_pool2d", init=False, repr=False)


@dataclass(frozen=True)
class MaxPool2d(_Pool):
    """The largest of each window, as ``nn.MaxPool2d``: of equal ones the first, row by row, has the gradient.

    Parameters
    ----------
    kernel : int or (int, int)
        Height and width of a window.
    stride : int or (int, int), optional
        Distance between windows; by default the kernel.
    """

    kind: str = field(default="max_pool2d", init=False, repr=False)


def _places(shape: Shape, kernel: Shape, stride: Shape, padding: Shape) -> Shape | None:
    """Return how many places a window has, down and across; None where it does not fit."""
    if len(shape) != 3:
        return None
    room = [size + 2 * p - k for size, k, p in zip(shape[1:], kernel, padding, strict=True)]
    return tuple(r // s + 1 for r, s in zip(room, stride, strict=True)) if min(room) >= 0 else None
