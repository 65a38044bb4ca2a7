"""The account of ``credit="step"``: a step is credited to the samples of its batch, and momentum's part to nobody.

On a device, results are fetched a few steps at a time, at the pace of a progress bar.
"""

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from adamshap.gpu.accounts import Credited, NotFinite
from adamshap.gpu.arrays import Arrays
from adamshap.gpu.counting import NO_STEPS, completed_after, completed_before, next_step
from adamshap.gpu.kept_gradients import KeptGradients
from adamshap.gpu.run_setup import RunSetup
from adamshap.gpu.sketch import Sketch, matrices
from adamshap.gpu.state import State
from adamshap.gpu.step import StepResult, attribute_step
from adamshap.gpu.validation import mean_loss
from adamshap.reference.contract import (
    Array,
    CompletedSteps,
    Credit,
    Snapshot,
    StepScores,
    first_not_finite,
    is_validated,
    only_validated,
    recorded_interval,
)

__all__ = ["StepAccount"]

SECONDS_BETWEEN_FETCHES = 0.1  # at the pace of a progress bar
SECONDS_BETWEEN_CHECKS = 5.0  # without a callback
BYTES_UNCHECKED = 1 << 26  # unfetched scores on a device
LOSSES = ("train_loss", "valid_loss")


@dataclass(frozen=True)
class _Fetched:
    """A step's samples and its results on the host."""

    index: Array
    losses: list[float]
    scores: Array
    sgd_scores: Array | None


