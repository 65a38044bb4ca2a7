"""A time limit for Python code."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN = 0.05
"""Seconds until code that swallowed the interrupt is interrupted again."""


class TimeIsUp(BaseException):
    """Interrupts the code; not an `Exception`, so that ``except Exception`` does not catch it."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupt Python code in the block after `seconds`, if the platform can (main thread, POSIX).

    Raises
    ------
    TimeIsUp
        The time is up; raised at the end of the block if the block swallowed the interrupt.
    """
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    armed, end = True, time.monotonic() + seconds

    def stop(*_: object) -> None:
        left = end - time.monotonic()
        if armed and left > 0:  # the block itself has set the alarm
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
        # A signal may also arrive just before the inner `finally`; the next one is far enough away.
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)
