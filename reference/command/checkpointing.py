"""Writes checkpoints to a run's folder while it is computed: at intervals, on Ctrl-C or SIGTERM, and at the end."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from adamshap.reference.command.errors import INTERRUPTED, TERMINATED, CommandError
from adamshap.reference.command.folder import RunFolder, resume_hint
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.results import columns_of
from adamshap.reference.contract import Snapshot

EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


@dataclass
class Checkpointer:
    """Writes the checkpoints of one run, from the trainer's callback after each step.

    Parameters
    ----------
    run_folder : RunFolder
    prepared : Prepared
        Supplies the columns beside the scores.
    seconds : float
        Minimum time between two checkpoints.
    stop_signal : signal or None
        The signal received: stop after the current step.
    steps_completed : int
        Steps completed in this process.
    warned : bool
        Whether the user has been warned that a checkpoint could not be written.
    last : float
        Time of the last checkpoint.
    """

    run_folder: RunFolder
    prepared: Prepared
    seconds: float
    stop_signal: signal.Signals | None = None
    steps_completed: int = 0
    warned: bool = False
    last: float = field(default_factory=time.monotonic)

    def on_checkpoint(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Write a checkpoint when one is due, before stopping on a signal, and at the end.

        Raises
        ------
        CommandError
            A signal asked the run to stop.
        """
        self.steps_completed += 1
        due = time.monotonic() - self.last >= self.seconds
        if not (due or self.stop_signal or step == self.run_folder.steps):
            return
        snapshot = take()
        try:
            self.run_folder.save(snapshot, columns_of(self.prepared, snapshot, self.run_folder.config))
        except OSError as error:
            self._cannot_save(step, error)
        else:
            self.run_folder.note(f"checkpoint after step {step} of {self.run_folder.steps}")
        self.last = time.monotonic()
        if self.stop_signal:
            self.run_folder.note(f"stopped by {self.stop_signal.name} after step {step}")
            hint = resume_hint(self.run_folder.path)
            raise CommandError(
                f"interrupted after step {step} of {self.run_folder.steps}; to resume: {hint}",
                EXIT_CODES[self.stop_signal],
            )

    def warn(self, text: str) -> None:
        """Write a warning to the log and to the terminal."""
        self.run_folder.note(text)
        print(f"adamshap: {text}", file=sys.stderr)

    def _cannot_save(self, step: int, error: OSError) -> None:
        """Warn once: training continues, older checkpoints are intact, and the user may free some space."""
        reason = error.strerror or str(error)
        self.run_folder.note(f"no checkpoint after step {step}: {reason}")
        if not self.warned:
            self.warned = True
            print(f"adamshap: no checkpoint after step {step}: {reason}; training continues", file=sys.stderr)

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Stop after the current step on the first Ctrl-C or SIGTERM, and immediately on the second."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, _: FrameType | None) -> None:
            if self.stop_signal:
                raise KeyboardInterrupt
            self.stop_signal = signal.Signals(number)

        before = {number: signal.signal(number, handle) for number in EXIT_CODES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
