"""One step of a PyTorch optimiser with its attribution: the engine's step, from gradients and captures that exist."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from adamshap.gpu.arrays import BatchGradient, like
from adamshap.gpu.backend import Backend, Buffers
from adamshap.gpu.captures import Captures, Dense
from adamshap.gpu.context import EngineContext
from adamshap.gpu.counting import following
from adamshap.gpu.forward import ForwardResult
from adamshap.gpu.hyperparameters import Hyperparameters
from adamshap.gpu.kept_gradients import HeldGradients, KeptGradients
from adamshap.gpu.kernels import kernels_for
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.ops import ops_for
from adamshap.gpu.sketch import Sketch
from adamshap.gpu.state import State, StepBatch, StepInput
from adamshap.gpu.step import StepPlan, StepResult, score_step
from adamshap.reference.contract import Array, CompletedSteps, Estimator, refuse
from adamshap.torch.captures.block import Block
from adamshap.torch.captures.roundoff import Roundoff
from adamshap.torch.checks.sums import adds_up
from adamshap.torch.forward_mode.step import ForwardStep
from adamshap.torch.forward_mode.verification import Verification
from adamshap.torch.joint_norms import join_norms
from adamshap.torch.processes import Processes
from adamshap.torch.products import ROUNDING, bfloat16_product
from adamshap.torch.validation import ValidationStack

__all__ = ["Given", "SampleGradients", "Scorer", "chunks_of", "context_of", "products_of"]


def context_of(backend: Backend, stack: ValidationStack) -> EngineContext:
    """Return the engine's context for a PyTorch model."""
    shapes = {name: tuple(p.shape) for name, p in stack.named.items()}
    model: Any = stack.model
    parts = kernels_for(backend), ops_for(backend), Buffers(backend)
    return EngineContext(model, stack, backend, *parts, shapes, bfloat16_product=bfloat16_product)


def chunks_of(
    backend: Backend, blocks: Iterable[Block], gradients: Mapping[str, Array]
) -> list[tuple[slice, Captures]]:
    """Return the samples and captures of each block.

    A parameter that has a gradient, of 0 or of other processes' samples, and no use is moved all the same: it gets a
    capture of x_i = 0. Where this process has no samples, one with x = 0 for all parameters stands in.
    """
    chunks, start = [], 0
    for block in blocks:
        if not block.n:
            continue
        chunks.append((slice(start, start + block.n), block.captures))
        start += block.n
    used = {name for _, captures in chunks for name in captures.by_name}
    idle = [(name, array) for name, array in gradients.items() if name not in used]
    if idle:
        rows, captures = chunks[0] if chunks else (slice(0, 1), None)
        none = tuple(Dense(name, backend.xp.zeros((rows.stop, 1, *a.shape[1:]), a.dtype)) for name, a in idle)
        chunks[:1] = [(rows, Captures(none if captures is None else captures.uses + none))]
    return chunks


def products_of(blocks: Iterable[Block]) -> dict[str, int]:
    """Return the outer products of a sample, the most in any block, of each parameter that the samples have used."""
    products: dict[str, int] = {}
    for block in blocks:
        captures = block.captures
        for name in captures.by_name if block.uses else block.reached:
            products[name] = max(products.get(name, 0), captures.products.get(name, 0))
    return products


@dataclass(frozen=True)
class SampleGradients:
    """The x_i of a step, as the engine contracts them with P.

    Parameters
    ----------
    chunks : list of (slice, Captures or Rerun)
        Samples and captures of each block.
    factor : float
        f: p.grad is f Σ x_i, or f times the mean of the processes' sums.
    forward : ForwardStep, optional
        The samples' losses, with contraction "forward", whose derivatives have f already: then `factor` is 1.
    norms : Norms, optional
        √Σ x² over the samples, if the captures were not kept.
    compare : callable, optional
        Function that compares Σ_i x_i of all parameters with their gradients, and refuses what differs; None if that is
        done, or nothing is compared.
    roundoffs : dict of Roundoff
        Of the parameters whose gradient was computed in lower precision than their dtype.
    """

    chunks: list[tuple[slice, Any]]
    factor: float
    forward: ForwardStep | None = None
    norms: Norms | None = None
    compare: Callable[[], Any] | None = None
    roundoffs: Mapping[str, Roundoff] = field(default_factory=dict)

    @property
    def history(self) -> dict[str, float]:
        """What a run's history has of the step."""
        return {"factor": self.factor} if self.forward is None else self.forward.history


