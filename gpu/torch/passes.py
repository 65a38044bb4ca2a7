"""The passes before a step, as the modules that check and score it share them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adamshap.reference.contract import Array
from adamshap.torch.captures.block import Block

__all__ = ["StepPasses"]


@dataclass(frozen=True)
class StepPasses:
    """The passes before an ``optimizer.step()``.

    Parameters
    ----------
    blocks : sequence of Block
    named : dict of parameters
        Those that take part in the step.
    gradients : dict of arrays
        Their p.grad.
    number : int
        Number of the step, from 1.
    checked : bool
        Whether the step is checked in full.
    """

    blocks: Sequence[Block]
    named: Mapping[str, torch.nn.Parameter]
    gradients: Mapping[str, Array]
    number: int
    checked: bool
