"""Detection and refusal of overflow: NaN and infinities."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract.refusal import refuse

__all__ = ["first_not_finite", "refuse_overflow"]


def first_not_finite(arrays: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the first name whose array has a NaN or infinite value, and that value; None if all are finite."""
    for name, array in arrays.items():
        bad = ~np.isfinite(array)  # dispatches to CuPy for CuPy arrays
        if bad.any():
            return name, float(array[bad][0] if np.ndim(array) else array)
    return None


def refuse_overflow(found: Mapping[str, Any], dtype: npt.DTypeLike) -> None:
    """Refuse a step with a result beyond `dtype`; the arrays `found` are keyed by their name in error messages."""
    bad = first_not_finite(found)
    if bad is not None:
        wider = "" if np.dtype(dtype) == np.float64 else ", or dtype='float64'"
        got = f"a step with {bad[1]} in its {bad[0]}, beyond {np.dtype(dtype).name}"
        refuse("step", got, f"finite results: smaller inputs or a smaller lr{wider} may help")