@dataclass(frozen=True)
class Given:
    """What the loop did before ``optimizer.step()``.

    Parameters
    ----------
    index : int array (n,)
        The samples of all blocks, in this process.
    n : int
        Number of samples in all processes.
    x : SampleGradients
        x_i of the samples in this process.
    gradients : dict of arrays
        p.grad of every parameter that takes part.
    state : State
    hyperparameters : Hyperparameters
    stack : ValidationStack
    completed : int
        Number of steps that were scored before.
    checked : bool
        Whether the state after the step is wanted too, for the self-check.
    """

    index: Array
    n: int
    x: SampleGradients
    gradients: Mapping[str, Array]
    state: State
    hyperparameters: Hyperparameters
    stack: ValidationStack
    completed: CompletedSteps
    checked: bool = True


@dataclass
class Scorer:
    """Scores steps with one estimator.

    Parameters
    ----------
    context : EngineContext
    estimator : Estimator
    with_sgd : bool
        Whether SGD's scores are wanted too.
    processes : Processes
        Those that score the samples of a step together.
    kept : KeptGradients or None
        Validation gradients kept for some steps; None if every step has its own.
    sketches : dict of Sketch
        Bases of the low-rank scores, by the names of the parameters that take part in a step.
    """

    context: EngineContext
    estimator: Estimator
    with_sgd: bool
    processes: Processes = field(default_factory=Processes)
    kept: KeptGradients | None = None
    sketches: dict[tuple[str, ...], Sketch] = field(default_factory=dict)

    def score(
        self, given: Given, chunks: list[tuple[slice, Captures]] | None = None
    ) -> tuple[StepResult, State | None]:
        """Return the results of the step that is about to be taken, and the state after it, in buffers, if wanted.

        The contraction reads `chunks` in place of the given ones, if there are any.
        """
        names = tuple(given.gradients)
        context = replace(self.context, stack=given.stack, shapes={name: self.context.shapes[name] for name in names})
        context.place.step = given.state.t
        batch = StepBatch(range(given.n), None, context.backend.xp.zeros(given.stack.n_val or 1), None)
        plan = StepPlan.of(self.estimator, batch, self.with_sgd, after=False)
        step = StepInput(context, given.hyperparameters, given.state, batch, 1.0)
        self._refuse_previous(given)
        g = BatchGradient({name: context.backend.real(gradient) for name, gradient in given.gradients.items()})
        held = self._held(given)
        start = given.stack.at_start(context) if plan.start_wanted and held is None else None
        share = given.x.factor / self.processes.count  # of x_i in the gradient
        factor = None if share == 1 else share
        norms, norms_of = None, None
        if plan.chooses and given.x.norms is None and not self.processes.several and not context.backend.on_cuda:
            norms_of = partial(self._norms, context, given, factor)
        elif plan.norms_wanted:
            norms = self._norms(context, given, factor)
        slope = like(context, "slope")  # p.grad stays as it is
        forward = ForwardResult(None, start, g, norms, float("nan"), factor, slope, norms_of)
        new = None
        if given.checked:
            theta, m, v = (like(context, f"new {name}") for name in ("theta", "m", "v"))
            new = State(theta, m, v, following(given.state.t))
        sketch, total_of = self._sketch(names), self.processes.sum_of
        scored = chunks or given.x.chunks
        result = score_step(step, plan, forward, scored, new, sketch, total_of, held=held, kept=self.kept)
        result = self._own(result, len(given.index))
        start = start if held is None else held.start
        if given.x.compare is not None and result.sgd_scores is not None and start is not None:
            gamma = {use.name: use.x for use in start.uses if isinstance(use, Dense)}
            lrs, roundoffs = given.hyperparameters.lrs, list(given.x.roundoffs.values())
            if self.estimator.score_dtype is not None:
                roundoffs.append(Roundoff(ROUNDING / 2))  # of both factors
            if not adds_up(context.backend, result.sgd_scores, gamma, given.gradients, lrs, roundoffs, self.processes):
                given.x.compare()
        return result, new

    @property
    def knows_losses(self) -> bool:
        """Whether the validation losses at θ are known, in steps that take the validation gradient anew."""
        return self.with_sgd or self.estimator.gradient == "start"

    def _held(self, given: Given) -> HeldGradients | None:
        """Return the validation gradients of an earlier step; None where this one takes its own."""
        if self.kept is None:
            return None
        self.kept.rows = given.stack.n_val or 1  # not known before the first step
        return self.kept.held(given.completed, given.gradients, given.stack.products)

    def _own(self, result: StepResult, n: int) -> StepResult:
        """Return the scores of this process's `n` samples, which come first."""
        if not self.processes.several:
            return result
        of_sgd = None if result.sgd_scores is None else result.sgd_scores[:n]
        return replace(result, scores=result.scores[:n], sgd_scores=of_sgd)

    def verify(self, given: Given, forward: ForwardStep) -> None:
        """Compare the samples' scores, without a sketch of P, with the derivatives of their losses."""
        exact: dict[str, Any] = {"rank": None, "score_dtype": None}
        estimator = replace(self.estimator, contraction="forward", efficient=False, **exact)
        both = Verification(forward, given.x.chunks, given.x.factor, given.index)
        Scorer(self.context, estimator, False).score(given, [both.chunk])

    def _norms(
        self, context: EngineContext, given: Given, factor: float | None, names: Collection[str] | None = None
    ) -> Norms:
        """Return √Σ x² over the samples of all blocks and processes, of some parameters or of all."""
        norms = Norms() if given.x.norms is None else given.x.norms
        for _, captures in given.x.chunks if given.x.norms is None else ():
            some = captures if names is None else captures.of(context, names)
            add_norms(context, norms, some, self.estimator.variance)
        join_norms(self.processes, norms)
        if factor is not None:
            norms.clip(context, factor)
        return norms

    def _sketch(self, names: tuple[str, ...]) -> Sketch | None:
        rank = self.estimator.rank
        return None if rank is None else self.sketches.setdefault(names, Sketch(rank))

    def saved_gradients(self) -> dict[str, Any]:
        """Return the kept validation gradients as tensors on the host, for a saved state; nothing if there are none."""
        if self.kept is None:
            return {}
        host, groups = self.context.backend.host, (self.kept.gamma, self.kept.start)
        saved = [{name: torch.from_numpy(np.array(host(rows))) for name, rows in group.items()} for group in groups]
        return {"validation_gradients": saved}

    def load_gradients(self, state: Mapping[str, Any]) -> None:
        """Continue with the kept validation gradients of a saved state."""
        if self.kept is not None:
            real, saved = self.context.backend.real, state["validation_gradients"]
            groups = [{name: real(rows.numpy().copy()) for name, rows in group.items()} for group in saved]
            self.kept.gamma, self.kept.start = groups

    def saved_sketches(self) -> list[Any]:
        """Return the bases of the sketches as tensors on the host, for a saved state."""
        host = self.context.backend.host
        return [
            (list(names), [(*key, torch.from_numpy(np.array(host(basis)))) for key, basis in sketch.bases.items()])
            for names, sketch in self.sketches.items()
        ]

    def load_sketches(self, sketches: Iterable[Any]) -> None:
        """Continue from the bases of a saved state."""
        self.sketches.clear()
        real = self.context.backend.real
        for names, bases in sketches:
            sketch = self._sketch(tuple(names))
            if sketch is not None:
                sketch.bases |= {(number, group): real(basis.numpy().copy()) for number, group, basis in bases}

    def _refuse_previous(self, given: Given) -> None:
        """Refuse the denominator "previous" where it is not defined, as the engine's `scores` does."""
        if self.estimator.denominator != "previous":
            return
        for name, scalars in given.hyperparameters.scalars.items():
            if not scalars.previous:
                refuse("denominator", f"'previous' at the first step of {name!r}", "'exact': 1 − β2⁰ is 0")
            if scalars.l2:
                refuse("denominator", f"'previous' with Adam's weight_decay {scalars.l2}", "'exact', or AdamW")
