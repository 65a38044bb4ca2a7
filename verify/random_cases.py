"""Random cases of a property: the same for every candidate, so those of a short profile are drawn once and kept."""

import zlib
from functools import lru_cache

import hypothesis
from hypothesis import HealthCheck, Phase

from adamshap.verify.properties import Case, Property

GROUPS = 8
"""Seeds that the properties share: with one for all, all draw the same few steps; with one for each, a candidate that
is compiled for each shape (JAX) spends most of its time on that."""

REMEMBERED_COUNT = 15
"""Longer sequences of cases, which would fill the memory, are drawn anew."""


def random_cases(one: Property, count: int, seed: int) -> tuple[Case, ...]:
    """Return up to `count` cases of `one`, in float64; Hypothesis may find that there are fewer.

    Parameters
    ----------
    one : Property
    count : int
        At least 1.
    seed : int
    """
    return _remembered(one, count, seed) if count <= REMEMBERED_COUNT else _drawn(one, count, seed)


def seed_of(one: Property, seed: int) -> int:
    """Return the seed of one property's cases: one of `GROUPS` for each seed of a run.

    Parameters
    ----------
    one : Property
    seed : int
        Of the whole run.
    """
    return zlib.crc32(f"{seed} {zlib.crc32(one.name.encode()) % GROUPS}".encode())


def _drawn(one: Property, count: int, seed: int) -> tuple[Case, ...]:
    cases: list[Case] = []

    def keep(case: Case) -> None:
        cases.append(case)

    hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )(hypothesis.seed(seed_of(one, seed))(hypothesis.given(one.cases)(keep)))()
    return tuple(cases)


_remembered = lru_cache(maxsize=256)(_drawn)
