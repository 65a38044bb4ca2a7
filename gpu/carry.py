"""Credit of momentum's steps to the samples whose gradients make up the momentum, without keeping the whole run.

The step u owes ⟨O_u, m⟩, O_u = Γ_u ⊙ M_u, to the samples before it (docs/method.md 6): sample i of step s is credited
with (1 − β1) Σ_{u>s} β1^{u−1−s} ⟨O_u, x_i⟩. Its gradient x_i is not kept; the batch's layer inputs a and output
gradients b are, for a window of steps, after which β1^k is negligible. docs/engine.md derives why two contractions per
sample suffice, and how much credit is lost at the window's end.

=========  ======================  ====================================================================
method 6   name                    meaning
=========  ======================  ====================================================================
Γ          ``validation``          validation gradient on the walked step, as captures
K          ``Block.owed``          Σ_{u in the block} β1^{u−first} O_u, a running sum
=========  ======================  ====================================================================
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import numpy as np

from adamshap.gpu.arrays import Arrays, ScoreMatrix, like
from adamshap.gpu.captures import Captures
from adamshap.gpu.captures.sums import CACHED
from adamshap.gpu.charge import RunningSum, charge
from adamshap.gpu.context import EngineContext
from adamshap.gpu.counting import FIRST_STEP
from adamshap.gpu.data import Data
from adamshap.gpu.forward import forward_and_gradient
from adamshap.gpu.hyperparameters import Hyperparameters, refuse_division_by_zero
from adamshap.gpu.kernels.plan import path_nodes, split_plan
from adamshap.gpu.parameter_pass import take_step
from adamshap.gpu.scores import ScoringTask, contract, score_chunks, sgd_scorer
from adamshap.gpu.state import State, StepBatch, StepInput
from adamshap.gpu.threads import in_parts
from adamshap.gpu.validation import on_segment
from adamshap.gpu.window import FLOPS_OF_A_COPY, Block, KeptArrays, Pending
from adamshap.reference.contract import Array, CompletedSteps, Estimator, RunConfig, Snapshot, refuse

__all__ = ["LOG", "Carrier"]

GROWTH = 2.0
"""Largest weight β1^{−k} within a block, a bound on terms that are added and subtracted again."""

FORGOTTEN = 1e-3
"""β1^k at the end of the window, unless its length is given."""

LOG = ("train_loss", "valid_loss", "decay", "own", "owed")
"""The columns of `Carrier.log`, as a snapshot's history names them."""


