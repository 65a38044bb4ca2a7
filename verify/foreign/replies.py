"""Converts an answer from another process to the contract's types."""

from typing import Any

import numpy as np

from adamshap.reference.contract import AdamState, Marginals, Step
from adamshap.verify.implementation import CAPTURED, CAPTURES, Answer, Misbehaviour, Query


def result_of(step: Step, query: Query, named: Answer) -> Any:
    """Return named arrays as the result type of the query's function.

    Raises
    ------
    Misbehaviour
        The names do not match the query.
    """
    if query.function == "update":
        return _update(step, named)
    if query.function == CAPTURES:
        return _captures(step, named)
    wanted = {"values", "empty", "total"} if query.function == "marginals" and len(named) > 1 else {"values"}
    if set(named) != wanted:
        raise Misbehaviour(f"returned the names {', '.join(named)}, not {', '.join(sorted(wanted))}")
    if len(wanted) == 1:
        return named["values"]
    return Marginals(named["values"], named["empty"], named["total"], np.zeros(step.n))  # type: ignore[arg-type]


def _update(step: Step, named: Answer) -> Any:
    wanted = ["step", *(f"{kind}.{name}" for kind in ("params", "m", "v") for name in step.params)]
    if set(named) != set(wanted):
        raise Misbehaviour(f"returned the names {', '.join(named)}, not {', '.join(wanted)}")
    params, m, v = ({name: named[f"{kind}.{name}"] for name in step.params} for kind in ("params", "m", "v"))
    count = named["step"]
    try:
        state = AdamState(int(count) if count.ndim == 0 and count == np.round(count) else count, m, v)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise Misbehaviour(f"returned an invalid state of Adam: {error}") from error
    return params, state


def _captures(step: Step, named: Answer) -> Any:
    wanted = [f"{what}.{name}" for what in CAPTURED for name in step.params]
    if set(named) != set(wanted):
        raise Misbehaviour(f"returned the names {', '.join(named)}, not {', '.join(wanted)}")
    return {name: {what: named[f"{what}.{name}"] for what in CAPTURED} for name in step.params}
