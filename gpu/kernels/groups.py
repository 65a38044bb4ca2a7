"""The groups of arrays that the kernels read and write.

All arrays are C-contiguous, of one dtype, and matrices unless stated otherwise; a bias is one row. NumPy's types stand
for CuPy's arrays too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NewType

import numpy.typing as npt

if TYPE_CHECKING:
    from jaxtyping import Float

    from adamshap.reference.contract import Array

__all__ = [
    "NO_NORMS",
    "FirstMoment",
    "FusedStepOut",
    "GradientNorms",
    "OwedSum",
    "ParameterState",
    "SecondMoment",
    "TwoTermOut",
]

FirstMoment = NewType("FirstMoment", npt.NDArray[Any])
SecondMoment = NewType("SecondMoment", npt.NDArray[Any])


@dataclass(frozen=True, slots=True)
class ParameterState:
    """One parameter and Adam's moments of it, or some of its rows."""

    theta: Float[Array, "d_out d_in"]
    m: Float[FirstMoment, "d_out d_in"]
    v: Float[SecondMoment, "d_out d_in"]

    def rows(self, units: slice) -> ParameterState:
        """Return some rows, as views."""
        return ParameterState(self.theta[units], FirstMoment(self.m[units]), SecondMoment(self.v[units]))


@dataclass(frozen=True, slots=True)
class GradientNorms:
    """The norms from which σ is computed, with the gradient.

    Parameters
    ----------
    n : int
        Samples of the batch.
    row, col : arrays or None
        Their product is √Σ x_i² of rank one.
    root : array or None
        √Σ x_i² itself; `row` and `col` are None then.
    """

    n: int
    row: Float[Array, " d_out"] | None = None
    col: Float[Array, " d_in"] | None = None
    root: Float[Array, "d_out d_in"] | None = None

    def rows(self, units: slice) -> GradientNorms:
        """Return the norms of some rows, as views."""
        row, root = (None if a is None else a[units] for a in (self.row, self.root))
        return GradientNorms(self.n, row, self.col, root)


NO_NORMS = GradientNorms(1)
"""For a plan that needs no σ."""


@dataclass(frozen=True, slots=True)
class FusedStepOut:
    """The outputs of `fused_step`.

    Parameters
    ----------
    new : ParameterState or None
        The state after the step, if wanted; may be the state before it.
    point : array or None
        The point on the segment from ``θ − ηλθ − A(0)`` to ``θ⁺``.
    slope : array
        S, or Γ ⊙ S; may be the gradient.
    """

    new: ParameterState | None
    point: Float[Array, "d_out d_in"] | None
    slope: Float[Array, "d_out d_in"]


@dataclass(frozen=True, slots=True)
class OwedSum:
    """K, the running sum of the credit owed: ``grow · O`` is added to it, ``less · K`` subtracted from the product."""

    total: Float[Array, "d_out d_in"]
    grow: float
    less: float


@dataclass(frozen=True, slots=True)
class TwoTermOut:
    """The outputs of `two_term_fit`, S and R. Neither may be an input."""

    slope: Float[Array, "d_out d_in"]
    second: Float[Array, "d_out d_in"]

    def rows(self, units: slice) -> TwoTermOut:
        """Return some rows, as views."""
        return TwoTermOut(self.slope[units], self.second[units])
