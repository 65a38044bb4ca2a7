"""The state of a run between two steps, and its update by a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from adamshap.reference.accounts import Account
from adamshap.reference.contract import (
    AdamState,
    Array,
    CompletedSteps,
    Credit,
    Params,
    Run,
    RunConfig,
    Snapshot,
    Step,
    StepScores,
    is_validated,
    last_validated,
    only_validated,
)


@dataclass(frozen=True, eq=False)
class StepResult:
    """A step of the samples `index`: parameters and moments after it, losses before it, scores by SGD's formula.

    `sgd_scores` is None if they are not wanted; `entry` is the account's. `bad` is the name and value of the first
    non-finite number, or None. `validated` is the step whose Γ the scores have.
    """

    index: Array
    params: Params
    m: Params
    v: Params
    train_loss: float
    valid_loss: float
    sgd_scores: Array | None
    entry: Any
    bad: tuple[str, float] | None
    validated: Step


@dataclass(eq=False)
class RunState:
    """A run after ``adam.step`` steps. `train_loss` and `valid_loss` (steps,) are 0 for later steps.

    `sgd_scores` is None if they are not wanted, and `step_scores` if they are not kept. `validated` is the last step
    that took Γ anew, as one in `every` does; None before the first. `valid_loss` is 0 for the others.
    """

    config: RunConfig
    credit: Credit
    account: Account[Any]
    initial_params: Params
    params: Params
    adam: AdamState
    sgd_scores: Array | None
    seen: Array
    train_loss: Array
    valid_loss: Array
    step_scores: StepScores | None
    every: int
    validated: Step | None = None

    @classmethod
    def fresh(
        cls,
        config: RunConfig,
        credit: Credit,
        account: Account[Any],
        of_sgd: Array | None,
        kept: StepScores | None,
        every: int,
    ) -> "RunState":
        """Return the state before the first step, with an empty `account` and SGD's scores of 0, if wanted."""
        params, length = config.network.init(config.seed), config.length
        seen, logs = np.zeros(config.train.n, np.int64), (np.zeros(length), np.zeros(length))
        state = AdamState.zeros(params)
        return cls(config, credit, account, params, params, state, of_sgd, seen, *logs, kept, every)

    def validated_for(self, step: Step) -> Step:
        """Return the step whose Γ the next one, `step`, has: its own, or that of the last step that took it."""
        if self.validated is None or is_validated(self.adam.step, self.every):
            return step
        return self.validated

    def record(self, result: StepResult) -> None:
        """Advance by one step."""
        row, index = self.adam.step, result.index
        self.account.record(result.entry)
        if self.step_scores is not None:
            self.step_scores.record(row, result.entry.scores, result.sgd_scores)
        if self.sgd_scores is not None and result.sgd_scores is not None:
            self.sgd_scores[index] += result.sgd_scores
        self.seen[index] += 1
        self.train_loss[row], self.valid_loss[row] = result.train_loss, result.valid_loss
        self.params, self.adam = result.params, self.adam.after(result.m, result.v)
        self.validated = result.validated

    def run(self) -> Run:
        """Return the run as if it ends here."""
        return self._run(self.params, self.adam)

    def diverged_run(self, result: StepResult) -> Run:
        """Return the run without the step `result`, except its parameters and moments, which may be non-finite."""
        return self._run(result.params, AdamState.unchecked(CompletedSteps(self.adam.next_step), result.m, result.v))

    def _run(self, params: Params, adam: AdamState) -> Run:
        config, done, settled = self.config, self.adam.step, self.account.settle()
        history: dict[str, Array] = {"epoch": np.arange(done) // config.per_epoch}
        known = only_validated(self.valid_loss[:done], self.every)
        history |= {"train_loss": self.train_loss[:done], "valid_loss": known}
        of_sgd = np.full_like(settled.scores, np.nan) if self.sgd_scores is None else self.sgd_scores
        scores = (settled.scores, of_sgd, self.seen)
        accounts = (self.credit, settled.decay, settled.closed)
        of_steps = {} if self.step_scores is None else self.step_scores.of_run(done)
        return Run(
            self.initial_params,
            params,
            adam,
            *scores,
            history,
            config,
            *accounts,
            **of_steps,
        )

    def snapshot(self, settings: str) -> Snapshot:
        """Return a copy of the state for resuming a run of `settings`."""
        done = self.adam.step
        arrays = {
            "scores": self.account.own_scores(),
            "seen": self.seen,
            "history/train_loss": self.train_loss[:done],
            "history/valid_loss": self.valid_loss[:done],
        }
        arrays |= {} if self.sgd_scores is None else {"sgd_scores": self.sgd_scores}
        groups = {"params": self.params, "m": self.adam.m, "v": self.adam.v}
        if self.every > 1:
            step = self.validated
            params, adam = (self.params, self.adam) if step is None else (step.params, step.state)
            groups |= {"validated/params": params, "validated/m": adam.m, "validated/v": adam.v}
        for group, named in groups.items():
            arrays |= {f"{group}/{name}": array for name, array in named.items()}
        arrays |= {f"history/{name}": array for name, array in self.account.kept().items()}
        arrays |= {} if self.step_scores is None else self.step_scores.arrays(done)
        return {"step": np.array(done), "settings": np.array(settings)} | {k: a.copy() for k, a in arrays.items()}

    def restore(self, kept: Mapping[str, Array]) -> None:
        """Replace the state before the first step by a snapshot of the same run."""
        done, names = int(kept["step"]), list(self.params)
        rows = {name.removeprefix("history/"): kept[name] for name in kept if name.startswith("history/")}
        self.account.restore(kept["scores"], rows)
        if self.step_scores is not None:
            self.step_scores.restore(kept)
        self.seen[...] = kept["seen"]
        if self.sgd_scores is not None:
            self.sgd_scores[...] = kept["sgd_scores"]
        self.train_loss[:done], self.valid_loss[:done] = kept["history/train_loss"], kept["history/valid_loss"]

        def group(name: str) -> Params:
            return {parameter: kept[f"{name}/{parameter}"].copy() for parameter in names}

        self.params, self.adam = group("params"), AdamState(CompletedSteps(done), group("m"), group("v"))
        if self.every > 1 and done:
            number = last_validated(self.adam.step, self.every)
            adam = AdamState(CompletedSteps(number - 1), group("validated/m"), group("validated/v"))
            _, index = next(islice(self.config.order(), adam.step, None))
            self.validated = self.step_at(group("validated/params"), adam, index)

    def next_step(self, index: Array) -> Step:
        """Return the next step, of the samples `index`."""
        return self.step_at(self.params, self.adam, index)

    def step_at(self, params: Params, adam: AdamState, index: Array) -> Step:
        """Return the step of the samples `index` from a state."""
        config = self.config
        batch = config.train.take(index)
        return Step(config.network, params, config.adam, adam, batch, config.valid, config.reduction).as_float64()
