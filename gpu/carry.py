"""A run whose momentum steps are credited to the samples that the momentum is made of, without the run being kept.

The step u owes ⟨O_u, m⟩, O_u = Γ_u ⊙ M_u, to the samples before it (docs/method.md 6): sample i of step s is credited
with (1 − β1) Σ_{u>s} β1^{u−1−s} ⟨O_u, x_i⟩. Its gradient x_i is not kept; the batch's layer inputs a and output
gradients b are, for a window of steps, after which β1^k has died out. How two contractions a sample are enough, and
what is lost at the window's end, is derived in docs/engine.md.

=========  ======================  ====================================================================
method 6   name                    meaning
=========  ======================  ====================================================================
Γ          ``judge``               validation gradient on the walked step, as the trace that it is made of
K          ``Block.owed``          Σ_{u in the block} β1^{u−first} O_u, a running sum
=========  ======================  ====================================================================
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, cast

import numpy as np

from adamshap.gpu.arrays import Space, arithmetic_of
from adamshap.gpu.data import Data
from adamshap.gpu.ghost import contract
from adamshap.gpu.kernels import split_for
from adamshap.gpu.layers import CACHED, Trace, Workshop, as_matrix, new_trace, row_losses, weights_of, with_gradients
from adamshap.gpu.parallel import in_parts, parts_of
from adamshap.gpu.rules import SPLIT_SLOPES, Rates, SplitRule, path_nodes, rates_of, split_rule_of
from adamshap.gpu.step import (
    Arrays,
    First,
    Judged,
    Question,
    State,
    advice,
    along_segment,
    first_pass,
    like,
    refuse_division_by_zero,
    score_rows,
    scorer_of,
    take_step,
)
from adamshap.reference.contract import (
    AdamState,
    Array,
    Checkpointer,
    Diverged,
    Progress,
    Run,
    RunConfig,
    Snapshot,
    adam_in,
    first_not_finite,
    logged,
    positive_integer,
    refuse,
    resumed,
    run_settings,
)

__all__ = ["Carrier", "attribute_carrying"]

GROWTH = 2.0
"""Largest weight β1^{−k} within a block: what is added and subtracted again is not much larger than the rest."""

FORGOTTEN = 1e-3
"""β1^k at the end of the window, unless its length is given."""

LOG = ("train_loss", "valid_loss", "decay", "own", "owed")
"""The columns of `Carrier.log`, as a snapshot's history names them."""


