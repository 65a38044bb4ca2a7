"""A run whose momentum steps are credited to the samples that the momentum is made of, without the run being kept.

The step u owes ⟨O_u, m⟩, O_u = Γ_u ⊙ M_u, to the samples before it (docs/method.md 6): sample i of step s is credited
with (1 − β1) Σ_{u>s} β1^{u−1−s} ⟨O_u, x_i⟩. Its gradient x_i is not kept; the batch's layer inputs a and output
gradients b are, for a window of steps, after which β1^k has died out. How two contractions a sample are enough, and
what is lost at the window's end, is derived in docs/engine.md.

=========  ======================  ====================================================================
method 6   name                    meaning
=========  ======================  ====================================================================
Γ          ``validation``               validation gradient on the walked step, as the trace that it is made of
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

from adamshap.gpu.data import Data
from adamshap.gpu.ghost import contract
from adamshap.gpu.kernels.groups import NO_NORMS, OwedSum
from adamshap.gpu.kernels.plan import AdamScalars, SplitPlan, adam_scalars, path_nodes, split_plan
from adamshap.gpu.layers import (
    CACHED,
    EngineContext,
    Trace,
    as_matrix,
    weights_of,
    with_gradients,
)
from adamshap.gpu.step import (
    Arrays,
    ForwardResult,
    State,
    StepBatch,
    along_segment,
    first_pass,
    like,
    refuse_division_by_zero,
    score_rows,
    scorer_of,
    take_step,
)
from adamshap.gpu.threads import in_parts
from adamshap.reference.contract import (
    Array,
    CompletedSteps,
    Estimator,
    RunConfig,
    Snapshot,
    adam_in,
)

__all__ = ["LOG", "Carrier"]

GROWTH = 2.0
"""Largest weight β1^{−k} within a block: what is added and subtracted again is not much larger than the rest."""

FORGOTTEN = 1e-3
"""β1^k at the end of the window, unless its length is given."""

LOG = ("train_loss", "valid_loss", "decay", "own", "owed")
"""The columns of `Carrier.log`, as a snapshot's history names them."""


# --- the window ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pending:
    """A batch that is still owed: its step, its samples (``where`` in the backend), and what its gradients are made of.

    ``arrays`` are the inputs a of every layer but the first, which the training samples themselves are, and then all b.
    """

    number: int
    index: Array
    where: Any
    arrays: list[Any]


@dataclass(frozen=True)
class Block:
    """Some steps in a row, from ``first`` on: their batches, and the running sum of what they owe, weighted."""

    first: int
    owed: Arrays
    batches: list[Pending] = field(default_factory=list)


