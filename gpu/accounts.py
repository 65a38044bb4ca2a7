"""Whom a run credits with its steps: what the run's loop needs of an account, whichever credit it keeps."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from adamshap.gpu.arrays import Arrays
from adamshap.gpu.state import State
from adamshap.reference.contract import Array, CompletedSteps, Credit, Snapshot, StepNumber

__all__ = ["Account", "Credited", "NotFinite"]


class NotFinite(NamedTuple):
    """The first number of a run that is NaN or infinite: the step that produced it, its tensor's name, its value."""

    step: StepNumber
    tensor: str
    value: float


@dataclass(frozen=True)
class Credited:
    """What the samples are credited with so far: the fields of `Run` that an account keeps."""

    scores: Array
    sgd_scores: Array
    seen: Array
    history: dict[str, Array]
    decay: Array | None = None
    closed: Array | None = None
    truncated: Array | None = None


class Account(Protocol):
    """The scores of a run's samples; it takes the run's steps, since what a step computes depends on the credit."""

    @property
    def credit(self) -> Credit:
        """The credit that it keeps."""

    @property
    def completed(self) -> CompletedSteps:
        """How many steps were checked, added and reported."""

    @property
    def keeps_old_state(self) -> bool:
        """Whether a step needs the state before it to the end; if not, it may overwrite it."""

    @property
    def checks_every_step(self) -> bool:
        """Whether `check` finds the step of a number that is not finite; if not, `close` alone finds such numbers."""

    def take(self, index: Array, before: State, after: State) -> None:
        """Take a step with the samples at `index` and write the state after it; its results wait for `check`."""

    def check(self, state: State, *, wait: bool) -> NotFinite | None:
        """Fetch the results of the steps taken since the last check, check them, add them up and report them.

        Parameters
        ----------
        state : State
            After the last step; that step is added only if this is finite.
        wait : bool
            Whether to wait for a device; if not, results may be left to a later check.

        Returns
        -------
        NotFinite or None
            Of the first step that is not added.
        """

    def close(self, state: State) -> NotFinite | None:
        """Complete the scores after the run's last step, which `state` follows."""

    def credited(self) -> Credited:
        """Return what the samples are credited with so far."""

    def settings(self) -> dict[str, object]:
        """Return the account's own part of `run_settings`."""

    def arrays(self) -> Snapshot:
        """Return copies of what `restore` takes."""

    def optional_arrays(self) -> Arrays:
        """Return arrays like those that a snapshot may have besides, once steps were taken."""

    def restore(self, kept: Snapshot) -> None:
        """Go on from a snapshot."""
