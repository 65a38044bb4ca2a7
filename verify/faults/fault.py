"""A known mistake: the oracle with one error, a name, a sentence, and its origin; and the ways to plant an error.

A fault wraps the oracle's `ask`. It changes the step that the oracle receives, replaces one of the oracle's functions
during the call, or changes the result; wrapping twice combines two faults.
"""

import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from adamshap.reference.contract import Array, Step
from adamshap.verify.implementation import Ask, Guard, Implementation, Query
from adamshap.verify.oracle import ORACLE
from adamshap.verify.replacing import replaced

Wrap = Callable[[Ask], Ask]

SEEN = "seen when the method is re-implemented"
LESS = "LESS (arXiv 2402.04333) preconditions so"


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Parameters
    ----------
    name : str
        Name in vectors and reports.
    sentence : str
        Completion of "your answers equal the oracle's with ...".
    source : str
        Where the mistake was seen, or its likely cause.
    wrap : callable
        Function from an implementation's `ask` to one that makes the mistake.
    guarded : bool
        Whether the mistake is one with the memory of inputs and results, which only guarded candidates have copied.
    """

    name: str
    sentence: str
    source: str
    wrap: Wrap
    guarded: bool = False

    @property
    def held_out(self) -> bool:
        """Whether the fault belongs to the tenth that is out of sight while strategies are written.

        The CRC-32 of its name selects it, so that nobody chooses. Strategies are written against the others; the score
        on these, reported by itself, shows how they do on mistakes that nobody thought of.
        """
        return zlib.crc32(self.name.encode()) % 10 == 0

    def implementation(self) -> Implementation:
        """Return the oracle with this mistake."""
        return replace(ORACLE, name=self.name, ask=self.wrap(ORACLE.ask), guard=Guard() if self.guarded else None)


def sees(change: Callable[[Step], Step]) -> Wrap:
    """Return a fault that changes the step of a call."""
    return lambda ask: lambda step, query: ask(change(step.as_float64()), query)


def returns(change: Callable[[Step, Query, Any, Ask], Any], *functions: str) -> Wrap:
    """Return a fault that changes the result of calls of `functions`: ``change(step, query, result, ask)``."""

    def wrap(ask: Ask) -> Ask:
        def faulty(step: Step, query: Query) -> Any:
            result = ask(step, query)
            return change(step.as_float64(), query, result, ask) if query.function in functions else result

        return faulty

    return wrap


def changes_scores(change: Callable[[Step, Query, Array, Ask], Array]) -> Wrap:
    """Return a fault that changes scores: ``change(step, query, result, ask)``."""
    return returns(change, "scores")


def computes_with(original: Callable[..., Any], make: Callable[[Any], Callable[..., Any]]) -> Wrap:
    """Return a fault that replaces the oracle's function `original` by ``make(original)``."""
    name = original.__name__

    def wrap(ask: Ask) -> Ask:
        def faulty(step: Step, query: Query) -> Any:
            # Read during the call, not at definition: another fault may have replaced the same function.
            current = getattr(sys.modules[original.__module__], name)
            with replaced(name, current, make(current)):
                return ask(step, query)

        return faulty

    return wrap


def decayed(step: Step, name: str) -> Array:
    """Return a parameter after weight decay: θ − η λ θ."""
    adam = step.settings(name)
    shrunk: Array = step.params[name] * (1 - adam.lr * adam.weight_decay)
    return shrunk
