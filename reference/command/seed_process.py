"""One of several runs, in a process of its own: python -m adamshap...seed_process FOLDER SECONDS DEVICE.

Goes on with the run in FOLDER, and prints the number of completed steps on a line now and then. Errors are one line on
stderr, and the exit codes those of the command. It stops, and saves the run, when nobody reads its output any longer.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from adamshap.reference.command import running, trainers
from adamshap.reference.command.errors import INTERRUPTED, CommandError, one_line
from adamshap.reference.command.examples import TOP
from adamshap.reference.command.job import Device
from adamshap.reference.contract import Progress

EVERY = 0.2
"""Seconds between two lines of output."""


def run(folder: Path, seconds: float, device: Device | None = None) -> int:
    """Go on with the run in `folder`, on `device` or on the one that its options name, and return the exit code."""
    last = 0.0

    def on_step(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < EVERY and progress.step < progress.steps:
            return
        last = now
        try:
            print(progress.step, flush=True)
        except OSError:  # the parent is gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with one_line(folder):
            running.resume(Console(quiet=True), folder, trainers.installed_trainer(), seconds, TOP, device, on_step)
    except CommandError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    place: Any = sys.argv[3] or None
    sys.exit(run(Path(sys.argv[1]), float(sys.argv[2]), place))
