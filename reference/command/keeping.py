"""Keeps a run's folder up to date while it is computed: a checkpoint now and then, and one when it is told to stop."""

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
class Keeper:
    """What a trainer tells of each step.

    Parameters
    ----------
    place : RunFolder
    prepared : Prepared
        Whose columns go with the scores.
    seconds : float
        Between two checkpoints, at least.
    asked : signal or None
        To stop after the step that is being computed.
    taken : int
        Steps that this process has seen completed.
    """

    place: RunFolder
    prepared: Prepared
    seconds: float
    asked: signal.Signals | None = None
    taken: int = 0
    failed: bool = False
    last: float = field(default_factory=time.monotonic)

    def on_checkpoint(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Write a checkpoint where it is time for one, where the run is to stop, and at the end."""
        self.taken += 1
        due = time.monotonic() - self.last >= self.seconds
        if not (due or self.asked or step == self.place.steps):
            return
        snapshot = take()
        try:
            self.place.save(snapshot, columns_of(self.prepared, snapshot))
        except OSError as error:
            self._cannot_save(step, error)
        else:
            self.place.note(f"checkpoint after step {step} of {self.place.steps}")
        self.last = time.monotonic()
        if self.asked:
            self.place.note(f"stopped by {self.asked.name} after step {step}")
            raise CommandError(
                f"interrupted after step {step} of {self.place.steps}; to go on: {resume_hint(self.place.path)}",
                EXIT_CODES[self.asked],
            )

    def warn(self, text: str) -> None:
        """Write a warning to the log and to the terminal."""
        self.place.note(text)
        print(f"adamshap: {text}", file=sys.stderr)

    def _cannot_save(self, step: int, error: OSError) -> None:
        """Say it once: the training goes on, older checkpoints are as they were, and room may be made meanwhile."""
        reason = error.strerror or str(error)
        self.place.note(f"no checkpoint after step {step}: {reason}")
        if not self.failed:
            self.failed = True
            print(f"adamshap: no checkpoint after step {step}: {reason}; the training goes on", file=sys.stderr)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM ask for a stop, and a second one have it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = signal.Signals(number)

        before = {number: signal.signal(number, ask) for number in EXIT_CODES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