def attribute_carrying(
    config: RunConfig,
    question: Question,
    space: Space,
    window: int | None,
    about: str,
    on_step: Callable[[Progress], None] | None,
    on_checkpoint: Checkpointer | None,
    resume: Mapping[str, Array] | None,
    *,
    patiently: bool = False,
) -> Run:
    """Train and attribute with ``credit="carry"``; the arguments are those of `trainer.attribute`, checked.

    `about` is what the log says of the run.

    On a device, `on_step` and `on_checkpoint` wait for each step. Without them numbers that are not finite show at the
    run's end; the run is then repeated, `patiently` waiting for each step, to find where they came from.
    """
    if question.slope not in SPLIT_SLOPES:
        refuse(
            "slope",
            f"'{question.slope}' with credit 'carry'",
            "one of " + ", ".join(SPLIT_SLOPES) + ": the others do not split the step between batch and momentum",
        )
    if question.per_validation:
        refuse("per_validation", "True with credit 'carry'", "False: each validation sample would need its own window")
    window = None if window is None else positive_integer("carry_window", window)
    on_step, steps, parts = logged(on_step, about), config.length, parts_of(resume)
    shop, xp = Workshop.on(config.network, space, parts), space.xp
    looks = patiently or not space.on_cuda or on_step is not None or on_checkpoint is not None
    initial = space.reals(config.network.init(config.seed))
    zeros = [{name: xp.zeros_like(p) for name, p in initial.items()} for _ in range(2)]
    state = State({name: p.copy() for name, p in initial.items()}, zeros[0], zeros[1], 1)
    spare = State(like(shop, "second theta"), like(shop, "second m"), like(shop, "second v"), 1)
    carrier = Carrier.of(shop, config, steps, window)
    sgd_totals, seen = xp.zeros(config.train.n), np.zeros(config.train.n, np.int64)
    settings = ""
    if resume is not None or on_checkpoint is not None:
        settings = run_settings(
            config.train,
            config.valid,
            arithmetic_of(space, parts),
            trainer=__name__,
            network=config.network,
            adam=config.adam,
            epochs=config.epochs,
            steps=steps,
            batch_size=config.batch_size,
            seed=config.seed,
            question=question,
            reduction=config.reduction,
            carry_window=[carrier.length, carrier.later],
            space=[xp.__name__, str(space.dtype)],
        )

    def run(done: int) -> Run:
        log = np.array(space.host(carrier.log))[:done]
        theta, m, v = ({name: space.host(a) for name, a in group.items()} for group in (state.theta, state.m, state.v))
        return Run(
            initial_params={name: space.host(p) for name, p in initial.items()},
            params=theta,
            state=AdamState.unchecked(state.t - 1, m, v),
            scores=space.host(carrier.totals),
            sgd_scores=space.host(sgd_totals),
            seen=seen,
            history={
                "epoch": np.arange(done) // config.per_epoch,
                "train_loss": log[:, 0],
                "valid_loss": log[:, 1],
            },
            config=config,
            credit="carry",
            decay=log[:, 2],
            truncated=space.host(carrier.truncated),
        )

    def snapshot() -> Snapshot:
        done = state.t - 1
        arrays = {"sgd_scores": np.array(space.host(sgd_totals)), "seen": seen.copy()} | carrier.arrays(done)
        for group, named in (("params", state.theta), ("m", state.m), ("v", state.v)):
            arrays |= {f"{group}/{name}": np.array(space.host(array)) for name, array in named.items()}
        return {"step": np.array(done), "settings": np.array(settings)} | arrays

    def valid_loss() -> float:
        data = carrier.data
        trace = new_trace(shop, "valid", config.valid.n, data.valid_x)
        return float(row_losses(shop, trace, state.theta, data.valid_y).mean(dtype="float64"))

    if resume is not None:
        kept = resumed(resume, settings, snapshot(), steps=steps)
        carrier.restore(kept)
        theta, m, v = ({n: space.real(kept[f"{g}/{n}"].copy()) for n in initial} for g in ("params", "m", "v"))
        state = State(theta, m, v, int(kept["step"]) + 1)
        sgd_totals, seen = xp.array(kept["sgd_scores"]), kept["seen"].copy()

    with shop.at_work():
        for number, (epoch, index) in islice(enumerate(config.order()), state.t - 1, None):
            where = space.labels(index)
            before = carrier.totals.copy(), carrier.truncated.copy()
            sgd = carrier.take(number, index, where, state, carrier.data.batch(index, where), question, spare)
            state, spare = State(spare.theta, spare.m, spare.v, state.t + 1), state
            if looks:
                row = dict(zip(LOG, space.host(carrier.log[number]).tolist(), strict=True))
                losses = [row[name] for name in LOG[:2]]
                suspects = {} if state.is_finite() else state.suspects()
                ending = {"final valid_loss": valid_loss()} if number + 1 == steps else {}
                named = dict(zip(LOG[:2], losses, strict=True)) | suspects | ending
                bad = first_not_finite(named | {"scores": carrier.totals, "sgd_scores": sgd} | row)
                if bad is not None:
                    # What past samples are owed by now cannot be told: the scores are those paid before the step.
                    carrier.totals, carrier.truncated = before
                    raise Diverged(number + 1, steps, *bad, run(number), advice(config.adam, space))
                if on_step is not None:
                    on_step(Progress(number + 1, steps, epoch, *losses))
            sgd_totals[where] += sgd
            seen[index] += 1
            if on_checkpoint is not None:
                on_checkpoint(number + 1, snapshot)
        settled, last_loss = space.host(carrier.settled()), valid_loss()
    scores, closed = _closed(config, settled, carrier.loses, space.host(carrier.log), last_loss)
    bad = first_not_finite({"scores": scores, "sgd_scores": sgd_totals, "closed": closed})
    if bad is not None and not looks:
        callbacks = (on_step, on_checkpoint)
        return attribute_carrying(config, question, space, window, about, *callbacks, resume, patiently=True)
    if bad is not None:
        raise Diverged(steps + 1, steps, *bad, run(steps), advice(config.adam, space))
    return replace(run(steps), scores=scores, closed=closed)


