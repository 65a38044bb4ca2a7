"""Scaling of numbers of any size, so that their squares neither over- nor underflow."""

import numpy as np

from adamshap.reference.contract import Array

__all__ = ["in_units"]


def in_units(x: Array) -> tuple[Array, Array]:
    """Return `x` (n, …) in units of the largest along the first axis, and the units (…).

    The units are powers of two, so that scaling changes no bit of a root of squares, as long as it is within range.
    """
    _, exponent = np.frexp(np.abs(x).max(axis=0))
    unit = np.ldexp(1.0, exponent - 1)
    return x / unit, unit
