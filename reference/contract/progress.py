"""Reports of a run in progress: to a callback, and to the logger "adamshap"."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from adamshap.reference.contract.optimiser import CompletedSteps

__all__ = ["LOGGER", "Progress", "logged"]

LOGGER = logging.getLogger("adamshap")
LOGGER.addHandler(logging.NullHandler())  # silent until the application configures logging


@dataclass(frozen=True)
class Progress:
    """The report of a run after each step.

    Parameters
    ----------
    step, steps : int
        Completed steps, and all steps of the run.
    epoch : int
        Number of the epoch, from 0.
    train_loss, valid_loss : float
        Mean losses of the batch and of the validation samples, before the step; `valid_loss` is NaN in a step without
        a pass of the validation samples (`validation_every`).
    """

    step: CompletedSteps
    steps: int
    epoch: int
    train_loss: float
    valid_loss: float


def logged(on_step: Callable[[Progress], None] | None, about: str) -> Callable[[Progress], None] | None:
    """Return `on_step`, extended to log a run's start, epochs and end to the logger "adamshap" if that is enabled.

    At level INFO: the start, with `about`, a description of the run; the last step of each epoch, with its losses; and
    the end. If the level is disabled, `on_step` itself is returned, so that a run does not wait for unread losses.
    """
    if not LOGGER.isEnabledFor(logging.INFO):
        return on_step
    LOGGER.info("training starts: %s", about)
    last: Progress | None = None

    def log(progress: Progress) -> None:
        nonlocal last
        if last is not None and progress.epoch > last.epoch:
            _log_epoch(last)
        if progress.step == progress.steps:
            _log_epoch(progress)
            LOGGER.info("training ends after %d steps", progress.steps)
        last = progress
        if on_step is not None:
            on_step(progress)

    return log


def _log_epoch(last: Progress) -> None:
    LOGGER.info(
        "epoch %d ends at step %d of %d: training loss %.6g, validation loss %.6g, both before the step",
        last.epoch + 1,
        last.step,
        last.steps,
        last.train_loss,
        last.valid_loss,
    )
