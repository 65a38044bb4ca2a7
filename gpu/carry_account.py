"""The account of ``credit="carry"``: momentum's steps are credited to earlier samples, in a window (docs/engine.md).

On a device, every step is checked only if a callback waits for it anyway. Otherwise divergence
is found when the account is closed, and its step is unknown.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from adamshap.gpu.accounts import Credited, NotFinite
from adamshap.gpu.arrays import Arrays
from adamshap.gpu.carry import LOG, Carrier
from adamshap.gpu.counting import NO_STEPS, completed_after, next_step
from adamshap.gpu.kernels.plan import SPLIT_SLOPES
from adamshap.gpu.run_setup import RunSetup
from adamshap.gpu.state import State
from adamshap.gpu.validation import mean_loss
from adamshap.reference.contract import (
    Array,
    CompletedSteps,
    Credit,
    Estimator,
    RunConfig,
    Snapshot,
    first_not_finite,
    refuse,
    shown,
)

__all__ = ["CarryAccount", "refuse_with_carry"]

LOSSES = LOG[:2]


def refuse_with_carry(estimator: Estimator, rank: object, micro_batch: object) -> None:
    """Refuse options that ``credit="carry"`` does not support; `rank` is the caller's argument."""
    for name, option in (("rank", rank), ("micro_batch", micro_batch)):
        if option is not None:
            refuse(name, f"{shown(option)} with credit 'carry'", "None: whole batches are kept and scored exactly")
    estimator.refuse_with_carry()
    if estimator.slope not in SPLIT_SLOPES:
        refuse(
            "slope",
            f"'{estimator.slope}' with credit 'carry'",
            "one of " + ", ".join(SPLIT_SLOPES) + ": the others do not split the step between batch and momentum",
        )
    if estimator.per_validation:
        refuse("per_validation", "True with credit 'carry'", "False: each validation sample would need its own window")


@dataclass(frozen=True)
class _Unchecked:
    """A completed step that is not checked yet.

    ``paid`` holds the totals, the bounds and the decay's credit of the `Carrier` before the step, if it is checked.
    """

    index: Array
    where: Any
    sgd_scores: Any | None
    paid: tuple[Any, Any, Any] | None


