"""The samples that wait for ``optimizer.step()``: their blocks, and what shows mistakes between blocks and steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from adamshap.reference.contract import Array, refuse
from adamshap.torch.captures.block import Block
from adamshap.torch.checks.mistakes import (
    UsedGradient,
    gradients_are_gone,
    refuse_changes,
    refuse_other_step,
    refuse_passes,
    refuse_repeats,
    versions_of,
)
from adamshap.torch.random_state import random_state
from adamshap.torch.sources import Source

__all__ = ["Pending"]


@dataclass
class Pending:
    """The blocks since the last step.

    Parameters
    ----------
    model : torch.nn.Module
    named : dict of parameters
        Those that are trained.
    source : Source
    blocks : list of Block
    copies : dict of tensors
        The parameters when the first block began, if the step is checked in full.
    used : UsedGradient, optional
        A gradient of the last step, until the next samples.
    """

    model: torch.nn.Module
    named: Mapping[str, torch.nn.Parameter]
    source: Source
    blocks: list[Block] = field(default_factory=list)
    copies: dict[str, torch.Tensor] = field(default_factory=dict)
    used: UsedGradient | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return sum(block.n for block in self.blocks)

    def begin(self, index: Array, losses: Callable[[], torch.Tensor] | None, *, checked: bool) -> Block:
        """Return a new block.

        Parameters
        ----------
        index : int array (n,)
        losses : callable, optional
            The user's function that returns the samples' losses.
        checked : bool
            Whether the coming step is checked in full.
        """
        self.refuse_other_step()
        self._forget_without_gradients()
        if not self.blocks and checked:
            self.copies = {name: p.detach().clone() for name, p in self.named.items()}
        refuse_repeats(index, self.blocks)
        random = None if losses is None else random_state()
        block = Block(index, versions_of(self.named), probed=checked, losses=losses, random=random)
        self.blocks.append(block)
        return block

    def drop(self, block: Block) -> bool:
        """Forget a block that failed; return whether the scores of the others can still be computed."""
        if block not in self.blocks:
            return True
        self.blocks.remove(block)
        hooks = self.source.hooks
        hooks.stray = next(iter(block.reached), hooks.stray)  # its gradients are there
        if not self.blocks:
            self.source.forget()
        return not (self.blocks and self.source.joins_blocks)

    def forget(self) -> None:
        """Forget all samples: they have no step, or their step is scored."""
        self.blocks.clear()
        self.source.hooks.stray = None
        self.source.forget()

    def end(self) -> None:
        """Begin anew after a step."""
        self.copies, self.used = {}, UsedGradient.of(self.named)

    def refuse_mistakes(self, step: int) -> None:
        """Refuse a step without samples or with other backward passes, and a model that changed since the samples."""
        refuse_passes(self.blocks, self.source.hooks.stray, step, captured=self.source.captures)
        refuse_changes(self.blocks, self.model, self.named, self.copies)

    def refuse_other_step(self) -> None:
        """Refuse samples whose step another optimiser took: they would have scores of 0."""
        refuse_other_step(self.blocks, self.named)

    def refuse_late_edits(self, step: int) -> None:
        """Refuse a gradient that was edited after the `step` that used it, as by clipping in the wrong place."""
        if self.used is None or self.blocks:
            return
        used, self.used = self.used, None
        if used.is_edited:
            needs = "clipping and other edits between backward() and step(): after the step they have no effect"
            refuse("optimizer.step", f"gradients that were edited after step {step}", needs)

    def _forget_without_gradients(self) -> None:
        """Forget the samples if their gradients are gone, as by zero_grad(): they have no step."""
        if not self.blocks and self.source.hooks.stray is None:
            return
        if gradients_are_gone(self.named, self.blocks[-1].left if self.blocks else None):
            self.forget()
