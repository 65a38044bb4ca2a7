"""Captures that are not kept: each use is reduced as it comes, and the passes run again for the scores.

A capture holds the input and the output gradient of a layer, which autograd would have freed. With ``recompute=True``
the first pass keeps only what is needed of it before P is known: Σ_i x_i of the parameters that the self-check
compares, and √Σ_i x_i² for σ. In ``optimizer.step()`` the function `again` of each block repeats its passes, and each
use is contracted with P as it comes. So no more than one layer's arrays are kept at a time, beside what the pass itself
needs. With `micro_batch` the second pass runs a few samples at a time, and then even that is small.

√Σ_i x_i² of a parameter that is used twice needs the sum of its uses, which are kept until the block ends.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from adamshap.gpu.captures import Capture, Captures
from adamshap.gpu.context import EngineContext
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.scores import Rerun
from adamshap.reference.contract import AUTO, TWO_TERM, Estimator, refuse, shown
from adamshap.torch.captures.block import Block
from adamshap.torch.captures.hooks import Hooks
from adamshap.torch.captures.reduction import Reduced, Reduction
from adamshap.torch.checks.factor import UNITS
from adamshap.torch.random_state import RandomState, random_state, replayed

__all__ = ["Recomputation", "check_again"]


def check_again(again: Any, recompute: bool, micro_batch: int | None) -> None:
    """Refuse a function for a second pass that nobody calls, and a second pass without a function."""
    if not recompute:
        if again is not None:
            refuse("again", shown(again), "None, or an Attribution with recompute=True")
        return
    if not callable(again):
        needs = "a function that runs the forward and backward pass of these samples again, for recompute=True"
        refuse("again", shown(again), needs, TypeError)
    taken = _arguments_without_default(again)
    if taken is not None and taken != (0 if micro_batch is None else 1):
        needs = "no argument, which micro_batch alone would give"
        if micro_batch is not None:
            needs = "one argument without a default, a slice of the rows to run: lambda rows, x=x, y=y: …"
        refuse("again", f"a function of {taken} arguments without a default", needs, TypeError)


def _arguments_without_default(function: Callable[..., Any]) -> int | None:
    """Return the number of arguments that a call must give; None if Python does not know it, or any number will do."""
    try:
        arguments = inspect.signature(function).parameters.values()
    except ValueError:
        return None
    if any(one.kind is one.VAR_POSITIONAL for one in arguments):
        return None
    return sum(one.default is one.empty and one.kind is not one.VAR_KEYWORD for one in arguments)


@dataclass(eq=False)
class Pass:
    """A block's passes, to be repeated.

    Parameters
    ----------
    again : callable
        Without arguments, or of a slice of rows.
    random : RandomState
        PyTorch's random state at their beginning.
    first : Reduction
        What is left of their captures.
    """

    again: Callable[..., Any]
    random: RandomState
    first: Reduction


class Recomputation:
    """The passes of a step, whose captures are not kept.

    Parameters
    ----------
    model : torch.nn.Module
    hooks : Hooks
    context : EngineContext
    cheapest : collection of str
        The parameters that are compared in every step.
    estimator : Estimator
    micro_batch : int, optional
        Number of samples of a second pass; None: those of the block.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        hooks: Hooks,
        context: EngineContext,
        cheapest: Collection[str],
        estimator: Estimator,
        micro_batch: int | None = None,
    ) -> None:
        self._model, self._hooks, self._context = model, hooks, context
        self._xp = context.backend.xp
        self._cheapest, self._signed = frozenset(cheapest), estimator.slope == TWO_TERM
        self._variance = estimator.variance if estimator.slope in ("random_order", AUTO, TWO_TERM) else None
        self._micro_batch = micro_batch
        self._passes: dict[Block, Pass] = {}
        self.norms = Norms()

    def clear(self) -> None:
        """Forget the passes of the step, and free the engine's arrays for the passes of the next."""
        for block in self._passes:
            block.uses.clear()  # which refer to the block
        self._passes.clear()
        self.norms = Norms()
        self._context.buffers.release()

    @contextmanager
    def reducing(self, block: Block, again: Callable[..., Any], *, checked: bool) -> Iterator[None]:
        """Return a context manager in which the captures of a block are reduced as they come."""
        shapes = self._context.shapes
        first = Reduction(self._xp, block.n, shapes, shapes if checked else self._cheapest)
        self._passes[block] = Pass(again, random_state(), first)
        held, rooted = list[Capture](), set[str]()

        def reduce(use: Capture) -> None:
            first.add(use)
            if self._variance is None:
                return
            if twice := rooted.intersection(use.names):
                got = f"a use of {sorted(twice)[0]!r} after the backward pass of another"
                refuse("attribution.samples", got, "one backward pass in each `samples`, with recompute=True")
            if all(block.calls.get(name) == 1 for name in use.names):
                rooted.update(use.names)
                self._add_norms([use])
            else:
                held.append(use)

        block.reduce = reduce
        try:
            yield
        finally:
            block.reduce = None  # which refers to the block
        if held:
            self._add_norms(held)
            if self._signed and (captures := Captures(tuple(held))).used_twice:
                captures.signed_roots(self._context)  # refuses
            held.clear()
        block.uses += list(first.found.values())  # type: ignore[arg-type]
        sums = self._all_sums(block)
        for one in first.found.values():
            one.sums = sums
        first.found = {  # for the comparison with the second pass
            name: one for name, one in first.found.items() if name in self._cheapest
        }

    def _add_norms(self, uses: list[Capture]) -> None:
        with self._context.at_work():
            add_norms(self._context, self.norms, Captures(tuple(uses)), str(self._variance))

    def chunks(self, rows: list[slice]) -> list[tuple[slice, Rerun]]:
        """Return the samples of each pass with the function that repeats it; `rows` are those of the blocks."""
        return [one for which, block in zip(rows, self._passes, strict=True) for one in self._reruns(block, which)]

    def _reruns(self, block: Block, rows: slice) -> list[tuple[slice, Rerun]]:
        """Return the second passes of a block; the last compares their gradients with the first pass's."""
        second = Reduction(self._xp, block.n, self._context.shapes, self._cheapest)
        parts = self._parts(block)

        def rerun(contracted: Callable[[Captures], None], part: slice) -> None:
            self._context.buffers.release()

            def received(use: Capture) -> None:
                second.add(use)
                contracted(Captures((use,)))

            self._repeat(block, part, received)
            if part is parts[-1]:
                _refuse_other_pass(block, self._passes[block].first, second, self._micro_batch)

        start = rows.start
        return [(slice(start + part.start, start + part.stop), partial(rerun, part=part)) for part in parts]

    def _parts(self, block: Block) -> list[slice]:
        """Return the rows of each second pass of a block."""
        size = self._micro_batch or block.n
        return [slice(first, min(first + size, block.n)) for first in range(0, block.n, size)]

    def _all_sums(self, block: Block) -> Callable[[], Mapping[str, Reduced]]:
        """Return a function that finds Σ_i x_i of all parameters by one more pass of the block."""
        found: dict[str, Reduced] = {}

        def sums() -> Mapping[str, Reduced]:
            if not found:
                every = Reduction(self._xp, block.n, self._context.shapes, self._context.shapes)
                for part in self._parts(block):
                    self._repeat(block, part, every.add)
                found.update(every.found)
            return found

        return sums

    def _repeat(self, block: Block, part: slice, received: Callable[[Capture], None]) -> None:
        """Repeat a block's passes of some rows, with the block's random numbers; the gradients stay as they are."""
        again = self._passes[block]
        repeated = Block(block.index[part], {}, reduce=received)
        buffers = {name: buffer._version for name, buffer in self._model.named_buffers()}
        with (
            replayed(again.random),
            torch.enable_grad(),
            _gradients_put_back(self._model),
            self._hooks.repeating(),
            self._hooks.open(repeated),
        ):
            again.again(*([] if self._micro_batch is None else [part]))
        for name, buffer in self._model.named_buffers():
            if buffers.get(name) != buffer._version:
                got = f"a pass that edits the buffer {name!r}"
                refuse("again", got, "passes without effects on the model, or recompute=False")


