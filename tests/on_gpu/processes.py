"""Finds the processes started by a conductor."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 120.0
"""Time limit in seconds for anything that may hang; not a measurement."""


def children_of(conductor: int) -> list[int]:
    """Return the process ids of a conductor's living children, even if they have a new parent."""
    mark = f'"parent": {conductor},'.encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:  # the process has just ended
            continue
    return found


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