@dataclass
class CarryAccount:
    """Scores accumulated in the backend, by a `Carrier`.

    Parameters
    ----------
    setup : RunSetup
    carrier : Carrier
    checks_every_step : bool
    sgd_scores : array (N,) or None
        In the backend; None if they are not wanted.
    seen : int array (N,)
    completed : int
        Number of steps added, and checked and reported if `checks_every_step`.
    unchecked : _Unchecked or None
        The last step, until `check`.
    closed : tuple of arrays (N,), (steps,) and (steps,), or None
        The scores, what closing added for each step, and decay's share of it; None until then.
    """

    credit: ClassVar[Credit] = "carry"
    keeps_old_state: ClassVar[bool] = True

    setup: RunSetup
    carrier: Carrier
    checks_every_step: bool
    sgd_scores: Any | None
    seen: Array
    completed: CompletedSteps = NO_STEPS
    unchecked: _Unchecked | None = None
    closed: tuple[Array, Array, Array] | None = None

    @classmethod
    def of(cls, setup: RunSetup, *, check_every_step: bool, window: int | None) -> "CarryAccount":
        """Return an empty account, with a window of at least `window` steps; None: the default."""
        config, backend = setup.config, setup.context.backend
        waits = check_every_step or setup.on_step is not None or setup.on_checkpoint is not None
        carrier = Carrier.of(setup.context, config, setup.data, config.length, window, with_sgd=setup.with_sgd)
        sgd_scores = backend.xp.zeros(config.train.n) if setup.with_sgd else None
        seen = np.zeros(config.train.n, np.int64)
        return cls(setup, carrier, waits or not backend.on_cuda, sgd_scores, seen)

    def take(self, index: Array, before: State, after: State) -> None:
        """Take a step, score its samples and credit earlier ones."""
        carrier, data = self.carrier, self.setup.data
        where = self.setup.context.backend.labels(index)
        paid = None
        if self.checks_every_step:
            paid = carrier.totals.copy(), carrier.truncated.copy(), carrier.carried_decay.copy()
        batch = data.batch(index, where)
        sgd_scores = carrier.take(self.completed, index, where, before, batch, self.setup.estimator, after)
        self.unchecked = _Unchecked(index, where, sgd_scores, paid)

    def check(self, state: State, *, wait: bool) -> NotFinite | None:
        """Check the last step, if every step is checked, add it and report it."""
        step, self.unchecked = self.unchecked, None
        if step is None:
            return None
        logged: dict[str, float] = {}
        if step.paid is not None:
            row = self.setup.context.backend.host(self.carrier.log[self.completed])
            logged = dict(zip(LOG, row.tolist(), strict=True))
            bad = self._first_not_finite(state, step, logged)
            if bad is not None:
                # What the step owes to past samples is unknown: the scores are those paid before it.
                self.carrier.totals, self.carrier.truncated, self.carrier.carried_decay = step.paid
                return NotFinite(next_step(self.completed), *bad)
        if self.sgd_scores is not None:
            self.sgd_scores[step.where] += step.sgd_scores
        self.seen[step.index] += 1
        self.completed = completed_after(next_step(self.completed))
        if logged:
            self.setup.report(self.completed, *(logged[name] for name in LOSSES))
        return None

    def _first_not_finite(self, state: State, step: _Unchecked, logged: dict[str, float]) -> tuple[str, float] | None:
        """Return the first number of a step that is not finite and its name, in order of computation."""
        watched: Arrays = {name: logged[name] for name in LOSSES}
        watched |= {} if state.is_finite() else state.suspects()
        if next_step(self.completed) == self.setup.config.length:
            watched |= {"final valid_loss": self._valid_loss(state)}
        of_sgd = {} if step.sgd_scores is None else {"sgd_scores": step.sgd_scores}
        return first_not_finite(watched | {"scores": self.carrier.totals} | of_sgd | logged)

    def _valid_loss(self, state: State) -> float:
        data = self.setup.data
        return float(mean_loss(self.setup.context, state.theta, data.valid_x, data.valid_y))

    def close(self, state: State) -> NotFinite | None:
        """Pay all that is owed, and credit each step's batch with the rest of the step's change of the loss."""
        host, carrier = self.setup.context.backend.host, self.carrier
        last_loss = self._valid_loss(state)
        settled, carried = (host(array) for array in carrier.settled())
        log = host(carrier.log)
        scores, closed = _closed(self.setup.config, settled, carried.sum(), carrier.loses, log, last_loss)
        decay = log[:, LOG.index("decay")] + carried
        of_sgd = {} if self.sgd_scores is None else {"sgd_scores": self.sgd_scores}
        bad = first_not_finite({"scores": scores} | of_sgd | {"closed": closed, "decay": decay})
        if bad is not None:
            return NotFinite(next_step(self.completed), *bad)
        self.closed = scores, closed, decay
        return None

    def credited(self) -> Credited:
        """Return the scores so far, which are those paid until the account is closed."""
        host, carrier = self.setup.context.backend.host, self.carrier
        log = np.array(host(carrier.log))[: self.completed]
        history = {"epoch": np.arange(self.completed) // self.setup.config.per_epoch}
        history |= {name: log[:, column] for column, name in enumerate(LOSSES)}
        paid = host(carrier.totals), None, (log[:, LOG.index("decay")] + host(carrier.carried_decay)[: self.completed])
        scores, closed, decay = paid if self.closed is None else self.closed
        return Credited(
            scores,
            np.full_like(scores, np.nan) if self.sgd_scores is None else host(self.sgd_scores),
            self.seen,
            history,
            decay=decay,
            closed=closed,
            truncated=host(carrier.truncated),
        )

    def settings(self) -> dict[str, object]:
        """Return the size of the window of each β1: steps of a block, and blocks."""
        return {"carry_window": [[momentum.length, momentum.later] for momentum in self.carrier.momenta]}

    def arrays(self) -> Snapshot:
        """Return copies of scores, losses and the window."""
        arrays = {"seen": self.seen.copy()} | self.carrier.arrays(self.completed)
        if self.sgd_scores is not None:
            arrays["sgd_scores"] = np.array(self.setup.context.backend.host(self.sgd_scores))
        return arrays

    def optional_arrays(self) -> Arrays:
        """Return nothing: all arrays exist before the first step."""
        return {}

    def restore(self, kept: Snapshot) -> None:
        """Continue from a snapshot."""
        self.carrier.restore(kept)
        self.completed = CompletedSteps(int(kept["step"]))
        self.seen = kept["seen"].copy()
        if self.sgd_scores is not None:
            self.sgd_scores = self.setup.context.backend.xp.array(kept["sgd_scores"])


def _closed(
    config: RunConfig, settled: Array, carried_decay: float, loses: bool, log: Array, last_loss: float
) -> tuple[Array, Array]:
    """Return the scores and what closing added for each step (steps,).

    That is the rest of the step's change of the loss and its share of the lost credit, spread equally over its batch.
    """
    losses = np.append(log[:, 1], last_loss)
    decay, own, owed = (log[:, LOG.index(name)] for name in ("decay", "own", "owed"))
    closed = losses[:-1] - losses[1:] - decay - own - owed
    scores = np.array(settled)
    sizes = np.array([len(index) for _, index in config.order()])
    if loses:
        # The lost credit: all that was owed less all that was paid.
        closed = closed + (owed.sum() + own.sum() - carried_decay - scores.sum()) * (sizes / sizes.sum())
    for (_, index), share in zip(config.order(), closed / sizes, strict=True):
        scores[index] += share
    return scores, closed
