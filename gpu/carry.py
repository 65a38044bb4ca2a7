"""Credit of momentum's steps to the samples whose gradients make up the momentum, without keeping the whole run.

The step u owes ⟨O_u, m⟩, O_u = Γ_u ⊙ M_u, to the samples before it (docs/method.md 6): sample i of step s is credited
with (1 − β1) Σ_{u>s} β1^{u−1−s} ⟨O_u, x_i⟩. Its gradient x_i is not kept; the batch's layer inputs a and output
gradients b are, for a window of steps, after which β1^k is negligible. docs/engine.md derives why two contractions per
sample suffice, and how much credit is lost at the window's end. Parameters with another β1 have a window of their own.
L2 decay is credited like one more sample of every batch (docs/method.md 9).

=========  ======================  ====================================================================
method 6   name                    meaning
=========  ======================  ====================================================================
Γ          ``validation``          validation gradient on the walked step, as captures
K          ``Block.owed``          Σ_{u in the block} β1^{u−first} O_u, a running sum, by β1 (`momentum`)
c          ``factor``              factor of a clipped gradient: x_i is c times that of the captures
d          ``decays``              L2 decay λ₂ θ, by parameter
=========  ======================  ====================================================================
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import numpy as np

from adamshap.gpu.arrays import Arrays, ScoreMatrix
from adamshap.gpu.captures import Captures
from adamshap.gpu.charge import charge
from adamshap.gpu.clipping import multiply
from adamshap.gpu.context import EngineContext
from adamshap.gpu.counting import FIRST_STEP
from adamshap.gpu.data import Data
from adamshap.gpu.forward import forward_and_gradient
from adamshap.gpu.hyperparameters import Hyperparameters, refuse_division_by_zero
from adamshap.gpu.kernels.plan import path_nodes, split_plan
from adamshap.gpu.momentum import Momentum, momenta_of
from adamshap.gpu.parameter_pass import take_step
from adamshap.gpu.scores import ScoringTask, contract, score_chunks, sgd_scorer
from adamshap.gpu.state import State, StepBatch, StepInput
from adamshap.gpu.threads import in_parts
from adamshap.gpu.validation import mean_loss, on_segment
from adamshap.gpu.window import FLOPS_OF_A_COPY, Block, KeptArrays, Pending
from adamshap.reference.contract import Array, Clipped, CompletedSteps, Estimator, RunConfig, Snapshot, refuse

__all__ = ["LOG", "Carrier"]

LOG = ("train_loss", "valid_loss", "decay", "own", "owed")
"""The columns of `Carrier.log`, as a snapshot's history names them."""


