"""A run whose momentum steps are credited to the samples that the momentum is made of, without the run being kept.

The step u owes ⟨O_u, m⟩, O_u = Γ_u ⊙ M_u, to the samples before it (docs/method.md 6): sample i of step s is credited
with (1 − β1) Σ_{u>s} β1^{u−1−s} ⟨O_u, x_i⟩. Its gradient x_i is not kept; the batch's layer inputs a and output
gradients b are, for a window of steps, after which β1^k has died out. How two contractions a sample are enough, and
what is lost at the window's end, is derived in docs/engine.md.

=========  ======================  ====================================================================
method 6   name                    meaning
=========  ======================  ====================================================================
Γ          ``gamma``               validation gradient on the walked step
S, M       ``slope``, ``share``    the two parts of Adam's map; they become Γ ⊙ S and O = Γ ⊙ M
K          ``Block.owed``          Σ_{u in the block} β1^{u−first} O_u, a running sum
=========  ======================  ====================================================================
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from adamshap.gpu.arrays import Space
from adamshap.gpu.ghost import contract
from adamshap.gpu.layers import Trace, Workshop, gradients, new_trace, row_losses, run_rows
from adamshap.gpu.rules import path_nodes, rates_of
from adamshap.gpu.splits import SPLIT_SLOPES, split_update
from adamshap.gpu.step import (
    Arrays,
    First,
    Judged,
    Question,
    State,
    first_pass,
    like,
    refuse_zero_denominator,
    score_rows,
    scorer_of,
    take_step,
)
from adamshap.reference.problem import (
    AdamState,
    Array,
    Diverged,
    Progress,
    Run,
    RunConfig,
    first_not_finite,
    positive_integer,
    refuse,
)

__all__ = ["Carrier", "attribute_carrying"]

GROWTH = 2.0
"""Largest weight β1^{−k} within a block: what is added and subtracted again is not much larger than the rest."""

FORGOTTEN = 1e-3
"""β1^k at the end of the window, unless its length is given."""


def attribute_carrying(
    config: RunConfig,
    question: Question,
    space: Space,
    window: int | None,
    on_step: Callable[[Progress], None] | None,
) -> Run:
    """Train and attribute with ``credit="carry"``; the arguments are those of `trainer.attribute`, checked.

    On a device, `on_step` waits for each step, and without it a number that is not finite is not looked for.
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
    shop, xp = Workshop.on(config.network, space), space.xp
    order = list(config.order())
    initial = space.reals(config.network.init(config.seed))
    zeros = [{name: xp.zeros_like(p) for name, p in initial.items()} for _ in range(2)]
    state = State({name: p.copy() for name, p in initial.items()}, zeros[0], zeros[1], 1)
    spare = State(like(shop, "second theta"), like(shop, "second m"), like(shop, "second v"), 1)
    x, y = space.real(config.train.x), space.labels(config.train.y)
    valid = space.real(config.valid.x), space.labels(config.valid.y)
    carrier = Carrier.of(shop, config, len(order), window)
    sgd_totals, seen = xp.zeros(config.train.n), np.zeros(config.train.n, int)

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
                "epoch": np.array([epoch for epoch, _ in order[:done]], np.int64),
                "train_loss": log[:, 0],
                "valid_loss": log[:, 1],
            },
            config=config,
            credit="carry",
            decay=log[:, 2],
            truncated=space.host(carrier.truncated),
        )

    with shop.at_work():
        for number, (epoch, index) in enumerate(order):
            where = space.labels(index)
            batch = Judged(x[where], y[where], *valid)
            paid = carrier.totals.copy()
            sgd = carrier.take(number, where, state, batch, question, spare)
            state, spare = State(spare.theta, spare.m, spare.v, state.t + 1), state
            if on_step is not None or not space.on_cuda:
                losses = space.host(carrier.log[number, :2]).tolist()
                watched = {"train_loss": losses[0], "valid_loss": losses[1]} | state.suspects()
                bad = first_not_finite(watched | {"scores": carrier.totals})
                if bad is not None:
                    # What past samples are owed by now cannot be told: the scores are those paid before the step.
                    carrier.totals = paid
                    raise Diverged(number + 1, len(order), *bad, run(number), f"a smaller lr than {config.adam.lr}")
                if on_step is not None:
                    on_step(Progress(number + 1, len(order), epoch, *losses))
            sgd_totals[where] += sgd
            seen[index] += 1
        carrier.settle()
        trace = new_trace(shop, "valid", config.valid.n, valid[0])
        last_loss = float(row_losses(shop, trace, state.theta, valid[1]).mean(dtype="float64"))
    scores, closed = _closed(carrier, space.host(carrier.log), last_loss, [index for _, index in order])
    return replace(run(len(order)), scores=scores, closed=closed)


