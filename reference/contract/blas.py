"""The environment that affects the last digits of a result: BLAS threads (one is used), versions, the processor.

The rounding of a matrix product depends on the number of BLAS threads. With one thread, the same call gives the same
bits on any number of cores.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

__all__ = ["arithmetic", "blas", "one_blas_thread"]

_here = threading.local()
_lock = threading.RLock()
_users = 0
_before: list[int] = []


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread, in the whole process, until the last of all nested or concurrent uses ends."""
    global _users, _before
    with _lock:
        if not _users:
            _before = [library.get_num_threads() for library in blas().lib_controllers]
            _set_threads([1] * len(_before))
        _users += 1
        _here.uses = _uses() + 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            _here.uses -= 1
            if not _users:
                _set_threads(_before)


def _set_threads(counts: list[int]) -> None:
    for library, count in zip(blas().lib_controllers, counts, strict=True):
        # From threadpoolctl 3.7, the first thread to set a number controls it until it is cleared.
        clear = getattr(library, "clear_controlling_thread", lambda force: None)
        clear(force=True)
        library.set_num_threads(count)
        clear(force=True)


@cache
def blas() -> Any:
    """Return the controller of the loaded BLAS libraries, including NumPy's."""
    return ThreadpoolController().select(user_api="blas")


def arithmetic() -> dict[str, Any]:
    """Return the environment that affects the last digits: versions, and the loops chosen for the processor."""
    build = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    libraries = [library.info() for library in blas().lib_controllers]
    own = [library for library in libraries if "numpy" in library["filepath"]] or libraries
    found: dict[str, Any] = {
        "numpy": np.__version__,
        "blas": [build.get("name"), build.get("version"), *(library.get("architecture") for library in own)],
        "loops": np.lib.introspect.opt_func_info(func_name="^exp$", signature="float(32|64)"),
    }
    if not own or any(library.get("threading_layer") == "openmp" for library in own):
        # Apple's BLAS cannot be limited, and OpenMP has a separate limit for each Python thread.
        found["processors"] = os.cpu_count()
    return found


def _uses() -> int:
    """Return how many `one_blas_thread` contexts this thread is in."""
    uses: int = getattr(_here, "uses", 0)
    return uses


def _begin_in_child() -> None:
    """Restrict the count to the forking thread, the only one in a forked child."""
    global _users
    left = _users and not _uses()
    _users = _uses()
    if left:
        _set_threads(_before)
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_begin_in_child)
