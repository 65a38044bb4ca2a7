"""Forward passes of our own, for modules whose parameters are used where no hook sees it.

`nn.MultiheadAttention` hands its weights to one function, and `nn.LSTM` its own to one kernel. While samples are
captured, an equivalent forward pass runs in place of theirs, in which each use of a parameter is recorded.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, NoReturn, Protocol

import torch
from torch.nn import functional

from adamshap.gpu.captures import Capture, Dense
from adamshap.torch.layers.linear import linear_captures
from adamshap.torch.layers.registry import Function, Use, refuse_module
from adamshap.torch.memory import array_of

__all__ = ["REWRITES", "Listener", "Recorder", "Rewrite", "rewrite"]


class Listener(Protocol):
    """Awaits the gradients of the uses of one module, for one attribution."""

    @property
    def path(self) -> str:
        """The module's name in the model."""

    @property
    def is_open(self) -> bool:
        """Whether samples are captured."""

    @property
    def n(self) -> int:
        """Number of samples of the open block."""

    def record(
        self, output: torch.Tensor, a: torch.Tensor, parameters: tuple[str, ...], captures: Function, axis: int
    ) -> None:
        """Await the gradient of `output`."""


@dataclass(frozen=True)
class Recorder:
    """Records how one call of a module uses its parameters.

    Parameters
    ----------
    module : torch.nn.Module
    listeners : tuple of Listener
        One for each attribution with an open block.
    """

    module: Any
    listeners: tuple[Listener, ...]

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.listeners[0].n

    def refuse_input(self, x: torch.Tensor, axis: int, axes: int) -> None:
        """Refuse an input with another number of axes, or of samples along `axis`."""
        for one in self.listeners:
            if x.ndim != axes or x.shape[axis] != one.n:
                got = f"an input of shape {tuple(x.shape)} for {one.n} samples"
                needs = f"the samples of `index` along axis {axis} of an input with {axes} axes"
                refuse_module(self.module, one.path, got, needs)

    def refuse(self, got: str, needs: str) -> NoReturn:
        """Raise the error about this module."""
        refuse_module(self.module, self.listeners[0].path, got, needs)

    def record(
        self, output: torch.Tensor, a: torch.Tensor, parameters: tuple[str, ...], captures: Function, axis: int = 0
    ) -> None:
        """Record one use.

        Parameters
        ----------
        output, a : tensors (n, …), or (T, n, …)
            Output of the use, whose gradient is awaited, and its input.
        parameters : tuple of str
            The parameters used, by their names in the module.
        captures : callable
            Function from the `Use` to captures.
        axis : int
            Axis of the samples in both; the `Use` has them first.
        """
        for one in self.listeners:
            one.record(output, a, parameters, captures, axis)

    def linear(
        self, x: torch.Tensor, weight: str, bias: str | None, units: slice | None = None, axis: int = 0
    ) -> torch.Tensor:
        """Return ``x Wᵀ + b`` (n, …, d_out), of some rows of W and b if `units` are given."""
        w, b = self.parameter(weight), None if bias is None else self.parameter(bias)
        if units is not None:
            w, b = w[units], None if b is None else b[units]
        z = functional.linear(x, w, b)
        self.record_linear(z, x, weight, bias, units, axis)
        return z

    def record_linear(
        self,
        z: torch.Tensor,
        x: torch.Tensor,
        weight: str | None,
        bias: str | None,
        units: slice | None = None,
        axis: int = 0,
    ) -> None:
        """Record a use as in `linear`, whose output is `z`."""
        used = tuple(name for name in (weight, bias) if name is not None)
        total = len(self.parameter(used[0]))
        self.record(z, x, used, partial(_of_linear, weight, bias, units, total), axis)

    def rows(self, name: str) -> torch.Tensor:
        """Return a parameter (1, …) with one row for each sample, (n, …)."""
        p = self.parameter(name)
        rows = p.expand(self.n, *p.shape[1:])
        self.record(rows, rows, (name,), _of_rows)
        return rows

    def parameter(self, name: str) -> Any:
        """Return the parameter with this name in the module, None if it has none."""
        return attrgetter(name)(self.module)


def _of_linear(weight: str | None, bias: str | None, units: slice | None, total: int, use: Use) -> Iterable[Capture]:
    b = use.b
    if units is not None:  # the other rows of the weight have x_i = 0
        b = b.new_zeros(*b.shape[:-1], total)
        b[..., units] = use.b
    return linear_captures(use.names.get(weight or ""), use.names.get(bias or ""), use.a, b)


def _of_rows(use: Use) -> Iterable[Capture]:
    for name in use.names.values():
        yield Dense(name, array_of(use.b[:, None]))


@dataclass(frozen=True)
class Rewrite:
    """The forward pass of a class of modules with its uses of parameters recorded.

    Parameters
    ----------
    forward : callable
        Function of a `Recorder` and the module's own arguments, with the module's output.
    check : callable, optional
        Function of (module, path) that refuses settings which it does not have.
    """

    forward: Callable[..., Any]
    check: Callable[[Any, str], None] | None = None


REWRITES: dict[type, Rewrite] = {}
"""The rewritten layers by the exact class of module."""


def rewrite(
    *classes: type, check: Callable[[Any, str], None] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that registers a forward pass for some classes of modules."""

    def decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
        for one in classes:
            REWRITES[one] = Rewrite(forward, check)
        return forward

    return decorated
