"""The context of a step: the model's forward and backward pass, the backend, its routines and buffers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from adamshap.gpu.backend import Backend, Buffers, Place, within_memory
from adamshap.gpu.kernels import Kernels
from adamshap.gpu.ops import Ops
from adamshap.gpu.threads import own_threads
from adamshap.reference.contract import Model

if TYPE_CHECKING:
    from adamshap.gpu.stack import Stack

__all__ = ["EngineContext"]


@dataclass(frozen=True)
class EngineContext:
    """The context that every part of a step works in; `layers.context_for` builds one.

    Parameters
    ----------
    model : Model
    stack : Stack
        The model's forward and backward pass.
    backend : Backend
    kernels : Kernels
    ops : Ops
    buffers : Buffers
    shapes : dict
        Shape of each parameter, by name.
    place : Place
        The computation in progress, for error messages.
    parts : int, optional
        Number of parts that work is divided into; None: one per processor.
    bfloat16_product : callable, optional
        Function of a, b and an array that writes ``a b`` there, both rounded to bfloat16, by threads of its own: on the
        host, where NumPy has no such product.
    """

    model: Model
    stack: "Stack"
    backend: Backend
    kernels: Kernels
    ops: Ops
    buffers: Buffers
    shapes: Mapping[str, tuple[int, ...]]
    place: Place = field(default_factory=Place)
    parts: int | None = None
    bfloat16_product: Callable[[Any, Any, Any], None] | None = None

    def now(self, phase: str, samples: slice | str | None = None) -> None:
        """Record the phase and the samples of the computation, for the message when memory runs out."""
        self.place.phase = phase
        if samples is not None:
            self.place.samples = samples

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Return a context manager for taking steps: on the host, with the engine's own threads.

        It suppresses warnings of overflow, as the results are checked.
        """
        with within_memory(self.place), np.errstate(over="ignore", invalid="ignore"):
            if self.backend.on_cuda:
                yield
                return
            with own_threads(self.parts):
                yield
