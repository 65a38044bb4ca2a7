"""Sharing work out among the processor's cores: by the engine's own threads, with BLAS kept to one.

A step consists of a few stretches in which rows do not need each other: the network's forward and backward pass by
samples, the gradient and the fused pass by output units, the contraction by samples again. One thread takes each part
of such a stretch from end to end, products and elementwise work alike. BLAS's own threads would share out each product
alone, and wait for the next one by spinning, on the very core that the elementwise work is meant to use.

Needs threadpoolctl to keep BLAS to one thread; without it BLAS keeps its threads and the rest runs on one core.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["cpu_threads", "in_parts", "own_threads"]

FLOPS_WORTH_A_THREAD = 1 << 24
"""Some 200 µs of one core: below, handing work to a thread and waiting for it costs more than it saves."""

_here = threading.local()
_lock = threading.Lock()
_taken = False


@cache
def cpu_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def own_threads() -> Iterator[None]:
    """Keep BLAS to one thread and let `in_parts` use threads.

    The first to ask sets this for the whole process and undoes it when it is done, in its own thread, as OpenBLAS wants
    it. Whoever asks meanwhile has the use of it, and goes on with BLAS's threads if the first is done before.
    """
    global _taken
    controller = _blas()
    with _lock:
        first = not _taken and controller is not None and cpu_threads() > 1
        _taken = _taken or first
    if not first:
        yield
        return
    try:
        with controller.limit(limits=1, user_api="blas"):
            yield
    finally:
        _taken = False


def in_parts(function: Callable[[int, int], None], rows: int, flops: float) -> None:
    """Call ``function(low, high)`` on parts of ``range(rows)``, side by side where `flops` make it worth it."""
    parts = min(cpu_threads(), rows, int(flops / FLOPS_WORTH_A_THREAD)) if _taken else 1
    if parts < 2 or getattr(_here, "inside", False):
        function(0, rows)
        return
    bounds = [rows * i // parts for i in range(parts + 1)]
    others = [_threads().submit(_part, function, low, high) for low, high in pairwise(bounds[1:])]
    try:
        _part(function, 0, bounds[1])
    finally:
        for other in others:
            other.result()


def _part(function: Callable[[int, int], None], low: int, high: int) -> None:
    _here.inside = True  # what is called from here does not share out again
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # as in `Workshop.at_work`; each thread has its own
            function(low, high)
    finally:
        _here.inside = False


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cpu_threads() - 1, thread_name_prefix="adamshap")


@cache
def _blas() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
