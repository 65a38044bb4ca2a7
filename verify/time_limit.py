"""A limit on the time that Python code takes."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN = 0.05
"""Seconds after which code that swallows the interruption is interrupted again."""


class TimeIsUp(BaseException):
    """Interrupts the code. It is no `Exception`, so that ``except Exception`` in the code does not stop it."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupt the block after `seconds`, where the platform can (a main thread, POSIX); Python code only.

    Raises
    ------
    TimeIsUp
        Also where the block swallowed the interruption, once it ends.
    """
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    armed, end = True, time.monotonic() + seconds

    def stop(*_: object) -> None:
        left = end - time.monotonic()
        if armed and left > 0:  # somebody else has set the alarm
            signal.setitimer(signal.ITIMER_REAL, left, _AGAIN)
        elif armed:
            raise TimeIsUp

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        try:
            yield
            if time.monotonic() > end:
                raise TimeIsUp
        finally:
            armed = False
    finally:
        # The signal may also come on the way into the inner `finally`; the next one is far enough away.
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)
