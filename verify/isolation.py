"""Runs a Python candidate in a process of its own, so that the kit survives its failures and can report them.

One process serves a whole profile. If it ends, or hangs beyond what Python can interrupt, the current call has no
answer, and the next call gets a new process.
"""

import json
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adamshap.reference.contract import Step
from adamshap.verify.foreign import child_process
from adamshap.verify.foreign.child_process import OutputTail, describe_exit
from adamshap.verify.foreign.frames import read_frame, read_reply, skip_to_start, write_frame
from adamshap.verify.foreign.replies import result_of
from adamshap.verify.implementation import Answer, Hung, Implementation, LoadError, Lost, Misbehaviour, Query

LOADING = 120.0
"""Seconds that a candidate may take to load; the time limit of a call, if that is longer."""

GRACE = 1.0
"""Seconds beyond the time limit in which a process can interrupt itself before it is ended."""

_POLL = 0.2
"""Seconds between checks whether a process that does not answer has ended."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop());"
    " from adamshap.verify.foreign.worker import main; main()"
)


@contextmanager
def isolated(target: str, timeout: float | None = 60.0) -> Iterator[Implementation]:
    """Load a candidate in a process of its own, which ends with the block.

    Parameters
    ----------
    target : str
        As in `implementation.load`.
    timeout : float, optional
        Time limit of a call, in seconds.

    Yields
    ------
    Implementation
        It enforces its own time limit: `check` and `diagnose` need none.

    Raises
    ------
    LoadError
    """
    candidate = _Isolated(target, timeout)
    try:
        yield candidate.implementation
    finally:
        candidate.close()


class _Ended(Exception):
    """The candidate's process has closed the pipe."""


class _TooLate(Exception):
    """No reply arrived in time."""


class _Worker:
    """One process with its pipes; a thread reads and writes them, so that waiting can time out."""

    def __init__(self) -> None:
        path = [place for place in sys.path if isinstance(place, str) and place]
        self.process = child_process.start(
            [sys.executable, "-P", "-c", _START, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr is not None
        self.printed = OutputTail(self.process.stderr)
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="adamshap-worker", daemon=True).start()

    def _serve(self) -> None:
        send, receive = self.process.stdin, self.process.stdout
        assert send is not None
        assert receive is not None
        try:
            with send, receive:
                skip_to_start(receive)
                while (frame := self._requests.get()) is not None:
                    write_frame(send, frame)
                    self._replies.put(read_frame(receive))
        except ValueError:
            self._replies.put(b"")  # not a valid reply: `read_reply` will refuse it
        except (OSError, EOFError):
            self._replies.put(None)

    def exchange(self, frame: bytes, seconds: float | None) -> bytes:
        """Return the reply to a message.

        Raises
        ------
        _TooLate
            There is none after `seconds`.
        _Ended
            There will be none.
        """
        self._requests.put(frame)
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            wait = _POLL if deadline is None else min(_POLL, deadline - time.monotonic())
            ended = self.process.poll() is not None  # before looking for a reply: one may come just before the end
            try:
                reply = self._replies.get(timeout=max(wait, 0.0))
            except queue.Empty:
                if ended:
                    raise _Ended from None  # even if a process that it left behind keeps the pipe open
                if deadline is not None and time.monotonic() >= deadline:
                    raise _TooLate from None
                continue
            if reply is None:
                raise _Ended
            return reply

    def end(self) -> str:
        """End the process, and return how it ended by itself, as a predicate; "" if it was still running."""
        self._requests.put(None)
        try:
            how = describe_exit(self.process.wait(GRACE))
        except subprocess.TimeoutExpired:
            how = ""
        child_process.end(self.process)
        return how


class _Isolated:
    """A candidate's name, its time limit, and its current process."""

    def __init__(self, target: str, timeout: float | None) -> None:
        self._target, self._timeout = target, timeout
        self._worker: _Worker | None = None
        offers, extras, supports = (frozenset(part.split()) for part in self._load().split(";"))
        self.implementation = Implementation(target, offers, self._ask, extras, supports, guard=None)

    def _load(self) -> str:
        """Start a process, and return the functions, extras and models that its candidate declares, as text."""
        self._worker = _Worker()
        path = [""] if "" in sys.path else []
        limit = LOADING if self._timeout is None else max(LOADING, self._timeout)
        try:
            kind, text, _ = self._exchange((self._target, path, self._timeout), limit)
        except Misbehaviour as error:
            raise LoadError(f"cannot load {self._target!r}: it {error}") from None
        if kind != "offers":
            self.close()
            raise LoadError(text)
        return text

    def _ask(self, step: Step, query: Query) -> Any:
        if self._worker is None:
            try:
                self._load()
            except LoadError as error:
                raise Lost(f"could not be loaded again: {error}") from None
        kind, text, named = self._exchange((step, query), self._timeout)
        if kind == "answer":
            return result_of(step, query, named)
        raise {"unsupported": NotImplementedError, "hung": Hung}.get(kind, Misbehaviour)(text)

    def _exchange(self, message: object, limit: float | None) -> tuple[str, str, Answer]:
        """Return the reply to a message; without one, end and discard the process."""
        worker = self._worker
        assert worker is not None
        try:
            return read_reply(worker.exchange(pickle.dumps(message), None if limit is None else limit + GRACE))
        except _TooLate:
            self._worker = None
            child_process.end(worker.process)
            raise Hung(f"gave no answer within {limit:g} s") from None
        except _Ended:
            self._worker = None
            how = worker.end() or "closed its connection to the kit"
            raise Lost(f"{how}{worker.printed.tail()}") from None
        except ValueError as error:
            self.close()
            raise Lost(f"wrote to its connection to the kit ({error})") from None

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None