@dataclass
class Carrier:
    """The state that the steps of a run leave for later ones.

    Parameters
    ----------
    beta1 : float
        β1 of all parameters, at every step.
    length : int
        Number of steps of a block.
    later : int
        Number of whole blocks after its own that credit a batch.
    loses : bool
        Whether the run is longer than the window, so that credit is lost.
    data : Data
        Source of the batches; a memory map's rows are read again when their batch is paid.
    totals, truncated : arrays (N,)
        Scores, and a bound on the credit that each of them lacks, in the backend.
    log : array (steps, 5)
        Losses of batch and validation samples before the step, weight decay's share, ⟨Γ ⊙ S, g⟩ and ⟨Γ ⊙ M, m⟩.
    exposed : array (N,)
        Σ β1^k ‖x_i‖ over each sample's batches that have left the window.
    kept : KeptArrays
        Copies of the arrays of pending batches.
    """

    context: EngineContext
    config: RunConfig
    beta1: float
    length: int
    later: int
    loses: bool
    data: Data
    totals: Any
    truncated: Any
    exposed: Any
    log: Any
    kept: KeptArrays
    blocks: deque[Block] = field(default_factory=deque)

    @classmethod
    def of(cls, context: EngineContext, config: RunConfig, data: Data, steps: int, window: int | None) -> "Carrier":
        """Return a carrier for a run of `steps` steps, with a window of at least `window` steps."""
        xp, count = context.backend.xp, config.train.n
        beta1 = Hyperparameters.at(context, config.adam, FIRST_STEP).one_beta1()
        rate = -math.log(beta1) if beta1 > 0 else math.inf
        length = min(max(1, int(math.log(GROWTH) / rate)), steps)
        later = math.ceil((window or math.ceil(-math.log(FORGOTTEN) / rate) or 1) / length)
        loses = beta1 > 0 and (later + 1) * length < steps
        totals, truncated, exposed = (xp.zeros(count) for _ in range(3))
        kept = KeptArrays.of(context, data.no_inputs)
        return cls(
            context, config, beta1, length, later, loses, data, totals, truncated, exposed, xp.zeros((steps, 5)), kept
        )

    def take(
        self,
        number: CompletedSteps,
        index: Array,
        where: Any,
        state: State,
        batch: StepBatch,
        estimator: Estimator,
        new: State,
    ) -> Any:
        """Take the step after `number` completed ones, add its own scores to the totals, and return SGD's scores.

        The samples are those at `index`, which is `where` in the backend.

        Later, the batch is paid by the whole block's K less K at the batch's own step. The latter is subtracted here,
        in the contraction of the batch's own scores.
        """
        context, xp = self.context, self.context.backend.xp
        weight = 1 / batch.n if self.config.reduction == "mean" else 1.0
        step = StepInput.of(context, self.config.adam, state, batch, weight)
        self._check_beta1(step)
        forward = forward_and_gradient(
            step,
            1 / batch.n_val,
            start_wanted=True,
            norms_wanted=estimator.slope == "random_order" and batch.n > 1,
            variance=estimator.variance,
        )
        at_rest = estimator.slope in ("linearized", "secant") or batch.n == 1
        refuse_division_by_zero(context, step.hyperparameters, state.v, None if at_rest else forward.g)
        # Neither is None: the batch is one chunk, and the start is wanted.
        captures, start = cast(Captures, forward.captures), cast(Captures, forward.start)
        take_step(context, step.hyperparameters.scalars, state, forward.g, new)
        sgd = self._sgd_scores(step, captures, start)
        row = self.log[number]
        row[0], row[1] = forward.train_loss, start.losses.mean(dtype="float64")
        validation = self._validation(step, start, estimator, new)
        block = self._current(number) if self.beta1 > 0 else None
        matrix = ScoreMatrix(forward.g)  # in the memory of g, which nothing needs after this pass
        plan = split_plan(estimator.slope, estimator.nodes, batch.n)
        account = charge(step, plan, forward, validation, self._running_sum(block, number), matrix)
        row[2], row[3], row[4] = account.decay, account.own, account.owed
        out = xp.zeros(batch.n, context.backend.dtype)
        contract(context, captures, matrix, out, None, estimator.score_dtype)
        self.totals[where] += out
        if block is not None:
            if self.loses:
                self.truncated += self.exposed * xp.sqrt(account.square)
                self.exposed *= self.beta1
            block.batches.append(Pending(number, index, where, self.kept.copies(captures)))
            if len(block.batches) == self.length and len(self.blocks) > self.later:
                self._pay_oldest(number)
        return sgd

    def _check_beta1(self, step: StepInput) -> None:
        beta1 = step.hyperparameters.one_beta1()
        if beta1 != self.beta1:
            got = f"{beta1:g} at step {step.state.t} with credit 'carry'"
            refuse("Adam.betas[0]", got, f"{self.beta1:g}, as at the first step")

    def _sgd_scores(self, step: StepInput, captures: Captures, start: Captures) -> Any:
        task = ScoringTask(step.batch.n, step.batch.n_val)
        scorer = sgd_scorer(self.context, task, start, step.hyperparameters.lrs, "sgd product")
        return score_chunks(self.context, task, [scorer], [(slice(0, step.batch.n), captures)])[0][0]

    def _validation(self, step: StepInput, start: Captures, estimator: Estimator, new: State) -> Captures:
        """Return the captures of the validation samples on the way from θ to θ⁺."""
        if estimator.gradient == "start":
            return start
        nodes = ((0.5, 1.0),) if estimator.gradient == "midpoint" else path_nodes(estimator.nodes[0])
        return on_segment(step, (step.state.theta, new.theta), nodes, 1 / step.batch.n_val)

    def _running_sum(self, block: Block | None, number: int) -> RunningSum | None:
        if block is None:
            return None
        beta1, passed = self.beta1, number - block.first
        less = (1 - beta1) * beta1 ** (-passed - 1) if self.length > 1 else 0.0
        return RunningSum(block.owed, beta1**passed, less)

    def kept_bytes(self, batch: int) -> int:
        """Return the bytes of a full window, for batches of `batch` samples: a and b, and the blocks' sums."""
        parameters = sum(math.prod(shape) for shape in self.context.shapes.values())
        sums = self.context.backend.dtype.itemsize * parameters
        return (self.later + 1) * (self.length * self.kept.bytes(batch) + sums)

    def settled(self) -> Any:
        """Return the totals plus the credit owed to pending batches, which is all of it if the run ends here."""
        totals, later = self.totals.copy(), None
        for block in reversed(self.blocks):
            if self.length > 1:
                later = self._continued([block], later)
            self._pay(totals, block, later)
            if self.length == 1:
                later = self._continued([block], later)
        return totals

    def arrays(self, done: CompletedSteps) -> Snapshot:
        """Return the arrays for `restore` after `done` steps, and the scores so far.

        The window's arrays have a row for each block or batch that the window can hold, in order. Unused rows are 0,
        and so are the rows of samples that a smaller batch lacks.
        """
        host, dtype = self.context.backend.host, self.context.backend.dtype
        steps, count = len(self.log), min(self.config.batch_size, self.config.train.n)
        blocks = min(self.later + 1, math.ceil(steps / self.length)) if self.beta1 > 0 else 0
        batches = min(blocks * self.length, steps)
        log = host(self.log)[:done]
        found = {"scores": self.settled(), "paid": self.totals, "truncated": self.truncated, "exposed": self.exposed}
        arrays = {name: np.array(host(array)) for name, array in found.items()}
        arrays |= {f"history/{name}": column.copy() for name, column in zip(LOG, log.T, strict=True)}
        for name, shape in self.context.shapes.items():
            whole = arrays[f"window/owed/{name}"] = np.zeros((blocks, *shape), dtype)
            for row, block in enumerate(self.blocks):
                whole[row] = host(block.owed[name])
        waiting = [batch for block in self.blocks for batch in block.batches]
        return arrays | self.kept.snapshot(waiting, batches, count)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot."""
        backend, done = self.context.backend, int(snapshot["step"])
        for array, name in ((self.totals, "paid"), (self.truncated, "truncated"), (self.exposed, "exposed")):
            array[...] = backend.xp.asarray(snapshot[name])
        for column, name in enumerate(LOG):
            self.log[:done, column] = backend.xp.asarray(snapshot[f"history/{name}"])
        self.blocks.clear()
        if self.beta1 == 0:
            return
        oldest = self.length * max(0, done // self.length - self.later)
        indices = [index for _, index in islice(self.config.order(), oldest, done)]
        for row, first in enumerate(range(oldest, done, self.length)):
            owed = {name: backend.real(snapshot[f"window/owed/{name}"][row].copy()) for name in self.context.shapes}
            batches = []
            for number in range(first, min(first + self.length, done)):
                index = indices[number - oldest]
                arrays = self.kept.restored(snapshot, number - oldest, len(index))
                batches.append(Pending(number, index, backend.labels(index), arrays))
            self.blocks.append(Block(first, owed, batches))

    def _current(self, number: int) -> Block:
        if not self.blocks or number - self.blocks[-1].first == self.length:
            xp, dtype = self.context.backend.xp, self.context.backend.dtype
            self.blocks.append(Block(number, {name: xp.zeros(s, dtype) for name, s in self.context.shapes.items()}))
        return self.blocks[-1]

    def _pay_oldest(self, number: int) -> None:
        """Pay the oldest block's batches from all blocks so far, and drop them from the window."""
        oldest, *others = self.blocks
        beta1 = self.beta1

        def release(batch: Pending, captures: Captures) -> None:
            self.exposed[batch.where] += (1 - beta1) * beta1 ** (number - batch.number) * self._row_norms(captures)
            self.kept.unused.append(batch.arrays)

        self._pay(self.totals, oldest, self._continued([oldest, *others] if self.length > 1 else others, None), release)
        self.blocks.popleft()

    def _continued(self, blocks: list[Block], later: Arrays | None) -> Arrays:
        """Return K of consecutive blocks, continued by that of later ones, ``K + β1^length (K' + …)``, in a buffer."""
        total, on_cuda = like(self.context, "owed from here on"), self.context.backend.on_cuda
        for key, whole in total.items():
            flat, parts = whole.reshape(-1), [block.owed[key].reshape(-1) for block in reversed(blocks)]
            factor = whole.dtype.type(self.beta1**self.length)

            def elements_between(
                low: int, high: int, flat: Any = flat, parts: list[Any] = parts, factor: Any = factor
            ) -> None:
                size = high - low if on_cuda else CACHED
                for start in range(low, high, size):
                    piece = slice(start, min(start + size, high))
                    here = flat[piece]
                    for number, owed in enumerate(parts):
                        if number or later is not None:
                            here *= factor
                            here += owed[piece]
                        else:
                            here[...] = owed[piece]

            in_parts(elements_between, flat.size, 2 * FLOPS_OF_A_COPY * flat.size * len(parts))
        return total

    def _pay(
        self,
        totals: Any,
        block: Block,
        owed: Arrays | None,
        release: Callable[[Pending, Captures], None] | None = None,
    ) -> None:
        """Add to `totals` the credit owed to a block's batches; call `release` with each and its captures.

        A block of one step owes nothing to its own batch: `owed` is then the sum of later blocks alone.
        """
        beta1, backend = self.beta1, self.context.backend
        first = block.first + 1 if self.length == 1 else block.first
        for batch in block.batches:
            captures = self._captures(batch)
            if owed is not None:
                out = backend.xp.zeros(len(batch.where), backend.dtype)
                contract(self.context, captures, owed, out)
                totals[batch.where] += (1 - beta1) * beta1 ** (first - batch.number - 1) * out
            if release is not None:
                release(batch, captures)

    def _captures(self, batch: Pending) -> Captures:
        """Return a pending batch's captures, with the model's inputs in a buffer."""
        inputs = self.data.room("pending inputs", len(batch.where))
        self.data.inputs(batch.index, batch.where, inputs)
        return self.kept.captures(batch.arrays, inputs)

    def _row_norms(self, captures: Captures) -> Any:
        """Return ‖x_i‖ of each sample, or a bound on it."""
        xp = self.context.backend.xp
        norms = xp.empty(captures.n, self.context.backend.dtype)

        def rows_between(low: int, high: int) -> None:
            norms[low:high] = captures.rows(slice(low, high)).row_norms(xp)

        in_parts(rows_between, captures.n, 2 * FLOPS_OF_A_COPY * captures.n * captures.pair_macs)
        return norms
