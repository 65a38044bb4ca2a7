"""A known mistake: the oracle with one thing wrong, a name, a sentence, and where it was seen; and ways of being wrong.

A fault wraps the oracle's answers. It changes the step that the oracle sees, replaces one of the oracle's functions
while it answers, or changes the result; so two faults can be had at once by wrapping twice.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adamshap.reference.contract import Array, Step
from adamshap.verify.implementation import FUNCTIONS, Ask, Implementation, Query
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
        As vectors and reports call it.
    sentence : str
        Completes "your answers equal the oracle's with ...".
    source : str
        Where it was seen, or why it is easily made.
    wrap : callable
        From an implementation's `ask` to one that makes the mistake.
    """

    name: str
    sentence: str
    source: str
    wrap: Wrap

    def implementation(self) -> Implementation:
        """Return the oracle with this mistake."""
        return Implementation(self.name, frozenset(FUNCTIONS), self.wrap(ORACLE.ask), ORACLE.extras, guard=None)


def sees(change: Callable[[Step], Step]) -> Wrap:
    """Return a fault by which the oracle is given another step than the one that was asked about."""
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
    """Return a fault by which the oracle uses ``make(original)`` for its function `original`."""
    name = original.__name__

    def wrap(ask: Ask) -> Ask:
        def faulty(step: Step, query: Query) -> Any:
            # Read now, not at definition: a fault may wrap another one of the same function.
            now = getattr(sys.modules[original.__module__], name)
            with replaced(name, now, make(now)):
                return ask(step, query)

        return faulty

    return wrap


def decayed(step: Step, name: str) -> Array:
    """Return a parameter after weight decay: θ − η λ θ."""
    adam = step.settings(name)
    shrunk: Array = step.params[name] * (1 - adam.lr * adam.weight_decay)
    return shrunk
