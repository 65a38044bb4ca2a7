"""The numbers of the test vectors: from Python's Mersenne Twister by `random()` alone, rounded to three digits."""

import math
from collections.abc import Sequence
from random import Random
from typing import TypeVar

import numpy as np

from adamshap.reference.contract import Array

__all__ = ["array", "integer", "one", "short"]

Level = TypeVar("Level")


def one(draw: Random, levels: Sequence[Level]) -> Level:
    """Return one of `levels`."""
    return levels[int(draw.random() * len(levels))]


def integer(draw: Random, low: int, high: int) -> int:
    """Return an integer from `low` to `high`."""
    return low + int(draw.random() * (high - low + 1))


def short(number: float) -> float:
    """Return `number` rounded to three digits."""
    return float(f"{number:.3g}")


def array(draw: Random, shape: tuple[int, ...], size: float) -> Array:
    """Return numbers uniform on ±`size`."""
    return np.array([short(size * (2 * draw.random() - 1)) for _ in range(math.prod(shape))]).reshape(shape)
