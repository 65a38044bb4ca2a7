"""Forward passes of modules that are replaced while samples are captured (`adamshap.torch.layers.rewrites`)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adamshap.torch.layers.registry import refuse_module
from adamshap.torch.layers.rewrites import REWRITES, Listener, Recorder

__all__ = ["replaced_forwards"]


class Replaced:
    """The forward pass of one module, for one or more attributions whose blocks are open.

    PyTorch looks a module's ``forward`` up in the module first, and in its class then.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.listeners: list[Listener] = []

    def __reduce__(self) -> tuple[Any, tuple[nn.Module]]:
        """Copies of the module are not listened to."""
        return Replaced, (self.module,)

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output; compiled code would leave out the hooks of gradients that nothing else needs."""
        listening = tuple(one for one in self.listeners if one.is_open)
        if not listening:
            return type(self.module).forward(self.module, *args, **kwargs)
        return REWRITES[type(self.module)].forward(Recorder(self.module, listening), *args, **kwargs)


@contextmanager
def replaced_forwards(listeners: Iterable[tuple[nn.Module, Listener]]) -> Iterator[None]:
    """Return a context manager in which the modules' forward passes are recorded."""
    begun: list[tuple[Replaced, Listener]] = []
    try:
        for module, listener in listeners:
            own = module.__dict__.get("forward")
            if own is not None and not isinstance(own, Replaced):
                refuse_module(module, listener.path, "a forward of its own instance", "the forward of its class")
            replaced = own if own is not None else Replaced(module)
            module.__dict__["forward"] = replaced
            replaced.listeners.append(listener)
            begun.append((replaced, listener))
        yield
    finally:
        for replaced, listener in begun:
            replaced.listeners.remove(listener)
            if not replaced.listeners:
                del replaced.module.__dict__["forward"]