@dataclass
class StepAccount:
    """Scores accumulated on the host.

    Parameters
    ----------
    setup : RunSetup
    micro_batch : int or None
    validation_every : int
        Number of steps for which validation gradients are kept.
    kept : KeptGradients or None
        None if every step has its own.
    sketch : Sketch or None
        Sketch, whose bases are kept from step to step.
    scores, sgd_scores : arrays (N,) or (N, n_val)
        `sgd_scores` is None if they are not wanted.
    seen : int array (N,)
    losses : array (steps, 2)
        Both losses before each step; 0 for the validation loss of a step with kept gradients.
    step_scores : StepScores or None
        Each step's scores, if they are kept.
    unchecked : list of (sample indices, `StepResult`)
        Completed steps that are not fetched yet.
    completed : int
        Number of steps checked, added and reported.
    last_fetch : float
        Time on the monotonic clock.
    """

    credit: ClassVar[Credit] = "step"
    checks_every_step: ClassVar[bool] = True

    setup: RunSetup
    micro_batch: int | None
    validation_every: int
    kept: KeptGradients | None
    sketch: Sketch | None
    scores: Array
    sgd_scores: Array | None
    seen: Array
    losses: Array
    step_scores: StepScores | None
    unchecked: list[tuple[Array, StepResult]] = field(default_factory=list)
    completed: CompletedSteps = NO_STEPS
    last_fetch: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls,
        setup: RunSetup,
        *,
        check_every_step: bool,
        micro_batch: int | None,
        validation_every: int,
        keep_step_scores: bool,
    ) -> "StepAccount":
        """Return an empty account; it always finds the step that diverged."""
        del check_every_step
        config, estimator = setup.config, setup.estimator
        sketch = None if estimator.rank is None else Sketch(estimator.rank, config.seed)
        shape = (config.train.n, config.valid.n) if estimator.per_validation else (config.train.n,)
        seen, losses = np.zeros(config.train.n, np.int64), np.zeros((config.length, len(LOSSES)))
        of_sgd, of_steps = np.zeros(shape) if setup.with_sgd else None, None
        if keep_step_scores:
            of_steps = StepScores.empty(config, per_validation=estimator.per_validation, with_sgd=setup.with_sgd)
        kept, rows = None, config.valid.n if estimator.per_validation else 1
        if validation_every > 1:
            kept = KeptGradients(validation_every, rows, setup.with_sgd)
        return cls(setup, micro_batch, validation_every, kept, sketch, np.zeros(shape), of_sgd, seen, losses, of_steps)

    @property
    def keeps_old_state(self) -> bool:
        """Whether samples go through the network again, with the old parameters: by chunks, or in forward mode."""
        if self.setup.estimator.contraction == "forward":
            return True
        config = self.setup.config
        return self.micro_batch is not None and self.micro_batch < min(config.batch_size, config.train.n)

    def take(self, index: Array, before: State, after: State) -> None:
        """Take a step and score its samples."""
        setup = self.setup
        batch = setup.data.batch(index, setup.context.backend.labels(index))
        weight = 1 / batch.n if setup.config.reduction == "mean" else 1.0
        loss = None
        validated = is_validated(completed_before(before.t), self.validation_every)
        if validated and not setup.with_sgd and setup.estimator.gradient != "start":  # else a pass at θ gives it
            loss = mean_loss(setup.context, before.theta, batch.valid_x, batch.valid_y)
        result = attribute_step(
            setup.context,
            setup.adam,
            before,
            batch,
            weight,
            setup.estimator,
            after,
            micro_batch=self.micro_batch,
            sketch=self.sketch,
            with_sgd=setup.with_sgd,
            kept=self.kept,
        )
        result = result if loss is None else replace(result, valid_loss=loss)
        self.unchecked.append((index, result))

    def check(self, state: State, *, wait: bool) -> NotFinite | None:
        """Fetch, check, add up and report the steps taken, if a fetch is due."""
        if not self._is_due(wait):
            return None
        fetched = self._fetch()
        for place, step in enumerate(fetched, start=1):
            bad = first_not_finite(dict(zip(LOSSES, step.losses, strict=True)))
            if bad is None and place == len(fetched) and not state.is_finite():
                bad = first_not_finite(state.suspects())
            of_sgd = {} if step.sgd_scores is None else {"sgd_scores": step.sgd_scores}
            bad = bad or first_not_finite({"scores": step.scores} | of_sgd)
            if bad is not None:
                return NotFinite(next_step(self.completed), *bad)
            self._add(step)
        return None

    def _is_due(self, wait: bool) -> bool:
        """Whether to fetch now: after some time or on a full device; always on the host, which has nothing to fetch."""
        pace = SECONDS_BETWEEN_CHECKS if self.setup.on_step is None else SECONDS_BETWEEN_FETCHES
        due = wait or time.monotonic() - self.last_fetch >= pace
        if due:
            self.last_fetch = time.monotonic()
        unchecked = sum(result.scores.nbytes for _, result in self.unchecked)
        return due or not self.setup.context.backend.on_cuda or unchecked >= BYTES_UNCHECKED

    def _fetch(self) -> list[_Fetched]:
        """Return the steps taken since the last fetch, in few transfers."""
        if not self.unchecked:
            return []
        indices, results = zip(*self.unchecked, strict=True)
        self.unchecked = []
        backend = self.setup.context.backend
        xp, host = backend.xp, backend.host
        pairs = [(r.train_loss, 0 * r.train_loss if r.valid_loss is None else r.valid_loss) for r in results]
        losses = host(xp.stack([xp.stack(pair) for pair in pairs])).tolist()
        scores: list[tuple[Any, ...]] = [(r.scores, r.sgd_scores)[: 1 + self.setup.with_sgd] for r in results]
        if backend.on_cuda:
            ends = np.cumsum([len(r.scores) for r in results])[:-1]
            whole = (host(xp.concatenate(part)) for part in zip(*scores, strict=True))
            scores = list(zip(*(np.split(part, ends) for part in whole), strict=True))
        return [
            _Fetched(i, pair, arrays[0], arrays[-1] if self.setup.with_sgd else None)
            for i, pair, arrays in zip(indices, losses, scores, strict=True)
        ]

    def _add(self, step: _Fetched) -> None:
        self.scores[step.index] += step.scores
        if self.sgd_scores is not None and step.sgd_scores is not None:
            self.sgd_scores[step.index] += step.sgd_scores
        self.seen[step.index] += 1
        if self.step_scores is not None:
            self.step_scores.record(self.completed, step.scores, step.sgd_scores)
        self.losses[self.completed] = step.losses
        train_loss, valid_loss = step.losses
        valid_loss = valid_loss if is_validated(self.completed, self.validation_every) else math.nan
        self.completed = completed_after(next_step(self.completed))
        self.setup.report(self.completed, train_loss, valid_loss)

    def close(self, state: State) -> NotFinite | None:
        """Do nothing: the last step's check completes the scores."""
        return None

    def credited(self) -> Credited:
        """Return the scores so far."""
        epochs = np.arange(self.completed) // self.setup.config.per_epoch
        of_steps = {} if self.step_scores is None else self.step_scores.of_run(self.completed)
        history = {"epoch": epochs} | self._losses_by_name()
        history["valid_loss"] = only_validated(history["valid_loss"], self.validation_every)
        of_sgd = np.full_like(self.scores, np.nan) if self.sgd_scores is None else self.sgd_scores
        return Credited(self.scores, of_sgd, self.seen, history, **of_steps)

    def _losses_by_name(self) -> dict[str, Array]:
        columns = self.losses[: self.completed].T
        return {name: column.copy() for name, column in zip(LOSSES, columns, strict=True)}

    def settings(self) -> dict[str, object]:
        """Return the size of the chunks of a batch, and for how many steps validation gradients are kept."""
        return {"micro_batch": self.micro_batch, **recorded_interval(self.validation_every)}

    def arrays(self) -> Snapshot:
        """Return copies of scores, losses, kept validation gradients and the sketch's bases."""
        host, bases = self.setup.context.backend.host, {} if self.sketch is None else self.sketch.bases
        arrays = {"scores": self.scores.copy(), "seen": self.seen.copy()}
        arrays |= {} if self.sgd_scores is None else {"sgd_scores": self.sgd_scores.copy()}
        arrays |= {f"history/{name}": column for name, column in self._losses_by_name().items()}
        arrays |= {} if self.step_scores is None else self.step_scores.arrays(self.completed)
        arrays |= {} if self.kept is None else self.kept.arrays(self.setup.context)
        return arrays | {f"basis/{number}/{group}": np.array(host(basis)) for (number, group), basis in bases.items()}

    def optional_arrays(self) -> Arrays:
        """Return templates of the sketch's bases, which do not exist before the first step that uses them."""
        if self.sketch is None:
            return {}
        context, rank = self.setup.context, self.sketch.rank
        groups = self.setup.config.valid.n if self.setup.estimator.per_validation else 1
        return {
            f"basis/{number}/{group}": np.empty((d_in, rank), context.backend.dtype)
            for number, _, d_in in matrices(context.shapes).values()
            for group in range(groups)
        }

    def restore(self, kept: Snapshot) -> None:
        """Continue from a snapshot."""
        self.completed = CompletedSteps(int(kept["step"]))
        self.scores[...], self.seen[...] = kept["scores"], kept["seen"]
        if self.sgd_scores is not None:
            self.sgd_scores[...] = kept["sgd_scores"]
        for column, name in enumerate(LOSSES):
            self.losses[: self.completed, column] = kept[f"history/{name}"]
        if self.step_scores is not None:
            self.step_scores.restore(kept)
        if self.kept is not None:
            self.kept.restore(self.setup.context, kept)
        if self.sketch is not None:
            for name in (name for name in kept if name.startswith("basis/")):
                number, group = map(int, name.split("/")[1:])
                self.sketch.bases[number, group] = self.setup.context.backend.real(kept[name])