@dataclass
class Carrier:
    """What the steps of a run leave for later ones.

    Parameters
    ----------
    length : int
        Steps of a block.
    later : int
        How many whole blocks after its own a batch is credited from.
    loses : bool
        Whether the run is longer than that, so that something is lost.
    data : Data
        Where batches come from; a memory map's rows are read again when they are paid.
    totals, truncated : arrays (N,)
        Scores, and a bound on what each of them lacks, in the backend.
    log : array (steps, 5)
        Losses of batch and validation samples before the step, weight decay's share, ⟨Γ ⊙ S, g⟩ and ⟨Γ ⊙ M, m⟩.
    exposed : array (N,)
        Σ β1^k ‖x_i‖ over each sample's batches that have left the window.
    unused : list
        Arrays of batches that have left the window, for those to come.
    """

    context: EngineContext
    config: RunConfig
    length: int
    later: int
    loses: bool
    data: Data
    totals: Any
    truncated: Any
    exposed: Any
    log: Any
    blocks: deque[Block] = field(default_factory=deque)
    unused: list[list[Any]] = field(default_factory=list)

    @classmethod
    def of(cls, context: EngineContext, config: RunConfig, data: Data, steps: int, window: int | None) -> "Carrier":
        """Return a carrier for a run of so many steps, with a window of at least `window` steps."""
        beta1, xp, count = config.adam.betas[0], context.backend.xp, config.train.n
        rate = -math.log(beta1) if beta1 > 0 else math.inf
        length = min(max(1, int(math.log(GROWTH) / rate)), steps)
        later = math.ceil((window or math.ceil(-math.log(FORGOTTEN) / rate) or 1) / length)
        loses = beta1 > 0 and (later + 1) * length < steps
        log = xp.zeros((steps, 5))
        return cls(context, config, length, later, loses, data, xp.zeros(count), xp.zeros(count), xp.zeros(count), log)

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
        """Take the step after `number` completed ones, add its samples' own scores to the totals, and return SGD's.

        The samples are those at `index`, which is `where` in the backend.

        What a batch is paid later is the whole block's K less what was in it at the batch's own step, which is
        subtracted here, in the same contraction as the batch's own scores.
        """
        context, config, xp = self.context, self.config, self.context.backend.xp
        beta1, adam = config.adam.betas[0], adam_in(config.adam, context.backend.dtype)
        scalars = adam_scalars(adam, state.t)
        weight = 1 / batch.n if config.reduction == "mean" else 1.0
        spread_wanted = estimator.slope == "random_order" and batch.n > 1
        whole = [slice(0, batch.n)]
        first = first_pass(
            context, state, batch, weight, 1 / batch.n_val, whole, True, spread_wanted, estimator.variance
        )
        at_rest = estimator.slope in ("linearized", "secant") or batch.n == 1
        refuse_division_by_zero(context, adam, state, None if at_rest else first.g)
        trace, start = cast(Trace, first.trace), cast(Trace, first.start)  # of a batch that is run as a whole
        take_step(context, scalars, state, first.g, new)
        scorer = scorer_of(context, Estimator("sgd", "start"), batch.n, start, scalars.lr)
        sgd = score_rows(context, state, batch, weight, whole, trace, [scorer], 1)[0][0]
        row = self.log[number]
        row[0], row[1] = first.train_loss, start.losses.mean(dtype="float64")
        validation = start  # whose trace may end here
        if estimator.gradient != "start":
            nodes = ((0.5, 1.0),) if estimator.gradient == "midpoint" else path_nodes(estimator.nodes[0])
            validation = along_segment(context, (state.theta, new.theta), nodes, batch, 1 / batch.n_val)
        owed, grow, less = None, 0.0, 0.0
        if beta1 > 0:
            block = self._current(number)
            owed, passed = block.owed, number - block.first
            grow = beta1**passed
            less = (1 - beta1) * beta1 ** (-passed - 1) if self.length > 1 else 0.0
        plan = split_plan(estimator.slope, estimator.nodes, batch.n)
        product = first.g  # which nothing needs after this pass
        row[3], row[4], size, of_theta = charge(
            context, scalars, plan, batch.n, first, state, validation, owed, grow, less, product
        )
        row[2] = (1 - scalars.shrink) * of_theta
        out = xp.zeros(batch.n, context.backend.dtype)
        contract(context, trace, product, out, None, estimator.score_dtype)
        self.totals[where] += out
        if beta1 > 0:
            if self.loses:
                self.truncated += self.exposed * xp.sqrt(size)
                self.exposed *= beta1
            block.batches.append(Pending(number, index, where, self._kept(trace)))
            if len(block.batches) == self.length and len(self.blocks) > self.later:
                self._pay_oldest(number)
        return sgd

    def kept_bytes(self, batch: int) -> int:
        """Return what a full window holds, for batches of so many samples: a and b, and the blocks' sums."""
        sizes, itemsize = self.context.net.sizes, self.context.backend.dtype.itemsize
        rows = batch * (sum(sizes[1:-1]) + sum(sizes[1:]))
        parameters = sum(math.prod(shape) for shape in self.context.net.shapes.values())
        return itemsize * (self.later + 1) * (self.length * rows + parameters)

    def settled(self) -> Any:
        """Return the totals with what the waiting batches are owed: all of it, where the run ends here."""
        totals, later = self.totals.copy(), None
        for block in reversed(self.blocks):
            if self.length > 1:
                later = self._with([block], later)
            self._pay(totals, block, later)
            if self.length == 1:
                later = self._with([block], later)
        return totals

    def arrays(self, done: CompletedSteps) -> Snapshot:
        """Return, for a snapshot after so many steps, what `restore` takes, and the scores as they stand.

        The window's arrays have a row for each block, or for each batch, that may ever be in it; blocks and batches
        come in order, and rows that nothing is in are 0, as are those of samples that a smaller batch has not.
        """
        host, net, dtype = self.context.backend.host, self.context.net, self.context.backend.dtype
        steps, count = len(self.log), min(self.config.batch_size, self.config.train.n)
        blocks = min(self.later + 1, math.ceil(steps / self.length)) if self.config.adam.betas[0] > 0 else 0
        batches = min(blocks * self.length, steps)
        log = host(self.log)[:done]
        found = {"scores": self.settled(), "paid": self.totals, "truncated": self.truncated, "exposed": self.exposed}
        arrays = {name: np.array(host(array)) for name, array in found.items()}
        arrays |= {f"history/{name}": column.copy() for name, column in zip(LOG, log.T, strict=True)}
        for name, shape in net.shapes.items():
            whole = arrays[f"window/owed/{name}"] = np.zeros((blocks, *shape), dtype)
            for row, block in enumerate(self.blocks):
                whole[row] = host(block.owed[name])
        waiting = [batch for block in self.blocks for batch in block.batches]
        for place, (name, width) in enumerate(self._kept_widths()):
            whole = arrays[name] = np.zeros((batches, count, width), dtype)
            for row, batch in enumerate(waiting):
                whole[row, : len(batch.where)] = host(batch.arrays[place])
        return arrays

    def restore(self, kept: Snapshot) -> None:
        """Go on from a snapshot."""
        backend, done = self.context.backend, int(kept["step"])
        for array, name in ((self.totals, "paid"), (self.truncated, "truncated"), (self.exposed, "exposed")):
            array[...] = backend.xp.asarray(kept[name])
        for column, name in enumerate(LOG):
            self.log[:done, column] = backend.xp.asarray(kept[f"history/{name}"])
        self.blocks.clear()
        if self.config.adam.betas[0] == 0:
            return
        oldest = self.length * max(0, done // self.length - self.later)
        indices = [index for _, index in islice(self.config.order(), oldest, done)]
        for row, first in enumerate(range(oldest, done, self.length)):
            owed = {name: backend.real(kept[f"window/owed/{name}"][row].copy()) for name in self.context.net.shapes}
            batches = []
            for number in range(first, min(first + self.length, done)):
                index = indices[number - oldest]
                rows = (kept[name][number - oldest, : len(index)] for name, _ in self._kept_widths())
                batches.append(
                    Pending(number, index, backend.labels(index), [backend.real(array.copy()) for array in rows])
                )
            self.blocks.append(Block(first, owed, batches))

    def _kept_widths(self) -> list[tuple[str, int]]:
        """Return the arrays of a `Pending` in their order: their names in a snapshot, and their widths."""
        sizes = self.context.net.sizes
        inputs = [(f"window/a/{layer}", sizes[layer]) for layer in range(1, self.context.net.depth)]
        return inputs + [(f"window/b/{layer}", width) for layer, width in enumerate(sizes[1:])]

    def _current(self, number: int) -> Block:
        if not self.blocks or number - self.blocks[-1].first == self.length:
            shapes = self.context.net.shapes
            zeros = {
                name: self.context.backend.xp.zeros(shape, self.context.backend.dtype) for name, shape in shapes.items()
            }
            self.blocks.append(Block(number, zeros))
        return self.blocks[-1]

    def _pay_oldest(self, number: int) -> None:
        """Pay the oldest block's batches from all blocks so far, and let them go."""
        oldest, *others = self.blocks
        beta1 = self.config.adam.betas[0]

        def leaves(batch: Pending, trace: Trace) -> None:
            self.exposed[batch.where] += (1 - beta1) * beta1 ** (number - batch.number) * self._size(trace)
            self.unused.append(batch.arrays)

        self._pay(self.totals, oldest, self._with([oldest, *others] if self.length > 1 else others, None), leaves)
        self.blocks.popleft()

    def _with(self, blocks: list[Block], later: Arrays | None) -> Arrays:
        """Return K of blocks in a row with that of those after them, ``K + β1^length (K' + …)``, in a buffer."""
        total, on_cuda = like(self.context, "owed from here on"), self.context.backend.on_cuda
        for key, whole in total.items():
            flat, parts = whole.reshape(-1), [block.owed[key].reshape(-1) for block in reversed(blocks)]
            factor = whole.dtype.type(self.config.adam.betas[0] ** self.length)

            def some(low: int, high: int, flat: Any = flat, parts: list[Any] = parts, factor: Any = factor) -> None:
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

            in_parts(some, flat.size, 2 * FLOPS_OF_A_COPY * flat.size * len(parts))
        return total

    def _pay(
        self,
        totals: Any,
        block: Block,
        owed: Arrays | None,
        leaves: Callable[[Pending, Trace], None] | None = None,
    ) -> None:
        """Pay into `totals` what a block and those after it owe its batches; call `leaves` with each and its trace.

        A block of one step owes nothing to its own batch: `owed` is what those after it owe.
        """
        beta1, backend = self.config.adam.betas[0], self.context.backend
        first = block.first + 1 if self.length == 1 else block.first
        for batch in block.batches:
            trace = self._trace(batch)
            if owed is not None:
                out = backend.xp.zeros(len(batch.where), backend.dtype)
                contract(self.context, trace, owed, out)
                totals[batch.where] += (1 - beta1) * beta1 ** (first - batch.number - 1) * out
            if leaves is not None:
                leaves(batch, trace)

    def _kept(self, trace: Trace) -> list[Any]:
        """Return copies of what a pending batch needs of its trace."""
        arrays = [*trace.inputs[1:], *trace.grads]
        copies = self.unused.pop() if self.unused else []
        if [a.shape for a in arrays] != [a.shape for a in copies]:
            copies = [self.context.backend.xp.empty_like(a) for a in arrays]

        def some(low: int, high: int) -> None:
            for a, copy in zip(arrays, copies, strict=True):
                copy[low:high] = a[low:high]

        in_parts(some, len(trace.losses), FLOPS_OF_A_COPY * sum(a.size for a in arrays))
        return copies

    def _trace(self, batch: Pending) -> Trace:
        """Return a pending batch's trace, with its first inputs in a buffer."""
        count, depth = len(batch.where), self.context.net.depth
        first = self.context.buffers.get("pending inputs", (count, self.context.net.sizes[0]))
        self.data.inputs(batch.index, batch.where, first)
        nothing = [None] * (depth - 1)
        losses = self.context.buffers.get("pending losses", (count,))  # which nobody asks for
        return Trace([first, *batch.arrays[: depth - 1]], batch.arrays[depth - 1 :], nothing, losses)

    def _size(self, trace: Trace) -> Any:
        """Return ‖x_i‖ of each sample."""
        backend = self.context.backend
        total = backend.xp.zeros(len(trace.losses), backend.dtype)

        def some(low: int, high: int) -> None:
            for a, b in zip(trace.inputs, trace.grads, strict=True):
                a, b = a[low:high], b[low:high]
                norm = row_norms(backend.xp, a)
                norm = backend.xp.hypot(norm, a.dtype.type(1)) if self.context.net.bias else norm
                total[low:high] = backend.xp.hypot(total[low:high], row_norms(backend.xp, b) * norm)

        in_parts(some, len(total), 2 * FLOPS_OF_A_COPY * sum(a.size for a in (*trace.inputs, *trace.grads)))
        return total


def row_norms(xp: Any, x: Any) -> Any:
    """Return the Euclidean norm of each row, in units of its largest entry: no square over- or underflows."""
    top = abs(x).max(axis=1)
    scaled = x / xp.where(top > 0, top, x.dtype.type(1))[:, None]
    return top * xp.sqrt(xp.einsum("no,no->n", scaled, scaled))


FLOPS_OF_A_COPY = 60
"""What a number's copy costs, as products cost them."""

FLOPS_OF_A_SPLIT = 500
"""What the split of an element costs, as products cost them."""


def charge(
    context: EngineContext,
    scalars: AdamScalars,
    plan: SplitPlan,
    n: int,
    first: ForwardResult,
    state: State,
    validation: Trace,
    owed: Arrays | None,
    grow: float,
    less: float,
    product: Arrays,
) -> Any:
    """Run the split over every parameter, with the validation's gradient for Γ; see `Kernels.momentum_split`."""
    sums = {}

    def use(key: str, units: slice, gamma: Any) -> None:
        def part(arrays: Arrays) -> Any:
            return as_matrix(arrays[key][units])

        norms = NO_NORMS if first.norms is None else first.norms.of(key, n, units)
        sums[key, units.start] = context.kernels.momentum_split(
            scalars,
            plan,
            part(first.g),
            state.of(key, units),
            norms,
            as_matrix(gamma),
            None if owed is None else OwedSum(part(owed), grow, less),
            part(product),
        )

    flops = 4 * len(validation.losses) + FLOPS_OF_A_SPLIT
    with_gradients(context, validation, use, flops * weights_of(context.net))
    return sum(sums[key] for key in sorted(sums))  # in one order, whichever thread was first
