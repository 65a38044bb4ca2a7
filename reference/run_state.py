"""The state of a run between two steps, and its update by a step."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    StepScores,
)


@dataclass(frozen=True, eq=False)
class StepResult:
    """A step of the samples `index`: parameters and moments after it, losses before it, scores by SGD's formula.

    `sgd_scores` is None if they are not wanted; `entry` is the account's. `bad` is the name and value of the first
    non-finite number, or None.
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


@dataclass(eq=False)
class RunState:
    """A run after ``adam.step`` steps. `train_loss` and `valid_loss` (steps,) are 0 for later steps.

    `sgd_scores` is None if they are not wanted, and `step_scores` if they are not kept.
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

    @classmethod
    def fresh(
        cls, config: RunConfig, credit: Credit, account: Account[Any], of_sgd: Array | None, kept: StepScores | None
    ) -> "RunState":
        """Return the state before the first step, with an empty `account` and SGD's scores of 0, if wanted."""
        params, length = config.network.init(config.seed), config.length
        seen, logs = np.zeros(config.train.n, np.int64), (np.zeros(length), np.zeros(length))
        return cls(config, credit, account, params, params, AdamState.zeros(params), of_sgd, seen, *logs, kept)

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

    def run(self) -> Run:
        """Return the run as if it ends here."""
        return self._run(self.params, self.adam)

    def diverged_run(self, result: StepResult) -> Run:
        """Return the run without the step `result`, except its parameters and moments, which may be non-finite."""
        return self._run(result.params, AdamState.unchecked(CompletedSteps(self.adam.next_step), result.m, result.v))

    def _run(self, params: Params, adam: AdamState) -> Run:
        config, done, settled = self.config, self.adam.step, self.account.settle()
        history: dict[str, Array] = {"epoch": np.arange(done) // config.per_epoch}
        history |= {"train_loss": self.train_loss[:done], "valid_loss": self.valid_loss[:done]}
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
        for group, named in (("params", self.params), ("m", self.adam.m), ("v", self.adam.v)):
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
        params, m, v = ({name: kept[f"{group}/{name}"].copy() for name in names} for group in ("params", "m", "v"))
        self.params, self.adam = params, AdamState(CompletedSteps(done), m, v)
