"""A training run with attribution: one loop, and an account that credits each step to samples.

A step's scores are computed with the state before it, in the pass over the parameters that takes the step. Nothing in
the loop waits for a device; an account does, when it fetches results.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from adamshap.gpu.accounts import Account, NotFinite
from adamshap.gpu.arrays import Arrays, like
from adamshap.gpu.backend import arithmetic_of
from adamshap.gpu.counting import FIRST_STEP, completed_before, following, next_step
from adamshap.gpu.hyperparameters import advice
from adamshap.gpu.run_setup import RunSetup
from adamshap.gpu.state import State
from adamshap.reference.contract import (
    AdamState,
    CompletedSteps,
    Diverged,
    Run,
    Snapshot,
    resumed,
    run_settings,
)

__all__ = ["OpenAccount", "attributed_run"]

GROUPS = ("params", "m", "v")
"""Names of θ, m and v in a snapshot."""


class OpenAccount(Protocol):
    """A function that opens an account for a run."""

    def __call__(self, setup: RunSetup, *, check_every_step: bool) -> Account:
        """Return an empty account; `check_every_step` makes it check every step, even at the cost of waiting."""


def attributed_run(setup: RunSetup, open_account: OpenAccount) -> Run:
    """Train and attribute, and return the run.

    An account that does not check every step, for speed, does not know the step at which a run diverged. That run is
    repeated with a check of every step.
    """
    account = open_account(setup, check_every_step=False)
    try:
        return _Training.of(setup, account).run()
    except Diverged:
        if account.checks_every_step:
            raise
    account = open_account(setup, check_every_step=True)
    return _Training.of(setup, account).run()


@dataclass
class RunState:
    """The state between two steps, and the one that the next step writes: the same arrays if it may overwrite them.

    Only the loop changes it.
    """

    current: State
    following: State

    @classmethod
    def initial(cls, setup: RunSetup, two: bool) -> "RunState":
        """Return the state before the first step, with buffers for a second one if `two`."""
        xp = setup.context.backend.xp
        theta = {name: p.copy() for name, p in setup.initial.items()}
        m, v = ({name: xp.zeros_like(p) for name, p in theta.items()} for _ in range(2))
        current = State(theta, m, v, FIRST_STEP)
        if not two:
            return cls(current, current)
        theta, m, v = (like(setup.context, f"second {name}") for name in ("theta", "m", "v"))
        return cls(current, State(theta, m, v, current.t))

    @property
    def completed(self) -> CompletedSteps:
        """Number of completed steps."""
        return completed_before(self.current.t)

    def advance(self) -> None:
        """Continue from the state that the last step wrote."""
        old, new = self.current, self.following
        self.current = State(new.theta, new.m, new.v, following(old.t))
        self.following = self.current if new is old else old

    def restore(self, theta: Arrays, m: Arrays, v: Arrays, completed: CompletedSteps) -> None:
        """Continue from the arrays of a snapshot."""
        overwritten = self.following is self.current
        self.current = State(theta, m, v, next_step(completed))
        if overwritten:
            self.following = self.current

    def arrays(self) -> Arrays:
        """Return the arrays by their names in a snapshot."""
        groups = zip(GROUPS, (self.current.theta, self.current.m, self.current.v), strict=True)
        return {f"{group}/{name}": array for group, named in groups for name, array in named.items()}


@dataclass(frozen=True)
class _Training:
    """A run between two steps; `settings` identify it in its snapshots, "" if it has none."""

    setup: RunSetup
    account: Account
    state: RunState
    settings: str

    @classmethod
    def of(cls, setup: RunSetup, account: Account) -> "_Training":
        """Return a run before its first step, or after the last step of the snapshot that it resumes."""
        state = RunState.initial(setup, account.keeps_old_state)
        has_snapshots = setup.resume is not None or setup.on_checkpoint is not None
        training = cls(setup, account, state, _settings(setup, account) if has_snapshots else "")
        if setup.resume is not None:
            training.restore()
        return training

    def run(self) -> Run:
        """Take the remaining steps and return the run."""
        config = self.setup.config
        with self.setup.context.at_work():
            for _, index in islice(config.order(), self.state.completed, None):
                self.account.take(index, self.state.current, self.state.following)
                self.state.advance()
                self.check(wait=self.state.completed == config.length)
                if self.setup.on_checkpoint is not None:
                    self.setup.on_checkpoint(self.state.completed, self.snapshot)
            self.raise_if_not_finite(self.account.close(self.state.current))
        return self.result()

    def check(self, *, wait: bool) -> None:
        """Have the account check and add up the results of the steps."""
        self.raise_if_not_finite(self.account.check(self.state.current, wait=wait))

    def raise_if_not_finite(self, found: NotFinite | None) -> None:
        """Raise `Diverged` if a number is not finite."""
        if found is not None:
            setup = self.setup
            advised = advice(setup.config.adam, setup.context.shapes, found.step, setup.context.backend)
            raise Diverged(found.step, setup.config.length, found.tensor, found.value, self.result(), advised)

    def snapshot(self) -> Snapshot:
        """Return a copy of the run's state; this waits for a device."""
        self.check(wait=True)
        host, kept = self.setup.context.backend.host, self.account.arrays()
        kept |= {name: np.array(host(array)) for name, array in self.state.arrays().items()}
        return {"step": np.array(self.state.completed), "settings": np.array(self.settings)} | kept

    def restore(self) -> None:
        """Continue from the snapshot to resume."""
        optional, length = self.account.optional_arrays(), self.setup.config.length
        kept = resumed(self.setup.resume, self.settings, self.snapshot(), steps=length, optional=optional)
        self.account.restore(kept)
        real, names = self.setup.context.backend.real, self.setup.initial
        theta, m, v = ({name: real(kept[f"{group}/{name}"].copy()) for name in names} for group in GROUPS)
        self.state.restore(theta, m, v, self.account.completed)

    def result(self) -> Run:
        """Return the run so far."""
        host, state = self.setup.context.backend.host, self.state.current
        theta, m, v = ({name: host(a) for name, a in group.items()} for group in (state.theta, state.m, state.v))
        return Run(
            initial_params={name: host(p) for name, p in self.setup.initial.items()},
            params=theta,
            state=AdamState.unchecked(self.state.completed, m, v),
            config=self.setup.config,
            credit=self.account.credit,
            **vars(self.account.credited()),
        )


def _settings(setup: RunSetup, account: Account) -> str:
    config, backend = setup.config, setup.context.backend
    return run_settings(
        config.train,
        config.valid,
        arithmetic_of(backend, setup.parts),
        trainer="adamshap.gpu",
        credit=account.credit,
        network=config.network,
        adam=config.adam,
        epochs=config.epochs,
        steps=config.length,
        batch_size=config.batch_size,
        seed=config.seed,
        estimator=setup.estimator,
        reduction=config.reduction,
        backend=[backend.xp.__name__, str(backend.dtype)],
        **account.settings(),
    )
