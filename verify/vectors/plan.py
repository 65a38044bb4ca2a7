"""Planned test vectors: cases without answers, and the makers of their calls."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from adamshap.reference.contract import GRADIENTS, Step
from adamshap.verify.implementation import CAPTURES, Query
from adamshap.verify.vectors.conventions import Convention
from adamshap.verify.vectors.numbers import array, integer, one

__all__ = ["Limits", "Make", "Planned", "calls", "random_captures", "random_utility", "scores_calls"]


@dataclass(frozen=True)
class Planned:
    """A vector without its answer: its name, seed, step and call, and the conventions that it accepts too."""

    name: str
    seed: int
    step: Step
    query: Query
    conventions: tuple[Convention, ...] = ()


Make = Callable[[Step, Random], Query]
"""Returns the call for a step, with random choices of its own."""

Limits = dict[str, Any]
"""Keywords of `random_steps.random_step`."""


def calls(function: str, **options: Any) -> Make:
    """Return the maker of the call with these options."""
    return lambda step, draw: Query(function, options)


def scores_calls(**options: Any) -> Make:
    """Return the maker of a call of `scores` with these options and a random gradient."""
    return lambda step, draw: Query("scores", {"gradient": one(draw, GRADIENTS), **options})


def random_captures(step: Step, draw: Random) -> Query:
    """Return a call of `captures` with random directions."""
    return Query(CAPTURES, {"directions": {name: array(draw, p.shape, 2.0) for name, p in step.params.items()}})


def random_utility(step: Step, draw: Random) -> Query:
    """Return a call of `utility`; one in eight has the empty coalition, one in eight the whole batch."""
    kind = integer(draw, 0, 7)
    mask = [kind == 1 or (kind > 1 and draw.random() < 0.5) for _ in range(step.n)]
    return Query("utility", {"coalition": np.array(mask)})
