"""Gradients by PyTorch's backward pass, without a silent 0 where it cannot see a parameter."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import torch

from adamshap.reference.contract import refuse

__all__ = ["differentiated", "is_accumulated", "is_hidden", "reaches"]

REENTRANT = "CheckpointFunctionBackward"
"""The node of a reentrant checkpoint, whose parameters are not in the graph."""


def differentiated(
    function: str, outputs: torch.Tensor, tensors: Sequence[torch.Tensor], weights: Any = None, **options: Any
) -> list[torch.Tensor | None]:
    """Return the gradients of `outputs`, times `weights`, in the `tensors`; None for a tensor that is not used.

    Parameters
    ----------
    function : str
        The user's function that returned `outputs`, for messages.
    outputs : tensor
    tensors : sequence of tensors
    weights : tensor, optional
    **options
        Of ``torch.autograd.grad``.

    Raises
    ------
    ValueError
        A reentrant checkpoint; a compiled model in several losses of `validation`.
    """
    try:
        found = torch.autograd.grad(outputs, tensors, weights, allow_unused=True, **options)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            _refuse_reentrant(function)
        if function == "validation()" and "donated_buffer" in str(error):  # losses() are computed again instead
            got = "losses of a compiled model, whose graph PyTorch goes through once, and not for each loss"
            refuse(function, got, "the model that was compiled, called as it is: it has the same parameters")
        raise
    if any(one is None for one in found) and any(node.name() == REENTRANT for node in _nodes(outputs.grad_fn)):
        _refuse_reentrant(function)
    return list(found)


def is_accumulated(p: torch.Tensor) -> bool:
    """Whether the backward pass that is running gives `p` a gradient, and not only inputs or other parameters."""
    if not p.requires_grad:
        return False
    try:
        node = torch.autograd.graph.get_gradient_edge(p).node
    except AttributeError:  # by torch.func, which has gradients of its own
        return False
    try:
        reached: bool = torch._C._will_engine_execute_node(node)
    except RuntimeError:  # by torch.autograd.grad, which was asked for p itself
        return True
    return reached


def is_hidden(output: torch.Tensor) -> bool:
    """Whether a tensor is the output of a reentrant checkpoint, which runs a backward pass of its own."""
    return output.grad_fn is not None and output.grad_fn.name() == REENTRANT


def reaches(outputs: torch.Tensor, tensors: Iterable[torch.Tensor]) -> bool:
    """Whether the graph of `outputs` has a leaf among the `tensors`."""
    ids = {id(one) for one in tensors}
    return any(id(getattr(node, "variable", None)) in ids for node in _nodes(outputs.grad_fn))


def _nodes(root: Any) -> Iterator[Any]:
    """Yield the nodes of a graph."""
    waiting, known = [root], {root}
    while waiting:
        node = waiting.pop()
        yield node
        later = {other for other, _ in node.next_functions if other is not None} - known
        known |= later
        waiting += later


def _refuse_reentrant(function: str) -> NoReturn:
    got = "a reentrant checkpoint, whose parameters torch.autograd.grad does not see"
    refuse(function, got, "torch.utils.checkpoint with use_reentrant=False, or none in this function")
