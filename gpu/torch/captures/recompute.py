"""Captures that are not kept: each use is reduced as it comes, and the passes run again for the scores.

A capture holds the input and the output gradient of a layer, which autograd would have freed. With ``recompute=True``
the first pass keeps only what is needed of it before P is known: Σ_i x_i of the parameters that the self-check
compares, and √Σ_i x_i² for σ. In ``optimizer.step()`` the function `again` of each block repeats its passes, and each
use is contracted with P as it comes. So no more than one layer's arrays are kept at a time, beside what the pass itself
needs.

√Σ_i x_i² of a parameter that is used twice needs the sum of its uses, which are kept until the block ends.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adamshap.gpu.captures import Capture, Captures
from adamshap.gpu.context import EngineContext
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.scores import Rerun
from adamshap.reference.contract import TWO_TERM, Estimator, refuse, shown
from adamshap.torch.captures.block import Block
from adamshap.torch.captures.hooks import Hooks
from adamshap.torch.checks.factor import UNITS
from adamshap.torch.checks.gradients import size_of
from adamshap.torch.random_state import RandomState, random_state, replayed

__all__ = ["Recomputation", "check_again"]


def check_again(again: object, recompute: bool) -> None:
    """Refuse a function for a second pass that nobody calls, and a second pass without a function."""
    if recompute and not callable(again):
        needs = "a function that runs the forward and backward pass of these samples again, for recompute=True"
        refuse("again", shown(again), needs, TypeError)
    if not recompute and again is not None:
        refuse("again", shown(again), "None, or an Attribution with recompute=True")


@dataclass
class Reduced:
    """What is left of the uses of one parameter in a block: Σ_i x_i if it is compared, and a bound on Σ_i ‖x_i‖.

    Parameters
    ----------
    name : str
    n : int
        Number of rows.
    total : array, optional
        Σ_i x_i.
    size : array (1, 1)
        Bound on Σ_i ‖x_i‖, if it is compared.
    count : int
        Number of outer products per row.
    sums : callable, optional
        Function that returns Σ_i x_i of every parameter from another pass, if it is needed after all.
    """

    name: str
    n: int
    total: Any = None
    size: Any = 0.0
    count: int = 0
    sums: Callable[[], Mapping[str, "Reduced"]] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameter used."""
        return (self.name,)

    @property
    def products(self) -> dict[str, int]:
        """Number of outer products per row, if the parameter is contracted by them."""
        return {self.name: self.count} if self.count else {}

    def sum_of(self, xp: Any, name: str, units: slice) -> Any:
        """Return Σ_i x_i of some units."""
        self._complete()
        return self.total[units]

    def kept(self) -> dict[str, Any]:
        """Return an array whose norm is the bound on Σ_i ‖x_i‖."""
        self._complete()
        return {"x": self.size}

    def _complete(self) -> None:
        if self.total is None and self.sums is not None:
            found = self.sums()[self.name]
            self.total, self.size = found.total, found.size

    def add(self, xp: Any, use: Capture, shape: tuple[int, ...], summed: bool) -> None:
        """Add a use."""
        self.count += use.products.get(self.name, 0)
        if not summed:
            return
        part = use.sum_of(xp, self.name, slice(0, shape[0])).reshape(shape)
        self.total = part if self.total is None else self.total + part
        self.size = self.size + size_of(xp, use, len(shape)).reshape(1, 1)


@dataclass(eq=False)
class Reduction:
    """The captures of one pass, reduced as they come.

    Parameters
    ----------
    xp : module
        NumPy or CuPy.
    n : int
        Number of samples.
    shapes : dict
        Shapes of the parameters.
    summed : collection of str
        The parameters whose Σ_i x_i is wanted.
    found : dict of Reduced
    """

    xp: Any
    n: int
    shapes: Mapping[str, tuple[int, ...]]
    summed: Collection[str]
    found: dict[str, Reduced] = field(default_factory=dict)

    def add(self, use: Capture) -> None:
        """Add a capture."""
        for name in use.names:
            one = self.found.setdefault(name, Reduced(name, self.n))
            one.add(self.xp, use, self.shapes[name], name in self.summed)


@dataclass(eq=False)
class Pass:
    """A block's passes, to be repeated.

    Parameters
    ----------
    again : callable
    random : RandomState
        PyTorch's random state at their beginning.
    first : Reduction
        What is left of their captures.
    """

    again: Callable[[], Any]
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
    """

    def __init__(
        self,
        model: torch.nn.Module,
        hooks: Hooks,
        context: EngineContext,
        cheapest: Collection[str],
        estimator: Estimator,
    ) -> None:
        self._model, self._hooks, self._context = model, hooks, context
        self._xp = context.backend.xp
        self._cheapest, self._signed = frozenset(cheapest), estimator.slope == TWO_TERM
        self._variance = estimator.variance if estimator.slope in ("random_order", TWO_TERM) else None
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
    def reducing(self, block: Block, again: Callable[[], Any], *, checked: bool) -> Iterator[None]:
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

    def chunks(self, kept: list[tuple[slice, Captures]]) -> list[tuple[slice, Rerun]]:
        """Return the samples of each block with the function that repeats its passes.

        `kept` has what is left of the captures, and captures of parameters without a use.
        """
        return [
            (rows, self._rerun(block, [use for use in captures.uses if not isinstance(use, Reduced)]))
            for (rows, captures), block in zip(kept, self._passes, strict=True)
        ]

    def _rerun(self, block: Block, idle: list[Capture]) -> Rerun:
        def rerun(contracted: Callable[[Captures], None]) -> None:
            self._context.buffers.release()
            for use in idle:
                contracted(Captures((use,)))
            second = Reduction(self._xp, block.n, self._context.shapes, self._cheapest)

            def received(use: Capture) -> None:
                second.add(use)
                contracted(Captures((use,)))

            self._repeat(block, received)
            _refuse_other_pass(block, self._passes[block].first, second)

        return rerun

    def _all_sums(self, block: Block) -> Callable[[], Mapping[str, Reduced]]:
        """Return a function that finds Σ_i x_i of all parameters by one more pass."""
        found: dict[str, Reduced] = {}

        def sums() -> Mapping[str, Reduced]:
            if not found:
                every = Reduction(self._xp, block.n, self._context.shapes, self._context.shapes)
                self._repeat(block, every.add)
                found.update(every.found)
            return found

        return sums

    def _repeat(self, block: Block, received: Callable[[Capture], None]) -> None:
        """Repeat the passes of a block, with the random numbers that they had; the gradients stay as they are."""
        again = self._passes[block]
        repeated = Block(block.index, {}, reduce=received)
        buffers = {name: buffer._version for name, buffer in self._model.named_buffers()}
        with (
            replayed(again.random),
            torch.enable_grad(),
            _gradients_put_back(self._model),
            self._hooks.repeating(),
            self._hooks.open(repeated),
        ):
            again.again()
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


def _refuse_other_pass(block: Block, first: Reduction, second: Reduction) -> None:
    """Refuse a second pass whose gradients are not those of the first."""
    needs = "the forward and backward pass that was inside `samples`: the same samples, loss and scale"
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
