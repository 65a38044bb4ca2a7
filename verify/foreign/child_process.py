"""Child processes of the kit: reads the end of their output, describes their exit, and ends all that they started."""

import contextlib
import os
import signal
import subprocess
import threading
from typing import IO, Any

TAIL = 600
"""Number of characters at the end of a failed process's output that a message shows."""

_PATIENCE = 1.0
"""Seconds to wait for remaining output after the process has ended."""

_CHUNK = 1 << 16


class OutputTail:
    """Reads all output of a process, so that the process never blocks, and keeps the end.

    Parameters
    ----------
    stream : binary file
        The read end of the process's standard output or error.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._kept = stream, b""
        self._thread = threading.Thread(target=self._read, name="adamshap-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while chunk := os.read(self._stream.fileno(), _CHUNK):
                self._kept = (self._kept + chunk)[-4 * TAIL :]

    def tail(self) -> str:
        """Return the end of the output of an ended process as the last part of a sentence; "" if there was none."""
        self._thread.join(_PATIENCE)
        text = " ".join(self._kept.decode(errors="replace").split())[-TAIL:]
        return f"; it printed: {text}" if text else ""


def start(arguments: list[str], **streams: Any) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own, so that Ctrl-C does not reach it and `end` also ends its children."""
    return subprocess.Popen(arguments, start_new_session=True, **streams)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, if it still runs, and any processes that it left running."""
    if hasattr(os, "killpg"):
        # The group may be gone; macOS refuses for processes that have ended and were not waited for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
        process.wait()


def describe_exit(status: int) -> str:
    """Describe an exit status as a predicate: ``ended with exit status 1``."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-status}"
