"""Squares that neither over- nor underflow, whatever the size of the numbers."""

import numpy as np

from adamshap.reference.contract import Array

__all__ = ["in_units"]


def in_units(x: Array) -> tuple[Array, Array]:
    """Return `x` (n, …) in units of the largest along the first axis, and the units (…).

    The units are powers of two, so that a root of squares times the units is the root without them, to the last bit,
    wherever that is within range.
    """
    _, exponent = np.frexp(np.abs(x).max(axis=0))
    unit = np.ldexp(1.0, exponent - 1)
    return x / unit, unit
