"""Division of work among the processor's cores: by the engine's own threads, with BLAS limited to one.

A step consists of a few stretches in which rows are independent: the network's forward and backward pass by
samples, the gradient and the fused pass by output units, the contraction by samples again. One thread takes each part
of such a stretch from end to end, products and elementwise work alike. BLAS's own threads would divide each product
alone, and wait for the next one by spinning, on the core that the elementwise work needs.

The division affects the last digits of a result, as BLAS has different loops for different shapes. So a run has a fixed
number of parts, which its checkpoints record, and the threads of the machine take one part after another.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import numpy as np

from adamshap.reference.contract import one_blas_thread, recorded_arithmetic

__all__ = ["cpu_threads", "in_parts", "own_threads", "parts_for", "parts_of"]

FLOPS_WORTH_A_THREAD = 1 << 24
"""About 200 µs of one core: below, handing work to a thread and waiting for it costs more than it saves."""

MOST_PARTS = 1 << 12

_local = threading.local()


def cpu_threads() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parts_of(resume: object) -> int:
    """Return the number of parts of a run: as many as the snapshot `resume` records, else one per processor."""
    recorded = recorded_arithmetic(resume).get("parts")
    return recorded if type(recorded) is int and 1 <= recorded <= MOST_PARTS else cpu_threads()


@contextmanager
def own_threads(parts: int | None = None) -> Iterator[None]:
    """Limit BLAS to one thread and let `in_parts` divide this thread's work into `parts` (None: one per processor)."""
    before = _parts()
    with one_blas_thread():
        _local.parts = cpu_threads() if parts is None else parts
        try:
            yield
        finally:
            _local.parts = before


def parts_for(flops: float) -> int:
    """Return the number of parts into which `in_parts` divides work of so many flops in this thread."""
    return max(min(_parts(), int(flops / FLOPS_WORTH_A_THREAD)), 1)


def _parts() -> int:
    return getattr(_local, "parts", 1)


def in_parts(function: Callable[[int, int], None], rows: int, flops: float) -> None:
    """Call ``function(low, high)`` on parts of ``range(rows)``, in parallel if `flops` make that worthwhile."""
    parts = min(parts_for(flops), rows)
    if parts < 2:
        function(0, rows)
        return
    left = deque(pairwise([rows * i // parts for i in range(parts + 1)]))

    def take() -> None:
        before, _local.parts = _parts(), 1  # nested calls do not divide again
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # as in `EngineContext.at_work`; each thread has its own
                while (part := _next(left)) is not None:
                    function(*part)
        except BaseException:
            left.clear()
            raise
        finally:
            _local.parts = before

    others = [_threads().submit(take) for _ in range(min(parts, cpu_threads()) - 1)]
    try:
        take()
    finally:
        for other in others:
            other.result()


def _next(left: deque[tuple[int, int]]) -> tuple[int, int] | None:
    try:
        return left.popleft()  # no check first: another thread may take the last part in between
    except IndexError:
        return None


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(cpu_threads() - 1, 1), thread_name_prefix="adamshap")


_forget = _threads.cache_clear  # a forked child does not have the threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
