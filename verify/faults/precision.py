"""Mistakes of precision: results in too narrow a dtype."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract import Marginals, Step
from adamshap.verify.faults.fault import Fault, Wrap, returns
from adamshap.verify.implementation import Ask, Query

FLOAT32 = "float32-results"
"""The fault of results in float32; the diagnosis also uses this name for computations in float32."""


def _results_in(dtype: npt.DTypeLike) -> Wrap:
    """Return a fault that rounds results to `dtype`."""

    def rounded(result: Any) -> Any:
        with np.errstate(over="ignore"):  # overflow in float16 is part of the mistake
            return np.asarray(result).astype(dtype).astype(np.float64)

    def change(step: Step, query: Query, result: Any, ask: Ask) -> Any:
        if isinstance(result, Marginals):
            return replace(result, values=rounded(result.values))
        return rounded(result)

    return returns(change, "scores", "marginals", "influence", "utility")


FAULTS: tuple[Fault, ...] = (
    Fault(
        "float16-results",
        "results in float16",
        "mixed precision without a float32 sum",
        _results_in(np.float16),
    ),
    Fault(
        FLOAT32,
        "results in float32",
        "a framework's default dtype",
        _results_in(np.float32),
    ),
)
