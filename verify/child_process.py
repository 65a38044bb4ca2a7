"""A process that the kit starts: what it printed last, how it ended, and that nothing of it stays behind."""

import contextlib
import os
import signal
import subprocess
import threading
from typing import IO, Any

TAIL = 600
"""Characters of the output of a failed process that a sentence shows, the last ones."""

_PATIENCE = 1.0
"""Seconds for output that is still on its way after the process has ended."""

_CHUNK = 1 << 16


class Printed:
    """Reads all that a process prints, so that it never has to wait, and keeps the end.

    Parameters
    ----------
    stream : binary file
        The reading end of the process's standard output or error.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._kept = stream, b""
        self._thread = threading.Thread(target=self._read, name="adamshap-printed", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while chunk := os.read(self._stream.fileno(), _CHUNK):
                self._kept = (self._kept + chunk)[-4 * TAIL :]

    def tail(self) -> str:
        """Return what was printed last as the end of a sentence, once the process has ended; "" for nothing."""
        self._thread.join(_PATIENCE)
        text = " ".join(self._kept.decode(errors="replace").split())[-TAIL:]
        return f"; it printed: {text}" if text else ""


def started(arguments: list[str], **streams: Any) -> "subprocess.Popen[bytes]":
    """Return a new process in a session of its own, so that Ctrl-C does not reach it and `end` ends all of it."""
    return subprocess.Popen(arguments, start_new_session=True, **streams)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, if it still runs, and what it started and left running."""
    if hasattr(os, "killpg"):
        # Nothing may be left to end; macOS refuses for what has ended and was not waited for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
        process.wait()


def how_it_ended(status: int) -> str:
    """Return the exit status of a process as a predicate: ``ended with exit status 1``."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-status}"
