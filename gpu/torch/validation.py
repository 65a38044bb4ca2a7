"""The validation loss of a PyTorch model, from the user's own function, at the parameters or at a point near them.

To the engine it is a model with a single row: x of that row is Γ, the gradient of the mean validation loss. With
``per_validation`` it has n_val rows, the gradients of the validation samples' own losses.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch

from adamshap.gpu.arrays import like
from adamshap.gpu.captures import Captures, gradient_rows
from adamshap.gpu.context import EngineContext
from adamshap.reference.contract import Array, refuse
from adamshap.torch.backward import differentiated, reaches
from adamshap.torch.memory import array_of, tensor_of
from adamshap.torch.processes import Processes
from adamshap.torch.undisturbed import undisturbed

__all__ = ["ValidationStack", "refuse_not_finite"]


@dataclass
class Gradients:
    """A workspace: the weighted sum of the gradients of the passes so far, and the last losses."""

    products: Mapping[str, int]
    total: dict[str, Any] = field(default_factory=dict)
    losses: Any = None

    def rows(self, which: slice) -> "Gradients":
        """Return itself: the rows of a point add to those of the points before it."""
        return self

    @property
    def captures(self) -> Captures:
        """The rows, each summed over all passes."""
        return gradient_rows(self.total, self.products, self.losses)


@dataclass(frozen=True)
class ValidationStack:
    """The engine's interface to the validation loss (`adamshap.gpu.stack.Stack`).

    Parameters
    ----------
    model : torch.nn.Module
    loss : callable
        Function without arguments that returns the mean validation loss, a tensor; or the validation samples' own
        losses, (n_val,).
    named : dict of parameters
        The parameters that take part in the step.
    products : dict of int
        Outer products of a training sample, by parameter.
    n_val : int, optional
        Number of losses, if each validation sample has its own; None: `loss` returns their mean, or the mean and the
        number of samples that it is of.
    processes : Processes
        Those whose losses are averaged.
    """

    model: torch.nn.Module
    loss: Callable[[], torch.Tensor]
    named: Mapping[str, torch.nn.Parameter]
    products: Mapping[str, int] = field(default_factory=dict)
    n_val: int | None = None
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
        """Add ``weight`` times the gradients of the losses at `params`."""
        with self._moved(context, params):
            workspace.losses, gradients = self._evaluated(context, differentiate=True)
        for name, gradient in gradients.items():
            weighted = gradient if weight == 1 else gradient * gradient.dtype.type(weight)
            before = workspace.total.get(name)
            workspace.total[name] = weighted if before is None else before + weighted
        return workspace.captures

    def losses(self, context: EngineContext, workspace: Gradients, params: Mapping[str, Any], y: Any) -> Any:
        """Return the losses at `params`, (n_val,), or the mean (1,)."""
        with self._moved(context, params):
            losses, _ = self._evaluated(context, differentiate=False)
        return context.backend.real(losses)

    def add_tangent_dots(self, *_: object) -> NoReturn:
        """Refuse: never called, as the stack has no tangents."""
        raise AssertionError("the validation loss has no tangents")

    def at_start(self, context: EngineContext) -> Captures:
        """Return the rows of Γ at θ."""
        return self.run(context, self.workspace(context, "start", None), {}, None, 1.0)

    @contextmanager
    def _moved(self, context: EngineContext, params: Mapping[str, Any]) -> Iterator[None]:
        """Move the parameters to `params` for a while; they come back bit for bit."""
        if not params:
            yield
            return
        kept = like(context, "kept theta")
        for name, p in self.named.items():  # p.data: PyTorch does not count these edits, as they are taken back
            kept[name][...] = array_of(p)
            p.data.copy_(tensor_of(params[name], p.device))
        try:
            yield
        finally:
            for name, p in self.named.items():
                p.data.copy_(tensor_of(kept[name], p.device))

    def count(self) -> int:
        """Return the number of validation samples, by a pass without derivatives."""
        with undisturbed(self.model, "validation()"), torch.no_grad():
            loss = self.loss()
        if not isinstance(loss, torch.Tensor) or loss.ndim != 1 or not len(loss):
            self._refuse_shape(loss)
        return len(loss)

    def _evaluated(self, context: EngineContext, *, differentiate: bool) -> tuple[Array, dict[str, Any]]:
        """Return the losses (rows,) and their gradients (rows, …) at the present parameters.

        On a card without waiting for them.
        """
        tensors = list(self.named.values())
        with self.processes.without_wrapper(), undisturbed(self.model, "validation()"), torch.enable_grad():
            loss, size = _with_size(self.loss()) if self.n_val is None else (self.loss(), None)
            if not isinstance(loss, torch.Tensor) or not loss.is_floating_point():
                self._refuse_shape(loss)
            if loss.numel() != 1 if self.n_val is None else loss.shape != (self.n_val,):
                self._refuse_shape(loss)
            torch.set_grad_enabled(True)  # which the function may have switched off
            losses = loss.reshape(-1)
            values = array_of(losses)
            if not context.backend.on_cuda:  # a device does not wait to know: its results are checked later
                refuse_not_finite(values)
            if not differentiate:
                return self.processes.mean_loss(values, size, {})
            if not loss.requires_grad:
                refuse("validation()", "a tensor without a graph", "the loss as computed, without detach or no_grad")
            gradients = _gradients_of_each(losses, tensors)
            if all(one is None for one in gradients) and not reaches(losses, self.model.parameters()):
                needs = "the loss of this very model: of a copy, such as an average of weights, all scores would be 0"
                refuse("validation()", "a loss that depends on no parameter of the model", needs)
        arrays = {}
        for (name, p), gradient in zip(self.named.items(), gradients, strict=True):
            own = torch.zeros(len(values), *p.shape, dtype=p.dtype, device=p.device) if gradient is None else gradient
            array = array_of(own)
            arrays[name] = array if context.backend.on_cuda else np.require(array, requirements=["C", "W"])
        return self.processes.mean_loss(values, size, arrays)

    def _refuse_shape(self, loss: object) -> NoReturn:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
        if isinstance(loss, torch.Tensor) and not loss.is_floating_point():
            got = f"{got} and {loss.dtype}"
        needs = "one number, the mean validation loss, as a tensor; or per_validation=True, for one of each sample"
        if self.n_val is not None:
            of_all = f"({self.n_val},), as before" if self.n_val else "(n_val,)"
            needs = f"the validation samples' own losses, a tensor of shape {of_all}: per_validation=True"
        refuse("validation()", got, needs, TypeError)


def _with_size(found: Any) -> tuple[Any, float | None]:
    """Return a loss and the number of its samples, if the user's function returned both."""
    if not (isinstance(found, tuple) and len(found) == 2):
        return found, None
    size = float(found[1])
    if not 0 < size < math.inf:
        refuse("validation()", f"a loss of {found[1]!r} samples", "(mean loss, number of samples), at least one")
    return found[0], size


def _gradients_of_each(losses: torch.Tensor, tensors: list[Any]) -> list[torch.Tensor | None]:
    """Return the gradients of each loss (rows, …), in one batched backward pass where PyTorch has one."""
    if len(losses) == 1:
        return [None if one is None else one[None] for one in differentiated("validation()", losses.sum(), tensors)]
    units = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that PyTorch batches by a loop of its own
            return differentiated("validation()", losses, tensors, units, retain_graph=True, is_grads_batched=True)
    except RuntimeError:  # a function without a batched backward pass
        rows = [differentiated("validation()", losses, tensors, unit, retain_graph=True) for unit in units]
    return [None if one[0] is None else torch.stack(one) for one in zip(*rows, strict=True)]


def refuse_not_finite(losses: Any) -> None:
    """Refuse validation losses, in host memory, that are not finite."""
    wrong = [float(one) for one in losses if not math.isfinite(one)]
    if wrong:
        refuse("validation()", wrong[0], "a finite loss", FloatingPointError)