def _closed(config: RunConfig, settled: Array, loses: bool, log: Array, last_loss: float) -> tuple[Array, Array]:
    """Return the scores with what each step leaves open, and what was lost at windows' ends, in equal parts."""
    losses, decay, own, owed = np.append(log[:, 1], last_loss), log[:, 2], log[:, 3], log[:, 4]
    closed = losses[:-1] - losses[1:] - decay - own - owed
    scores = np.array(settled)
    sizes = np.array([len(index) for _, index in config.order()])
    if loses:
        # All that was owed, and was not paid: the rest of the account.
        closed = closed + (owed.sum() + own.sum() - scores.sum()) * (sizes / sizes.sum())
    for (_, index), share in zip(config.order(), closed / sizes, strict=True):
        scores[index] += share
    return scores, closed


# --- the window ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pending:
    """A batch that is still owed: its step, its samples (``where`` in the space), and what its gradients are made of.

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
        Scores, and a bound on what each of them lacks, in the space.
    log : array (steps, 5)
        Losses of batch and validation samples before the step, weight decay's share, ⟨Γ ⊙ S, g⟩ and ⟨Γ ⊙ M, m⟩.
    exposed : array (N,)
        Σ β1^k ‖x_i‖ over each sample's batches that have left the window.
    unused : list
        Arrays of batches that have left the window, for those to come.
    """

    shop: Workshop
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
    def of(cls, shop: Workshop, config: RunConfig, steps: int, window: int | None) -> "Carrier":
        """Return a carrier for a run of so many steps, with a window of at least `window` steps."""
        beta1, xp, count = config.adam.betas[0], shop.space.xp, config.train.n
        rate = -math.log(beta1) if beta1 > 0 else math.inf
        length = min(max(1, int(math.log(GROWTH) / rate)), steps)
        later = math.ceil((window or math.ceil(-math.log(FORGOTTEN) / rate) or 1) / length)
        loses = beta1 > 0 and (later + 1) * length < steps
        data = Data.of(shop, config.train, config.valid, min(config.batch_size, count))
        log = xp.zeros((steps, 5))
        return cls(shop, config, length, later, loses, data, xp.zeros(count), xp.zeros(count), xp.zeros(count), log)

    def take(
        self, number: int, index: Array, where: Any, state: State, batch: Judged, question: Question, new: State
    ) -> Any:
        """Take step `number`, add its samples' own scores to the totals, and return SGD's.

        The samples are those at `index`, which is `where` in the space.

        What a batch is paid later is the whole block's K less what was in it at the batch's own step, which is
        subtracted here, in the same contraction as the batch's own scores.
        """
        shop, config, xp = self.shop, self.config, self.shop.space.xp
        beta1, adam = config.adam.betas[0], adam_in(config.adam, shop.space.dtype)
        rates = rates_of(adam, state.t)
        weight = 1 / batch.n if config.reduction == "mean" else 1.0
        spread_wanted = question.slope == "random_order" and batch.n > 1
        whole = [slice(0, batch.n)]
        first = first_pass(shop, state, batch, weight, 1 / batch.n_val, whole, True, spread_wanted, question.variance)
        at_rest = question.slope in ("linearized", "secant") or batch.n == 1
        refuse_division_by_zero(shop, adam, state, None if at_rest else first.g)
        trace, start = cast(Trace, first.trace), cast(Trace, first.start)  # of a batch that is run as a whole
        take_step(shop, rates, state, first.g, new)
        scorer = scorer_of(shop, Question("sgd", "start"), batch.n, start, rates.lr)
        sgd = score_rows(shop, state, batch, weight, whole, trace, [scorer], 1)[0][0]
        row = self.log[number]
        row[0], row[1] = first.train_loss, start.losses.mean(dtype="float64")
        judge = start  # whose trace may end here
        if question.gradient != "start":
            nodes = ((0.5, 1.0),) if question.gradient == "midpoint" else path_nodes(question.nodes[0])
            judge = along_segment(shop, (state.theta, new.theta), nodes, batch, 1 / batch.n_val)
        owed, grow, less = None, 0.0, 0.0
        if beta1 > 0:
            block = self._current(number)
            owed, passed = block.owed, number - block.first
            grow = beta1**passed
            less = (1 - beta1) * beta1 ** (-passed - 1) if self.length > 1 else 0.0
        rule = split_rule_of(question.slope, question.nodes, batch.n)
        product = first.g  # which nothing needs after this pass
        row[3], row[4], size, of_theta = charge(
            shop, rates, rule, batch.n, first, state, judge, owed, grow, less, product
        )
        row[2] = (1 - rates.shrink) * of_theta
        out = xp.zeros(batch.n, shop.space.dtype)
        contract(shop, trace, product, out, None, question.score_dtype)
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
        sizes, itemsize = self.shop.net.sizes, self.shop.space.dtype.itemsize
        rows = batch * (sum(sizes[1:-1]) + sum(sizes[1:]))
        parameters = sum(math.prod(shape) for shape in self.shop.net.shapes.values())
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

    def arrays(self, done: int) -> Snapshot:
        """Return, for a snapshot after so many steps, what `restore` takes, and the scores as they stand.

        The window's arrays have a row for each block, or for each batch, that may ever be in it; blocks and batches
        come in order, and rows that nothing is in are 0, as are those of samples that a smaller batch has not.
        """
        host, net, dtype = self.shop.space.host, self.shop.net, self.shop.space.dtype
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
        space, done = self.shop.space, int(kept["step"])
        for array, name in ((self.totals, "paid"), (self.truncated, "truncated"), (self.exposed, "exposed")):
            array[...] = space.xp.asarray(kept[name])
        for column, name in enumerate(LOG):
            self.log[:done, column] = space.xp.asarray(kept[f"history/{name}"])
        self.blocks.clear()
        if self.config.adam.betas[0] == 0:
            return
        oldest = self.length * max(0, done // self.length - self.later)
        indices = [index for _, index in islice(self.config.order(), oldest, done)]
        for row, first in enumerate(range(oldest, done, self.length)):
            owed = {name: space.real(kept[f"window/owed/{name}"][row].copy()) for name in self.shop.net.shapes}
            batches = []
            for number in range(first, min(first + self.length, done)):
                index = indices[number - oldest]
                rows = (kept[name][number - oldest, : len(index)] for name, _ in self._kept_widths())
                batches.append(
                    Pending(number, index, space.labels(index), [space.real(array.copy()) for array in rows])
                )
            self.blocks.append(Block(first, owed, batches))

    def _kept_widths(self) -> list[tuple[str, int]]:
        """Return the arrays of a `Pending` in their order: their names in a snapshot, and their widths."""
        sizes = self.shop.net.sizes
        inputs = [(f"window/a/{layer}", sizes[layer]) for layer in range(1, self.shop.net.depth)]
        return inputs + [(f"window/b/{layer}", width) for layer, width in enumerate(sizes[1:])]

    def _current(self, number: int) -> Block:
        if not self.blocks or number - self.blocks[-1].first == self.length:
            shapes = self.shop.net.shapes
            zeros = {name: self.shop.space.xp.zeros(shape, self.shop.space.dtype) for name, shape in shapes.items()}
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
        total, on_cuda = like(self.shop, "owed from here on"), self.shop.space.on_cuda
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
        beta1, space = self.config.adam.betas[0], self.shop.space
        first = block.first + 1 if self.length == 1 else block.first
        for batch in block.batches:
            trace = self._trace(batch)
            if owed is not None:
                out = space.xp.zeros(len(batch.where), space.dtype)
                contract(self.shop, trace, owed, out)
                totals[batch.where] += (1 - beta1) * beta1 ** (first - batch.number - 1) * out
            if leaves is not None:
                leaves(batch, trace)

    def _kept(self, trace: Trace) -> list[Any]:
        """Return copies of what a pending batch needs of its trace."""
        arrays = [*trace.inputs[1:], *trace.grads]
        copies = self.unused.pop() if self.unused else []
        if [a.shape for a in arrays] != [a.shape for a in copies]:
            copies = [self.shop.space.xp.empty_like(a) for a in arrays]

        def some(low: int, high: int) -> None:
            for a, copy in zip(arrays, copies, strict=True):
                copy[low:high] = a[low:high]

        in_parts(some, len(trace.losses), FLOPS_OF_A_COPY * sum(a.size for a in arrays))
        return copies

    def _trace(self, batch: Pending) -> Trace:
        """Return a pending batch's trace, with its first inputs in a buffer."""
        count, depth = len(batch.where), self.shop.net.depth
        first = self.shop.buffers.get("pending inputs", (count, self.shop.net.sizes[0]))
        self.data.inputs(batch.index, batch.where, first)
        nothing = [None] * (depth - 1)
        losses = self.shop.buffers.get("pending losses", (count,))  # which nobody asks for
        return Trace([first, *batch.arrays[: depth - 1]], batch.arrays[depth - 1 :], nothing, losses)

    def _size(self, trace: Trace) -> Any:
        """Return ‖x_i‖ of each sample."""
        space = self.shop.space
        total = space.xp.zeros(len(trace.losses), space.dtype)

        def some(low: int, high: int) -> None:
            for a, b in zip(trace.inputs, trace.grads, strict=True):
                a, b = a[low:high], b[low:high]
                norm = row_norms(space.xp, a)
                norm = space.xp.hypot(norm, a.dtype.type(1)) if self.shop.net.bias else norm
                total[low:high] = space.xp.hypot(total[low:high], row_norms(space.xp, b) * norm)

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
    shop: Workshop,
    rates: Rates,
    rule: SplitRule,
    n: int,
    first: First,
    state: State,
    judge: Trace,
    owed: Arrays | None,
    grow: float,
    less: float,
    product: Arrays,
) -> Any:
    """Run the split over every parameter, with the judge's gradient for Γ; see `kernels.Split`."""
    split, sums = split_for(shop.space), {}

    def use(key: str, units: slice, gamma: Any) -> None:
        def part(arrays: Arrays) -> Any:
            return as_matrix(arrays[key][units])

        row, col, root = (None, None, None) if first.norms is None else first.norms.of(key, n, units)
        sums[key, units.start] = split(
            rates,
            rule,
            n,
            part(first.g),
            part(state.theta) if rates.shrink < 1 else None,
            part(state.m),
            part(state.v),
            row,
            col,
            root,
            as_matrix(gamma),
            grow,
            less,
            None if owed is None else part(owed),
            part(product),
        )

    flops = 4 * len(judge.losses) + FLOPS_OF_A_SPLIT
    with_gradients(shop, judge, use, flops * weights_of(shop.net))
    return sum(sums[key] for key in sorted(sums))  # in one order, whichever thread was first
