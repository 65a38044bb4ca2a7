"""Random cases of a property: the same for every candidate, so those of a short profile are cached."""

import atexit
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from tempfile import TemporaryDirectory

import hypothesis
from hypothesis import HealthCheck, Phase, configuration

from adamshap.verify.properties import Case, Property

GROUPS = 8
"""Number of seeds for all properties: with one seed, all would use the same few steps; with one per property, a
candidate that is compiled for each shape (JAX) would spend most of its time compiling."""

REMEMBERED_COUNT = 15
"""Longest sequence of cases that is cached; longer ones would fill the memory."""


def random_cases(one: Property, count: int, seed: int) -> tuple[Case, ...]:
    """Return up to `count` cases of `one`, in float64; fewer if Hypothesis exhausts the strategy.

    Parameters
    ----------
    one : Property
    count : int
        Number of cases, at least 1.
    seed : int
        Seed of the run.
    """
    return _remembered(one, count, seed) if count <= REMEMBERED_COUNT else _drawn(one, count, seed)


def seed_of(one: Property, seed: int) -> int:
    """Return the seed of one property's cases: one of `GROUPS` for each seed of a run.

    Parameters
    ----------
    one : Property
    seed : int
        Seed of the whole run.
    """
    return zlib.crc32(f"{seed} {zlib.crc32(one.name.encode()) % GROUPS}".encode())


def _drawn(one: Property, count: int, seed: int) -> tuple[Case, ...]:
    cases: list[Case] = []

    def keep(case: Case) -> None:
        cases.append(case)

    draw = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )(hypothesis.seed(seed_of(one, seed))(hypothesis.given(one.cases)(keep)))
    with no_files():
        draw()
    return tuple(cases)


@contextmanager
def no_files() -> Iterator[None]:
    """Prevent Hypothesis from creating ``.hypothesis/`` in the working folder within the context.

    It would store the constants found in modules there. A storage folder named by the user is kept.
    """
    named = getattr(configuration, "__hypothesis_home_directory", None)
    if named is not None or "HYPOTHESIS_STORAGE_DIRECTORY" in os.environ:
        yield
        return
    configuration.set_hypothesis_home_dir(_temporary().name)
    try:
        yield
    finally:
        configuration.set_hypothesis_home_dir(None)


@cache
def _temporary() -> "TemporaryDirectory[str]":
    """Return a folder that is deleted when the process ends."""
    folder = TemporaryDirectory(prefix="adamshap-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return folder


_remembered = lru_cache(maxsize=256)(_drawn)
