"""The list of all claims, their settings by profile, and their measurements over seeds."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from adamshap.verify.claims import (
    cost,
    downstream,
    estimators,
    fidelity,
    language,
    optimisers,
    retraining,
    stability,
)
from adamshap.verify.claims.parts import Parts
from adamshap.verify.claims.section import Section
from adamshap.verify.claims.statistics import Record

CLAIMS: tuple[ModuleType, ...] = (fidelity, optimisers, retraining, downstream, estimators, stability, language, cost)
"""Each has NAME, TITLE, CLAIM, FULL, QUICK, ``measure(settings, seed)`` and ``section(settings, records)``.

One that takes long has ``pieces(settings)`` as well, whose results ``measure`` takes one by one.
"""
ALONE = (cost.NAME,)
"""Claims that measure time, and so run last and alone."""


def profile(quick: bool) -> dict[str, Any]:
    """Return each claim's settings."""
    return {claim.NAME: claim.QUICK if quick else claim.FULL for claim in CLAIMS}


def pieces(name: str, settings: Any) -> tuple[Any, ...]:
    """Return what ``measure`` of a claim takes one by one: by default all of its settings."""
    claim = _claim(name)
    found: tuple[Any, ...] = claim.pieces(settings) if hasattr(claim, "pieces") else (settings,)
    return found


def count(name: str, settings: Any) -> int:
    """Return the number of a claim's parts: its pieces with each seed."""
    return int(settings.seeds) * len(pieces(name, settings))


def measure(
    settings: Mapping[str, Any],
    *,
    workers: int,
    on_done: Callable[[str, int], None] = lambda name, seed: None,
    parts: Parts | None = None,
    finished: bool = False,
) -> dict[str, list[Record]]:
    """Return each claim's records in order of seeds, independent of the number of processes.

    Parameters
    ----------
    settings : dict
        Settings by claim name; their ``seeds`` is the number of seeds.
    workers : int
        Number of processes; 1 runs everything in this process.
    on_done : callable
        Called with a claim's name and a seed when a part is done.
    parts : Parts, optional
        Keeps each part as it is done; those that it has already are taken from it.
    finished : bool
        Take these alone, and measure nothing.
    """
    parts = parts or Parts()
    named = {
        (name, seed, place): (name, piece, seed)
        for name, its in settings.items()
        for seed in range(its.seeds)
        for place, piece in enumerate(pieces(name, its))
    }
    found = {key: records for key, part in named.items() if (records := parts.find(*part)) is not None}
    for name, seed, _ in found:
        on_done(name, seed)

    def done(key: tuple[str, int, int], records: list[Record]) -> None:
        parts.keep(*named[key], records)
        found[key] = records
        on_done(*key[:2])

    missing = {key: part for key, part in named.items() if key not in found and not finished}
    alone = {key: part for key, part in missing.items() if key[0] in ALONE}
    if workers == 1:
        for key in missing:
            if key not in alone:
                done(key, one(*missing[key]))
    else:
        with _pool(workers) as pool:
            waiting = {pool.submit(one, *missing[key]): key for key in missing if key not in alone}
            for future in as_completed(waiting):
                done(waiting[future], future.result())
    for key, part in alone.items():
        done(key, one(*part))
    return {name: [record for key in named if key[0] == name for record in found.get(key, ())] for name in settings}


def one(name: str, piece: Any, seed: int) -> list[Record]:
    """Return the records of one piece of a claim for one seed."""
    records: list[Record] = _claim(name).measure(piece, seed)
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
