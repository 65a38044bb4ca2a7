"""Where the x_i of a step come from: captures, captures of passes that run again, or the derivatives of the losses.

`Attribution` opens a source's block around each forward and backward pass, and asks it for the step's `SampleGradients`
before ``optimizer.step()``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

from adamshap.gpu.backend import Backend
from adamshap.gpu.context import EngineContext
from adamshap.torch.captures.block import Block
from adamshap.torch.captures.hooks import Hooks
from adamshap.torch.captures.recompute import Recomputation
from adamshap.torch.captures.roundoff import joined
from adamshap.torch.checks.gradients import Passes, cheapest, factor_of
from adamshap.torch.checks.steps import check_finite
from adamshap.torch.forward_mode.derivatives import Derivatives
from adamshap.torch.forward_mode.step import GradientHooks, step_of
from adamshap.torch.passes import StepPasses
from adamshap.torch.processes import Processes
from adamshap.torch.scoring import SampleGradients, chunks_of
from adamshap.torch.settings import Settings

__all__ = ["FromCaptures", "FromLosses", "FromSecondPass", "Source", "source_of"]


class Source(Protocol):
    """Gives the x_i of a step."""

    captures: ClassVar[bool]  # whether it needs captures of each block
    joins_blocks: ClassVar[bool]  # whether it keeps sums over blocks, out of which no block can be taken

    @property
    def hooks(self) -> Hooks:
        """The hooks on the model."""

    def open(self, block: Block, again: Callable[..., Any] | None, *, checked: bool) -> AbstractContextManager[None]:
        """Return a context manager for the forward and backward pass of a block."""

    def of(self, passes: StepPasses) -> SampleGradients:
        """Return the step's x_i, after the check of its gradients."""

    def forget(self) -> None:
        """Forget the blocks since the last step."""


@dataclass(frozen=True)
class FromCaptures:
    """x_i from captures that are kept until the step.

    Parameters
    ----------
    hooks : Hooks
    backend : Backend
    cheapest : list of str
        The parameters that are compared in every step.
    processes : Processes
    """

    captures: ClassVar[bool] = True
    joins_blocks: ClassVar[bool] = False
    hooks: Hooks
    backend: Backend
    cheapest: list[str]
    processes: Processes

    def open(self, block: Block, again: Callable[..., Any] | None, *, checked: bool) -> AbstractContextManager[None]:
        """Return a context manager that captures into the block."""
        return _opened(self.hooks, block)

    def of(self, passes: StepPasses) -> SampleGradients:
        """Return the step's captures, with f from the comparison of their sums with the gradients."""
        gradients, backend = passes.gradients, self.backend
        chunks = chunks_of(backend, passes.blocks, gradients)
        names = [name for name in self.cheapest if name in gradients]
        check_finite(backend, {name: gradients[name] for name in names} or gradients, passes.number)
        compared = list(gradients) if passes.checked or not names else names
        roundoffs = self.processes.largest_roundoffs(joined(block.roundoffs for block in passes.blocks))
        captures, modules = [one for _, one in chunks], self.hooks.modules
        found = Passes(backend, gradients, captures, roundoffs, modules, passes.number, self.processes)
        compare = None if len(compared) == len(gradients) else partial(factor_of, found, list(gradients))
        return SampleGradients(chunks, factor_of(found, compared), compare=compare, roundoffs=roundoffs)

    def forget(self) -> None:
        """Do nothing: the blocks have the captures."""


@dataclass(frozen=True)
class FromSecondPass:
    """x_i from captures that are made again, one layer at a time, when they are contracted.

    Parameters
    ----------
    first : FromCaptures
        Source of the first pass, of whose captures only sums and norms are kept.
    recomputation : Recomputation
    """

    captures: ClassVar[bool] = True
    joins_blocks: ClassVar[bool] = True
    first: FromCaptures
    recomputation: Recomputation

    @property
    def hooks(self) -> Hooks:
        """The hooks on the model."""
        return self.first.hooks

    @contextmanager
    def open(self, block: Block, again: Callable[..., Any] | None, *, checked: bool) -> Iterator[None]:
        """Return a context manager in which the captures of a block are reduced as they come."""
        if again is None:
            raise AssertionError("no function for a second pass")
        with self.recomputation.reducing(block, again, checked=checked), _opened(self.hooks, block):
            yield

    def of(self, passes: StepPasses) -> SampleGradients:
        """Return functions that repeat the passes of each block."""
        kept = self.first.of(passes)
        chunks = self.recomputation.chunks([rows for rows, _ in kept.chunks])
        return replace(kept, chunks=chunks, norms=self.recomputation.norms)

    def forget(self) -> None:
        """Forget the functions and the sums."""
        self.recomputation.clear()


@dataclass(frozen=True)
class FromLosses:
    """⟨P, f x_i⟩ from the derivatives of the samples' losses, without captures.

    Parameters
    ----------
    hooks : Hooks
    backend : Backend
    derivatives : Derivatives
    """

    captures: ClassVar[bool] = False
    joins_blocks: ClassVar[bool] = False
    hooks: Hooks
    backend: Backend
    derivatives: Derivatives

    def open(self, block: Block, again: Callable[..., Any] | None, *, checked: bool) -> AbstractContextManager[None]:
        """Return a context manager that notes the parameters that the backward pass reaches."""
        return _opened(self.hooks, block)

    def of(self, passes: StepPasses) -> SampleGradients:
        """Return the step's losses."""
        check_finite(self.backend, passes.gradients, passes.number)
        forward = step_of(self.backend, self.derivatives, passes, self.hooks.modules)
        return SampleGradients([forward.chunk], 1.0, forward)

    def forget(self) -> None:
        """Do nothing: the blocks have the losses."""


@contextmanager
def _opened(hooks: Hooks, block: Block) -> Iterator[None]:
    """Open a block; a backward pass of no samples counts as none."""
    if block.n:
        with hooks.open(block):
            yield
        return
    stray = hooks.stray
    yield
    hooks.stray = stray


def source_of(
    settings: Settings,
    context: EngineContext,
    names: Mapping[int, str],
    samples_axis: Mapping[str, int] | None,
    derivatives: Derivatives,
    processes: Processes,
) -> Source:
    """Return the source that the settings ask for, with its hooks on the model.

    Parameters
    ----------
    settings : Settings
    context : EngineContext
        The model is the stack's.
    names : dict
        The model's name of each trainable parameter, by the parameter's identity.
    samples_axis : mapping of str to int, optional
    derivatives : Derivatives
    processes : Processes
    """
    model: Any = context.model
    if settings.estimator.contraction == "forward":
        return FromLosses(GradientHooks(model, names), context.backend, derivatives)
    hooks, always = Hooks(model, names, samples_axis), cheapest(context.shapes)
    source = FromCaptures(hooks, context.backend, always, processes)
    if not settings.recompute:
        return source
    again = Recomputation(model, hooks, context, always, settings.estimator, settings.micro_batch)
    return FromSecondPass(source, again)