def _closed(carrier: "Carrier", log: Array, last_loss: float, indices: list[Array]) -> tuple[Array, Array]:
    """Return the scores with what each step leaves open, and what was lost at windows' ends, in equal parts."""
    losses, decay, own, owed = np.append(log[:, 1], last_loss), log[:, 2], log[:, 3], log[:, 4]
    closed = losses[:-1] - losses[1:] - decay - own - owed
    scores = np.array(carrier.shop.space.host(carrier.totals))
    sizes = np.array([len(index) for index in indices])
    if carrier.loses:
        # All that was owed, and was not paid: the rest of the account.
        closed = closed + (owed.sum() + own.sum() - scores.sum()) * (sizes / sizes.sum())
    for index, share in zip(indices, closed / sizes, strict=True):
        scores[index] += share
    return scores, closed


# --- the window ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pending:
    """A batch that is still owed: its step, where its samples are, and what its gradients are made of."""

    number: int
    where: Any
    trace: Trace


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
    totals, truncated : arrays (N,)
        Scores, and a bound on what each of them lacks, in the space.
    log : array (steps, 5)
        Losses of batch and validation samples before the step, weight decay's share, ⟨Γ ⊙ S, g⟩ and ⟨Γ ⊙ M, m⟩.
    exposed : array (N,)
        Σ β1^k ‖x_i‖ over each sample's batches that have left the window.
    """

    shop: Workshop
    config: RunConfig
    length: int
    later: int
    loses: bool
    totals: Any
    truncated: Any
    exposed: Any
    log: Any
    blocks: deque[Block] = field(default_factory=deque)

    @classmethod
    def of(cls, shop: Workshop, config: RunConfig, steps: int, window: int | None) -> "Carrier":
        """Return a carrier for a run of so many steps, with a window of at least `window` steps."""
        beta1, xp, count = config.adam.betas[0], shop.space.xp, config.train.n
        rate = -math.log(beta1) if beta1 > 0 else math.inf
        length = min(max(1, int(math.log(GROWTH) / rate)), steps)
        later = math.ceil((window or math.ceil(-math.log(FORGOTTEN) / rate) or 1) / length)
        loses = beta1 > 0 and (later + 1) * length < steps
        log = xp.zeros((steps, 5))
        return cls(shop, config, length, later, loses, xp.zeros(count), xp.zeros(count), xp.zeros(count), log)

    def take(self, number: int, where: Any, state: State, batch: Judged, question: Question, new: State) -> Any:
        """Take step `number` of the samples at `where`, add their own scores to the totals, and return SGD's.

        What a batch is paid later is the whole block's K less what was in it at the batch's own step, which is
        subtracted here, in the same contraction as the batch's own scores.
        """
        shop, config, xp = self.shop, self.config, self.shop.space.xp
        beta1, rates = config.adam.betas[0], rates_of(config.adam, state.t)
        weight = 1 / batch.n if config.reduction == "mean" else 1.0
        spread_wanted = question.slope == "random_order" and batch.n > 1
        whole = [slice(0, batch.n)]
        first = first_pass(shop, state, batch, weight, 1 / batch.n_val, whole, True, spread_wanted, question.variance)
        at_rest = question.slope in ("linearized", "secant") or batch.n == 1
        refuse_zero_denominator(shop, config.adam, state, None if at_rest else first.g)
        trace, start = _both(first)
        slope, share, gamma = (like(shop, name) for name in ("slope", "share", "validation gradient"))
        split_update(
            shop, rates, question.slope, question.nodes, batch.n, first.g, state.m, state.v, first.norms, slope, share
        )
        take_step(shop, rates, state, first.g, new)
        scorer = scorer_of(shop, Question("sgd", "start"), batch.n, start, rates.lr)
        sgd = score_rows(shop, state, batch, weight, whole, trace, [scorer], 1)[0][0]
        walked_gradient(shop, question, state, new, batch, start, gamma)
        for key, factor in gamma.items():
            slope[key] *= factor
            share[key] *= factor
        row = self.log[number]
        row[0], row[1] = first.train_loss, start.losses.mean(dtype="float64")
        row[2] = (1 - rates.shrink) * _dot(gamma, state.theta) if rates.shrink < 1 else 0.0
        row[3], row[4] = _dot(slope, first.g), _dot(share, state.m)
        if beta1 > 0:
            if self.loses:
                self.truncated += self.exposed * xp.sqrt(_dot(share, share))
                self.exposed *= beta1
            block = self._current(number)
            for key, sum_ in block.owed.items():
                sum_ += share[key] * sum_.dtype.type(beta1 ** (number - block.first))
                if self.length > 1:
                    slope[key] -= sum_ * sum_.dtype.type((1 - beta1) * beta1 ** (block.first - number - 1))
        out = xp.zeros(batch.n, shop.space.dtype)
        contract(shop, trace, slope, out, None, question.score_dtype)
        self.totals[where] += out
        if beta1 > 0:
            block.batches.append(Pending(number, where, _copy(trace)))
            if len(block.batches) == self.length and len(self.blocks) > self.later:
                self._pay_oldest(number)
        return sgd

    def kept_bytes(self, batch: int) -> int:
        """Return what a full window holds, for batches of so many samples: a and b, and the blocks' sums."""
        sizes, itemsize = self.shop.net.sizes, self.shop.space.dtype.itemsize
        rows = batch * (sum(sizes[:-1]) + sum(sizes[1:]))
        parameters = sum(math.prod(shape) for shape in self.shop.net.shapes.values())
        return itemsize * (self.later + 1) * (self.length * rows + parameters)

    def settle(self) -> None:
        """Pay all batches that are left, at the end of the run: nothing more will be owed."""
        later: Arrays | None = None
        while self.blocks:
            later = self._pay(self.blocks.pop(), later)

    def _current(self, number: int) -> Block:
        if not self.blocks or number - self.blocks[-1].first == self.length:
            shapes = self.shop.net.shapes
            zeros = {name: self.shop.space.xp.zeros(shape, self.shop.space.dtype) for name, shape in shapes.items()}
            self.blocks.append(Block(number, zeros))
        return self.blocks[-1]

    def _pay_oldest(self, number: int) -> None:
        """Pay the oldest block's batches from all blocks so far, and let them go."""
        later: Arrays | None = None
        oldest, *others = self.blocks
        for block in reversed(others):
            later = self._with(block, later)
        self._pay(oldest, later)
        self.blocks.popleft()
        beta1 = self.config.adam.betas[0]
        for batch in oldest.batches:
            self.exposed[batch.where] += (1 - beta1) * beta1 ** (number - batch.number) * self._size(batch.trace)

    def _with(self, block: Block, later: Arrays | None) -> Arrays:
        """Return K of the block with that of those after it, ``K + β1^length K'``, in a buffer."""
        total = like(self.shop, "owed from here on")
        factor = self.config.adam.betas[0] ** self.length
        for key, owed in block.owed.items():
            if later is None:
                total[key][...] = owed
            else:
                total[key] *= owed.dtype.type(factor)
                total[key] += owed
        return total

    def _pay(self, block: Block, later: Arrays | None) -> Arrays:
        """Pay a block's batches from it and from those after it, and return what all these owe.

        A block of one step owes nothing to its own batch.
        """
        beta1, space = self.config.adam.betas[0], self.shop.space
        alone = self.length == 1
        first = block.first + 1 if alone else block.first
        owed = later if alone else self._with(block, later)
        if owed is not None:
            for batch in block.batches:
                out = space.xp.zeros(len(batch.where), space.dtype)
                contract(self.shop, batch.trace, owed, out)
                self.totals[batch.where] += (1 - beta1) * beta1 ** (first - batch.number - 1) * out
        return self._with(block, later) if alone or owed is None else owed

    def _size(self, trace: Trace) -> Any:
        """Return ‖x_i‖ of each sample."""
        xp, total = self.shop.space.xp, 0.0
        for a, b in zip(trace.inputs, trace.grads, strict=True):
            inner = xp.einsum("no,no->n", a, a) + a.dtype.type(self.shop.net.bias)
            total = total + xp.einsum("no,no->n", b, b) * inner
        return xp.sqrt(total)


