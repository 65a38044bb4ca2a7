"""The interface between a run's loop and the account that credits its steps to samples."""

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
    """The credit of the samples so far: the fields of `Run` that an account keeps."""

    scores: Array
    sgd_scores: Array
    seen: Array
    history: dict[str, Array]
    decay: Array | None = None
    closed: Array | None = None
    truncated: Array | None = None
    step_scores: Array | None = None
    step_sgd_scores: Array | None = None
    step_index: Array | None = None


class Account(Protocol):
    """The scores of a run's samples. It takes the run's steps, as the computation of a step depends on the credit."""

    @property
    def credit(self) -> Credit:
        """The kind of credit."""

    @property
    def completed(self) -> CompletedSteps:
        """Number of steps checked, added and reported."""

    @property
    def keeps_old_state(self) -> bool:
        """Whether a step needs the state before it until its end; if not, the step may overwrite that state."""

    @property
    def checks_every_step(self) -> bool:
        """Whether `check` finds the step of a number that is not finite; if not, only `close` finds such numbers."""

    def take(self, index: Array, before: State, after: State) -> None:
        """Take a step with the samples at `index` and write the state after it; `check` adds its results."""

    def check(self, state: State, *, wait: bool) -> NotFinite | None:
        """Fetch the results of the steps taken since the last check, check them, add them up and report them.

        Parameters
        ----------
        state : State
            State after the last step, which is added only if this is finite.
        wait : bool
            Whether to wait for a device; if not, results may be left to a later check.

        Returns
        -------
        NotFinite or None
            The number that kept the first step from being added.
        """

    def close(self, state: State) -> NotFinite | None:
        """Complete the scores after the run's last step; `state` is the state after it."""

    def credited(self) -> Credited:
        """Return the credit of the samples so far."""

    def settings(self) -> dict[str, object]:
        """Return the account's own part of `run_settings`."""

    def arrays(self) -> Snapshot:
        """Return copies of the arrays that `restore` needs."""

    def optional_arrays(self) -> Arrays:
        """Return templates of the arrays that a snapshot may also have after the first step."""

    def restore(self, kept: Snapshot) -> None:
        """Continue from a snapshot."""
