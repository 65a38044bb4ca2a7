"""A training run that attributes as it goes: Adam's steps, and every step's scores added up for each training sample.

The scores of a step are made with the state before it, in the same pass over the parameters that takes it. Nothing in
a step waits for the device; losses are fetched when a progress bar would show them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.gpu.arrays import DeviceName, DtypeName, pick_space
from adamshap.gpu.carry import attribute_carrying
from adamshap.gpu.ghost import Sketch
from adamshap.gpu.layers import Workshop
from adamshap.gpu.single import ScoreDtype, Variance, question_of
from adamshap.gpu.step import Arrays, Judged, State, attribute_step, like
from adamshap.reference.problem import (
    CREDITS,
    Adam,
    AdamState,
    Array,
    Batch,
    Credit,
    Gradient,
    Network,
    Progress,
    Reduction,
    Run,
    RunConfig,
    Slope,
    batch_order,
    one_of,
    positive_integer,
    refuse,
)

__all__ = ["attribute"]

SECONDS_BETWEEN_FETCHES = 0.1  # of losses from a device, at the pace of a progress bar


def attribute(
    network: Network,
    adam: Adam,
    train: Batch,
    valid: Batch,
    *,
    epochs: int = 10,
    batch_size: int = 64,
    seed: int = 0,
    slope: Slope = "random_order",
    gradient: Gradient = "midpoint",
    credit: Credit = "step",
    per_validation: bool = False,
    nodes: tuple[int, int] = (4, 4),
    reduction: Reduction = "mean",
    rank: int | None = None,
    variance: Variance = "rank_one",
    micro_batch: int | None = None,
    carry_window: int | None = None,
    score_dtype: ScoreDtype | None = None,
    device: DeviceName = "auto",
    dtype: DtypeName = "float32",
    on_step: Callable[[Progress], None] | None = None,
) -> Run:
    """Train from ``network.init(seed)`` and attribute every step to the samples of its batch.

    Parameters
    ----------
    network : Network
    adam : Adam
    train, valid : Batch
        N training samples and n_val validation samples.
    epochs, batch_size : int
        Every epoch goes once through `train` in a new order; its last batch holds what is left.
    seed : int
        Of the parameters, of the order of the samples and of the sketch's first basis.
    slope, gradient, per_validation, nodes, rank, score_dtype
        As for `scores`.
    credit : {"step", "carry"}
        Whether the step that momentum takes without data is left to nobody or credited to the earlier samples that
        the momentum is made of. "carry" keeps the batches of a window of steps (docs/engine.md); it has no
        `per_validation`, `rank` or `micro_batch`, and on a device each `on_step` waits for its step.
    reduction : {"mean", "sum"}
        As for `Step`.
    variance : {"rank_one", "exact"}
        σ² of "random_order": from norms alone, or exact at the cost of one more matrix product a layer.
    micro_batch : int, optional
        So many samples go through the network at a time, twice each; less memory for batches, the same result.
    carry_window : int, optional
        For at least so many steps a batch is credited with the steps after it; None: until β1^k is below 1/1000.
        What comes later is bounded in ``Run.truncated`` and closed.
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA where CuPy finds a device.
    dtype : {"float32", "float64"}
        In which the run is computed.
    on_step : callable, optional
        Called with a `Progress` for each step, in order; on a device a few steps at a time.

    Returns
    -------
    Run
        NumPy arrays; scores are added up in double precision.

    Raises
    ------
    ValueError, TypeError
        A bad argument, by its name.
    MemoryError
        No room for a named buffer.
    """
    config = RunConfig(network, adam, train, valid, epochs, batch_size, seed, reduction)
    one_of("credit", credit, CREDITS)
    if credit == "step" and carry_window is not None:
        refuse("carry_window", f"{carry_window!r} with credit 'step'", "credit 'carry', or None")
    space = pick_space(device, dtype)
    question = question_of(slope, gradient, False, per_validation, nodes, "exact", variance, score_dtype, space)
    if credit == "carry":
        for name, option in (("rank", rank), ("micro_batch", micro_batch)):
            if option is not None:
                refuse(name, f"{option!r} with credit 'carry'", "None: whole batches are kept and scored exactly")
        return attribute_carrying(config, question, space, carry_window, on_step)
    sketch = None if rank is None else Sketch(positive_integer("rank", rank), seed)
    chunk = None if micro_batch is None else positive_integer("micro_batch", micro_batch)
    shop, xp = Workshop.on(network, space), space.xp
    initial = space.reals(network.init(seed))
    state = State({name: p.copy() for name, p in initial.items()}, _zeros(shop), _zeros(shop), 1)
    spare = _spare(shop, chunk is not None and chunk < min(batch_size, train.n))
    data = _Data.of(shop, train, valid, min(batch_size, train.n))
    shape = (train.n, valid.n) if per_validation else (train.n,)
    totals, sgd_totals, seen = xp.zeros(shape), xp.zeros(shape), np.zeros(train.n, int)
    steps = epochs * -(-train.n // batch_size)
    diary = _Diary(xp.zeros((steps, 2)), np.zeros(steps, int), space.on_cuda, on_step)

    def take(number: int, epoch: int, index: Array) -> None:
        nonlocal state, spare
        where = space.labels(index)
        batch = data.batch(where)
        weight = 1 / batch.n if reduction == "mean" else 1.0
        new = state if spare is None else spare
        taken = attribute_step(
            shop, adam, state, batch, weight, question, new, micro_batch=chunk, sketch=sketch, with_sgd=True
        )
        totals[where] += taken.scores
        sgd_totals[where] += taken.sgd_scores
        seen[index] += 1
        diary.note(number, epoch, taken.train_loss, taken.valid_loss)
        spare = None if spare is None else state
        state = State(new.theta, new.m, new.v, state.t + 1)

    with shop.at_work():
        for number, (epoch, index) in enumerate(batch_order(train.n, batch_size=batch_size, epochs=epochs, seed=seed)):
            take(number, epoch, index)
    diary.tell_all()
    losses = space.host(diary.losses)
    theta, m, v = ({name: space.host(a) for name, a in group.items()} for group in (state.theta, state.m, state.v))
    return Run(
        initial_params={name: space.host(p) for name, p in initial.items()},
        params=theta,
        state=AdamState(state.t - 1, m, v),
        scores=space.host(totals),
        sgd_scores=space.host(sgd_totals),
        seen=seen,
        history={"epoch": diary.epochs, "train_loss": losses[:, 0], "valid_loss": losses[:, 1]},
        config=config,
    )


def _zeros(shop: Workshop) -> Arrays:
    return {name: shop.space.xp.zeros(shape, shop.space.dtype) for name, shape in shop.net.shapes.items()}


def _spare(shop: Workshop, needed: bool) -> State | None:
    """Return room for a second state where the first is needed after the step: chunks run twice at the old θ."""
    if not needed:
        return None
    theta, m, v = (like(shop, f"second {name}") for name in ("theta", "m", "v"))
    return State(theta, m, v, 1)


@dataclass(frozen=True)
class _Data:
    """Both data sets in the space, and one array in which a batch's inputs follow the validation inputs."""

    shop: Workshop
    x: Any
    y: Any
    valid_x: Any
    valid_y: Any
    together: Any

    @classmethod
    def of(cls, shop: Workshop, train: Batch, valid: Batch, largest: int) -> "_Data":
        space = shop.space
        together = shop.buffers.get("batch", (valid.n + largest, shop.net.sizes[0]))
        together[: valid.n] = space.real(valid.x)
        x, y = space.real(train.x), space.labels(train.y)
        return cls(shop, x, y, together[: valid.n], space.labels(valid.y), together)

    def batch(self, where: Any) -> Judged:
        """Return the samples at `where`."""
        n_val = len(self.valid_x)
        both = self.together[: n_val + len(where)]
        # NumPy buffers the output of a take that checks its indices; these are a permutation's.
        unchecked = {} if self.shop.space.on_cuda else {"mode": "clip"}
        self.shop.space.xp.take(self.x, where, axis=0, out=both[n_val:], **unchecked)
        return Judged(both[n_val:], self.y[where], self.valid_x, self.valid_y, both)


@dataclass
class _Diary:
    """Both losses of each step, kept where they were computed, and told to `on_step` at a progress bar's pace."""

    losses: Any
    epochs: Array
    on_cuda: bool
    on_step: Callable[[Progress], None] | None
    noted: int = 0
    told: int = 0
    last: float = 0.0

    def note(self, number: int, epoch: int, train_loss: Any, valid_loss: Any) -> None:
        """Write down a step."""
        self.losses[number, 0] = train_loss
        self.losses[number, 1] = valid_loss
        self.epochs[number] = epoch
        self.noted = number + 1
        if self.on_step is not None and (not self.on_cuda or time.monotonic() - self.last >= SECONDS_BETWEEN_FETCHES):
            self.tell_all()

    def tell_all(self) -> None:
        """Tell of all steps that were not told yet."""
        if self.on_step is None or self.told == self.noted:
            return
        new = self.losses[self.told : self.noted]
        for losses in (new.get() if self.on_cuda else new).tolist():
            self.told += 1
            self.on_step(Progress(self.told, len(self.losses), int(self.epochs[self.told - 1]), *losses))
        self.last = time.monotonic()
