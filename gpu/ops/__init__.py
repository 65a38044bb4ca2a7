"""Array routines independent of the optimiser: written for CUDA, as Numba loops, or in NumPy where Numba is missing."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from adamshap.gpu.backend import Backend

__all__ = ["Ops", "Scaling", "ops_for"]


@dataclass(frozen=True)
class Scaling:
    """How the entries of a column are scaled before they are squared (`squares`).

    Parameters
    ----------
    scale : float
        Largest entry of a scaled column.
    least : float
        Least sum of products of squares that underflow changes by less than a rounding.
    back, root_n : float
        Their product converts the root of such a sum to the columns' own scale. `root_n` is √n, and the root times
        `back` is at most 1.
    """

    scale: float
    least: float
    back: float
    root_n: float


class Ops(Protocol):
    """The functions of each backend's module. Arrays are C-contiguous matrices of one dtype unless stated otherwise."""

    def between(self, tau: float, a: Any, b: Any, out: Any) -> None:
        """Write the point at `tau` of the way from `a` to `b` (any one shape)."""

    def activate(self, name: str, z: Any, bias: Any, derivative: Any) -> None:
        """Write the activation of `z` + bias to `z`, and the derivative, except for ReLU and the identity."""

    def scale_by_derivative(self, name: str, b: Any, derivative: Any) -> None:
        """Multiply `b` in place by the derivative; for ReLU, `derivative` is the activation."""

    def causal_softmax(self, scores: Any, factor: float) -> None:
        """Write softmax(factor · scores) of each row over the positions up to its own, and 0 at the others, in place.

        Row t of every matrix in `scores` (…, T, T) belongs to position t; what its later positions hold is not read.
        """

    def softmax_derivative(self, s: Any, weights: Any, factor: float) -> None:
        """Write factor · W ⊙ (s − Σ W ⊙ s) of each row to `s`, for W from `causal_softmax`; both are (…, T, T)."""

    def normalise(self, x: Any, eps: float, centred: bool, gain: Any, bias: Any, out: tuple[Any, Any, Any]) -> None:
        """Write x̂, 1/s and ``x̂ ⊙ gain + bias`` of each row of `x` to the three arrays `out`.

        s is the root of the variance, or of the mean square unless `centred`, plus `eps`. 1/s is (rows, 1); `bias` may
        be None.
        """

    def norm_derivative(self, g: Any, gain: Any, normalised: Any, inverse: Any, centred: bool, out: Any) -> None:
        """Write the derivative of x̂ in x times ``g ⊙ gain`` to `out`, which may be `g`; `gain` may be None.

        It is (g − mean(g) − x̂ mean(g ⊙ x̂))/s, without mean(g) unless `centred`, and symmetric.
        """

    def add_squares(self, x: Any, sums: Any) -> None:
        """Add the squares of `x` (any shape) to `sums`, an array of doubles."""

    def column_norms(self, x: Any) -> Any:
        """Return the Euclidean norm of each column."""

    def ranges(self, x: Any) -> tuple[Any, Any]:
        """Return each column's largest and smallest nonzero absolute value, the latter infinity if all are 0."""

    def scaled_squares(self, x: Any, top: Any, scaling: Scaling) -> Any:
        """Return the squares of `x` with its columns divided by `top` and multiplied by ``scaling.scale``."""

    def roots(self, square: Any, units: slice, b: Any, a: Any, range_b: Any, range_a: Any, scaling: Scaling) -> None:
        """Turn the product of scaled squares into √Σ b² a², in place, for some of its rows.

        Parameters
        ----------
        square : array (d_out, d_in)
        units : slice
            The rows.
        b, a : arrays (n, d_out), (n, d_in)
        range_b, range_a : tuples of arrays
            `ranges` of b and of a.
        scaling : Scaling
        """

    def row_dot(self, b: Any, z: Any, p: Any, out: Any) -> None:
        """Add ⟨b_i, z_i + p⟩ to ``out[i]``; `p` may be None."""

    def whitening(self, gram: Any) -> Any:
        """Return W (r, r) in double with ``Wᵀ gram W = I``; directions that double cannot resolve become 0."""


def ops_for(backend: Backend) -> Ops:
    """Return the routines that work on the arrays of `backend`."""
    if backend.on_cuda:
        from adamshap.gpu.ops import cuda

        return cuda
    return _host_ops()


@cache
def _host_ops() -> Ops:
    try:
        from adamshap.gpu.ops import numba
    except ImportError:
        from adamshap.gpu.ops import numpy

        return numpy
    return numba
