"""The test of the kit itself: the first property that catches each known fault, and the random cases that it needed."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adamshap.verify.checking import Outcome, check
from adamshap.verify.faults import Fault
from adamshap.verify.properties import PROPERTIES, Property


@dataclass(frozen=True)
class Catch:
    """The first property that a fault breaks; `outcome` is None if it breaks none."""

    fault: Fault
    outcome: Outcome | None


def first_catch(
    fault: Fault,
    properties: Iterable[Property] = PROPERTIES,
    *,
    profile: str = "quick",
    dtype: npt.DTypeLike = np.float64,
    seed: int = 0,
    shrink_seconds: float = 0.0,
) -> Catch:
    """Return the first of `properties`, in their order, that `fault` breaks."""
    candidate = fault.implementation()
    for one in properties:
        (outcome,) = check(candidate, [one], profile=profile, dtype=dtype, seed=seed, shrink_seconds=shrink_seconds)
        if outcome.status == "failed":
            return Catch(fault, outcome)
    return Catch(fault, None)
