"""The passes of one ``with attribution.samples(index)``: their samples and captures, and notes for the checks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from adamshap.gpu.captures import Capture, Captures
from adamshap.reference.contract import Array
from adamshap.torch.captures.roundoff import Roundoff
from adamshap.torch.random_state import RandomState

__all__ = ["Block"]


@dataclass(eq=False)
class Block:
    """The captures between the beginning and the end of one ``with attribution.samples(index)``.

    Parameters
    ----------
    index : int array (n,)
        The samples.
    versions : dict of int
        The parameters' version counters at the beginning: PyTorch counts edits in place.
    uses : list of Capture
        The captures so far.
    inputs : list of (str, tensor, int)
        Each use's module and input, whose memory the captures share, and its version counter then.
    probed : bool
        Whether the pass is tested for samples that interact.
    squares : bool
        Whether an embedding had n sequences of n ids.
    modes : tuple of bool, or None
        Whether each module was in training mode at the end; None before it.
    left : list, or None
        Identity and version counter of each gradient at the end; None before it.
    outputs : list of (str, module, tensor, int)
        Outputs of uses, each with its axis of samples, which the test for samples that interact needs.
    roundoffs : dict of Roundoff
        Of each parameter's gradient.
    streams : set of int
        The streams of a card on which gradients came back.
    losses : callable, optional
        The user's function that returns the samples' losses.
    random : RandomState, optional
        PyTorch's random state at the beginning, with `losses`.
    reached : set of str
        The parameters that a backward pass gave a gradient.
    reduce : callable, optional
        Function that takes each capture as it comes, in place of `uses` and `inputs`.
    calls : dict of int
        Number of calls of modules with each parameter.
    """

    index: Array
    versions: Mapping[str, int]
    uses: list[Capture] = field(default_factory=list)
    inputs: list[tuple[str, torch.Tensor, int]] = field(default_factory=list)
    probed: bool = False
    squares: bool = False
    modes: tuple[bool, ...] | None = None
    left: list[tuple[int, int] | None] | None = None
    outputs: list[tuple[str, nn.Module, torch.Tensor, int]] = field(default_factory=list)
    roundoffs: dict[str, Roundoff] = field(default_factory=dict)
    streams: set[int] = field(default_factory=set)
    losses: Callable[[], torch.Tensor] | None = None
    random: RandomState | None = None
    reached: set[str] = field(default_factory=set)
    reduce: Callable[[Capture], None] | None = None
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.index)

    @property
    def captures(self) -> Captures:
        """The captures of its backward passes."""
        return Captures(tuple(self.uses))

    def add(self, uses: Iterable[Capture]) -> None:
        """Add captures."""
        if self.reduce is None:
            self.uses += uses
            return
        for use in uses:
            self.reduce(use)
