"""A training run that attributes as it goes: Adam's steps, and every step's scores added up for each training sample.

The scores of a step are made with the state before it, in the same pass over the parameters that takes it. Nothing in
a step waits for the device; losses are fetched, and looked at, when a progress bar would show them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from adamshap.gpu.arrays import Arrays, like
from adamshap.gpu.backend import Backend, DeviceName, DtypeName, arithmetic_of, pick_backend
from adamshap.gpu.carry_run import attribute_carrying
from adamshap.gpu.context import EngineContext
from adamshap.gpu.data import Data
from adamshap.gpu.hyperparameters import advice
from adamshap.gpu.layers import context_for
from adamshap.gpu.single import refuse_score_dtype
from adamshap.gpu.sketch import Sketch, matrices
from adamshap.gpu.state import State
from adamshap.gpu.step import StepResult, attribute_step
from adamshap.gpu.threads import parts_of
from adamshap.reference.contract import (
    CREDITS,
    Adam,
    AdamState,
    Array,
    Batch,
    Checkpointer,
    Credit,
    Diverged,
    Estimator,
    Gradient,
    MarginalKind,
    Network,
    Progress,
    Reduction,
    Run,
    RunConfig,
    ScoreDtype,
    ScoreSlope,
    Snapshot,
    StepNumber,
    Variance,
    adam_in,
    check_callable,
    first_not_finite,
    logged,
    one_of,
    positive_integer,
    refuse,
    resumed,
    run_settings,
    shown,
)

__all__ = ["attribute"]

SECONDS_BETWEEN_FETCHES = 0.1  # of losses from a device, at the pace of a progress bar
SECONDS_BETWEEN_LOOKS = 5.0  # at what a device has done, where nobody is told
BYTES_PENDING = 1 << 26  # of scores on a device
LOSSES_TOLD = ("train_loss", "valid_loss")


def attribute(
    network: Network,
    adam: Adam,
    train: Batch,
    valid: Batch,
    *,
    epochs: int = 10,
    steps: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    slope: ScoreSlope = "random_order",
    gradient: Gradient = "midpoint",
    credit: Credit = "step",
    per_validation: bool = False,
    nodes: tuple[int, int] | None = None,
    kind: MarginalKind = "shapley",
    reduction: Reduction = "mean",
    rank: int | None = None,
    variance: Variance = "exact",
    micro_batch: int | None = None,
    carry_window: int | None = None,
    score_dtype: ScoreDtype | None = None,
    device: DeviceName = "auto",
    dtype: DtypeName = "float32",
    on_step: Callable[[Progress], None] | None = None,
    on_checkpoint: Checkpointer | None = None,
    resume: Mapping[str, Array] | None = None,
) -> Run:
    """Train from ``network.init(seed)`` and attribute every step to the samples of its batch.

    Parameters
    ----------
    network : Network
    adam : Adam
    train, valid : Batch
        N training samples and n_val validation samples.
    epochs : int
        Every epoch goes once through `train` in a new order.
    steps : int, optional
        The run ends after so many, if `epochs` do not end before.
    batch_size : int
        An epoch's last batch holds what is left.
    seed : int
        Of the parameters, of the order of the samples and of the sketch's first basis.
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "two_term"}
        S, as for `scores`.
    gradient : {"start", "midpoint", "path"}
        Γ, as for `scores`.
    credit : {"step", "carry"}
        Whether the step that momentum takes without data is left to nobody or credited to the earlier samples that
        the momentum is made of. "carry" keeps the batches of a window of steps (docs/engine.md); it has no
        `per_validation`, `rank`, `micro_batch` or "two_term"; on a device `on_step` and `on_checkpoint` wait for each
        step.
    per_validation : bool
        Score against each validation sample's own loss: (N, n_val).
    nodes : tuple of two ints, optional
        (path, normal), as for `scores`.
    kind : {"first", "last", "shapley"}
        Of "two_term", as for `scores`.
    reduction : {"mean", "sum"}
        As for `Step`.
    rank : int, optional
        Score by a sketch of this rank, its range kept from step to step; None is exact, and all that "two_term" has.
    variance : {"exact", "rank_one"}
        σ² of "random_order" and "two_term", as for `scores`.
    micro_batch : int, optional
        So many samples go through the network at a time, twice each; less memory for batches, the same result.
    carry_window : int, optional
        For at least so many steps a batch is credited with the steps after it; None: until β1^k is below 1/1000.
        What comes later is bounded in ``Run.truncated`` and closed.
    score_dtype : {"tf32", "float16"}, optional
        As for `scores`.
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA where CuPy finds a device.
    dtype : {"float32", "float64"}
        In which the run is computed.
    on_step : callable, optional
        Called with a `Progress` for each step, in order; on a device a few steps at a time.
    on_checkpoint : callable, optional
        Called after each step with its number and a function that returns the state of the run, a `Snapshot`; that
        function waits for the device.
    resume : Snapshot, optional
        The state of the same run after some step: it goes on from there, and ends as it would have without a break.

    Returns
    -------
    Run
        NumPy arrays; scores are added up in double precision.

    Raises
    ------
    ValueError, TypeError
        A bad argument, by its name; a state of another run.
    Diverged
        A loss, score, parameter or moment is no longer finite; holds the run up to there. On a device this is found
        when losses are fetched, and no score is added meanwhile.
    MemoryError
        No room for a named buffer.
    """
    config = RunConfig(network, adam, train, valid, epochs, batch_size, seed, reduction, steps)
    one_of("credit", credit, CREDITS)
    if credit == "step" and carry_window is not None:
        refuse("carry_window", f"{shown(carry_window)} with credit 'step'", "credit 'carry', or None")
    for name, function in (("on_step", on_step), ("on_checkpoint", on_checkpoint)):
        check_callable(name, function)
    backend = pick_backend(device, dtype)
    held = adam_in(adam, backend.dtype)
    estimator = Estimator(slope, gradient, False, per_validation, nodes, "exact", kind, variance, rank, score_dtype)
    refuse_score_dtype(estimator, backend)
    per_validation = estimator.per_validation
    where_to = "CUDA" if backend.on_cuda else "the CPU"
    about = f"{network}, {train.n} training and {valid.n} validation samples, by the engine on {where_to}, {dtype}"
    if credit == "carry":
        for name, option in (("rank", rank), ("micro_batch", micro_batch)):
            if option is not None:
                refuse(name, f"{shown(option)} with credit 'carry'", "None: whole batches are kept and scored exactly")
        return attribute_carrying(config, estimator, backend, carry_window, about, on_step, on_checkpoint, resume)
    sketch = None if estimator.rank is None else Sketch(estimator.rank, config.seed)
    chunk = None if micro_batch is None else positive_integer("micro_batch", micro_batch)
    on_step = logged(on_step, about)
    parts = parts_of(resume)
    context = context_for(network, backend, parts)
    initial = backend.reals(network.init(seed))
    state = State({name: p.copy() for name, p in initial.items()}, _zeros(context), _zeros(context), StepNumber(1))
    spare = _spare(context, chunk is not None and chunk < min(batch_size, train.n))
    data = Data.of(context, train, valid, min(batch_size, train.n))
    shape = (train.n, valid.n) if per_validation else (train.n,)
    ledger = _Ledger.of(backend, config.length, config.per_epoch, shape, on_step)
    settings = ""
    if resume is not None or on_checkpoint is not None:
        settings = run_settings(
            train,
            valid,
            arithmetic_of(backend, parts),
            trainer=__name__,
            network=network,
            adam=adam,
            epochs=config.epochs,
            steps=config.length,
            batch_size=config.batch_size,
            seed=config.seed,
            estimator=estimator,
            reduction=reduction,
            micro_batch=chunk,
            backend=[backend.xp.__name__, str(backend.dtype)],
        )

    def run() -> Run:
        theta, m, v = (
            {name: backend.host(a) for name, a in group.items()} for group in (state.theta, state.m, state.v)
        )
        return Run(
            initial_params={name: backend.host(p) for name, p in initial.items()},
            params=theta,
            state=AdamState.unchecked(state.t - 1, m, v),
            scores=ledger.totals,
            sgd_scores=ledger.sgd_totals,
            seen=ledger.seen,
            history=ledger.history(),
            config=config,
        )

    def look(at_once: bool = False) -> None:
        bad = ledger.look(state, at_once)
        if bad is not None:
            raise Diverged(*bad, run(), advice(adam, initial, state.t, backend))

    def snapshot() -> Snapshot:
        look(at_once=True)
        here = _by_name(state) | ({} if sketch is None else _by_layer(sketch))
        arrays = ledger.arrays() | {name: backend.host(array) for name, array in here.items()}
        copies = {name: np.array(array) for name, array in arrays.items()}
        return {"step": np.array(ledger.done), "settings": np.array(settings)} | copies

    def take(index: Array) -> None:
        nonlocal state, spare
        where = backend.labels(index)
        batch = data.batch(index, where)
        weight = 1 / batch.n if reduction == "mean" else 1.0
        new = state if spare is None else spare
        taken = attribute_step(
            context, held, state, batch, weight, estimator, new, micro_batch=chunk, sketch=sketch, with_sgd=True
        )
        spare = None if spare is None else state
        state = State(new.theta, new.m, new.v, StepNumber(state.t + 1))
        ledger.pending.append((index, taken))

    if resume is not None:
        bases = {} if sketch is None else _bases(context, sketch.rank, valid.n if per_validation else 1)
        kept = resumed(resume, settings, snapshot(), steps=ledger.steps, optional=bases)
        ledger.restore(kept)
        theta, m, v = ({n: backend.real(kept[f"{g}/{n}"].copy()) for n in initial} for g in ("params", "m", "v"))
        state = State(theta, m, v, StepNumber(ledger.done + 1))
        if sketch is not None:
            for layer, group in (map(int, name.split("/")[1:]) for name in bases if name in kept):
                sketch.bases[layer, group] = backend.real(kept[f"basis/{layer}/{group}"])
    with context.at_work():
        for number, (_, index) in islice(enumerate(config.order(), start=1), ledger.done, None):
            take(index)
            look(at_once=number == config.length)
            if on_checkpoint is not None:
                on_checkpoint(number, snapshot)
    return run()


def _zeros(context: EngineContext) -> Arrays:
    return {name: context.backend.xp.zeros(shape, context.backend.dtype) for name, shape in context.shapes.items()}


def _spare(context: EngineContext, needed: bool) -> State | None:
    """Return room for a second state where the first is needed after the step: chunks run twice at the old θ."""
    if not needed:
        return None
    theta, m, v = (like(context, f"second {name}") for name in ("theta", "m", "v"))
    return State(theta, m, v, StepNumber(1))


def _by_name(state: State) -> Arrays:
    groups = {"params": state.theta, "m": state.m, "v": state.v}
    return {f"{group}/{name}": array for group, named in groups.items() for name, array in named.items()}


def _by_layer(sketch: Sketch) -> Arrays:
    return {f"basis/{layer}/{group}": basis for (layer, group), basis in sketch.bases.items()}


def _bases(context: EngineContext, rank: int, groups: int) -> Arrays:
    """Return arrays like the bases that a sketch may have."""
    return {
        f"basis/{number}/{group}": np.empty((d_in, rank), context.backend.dtype)
        for number, _, d_in in matrices(context.shapes).values()
        for group in range(groups)
    }


@dataclass
class _Ledger:
    """What the steps of a run add up to, on the host; on a device a few steps at a time, at a progress bar's pace.

    Parameters
    ----------
    backend : Backend
    steps, per_epoch : int
        Of the whole run, and of an epoch.
    totals, sgd_totals : arrays (N,) or (N, n_val)
    seen : int array (N,)
    losses : array (steps, 2)
        Both losses before each step.
    on_step : callable or None
    pending : list of (sample indices, `StepResult`)
        Steps that were not looked at yet.
    done : int
        Steps that were looked at, found finite, added and told.
    """

    backend: Backend
    steps: int
    per_epoch: int
    totals: Array
    sgd_totals: Array
    seen: Array
    losses: Array
    on_step: Callable[[Progress], None] | None
    pending: list[tuple[Array, StepResult]] = field(default_factory=list)
    done: int = 0
    last: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls,
        backend: Backend,
        steps: int,
        per_epoch: int,
        shape: tuple[int, ...],
        on_step: Callable[[Progress], None] | None,
    ) -> "_Ledger":
        seen = np.zeros(shape[0], np.int64)
        return cls(backend, steps, per_epoch, np.zeros(shape), np.zeros(shape), seen, np.zeros((steps, 2)), on_step)

    def look(self, state: State, at_once: bool = False) -> tuple[int, int, str, float] | None:
        """Add and report the pending steps, if it is time, and return where something is not finite, if anything is.

        `state` is that after the last pending step, which is added only if the state is finite.

        Returns
        -------
        step, steps, tensor, value
        """
        pace = SECONDS_BETWEEN_LOOKS if self.on_step is None else SECONDS_BETWEEN_FETCHES
        due = at_once or time.monotonic() - self.last >= pace
        if self.backend.on_cuda and not due and sum(taken.scores.nbytes for _, taken in self.pending) < BYTES_PENDING:
            return None
        if due:
            self.last = time.monotonic()
        left = len(self.pending)
        for index, losses, scores, sgd_scores in self._fetched():
            left -= 1
            bad = first_not_finite(dict(zip(LOSSES_TOLD, losses, strict=True)))
            if bad is None and left == 0:
                bad = None if state.is_finite() else first_not_finite(state.suspects())
            bad = bad or first_not_finite({"scores": scores, "sgd_scores": sgd_scores})
            if bad is not None:
                return self.done + 1, self.steps, *bad
            self.totals[index] += scores
            self.sgd_totals[index] += sgd_scores
            self.seen[index] += 1
            self.losses[self.done] = losses
            self.done += 1
            if self.on_step is not None:
                self.on_step(Progress(self.done, self.steps, (self.done - 1) // self.per_epoch, *losses))
        return None

    def _fetched(self) -> Iterator[tuple[Array, list[float], Array, Array]]:
        """Yield the pending steps' samples, losses, scores and SGD's scores, in few transfers."""
        if not self.pending:
            return
        indices, steps = zip(*self.pending, strict=True)
        self.pending = []
        xp, host = self.backend.xp, self.backend.host
        losses = host(xp.stack([xp.stack([taken.train_loss, taken.valid_loss]) for taken in steps])).tolist()
        if not self.backend.on_cuda:
            scores = [(taken.scores, taken.sgd_scores) for taken in steps]
        else:
            ends = np.cumsum([len(taken.scores) for taken in steps])[:-1]
            every = (
                host(xp.concatenate(part)) for part in zip(*((t.scores, t.sgd_scores) for t in steps), strict=True)
            )
            scores = list(zip(*(np.split(part, ends) for part in every), strict=True))
        yield from ((index, pair, *both) for index, pair, both in zip(indices, losses, scores, strict=True))

    def history(self) -> dict[str, Array]:
        """Return `Run.history` so far."""
        epochs = np.arange(self.done) // self.per_epoch
        losses = self.losses[: self.done].T
        return {"epoch": epochs} | {name: column.copy() for name, column in zip(LOSSES_TOLD, losses, strict=True)}

    def arrays(self) -> dict[str, Array]:
        """Return what `restore` takes."""
        history = self.history()
        arrays = {"scores": self.totals, "sgd_scores": self.sgd_totals, "seen": self.seen}
        return arrays | {f"history/{name}": history[name] for name in LOSSES_TOLD}

    def restore(self, kept: Snapshot) -> None:
        """Go on from a snapshot."""
        self.done = int(kept["step"])
        for array, name in ((self.totals, "scores"), (self.sgd_totals, "sgd_scores"), (self.seen, "seen")):
            array[...] = kept[name]
        for column, name in enumerate(LOSSES_TOLD):
            self.losses[: self.done, column] = kept[f"history/{name}"]