@contextmanager
def _gradients_put_back(model: torch.nn.Module) -> Iterator[None]:
    kept = [(p, p.grad) for p in model.parameters()]
    for p, _ in kept:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in kept:
            p.grad = gradient


def _refuse_other_pass(block: Block, first: Reduction, second: Reduction, micro_batch: int | None) -> None:
    """Refuse a second pass whose gradients are not those of the first."""
    needs = "the forward and backward pass that was inside `samples`: the same samples, loss and scale"
    if micro_batch is not None:
        needs += ", in parts: a sum over the rows of a part, divided by what the whole batch's was; without dropout"
    used = {name for use in block.uses for name in use.names}
    if missing := used.symmetric_difference(second.found):
        name = sorted(missing)[0]
        which = "no backward pass" if not second.found else f"{'no ' if name in used else 'a '}gradient of {name!r}"
        refuse("again", f"a function with {which}, unlike in `samples`", needs)
    for name, one in first.found.items():
        unit = UNITS * float(np.finfo(one.total.dtype).eps)
        off, size = (
            float(first.xp.linalg.norm(array.astype(np.float64).ravel()))
            for array in (second.found[name].total - one.total, one.total)
        )
        if not off <= unit * float(one.size[0, 0]):
            refuse("again", f"a gradient of {name!r} that is off by {off:.3g} of {size:.3g}", needs)
