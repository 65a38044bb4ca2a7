"""The list of all claims, their settings by profile, and their measurements over seeds."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from adamshap.verify.claims import cost, downstream, estimators, fidelity, optimisers, retraining, stability
from adamshap.verify.claims.section import Section
from adamshap.verify.claims.statistics import Record

CLAIMS: tuple[ModuleType, ...] = (fidelity, optimisers, retraining, downstream, estimators, stability, cost)
"""Each has NAME, TITLE, CLAIM, FULL, QUICK, ``measure(settings, seed)`` and ``section(settings, records)``."""
ALONE = (cost.NAME,)
"""Claims that measure time, and so run last and alone."""


def profile(quick: bool) -> dict[str, Any]:
    """Return each claim's settings."""
    return {claim.NAME: claim.QUICK if quick else claim.FULL for claim in CLAIMS}


def measure(
    settings: Mapping[str, Any], *, workers: int, on_done: Callable[[str, int], None] = lambda name, seed: None
) -> dict[str, list[Record]]:
    """Return each claim's records in order of seeds, independent of the number of processes.

    Parameters
    ----------
    settings : dict
        Settings by claim name; their ``seeds`` is the number of seeds.
    workers : int
        Number of processes; 1 runs everything in this process.
    on_done : callable
        Called with a claim's name and a seed when that part is done.
    """
    parts = [(name, seed) for name in settings for seed in range(settings[name].seeds)]
    found: dict[tuple[str, int], list[Record]] = {}
    parallel = [part for part in parts if part[0] not in ALONE]
    if workers == 1:
        for name, seed in parallel:
            found[name, seed] = one(name, settings[name], seed)
            on_done(name, seed)
    else:
        with _pool(workers) as pool:
            waiting = {pool.submit(one, name, settings[name], seed): (name, seed) for name, seed in parallel}
            for future in as_completed(waiting):
                found[waiting[future]] = future.result()
                on_done(*waiting[future])
    for name, seed in (part for part in parts if part[0] in ALONE):
        found[name, seed] = one(name, settings[name], seed)
        on_done(name, seed)
    return {name: [record for seed in range(settings[name].seeds) for record in found[name, seed]] for name in settings}


def one(name: str, settings: Any, seed: int) -> list[Record]:
    """Return the records of one claim for one seed."""
    records: list[Record] = _claim(name).measure(settings, seed)
    return records


def sections(settings: Mapping[str, Any], records: Mapping[str, Sequence[Record]]) -> list[Section]:
    """Return each claim's section of the page."""
    return [_claim(name).section(settings[name], records[name]) for name in settings]


def _claim(name: str) -> ModuleType:
    return next(claim for claim in CLAIMS if name == claim.NAME)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned processes: the parent may have BLAS and Numba threads, which a fork would copy in an undefined state.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    else:
        pool.shutdown()
