"""The validation loss of a PyTorch model, from the user's own function, at the parameters or at a point near them.

To the engine it is a model with a single row: x of that row is Γ, the gradient of the mean validation loss.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch

from adamshap.gpu.arrays import like
from adamshap.gpu.captures import Captures, Dense
from adamshap.gpu.context import EngineContext
from adamshap.reference.contract import refuse
from adamshap.torch.processes import Processes

__all__ = ["ValidationStack"]


@dataclass(frozen=True)
class GradientRow(Dense):
    """Γ of one parameter, a row of its own.

    `count` is the number of outer products of a training sample, by which a sketch of P is weighed.
    """

    count: int = 0

    @property
    def products(self) -> dict[str, int]:
        """The number of outer products of a sample of the batch."""
        return {self.name: self.count} if self.count else {}


@dataclass
class Gradients:
    """A workspace: the weighted sum of the gradients of the passes so far, and the last loss."""

    products: Mapping[str, int]
    total: dict[str, Any] = field(default_factory=dict)
    loss: float = 0.0

    def rows(self, which: slice) -> "Gradients":
        """Return itself: the row of a point adds to those of the points before it."""
        return self

    @property
    def captures(self) -> Captures:
        """The single row of all passes."""
        rows = [GradientRow(name, x[None], self.products.get(name, 0)) for name, x in self.total.items()]
        return Captures(tuple(rows), np.array([self.loss]))


@dataclass(frozen=True)
class ValidationStack:
    """The engine's interface to the validation loss (`adamshap.gpu.stack.Stack`).

    Parameters
    ----------
    model : torch.nn.Module
    loss : callable
        Function without arguments that returns the mean validation loss, a tensor.
    named : dict of parameters
        The parameters that take part in the step.
    products : dict of int
        Outer products of a training sample, by parameter.
    processes : Processes
        Those whose losses are averaged.
    """

    model: torch.nn.Module
    loss: Callable[[], torch.Tensor]
    named: Mapping[str, torch.nn.Parameter]
    products: Mapping[str, int] = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)

    @property
    def has_tangents(self) -> bool:
        """False: the user's function is differentiated backward alone."""
        return False

    def workspace(self, context: EngineContext, name: str, x: Any) -> Gradients:
        """Return an empty sum of gradients."""
        return Gradients(self.products)

    def run(
        self, context: EngineContext, workspace: Gradients, params: Mapping[str, Any], y: Any, weight: Any
    ) -> Captures:
        """Add ``weight`` times the gradient of the loss at `params`."""
        with self._moved(context, params):
            workspace.loss, gradients = self._evaluated(differentiate=True)
        for name, gradient in gradients.items():
            weighted = gradient if weight == 1 else gradient * gradient.dtype.type(weight)
            before = workspace.total.get(name)
            workspace.total[name] = weighted if before is None else before + weighted
        return workspace.captures

    def losses(self, context: EngineContext, workspace: Gradients, params: Mapping[str, Any], y: Any) -> Any:
        """Return the loss at `params` as an array (1,)."""
        with self._moved(context, params):
            loss, _ = self._evaluated(differentiate=False)
        return np.array([loss], context.backend.dtype)

    def add_tangent_dots(self, *_: object) -> NoReturn:
        """Refuse: never called, as the stack has no tangents."""
        raise AssertionError("the validation loss has no tangents")

    def at_start(self, context: EngineContext) -> Captures:
        """Return the row of Γ at θ."""
        return self.run(context, self.workspace(context, "start", None), {}, None, 1.0)

    @contextmanager
    def _moved(self, context: EngineContext, params: Mapping[str, Any]) -> Iterator[None]:
        """Move the parameters to `params` for a while; they come back bit for bit."""
        if not params:
            yield
            return
        kept = like(context, "kept theta")
        for name, p in self.named.items():  # p.data: PyTorch does not count these edits, as they are taken back
            kept[name][...] = p.detach().numpy()
            p.data.copy_(torch.from_numpy(params[name]))
        try:
            yield
        finally:
            for name, p in self.named.items():
                p.data.copy_(torch.from_numpy(kept[name]))

    def _evaluated(self, *, differentiate: bool) -> tuple[float, dict[str, Any]]:
        """Return the loss and its gradient at the present parameters."""
        tensors = list(self.named.values())
        with self.processes.without_wrapper(), undisturbed(self.model), torch.enable_grad():
            loss, size = _with_size(self.loss())
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
                refuse("validation()", shape, "one number, the mean validation loss, as a tensor", TypeError)
            value = loss.item()
            if not math.isfinite(value):
                refuse("validation()", value, "a finite loss", FloatingPointError)
            if not differentiate:
                return self.processes.mean_loss(value, size, {})
            if not loss.requires_grad:
                refuse("validation()", "a tensor without a graph", "the loss as computed, without detach or no_grad")
            gradients = torch.autograd.grad(loss.sum(), tensors, allow_unused=True)
        arrays = {}
        for (name, p), gradient in zip(self.named.items(), gradients, strict=True):
            own = torch.zeros_like(p) if gradient is None else gradient
            arrays[name] = np.require(own.detach().numpy(), requirements=["C", "W"])
        return self.processes.mean_loss(value, size, arrays)


def _with_size(found: Any) -> tuple[Any, float | None]:
    """Return a loss and the number of its samples, if the user's function returned both."""
    if not (isinstance(found, tuple) and len(found) == 2):
        return found, None
    size = float(found[1])
    if not 0 < size < math.inf:
        refuse("validation()", f"a loss of {found[1]!r} samples", "(mean loss, number of samples), at least one")
    return found[0], size


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Put PyTorch's random state and the modules' modes back; refuse changes of gradients and buffers."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = {name: _version(p.grad) for name, p in model.named_parameters()}
    buffers = {name: _version(buffer) for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        for module, training in modes:
            module.training = training
    if changed := [name for name, p in model.named_parameters() if _version(p.grad) != gradients[name]]:
        needs = "the loss alone, without backward() or zero_grad()"
        refuse("validation()", f"a function that changed the gradient of {changed[0]!r}", needs)
    if changed := [name for name, buffer in model.named_buffers() if _version(buffer) != buffers.get(name)]:
        needs = "model.eval() inside: the training mode is put back afterwards"
        refuse("validation()", f"a function that changed the buffer {changed[0]!r}", needs)


def _version(tensor: torch.Tensor | None) -> tuple[int, int] | None:
    """Return the identity of a tensor and the number of its edits in place."""
    return None if tensor is None else (id(tensor), tensor._version)
