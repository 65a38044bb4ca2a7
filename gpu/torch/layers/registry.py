"""The registry of layers: a function from one call of a module to captures, for each class of module.

======  ===========  ==================================================
paper   name         meaning
======  ===========  ==================================================
a       ``Use.a``    input of one call of a module (n, …)
b       ``Use.b``    gradient in its output (n, …), as the backward pass had it
======  ===========  ==================================================
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NoReturn

import torch

from adamshap.gpu.captures import Capture
from adamshap.reference.contract import refuse

__all__ = ["LAYERS", "Layer", "Use", "over_pixels", "over_positions", "refuse_module", "register"]


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
        dtype: torch.dtype = attrgetter(next(iter(self.names)))(self.module).dtype
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
        refuse_module(self.module, self.path, got, needs)


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
    channels : bool
        Whether the second axis of its input is that of channels, so that the samples have the first.
    """

    captures: Function
    parameters: tuple[str, ...]
    check: Callable[[Any, str], None] | None = None
    channels: bool = False


LAYERS: dict[type, Layer] = {}
"""The layers by the exact class of module: a subclass may compute something else."""


def register(
    *classes: type,
    parameters: tuple[str, ...] = ("weight", "bias"),
    check: Callable[[Any, str], None] | None = None,
    channels: bool = False,
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
    channels : bool
        Whether the second axis of its input is that of channels, as of images.

    Returns
    -------
    callable
        The decorator. Its function takes a `Use` and returns captures (`adamshap.gpu.captures`), which together hold
        each x_i of the parameters in ``use.names``.
    """

    def decorated(function: Function) -> Function:
        for one in classes:
            LAYERS[one] = Layer(function, parameters, check, channels)
        return function

    return decorated


def over_positions(x: torch.Tensor, shape: Iterable[int]) -> torch.Tensor:
    """Return the sum of each sample's positions, whose last axes are `shape`."""
    return x.reshape(len(x), -1, *shape).sum(1)


def over_pixels(x: torch.Tensor) -> torch.Tensor:
    """Return the sum of each sample's and channel's pixels: (n, c)."""
    return x.reshape(*x.shape[:2], -1).sum(2)


def refuse_module(module: object, path: str, got: str, needs: str) -> NoReturn:
    """Raise the error about a module: what it has, and what it needs."""
    refuse(f"model module {path!r}", f"{type(module).__name__} with {got}", needs)
