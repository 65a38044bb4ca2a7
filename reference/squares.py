"""Squares that neither over- nor underflow, whatever the size of the numbers."""

import numpy as np

from adamshap.reference.contract import Array
from adamshap.reference.elementary import elementary

__all__ = ["in_units", "squares_about"]


def in_units(x: Array) -> tuple[Array, Array]:
    """Return `x` (n, …) in units of the largest along the first axis, and the units (…).

    The units are powers of two, so that a root of squares times the units is the root without them, to the last bit,
    wherever that is within range.
    """
    _, exponent = np.frexp(np.abs(x).max(axis=0))
    unit = np.ldexp(1.0, exponent - 1)
    return x / unit, unit


@elementary
def squares_about(x: Array, centre: Array) -> tuple[Array, Array]:
    """Return Σ_i (x_i − centre)² for `x` (n, …) in squares of the units that are the second result: of `in_units`."""
    scaled, unit = in_units(x - centre)
    return (scaled**2).sum(axis=0), unit
