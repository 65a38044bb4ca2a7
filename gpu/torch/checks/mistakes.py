"""Mistakes of a loop that show before its step is scored: each is refused, with what to do."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adamshap.reference.contract import Array, refuse, shown
from adamshap.torch.captures.block import Block
from adamshap.torch.memory import array_of

__all__ = [
    "UsedGradient",
    "checked_index",
    "gradients_are_gone",
    "gradients_of",
    "modes_of",
    "refuse_changes",
    "refuse_closure",
    "refuse_other_step",
    "refuse_passes",
    "refuse_repeats",
    "versions_of",
    "versions_of_gradients",
]


def checked_index(index: Any, count: int, may_be_empty: bool = False) -> Array:
    """Return the numbers of samples, of which there are `count`, as integers (n,)."""
    try:
        array = np.asarray(index.detach().cpu() if isinstance(index, torch.Tensor) else index)
    except (ValueError, TypeError):  # of lists of different lengths, or tensors on a card
        array = np.asarray(None)
    if may_be_empty and array.shape == (0,):
        return np.zeros(0, np.int64)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        got = f"{array.dtype} of shape {array.shape}" if array.dtype != object else shown(index)
        refuse("index", got, "the numbers of the batch's samples, integers (n,)", TypeError)
    wrong = array[(array < 0) | (array >= count)]
    if len(wrong):
        refuse("index", int(wrong[0]), f"numbers from 0 to {count - 1}, as n_samples is {count}")
    values, times = np.unique(array, return_counts=True)
    if times.max() > 1:
        refuse("index", f"sample {values[times.argmax()]} {times.max()} times", "each sample once in a step")
    return array.astype(np.int64)


def refuse_repeats(index: Array, earlier: Collection[Block]) -> None:
    """Refuse samples that an earlier block of the step has."""
    for block in earlier:
        if len(twice := np.intersect1d(index, block.index)):
            refuse("index", f"sample {twice[0]} again before the step", "each sample once in a step")


def versions_of(named: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the number of edits in place of each parameter, as PyTorch counts them."""
    return {name: p._version for name, p in named.items()}


def versions_of_gradients(named: Mapping[str, torch.Tensor]) -> list[tuple[int, int] | None]:
    """Return the identity of each gradient and the number of its edits in place."""
    return [None if p.grad is None else (id(p.grad), p.grad._version) for p in named.values()]


def gradients_are_gone(named: Mapping[str, torch.Tensor], left: list[tuple[int, int] | None] | None) -> bool:
    """Return whether zero_grad() took the gradients away that the last block left, whose versions are `left`.

    Gradients that were 0 then, such as those of samples whose labels are all ignored, have not been taken away.
    """
    if any(p.grad is not None and p.grad.any() for p in named.values()):
        return False
    return left is None or not any(left) or left != versions_of_gradients(named)


def modes_of(model: torch.nn.Module) -> tuple[bool, ...]:
    """Return whether each module is in training mode."""
    return tuple(module.training for module in model.modules())


@dataclass(frozen=True)
class UsedGradient:
    """The smallest gradient that a step used: an edit of all gradients after the step shows in it.

    Parameters
    ----------
    gradient : tensor, optional
        None, if no parameter has one.
    version : int
        Its version counter after the step.
    """

    gradient: torch.Tensor | None = None
    version: int = 0

    @classmethod
    def of(cls, named: Mapping[str, torch.Tensor]) -> "UsedGradient":
        """Return that of a step which has just been taken."""
        smallest = min(named.values(), key=lambda p: p.numel() if p.grad is not None else float("inf"))
        return cls() if smallest.grad is None else cls(smallest.grad, smallest.grad._version)

    @property
    def is_edited(self) -> bool:
        """Whether it was edited since, other than set to 0."""
        gradient = self.gradient
        return gradient is not None and gradient._version != self.version and bool(gradient.any())