@dataclass
class Carrier:
    """The state that the steps of a run leave for later ones.

    Parameters
    ----------
    beta1 : dict of float
        β1 of each parameter, at every step.
    momenta : list of Momentum
        What is owed to the parameters with each β1 > 0.
    decaying : tuple of str
        The parameters with momentum and L2 decay.
    data : Data
        Source of the batches; a memory map's rows are read again when their batch is paid.
    totals, truncated : arrays (N,)
        Scores, and a bound on the credit that each of them lacks, in the backend.
    carried_decay : array (steps,)
        Credit of each step's L2 decay from later steps.
    log : array (steps, 5)
        Losses of batch and validation samples before the step, decay's own share, ⟨Γ ⊙ S, g⟩ and ⟨Γ ⊙ M, m⟩.
    kept : KeptArrays
        Copies of the arrays of pending batches.
    with_sgd : bool
        Whether SGD's scores are wanted too.
    pending : deque of Pending
        The batches of consecutive steps that some window still holds.
    """

    context: EngineContext
    config: RunConfig
    beta1: dict[str, float]
    momenta: list[Momentum]
    decaying: tuple[str, ...]
    data: Data
    totals: Any
    truncated: Any
    carried_decay: Any
    log: Any
    kept: KeptArrays
    with_sgd: bool
    pending: deque[Pending] = field(default_factory=deque)

    @classmethod
    def of(
        cls,
        context: EngineContext,
        config: RunConfig,
        data: Data,
        steps: int,
        window: int | None,
        *,
        with_sgd: bool = True,
    ) -> "Carrier":
        """Return a carrier for a run of `steps` steps, with windows of at least `window` steps."""
        xp, count = context.backend.xp, config.train.n
        scalars = Hyperparameters.at(context, config.adam, FIRST_STEP).scalars
        beta1 = {name: one.b1 for name, one in scalars.items()}
        momenta = momenta_of(context, beta1, count, steps, window)
        decaying = tuple(name for name, one in scalars.items() if one.l2 and one.b1)
        totals, truncated, carried_decay = xp.zeros(count), xp.zeros(count), xp.zeros(steps)
        kept, log = KeptArrays.of(context, data.no_inputs), xp.zeros((steps, 5))
        sums = totals, truncated, carried_decay
        return cls(context, config, beta1, momenta, decaying, data, *sums, log, kept, with_sgd)

    @property
    def loses(self) -> bool:
        """Whether the run is longer than a window, so that credit is lost."""
        return any(momentum.loses for momentum in self.momenta)

    @property
    def steps_kept(self) -> int:
        """The most batches that are kept."""
        return min(max((momentum.steps for momentum in self.momenta), default=0), len(self.log))

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
        """Take the step after `number` completed ones, add its own scores to the totals, and return SGD's, or None.

        The samples are those at `index`, which is `where` in the backend.

        Later, the batch is paid by the whole block's K less K at the batch's own step. The latter is subtracted here,
        in the contraction of the batch's own scores.
        """
        context, xp = self.context, self.context.backend.xp
        weight = 1 / batch.n if self.config.reduction == "mean" else 1.0
        step = StepInput.of(context, self.config.adam, state, batch, weight)
        self._check(step)
        at_start = self.with_sgd or estimator.gradient == "start"
        forward = forward_and_gradient(
            step,
            1 / batch.n_val,
            start_wanted=at_start,
            norms_wanted=estimator.slope == "random_order" and batch.n > 1,
            variance=estimator.variance,
        )
        if estimator.slope in ("linearized", "secant") or batch.n == 1:
            refuse_division_by_zero(context, step.hyperparameters, state.v, None)
        else:
            refuse_division_by_zero(context, step.hyperparameters, state.v, forward.g, state.theta)
        captures, start = cast(Captures, forward.captures), forward.start  # the batch is one chunk
        if start is None:  # before the step, which may overwrite θ
            valid_loss = mean_loss(context, state.theta, batch.valid_x, batch.valid_y)
        else:
            valid_loss = start.losses.mean(dtype="float64")
        decays = self._decays(step)  # before the step, which may overwrite θ
        take_step(context, step.hyperparameters.scalars, state, forward.g, new)
        sgd = None
        if self.with_sgd and start is not None:
            sgd = self._sgd_scores(step, captures, start)
            multiply(context, sgd, forward.factor)
        row = self.log[number]
        row[0], row[1] = forward.train_loss, valid_loss
        validation = self._validation(step, start, estimator, new)
        owed = [momentum.running(number) for momentum in self.momenta]
        matrix = ScoreMatrix(forward.g)  # in the memory of g, which nothing needs after this pass
        plan = split_plan(estimator.slope, estimator.nodes, batch.n)
        account = charge(step, plan, forward, validation, owed, matrix)
        row[2], row[3], row[4] = account.decay, account.own, account.owed
        out = xp.zeros(batch.n, context.backend.dtype)
        contract(context, captures, matrix, out, None, estimator.score_dtype)
        multiply(context, out, forward.factor)
        self.totals[where] += out
        for momentum, one in zip(self.momenta, owed, strict=True):
            if decays:
                self.carried_decay[number] -= one.less * self._dot(one.total, decays)
            if momentum.loses:
                square = sum(account.squares[name] for name in momentum.names)
                self.truncated += momentum.exposed * xp.sqrt(square)
                momentum.exposed *= momentum.beta1
        if self.momenta:
            self.pending.append(Pending(number, index, where, self.kept.copies(captures), forward.factor, decays))
            self._pay_due(number)
        return sgd

    def _check(self, step: StepInput) -> None:
        """Refuse another β1 than at the first step, and L2 decay where there was none."""
        for name, scalars in step.hyperparameters.scalars.items():
            where = f"at step {step.state.t} with credit 'carry'"
            if scalars.b1 != self.beta1[name]:
                refuse("Adam.betas[0]", f"{scalars.b1:g} {where}", f"{self.beta1[name]:g}, as at the first step")
            if scalars.l2 and scalars.b1 and name not in self.decaying:
                refuse("Adam.l2", f"{scalars.l2:g} {where}", "0, as at the first step")

    def _decays(self, step: StepInput) -> Arrays:
        """Return copies of d = λ₂ θ."""
        theta, scalars = step.state.theta, step.hyperparameters.scalars
        return {name: theta[name].dtype.type(scalars[name].l2) * theta[name] for name in self.decaying}

    def _dot(self, owed: Arrays, decays: Arrays) -> Any:
        """Return ⟨K, d⟩ in double precision, over the parameters of both."""
        pairs = [(owed[name], d) for name, d in decays.items() if name in owed]
        return sum((a.astype("float64") * b).sum() for a, b in pairs)

    def _sgd_scores(self, step: StepInput, captures: Captures, start: Captures) -> Any:
        task = ScoringTask(step.batch.n, step.batch.n_val)
        scorer = sgd_scorer(self.context, task, start, step.hyperparameters.lrs, "sgd product")
        return score_chunks(self.context, task, [scorer], [(slice(0, step.batch.n), captures)])[0][0]

    def _validation(self, step: StepInput, start: Captures | None, estimator: Estimator, new: State) -> Captures:
        """Return the captures of the validation samples on the way from θ to θ⁺."""
        if estimator.gradient == "start" and start is not None:
            return start
        nodes = ((0.5, 1.0),) if estimator.gradient == "midpoint" else path_nodes(estimator.nodes[0])
        return on_segment(step, (step.state.theta, new.theta), nodes, 1 / step.batch.n_val)

    def kept_bytes(self, batch: int) -> int:
        """Return the bytes of full windows, for batches of `batch` samples: a and b, L2 decay, and the blocks' sums."""
        itemsize, shapes = self.context.backend.dtype.itemsize, self.context.shapes
        decays = itemsize * sum(math.prod(shapes[name]) for name in self.decaying)
        steps = max((momentum.steps for momentum in self.momenta), default=0)
        return steps * (self.kept.bytes(batch) + decays) + sum(momentum.bytes() for momentum in self.momenta)

    def settled(self) -> tuple[Any, Any]:
        """Return totals and decay's carried credit with that of pending batches: all of it if the run ends here."""
        totals, decay = self.totals.copy(), self.carried_decay.copy()
        for momentum in self.momenta:
            later = None
            for block in reversed(momentum.blocks):
                if momentum.length > 1:
                    later = momentum.continued([block], later)
                self._pay(totals, decay, momentum, block, later)
                if momentum.length == 1:
                    later = momentum.continued([block], later)
        return totals, decay

    def arrays(self, done: CompletedSteps) -> Snapshot:
        """Return the arrays for `restore` after `done` steps, and the scores so far.

        The windows' arrays have a row for each block or batch that the windows can hold, in order. Unused rows are 0,
        and so are the rows of samples that a smaller batch lacks.
        """
        host, dtype, xp = self.context.backend.host, self.context.backend.dtype, self.context.backend.xp
        count, batches = min(self.config.batch_size, self.config.train.n), self.steps_kept
        log, exposed = host(self.log)[:done], xp.zeros((len(self.momenta), len(self.totals)))
        for row, momentum in enumerate(self.momenta):
            exposed[row] = momentum.exposed
        found = {"scores": self.settled()[0], "paid": self.totals, "truncated": self.truncated, "exposed": exposed}
        if self.decaying:
            found["carried_decay"] = self.carried_decay
        arrays = {name: np.array(host(array)) for name, array in found.items()}
        arrays |= {f"history/{name}": column.copy() for name, column in zip(LOG, log.T, strict=True)}
        for momentum in self.momenta:
            blocks = min(momentum.later + 1, math.ceil(len(self.log) / momentum.length))
            for name in momentum.names:
                whole = arrays[f"window/owed/{name}"] = np.zeros((blocks, *self.context.shapes[name]), dtype)
                for row, block in enumerate(momentum.blocks):
                    whole[row] = host(block.owed[name])
        if self.momenta and isinstance(self.config.adam, Clipped):
            factors = arrays["window/factor"] = np.zeros(batches)
            for row, batch in enumerate(self.pending):
                factors[row] = 1.0 if batch.factor is None else host(batch.factor)
        for name in self.decaying:
            whole = arrays[f"window/decay/{name}"] = np.zeros((batches, *self.context.shapes[name]), dtype)
            for row, batch in enumerate(self.pending):
                whole[row] = host(batch.decays[name])
        return arrays | self.kept.snapshot(list(self.pending), batches, count)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot."""
        backend, done = self.context.backend, int(snapshot["step"])
        for array, name in ((self.totals, "paid"), (self.truncated, "truncated")):
            array[...] = backend.xp.asarray(snapshot[name])
        if self.decaying:
            self.carried_decay[...] = backend.xp.asarray(snapshot["carried_decay"])
        for column, name in enumerate(LOG):
            self.log[:done, column] = backend.xp.asarray(snapshot[f"history/{name}"])
        self.pending.clear()
        for row, momentum in enumerate(self.momenta):
            momentum.exposed[...] = backend.xp.asarray(snapshot["exposed"][row])
            momentum.blocks.clear()
            for place, first in enumerate(range(momentum.oldest(done), done, momentum.length)):
                owed = {name: backend.real(snapshot[f"window/owed/{name}"][place].copy()) for name in momentum.names}
                momentum.blocks.append(Block(first, owed))
        oldest = min((momentum.oldest(done) for momentum in self.momenta), default=done)
        for row, (_, index) in enumerate(islice(self.config.order(), oldest, done)):
            arrays = self.kept.restored(snapshot, row, len(index))
            factor = backend.xp.asarray(snapshot["window/factor"])[row] if "window/factor" in snapshot else None
            decays = {name: backend.real(snapshot[f"window/decay/{name}"][row].copy()) for name in self.decaying}
            self.pending.append(Pending(oldest + row, index, backend.labels(index), arrays, factor, decays))

    def _pay_due(self, number: int) -> None:
        """Pay the batches of each oldest block that is due, and drop the batches that no window holds any more."""
        for momentum in self.momenta:
            if momentum.due(number):
                block, owed = momentum.blocks[0], momentum.owed_to_oldest()
                self._pay(self.totals, self.carried_decay, momentum, block, owed, number)
                momentum.blocks.popleft()
        oldest = min(momentum.blocks[0].first if momentum.blocks else number + 1 for momentum in self.momenta)
        while self.pending and self.pending[0].number < oldest:
            self.kept.unused.append(self.pending.popleft().arrays)

    def _pay(
        self,
        totals: Any,
        decay: Any,
        momentum: Momentum,
        block: Block,
        owed: Arrays | None,
        leave_after: int | None = None,
    ) -> None:
        """Add to `totals` and `decay` the credit owed to a block's batches through the parameters with one β1.

        The batches may leave that window, after the step that follows `leave_after` completed ones. A block of one step
        owes nothing to its own batch: `owed` is then the sum of later blocks alone.
        """
        backend, beta1 = self.context.backend, momentum.beta1
        for batch in self._batches(block, momentum.length):
            captures = self._captures(batch).of(self.context, momentum.names)
            if owed is not None:
                out = backend.xp.zeros(len(batch.where), backend.dtype)
                contract(self.context, captures, owed, out)
                multiply(self.context, out, batch.factor)
                share = momentum.share(block, batch.number)
                totals[batch.where] += share * out
                if batch.decays:
                    decay[batch.number] += share * self._dot(owed, batch.decays)
            if leave_after is not None:
                norms = self._row_norms(captures)
                multiply(self.context, norms, batch.factor)
                momentum.exposed[batch.where] += (1 - beta1) * beta1 ** (leave_after - batch.number) * norms

    def _batches(self, block: Block, length: int) -> Iterator[Pending]:
        """Return the pending batches of a block."""
        start = block.first - self.pending[0].number
        return islice(self.pending, start, start + length)

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
