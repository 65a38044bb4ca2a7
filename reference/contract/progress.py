"""What a run reports while it goes on: to a callback, and to the logger "adamshap"."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from adamshap.reference.contract.optimiser import CompletedSteps

__all__ = ["LOGGER", "Progress", "logged"]

LOGGER = logging.getLogger("adamshap")
LOGGER.addHandler(logging.NullHandler())  # silent, until a program that uses this sets up logging


@dataclass(frozen=True)
class Progress:
    """The report of a run after each step.

    Parameters
    ----------
    step, steps : int
        Steps taken, of how many.
    epoch : int
        Counted from 0.
    train_loss, valid_loss : float
        Mean losses of the batch and of the validation samples, before the step.
    """

    step: CompletedSteps
    steps: int
    epoch: int
    train_loss: float
    valid_loss: float


def logged(on_step: Callable[[Progress], None] | None, about: str) -> Callable[[Progress], None] | None:
    """Return `on_step`, which also writes a run's coarse events to the logger "adamshap", where that listens.

    At level INFO: the start, with `about`, what is trained and by what; the last step of each epoch, with its losses;
    and the end. Without a listener this is `on_step` itself, so that a run does not wait for losses that nobody reads.
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