def refuse_closure(args: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse a closure, which the optimiser would call between the scores and the step."""
    if any(one is not None for one in (*args[1:], *kwargs.values())):  # args[0] is the optimiser
        refuse("optimizer.step", "a closure", "no argument: forward and backward pass before the step")


def refuse_passes(blocks: Collection[Block], stray: str | None, step: int, *, captured: bool) -> None:
    """Refuse a step without samples, or with backward passes of none; without captures, by what these reached."""
    if not blocks:
        got = f"a step without samples (step {step})"
        refuse("optimizer.step", got, "forward and backward pass in `with attribution.samples(index):`")
    if stray is not None:
        got = f"a backward pass outside `samples`, which reached {stray!r}, before step {step}"
        refuse("optimizer.step", got, "each backward pass of a step inside `samples`, and zero_grad() after others")
    for block in blocks:
        if block.n and not (block.uses if captured else block.reached):
            got = f"samples {shown(block.index.tolist())} without a backward pass"
            needs = (
                "forward and backward pass inside, without torch.func; a compiled model must not be called before the"
                " Attribution begins"
            )
            refuse("attribution.samples", got, needs)


def refuse_other_step(blocks: Collection[Block], named: Mapping[str, torch.Tensor]) -> None:
    """Refuse samples whose step the attribution did not see, though their parameters have moved since."""
    for block in blocks:
        if moved := [name for name, version in block.versions.items() if named[name]._version != version]:
            got = f"no step() after samples {shown(block.index.tolist())}, but {moved[0]!r} changed"
            refuse(
                "optimizer", got, "the optimiser whose step() the loop calls; no other edits of parameters before it"
            )


def refuse_changes(
    blocks: Collection[Block],
    model: torch.nn.Module,
    named: Mapping[str, torch.Tensor],
    begun: Mapping[str, torch.Tensor],
) -> None:
    """Refuse a model that is no longer the one that the samples went through; `begun` has copies of the parameters."""
    modes = modes_of(model)
    for block in blocks:
        if block.modes not in (None, modes):
            changed = zip(model.named_modules(), block.modes or (), modes, strict=True)
            path = next(path for (path, _), old, now in changed if old != now)
            got = f"another mode of {path or 'the model'!r} than in `samples`"
            refuse("optimizer.step", got, "model.eval() and model.train() before `samples`, or after the step")
        for path, tensor, version in block.inputs:
            if tensor._version != version:
                got = "an input that was edited in place after its backward pass"
                refuse(f"model module {path!r}", got, "inputs that stay until optimizer.step(): x.clone()")
        for name, version in block.versions.items():
            if named[name]._version != version:
                _refuse_edit(name)
    for name, before in begun.items():
        if not torch.equal(before, named[name].detach()):
            _refuse_edit(name)


def _refuse_edit(name: str) -> None:
    got = "an edit in place between the forward pass and the step"
    refuse(f"model parameter {name!r}", got, "edits of parameters after optimizer.step() and before `samples`")


def gradients_of(
    named: Mapping[str, torch.Tensor],
    used: Collection[str],
    modules: Mapping[str, list[str]],
    step: int,
    scale: torch.Tensor | None = None,
) -> dict[str, Array]:
    """Return p.grad of the parameters that have one, which take part in the step; PyTorch leaves the others alone.

    They are divided by the `scale` by which the optimiser divides them.
    """
    gradients = {
        name: array_of(p.grad if scale is None else p.grad.detach() / scale.to(p.grad.device))
        for name, p in named.items()
        if p.grad is not None
    }
    for name in named:
        where = " and ".join(modules.get(name, ["no module"]))
        if name in used and name not in gradients:
            got = f"None at step {step}, where samples have one in {where}"
            refuse(f"gradient of {name!r}", got, "no zero_grad() between backward() and step()")
        if name in gradients and name not in used and gradients[name].any():
            got = f"one at step {step} that no capture explains, in {where}"
            needs = (
                "forward and backward pass inside `samples`, by calls of its module: F.linear or another function"
                " called with the parameter is not seen"
            )
            refuse(f"gradient of {name!r}", got, needs)
    return gradients