def walked_gradient(
    shop: Workshop, question: Question, state: State, new: State, batch: Judged, start: Trace, into: Arrays
) -> None:
    """Write Γ, the validation gradient on the segment from θ to θ⁺; `start` is the validation samples' trace at θ."""
    if question.gradient == "start":
        gradients(shop, start, into)
        return
    nodes = ((0.5, 1.0),) if question.gradient == "midpoint" else path_nodes(question.nodes[0])
    point = like(shop, "point")
    judge = new_trace(shop, "valid", batch.n_val, batch.valid_x)
    for number, (tau, weight) in enumerate(nodes):
        for key, there in point.items():
            shop.space.xp.subtract(new.theta[key], state.theta[key], out=there)
            there *= there.dtype.type(tau)
            there += state.theta[key]
        run_rows(shop, judge, point, batch.valid_y, weight / batch.n_val)
        gradients(shop, judge, into, add=number > 0)


def _dot(some: Arrays, others: Arrays) -> Any:
    """Return the dot product over all parameters, added up in double precision."""
    return sum((a * others[key]).sum(dtype="float64") for key, a in some.items())


def _both(first: First) -> tuple[Trace, Trace]:
    """Return the traces of the batch, run as a whole, and of the validation samples at θ."""
    return cast(Trace, first.trace), cast(Trace, first.start)


def _copy(trace: Trace) -> Trace:
    inputs = [trace.inputs[0], *(a.copy() for a in trace.inputs[1:])]  # the first is the batch's own array
    return Trace(inputs, [b.copy() for b in trace.grads], [None for _ in trace.derivatives], trace.losses)
