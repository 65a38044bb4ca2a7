"""The checks that only edges have: refusals where no answer exists, and answers that do not depend on earlier calls."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adamshap.verify.implementation import Lost, Misbehaviour
from adamshap.verify.property import Asker, Case, compare
from adamshap.verify.property_checks import agrees
from adamshap.verify.steps import in_dtype, perturbed

__all__ = ["answers_forget_earlier_calls", "refuses"]

OTHERWISE = 0.05
"""Relative change of every number from one step to the next one of the same shapes."""


def refuses(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Check that the candidate raises, or returns NaN or infinity, as PyTorch's own step does; a number is a failure.

    Raises
    ------
    Misbehaviour
        The candidate answered, or gave no answer at all.
    """
    try:
        ask(case.step, case.query)
    except Lost:
        raise
    except Misbehaviour:
        return 0.0
    raise Misbehaviour("answered, where no answer exists and it has to refuse")


def answers_forget_earlier_calls(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare the answers to two steps of the same shapes with the oracle's, and the first answer with a third one."""
    other = in_dtype(perturbed(case.step, OTHERWISE, np.random.default_rng(case.seed)), dtype)
    first = ask(case.step, case.query)
    share = agrees(ask, replace(case, step=other), dtype)
    again = ask(case.step, case.query)
    return max(share, compare(case, again, first, {name: np.zeros_like(array) for name, array in first.items()}))
