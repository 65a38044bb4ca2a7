"""A user's function of a loss is called without effects on the model: `undisturbed`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from adamshap.reference.contract import refuse
from adamshap.torch.random_state import put_back

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(model: torch.nn.Module, function: str) -> Iterator[None]:
    """Put PyTorch's random state and the modules' modes back; refuse any other change of the model by `function`."""
    modes = [(module, module.training) for module in model.modules()]
    before = _versions_of(model)
    try:
        with put_back():
            yield
    except (RuntimeError, ValueError) as error:  # of a loss without a graph, or whose graph backward() has used up
        _refuse_changes(model, function, before, error)
        raise
    finally:
        for module, training in modes:
            module.training = training
    _refuse_changes(model, function, before)


def _versions_of(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return the versions of parameters, gradients and buffers, and which parameters are trainable."""
    named = dict(model.named_parameters())
    return [
        {name: _version(p) for name, p in named.items()},
        {name: p.requires_grad for name, p in named.items()},
        {name: _version(p.grad) for name, p in named.items()},
        {name: _version(buffer) for name, buffer in model.named_buffers()},
    ]


def _refuse_changes(
    model: torch.nn.Module, function: str, before: list[dict[str, Any]], cause: Exception | None = None
) -> None:
    explained = (
        ("the parameter", "the loss alone, or that of a copy of the model's state in other tensors"),
        ("requires_grad of", "the loss alone: its gradients are taken in all trainable parameters"),
        ("the gradient of", "the loss alone, without backward() or zero_grad()"),
        ("the buffer", "model.eval() inside: the training mode is put back afterwards"),
    )
    for old, new, (what, needs) in zip(before, _versions_of(model), explained, strict=True):
        if changed := [name for name in new if new[name] != old.get(name)]:
            try:
                refuse(function, f"a function that changed {what} {changed[0]!r}", needs)
            except ValueError as error:
                raise error from cause


def _version(tensor: torch.Tensor | None) -> tuple[int, int] | None:
    """Return the identity of a tensor and the number of its edits in place."""
    return None if tensor is None else (id(tensor), tensor._version)
