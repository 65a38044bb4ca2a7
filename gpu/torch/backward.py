"""Gradients by PyTorch's backward pass, without a silent 0 where it cannot see a parameter."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from adamshap.reference.contract import refuse

__all__ = ["differentiated"]

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
    if any(one is None for one in found) and _has_node(outputs.grad_fn, REENTRANT):
        _refuse_reentrant(function)
    return list(found)


def _has_node(root: Any, name: str) -> bool:
    """Whether the graph has a node of this name."""
    waiting, known = [root], {root}
    while waiting:
        node = waiting.pop()
        if node.name() == name:
            return True
        later = {other for other, _ in node.next_functions if other is not None} - known
        known |= later
        waiting += later
    return False


def _refuse_reentrant(function: str) -> NoReturn:
    got = "a reentrant checkpoint, whose parameters torch.autograd.grad does not see"
    refuse(function, got, "torch.utils.checkpoint with use_reentrant=False, or none in this function")
