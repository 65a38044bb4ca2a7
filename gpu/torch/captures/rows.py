"""Parameters that a module adds to all samples, such as learned positions (1, T, d): a copy for each sample.

While the module runs, its parameter is replaced by a view with n equal rows, whose gradients are x_i. Two checks show
that the module uses them so: its output is the same with the parameter itself (a sum over rows would not be), and the
first sample's output depends on the first row alone (`Hooks`), unlike where rows meet another axis.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from adamshap.gpu.captures import Dense
from adamshap.reference.contract import refuse
from adamshap.torch.backward import is_accumulated
from adamshap.torch.captures.block import Block
from adamshap.torch.captures.copies import OfThisModule
from adamshap.torch.memory import array_of
from adamshap.torch.random_state import RandomState, random_state, replayed

__all__ = ["attach_rows", "first_tensor"]


class Hooks(Protocol):
    """The open block of a model's hooks, and whether a pass is no sample's."""

    block: Any
    probing: ClassVar[bool]


def attach_rows(hooks: Hooks, module: nn.Module, path: str, own: Mapping[str, str]) -> list[Any]:
    """Return the handles of the hooks on a module that owns such parameters; `own` has the model's names."""
    kept: dict[str, Any] = {}
    begun: list[RandomState] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        block = hooks.block
        if block is None or not torch.is_grad_enabled() or kept:
            return
        begun[:] = [random_state()] if block.probed else []
        for local, name in own.items():
            p: Any = module._parameters[local]
            if not p.requires_grad:  # frozen since the attribution began
                continue
            kept[local] = p
            rows = p.expand(block.n, *p.shape[1:])
            rows.register_hook(lambda b, name=name, p=p: received(block, name, p, b))
            if block.probed:
                block.outputs.append((path, module, rows, 0))
            module._parameters[local] = rows

    def received(block: Block, name: str, p: torch.Tensor, b: torch.Tensor) -> None:
        if hooks.block is block and not hooks.probing and is_accumulated(p):
            block.add((Dense(name, array_of(b[:, None])),))

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not kept:
            return
        module._parameters.update(kept)
        kept.clear()
        if output is not None and begun:
            _refuse_other_output(hooks, module, path, own, begun.pop(), (args, kwargs), output)

    return [
        module.register_forward_pre_hook(OfThisModule(before), with_kwargs=True),
        module.register_forward_hook(OfThisModule(after), with_kwargs=True, always_call=True),
    ]


def _refuse_other_output(
    hooks: Hooks,
    module: nn.Module,
    path: str,
    own: Mapping[str, str],
    state: RandomState,
    inputs: tuple[Any, Any],
    output: Any,
) -> None:
    """Refuse a module whose output is another one with the parameter itself, by the same random numbers."""
    block, hooks.block = hooks.block, None
    try:
        with replayed(state), torch.no_grad():
            again = first_tensor(module.forward(*inputs[0], **inputs[1]))
    finally:
        hooks.block = block
    found = first_tensor(output)
    if not _are_near(found, again):
        name = next(iter(own.values()))
        got = f"a parameter of {path or 'the model itself'} that is used in another way than one row for each sample"
        refuse(f"model parameter {name!r}", got, "(1, …) broadcast to (n, …), or a frozen parameter")


def _are_near(found: torch.Tensor | None, again: torch.Tensor | None) -> bool:
    if found is None or again is None or found.shape != again.shape:
        return False
    return torch.allclose(found, again, rtol=1e-4, atol=1e-5, equal_nan=True)


def first_tensor(output: Any, n: int | None = None, axis: int = 0) -> torch.Tensor | None:
    """Return the first tensor of an output, in a tuple or mapping too; with a graph and `n` rows, if given."""
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    for part in parts:
        if not isinstance(part, torch.Tensor):
            continue
        if n is None or (part.requires_grad and part.ndim > axis and part.shape[axis] == n):
            return part
    return None
