"""The passes that are not matrix products: CUDA kernels, Numba loops, or NumPy where Numba is missing."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast

from adamshap.gpu.backend import Backend
from adamshap.gpu.kernels.plan import AdamScalars, FitPlan, SlopePlan, SplitPlan

__all__ = ["Fit", "Passes", "Scaling", "Split", "fit_for", "passes_for", "split_for"]


@dataclass(frozen=True)
class Scaling:
    """How the entries of a column are scaled before they are squared (`norms`).

    Parameters
    ----------
    scale : float
        What the largest entry of a column becomes.
    least : float
        A sum of products of squares that is at least this has lost nothing that counts to underflow.
    back, root_n : float
        Their product brings the root of such a sum back to the columns' own scale. `root_n` is √n, and the root times
        `back` is at most 1.
    """

    scale: float
    least: float
    back: float
    root_n: float


class Passes(Protocol):
    """What each of the three modules offers. All arrays are C-contiguous, of one dtype, and matrices unless told."""

    def adam(
        self, scalars: AdamScalars, g: Any, theta: Any, m: Any, v: Any, new_theta: Any, new_m: Any, new_v: Any
    ) -> None:
        """Write Adam's update of θ, m and v (any one shape) into the last three; they may be the inputs themselves."""

    def attributed(
        self,
        scalars: AdamScalars,
        plan: SlopePlan,
        n: int,
        g: Any,
        theta: Any,
        m: Any,
        v: Any,
        row: Any,
        col: Any,
        root: Any,
        gamma: Any,
        blend: float,
        new_theta: Any,
        new_m: Any,
        new_v: Any,
        point: Any,
        slope: Any,
    ) -> None:
        """Take Adam's step and make the slope, both in one pass over the parameters.

        Parameters
        ----------
        n : int
            Samples of the batch.
        g, theta, m, v : arrays (d_out, d_in)
            The batch's gradient and the state before the step.
        row, col : arrays (d_out,), (d_in,), or None
            For σ: their product is √Σ x_i² of rank one.
        root : array (d_out, d_in), or None
            √Σ x_i² itself; `row` and `col` are None then.
        gamma : array (d_out, d_in), or None
            Validation gradient that the slope is multiplied by.
        blend : float
            Where on the segment from ``θ − ηλθ − A(0)`` (0) to ``θ⁺`` (1) `point` lies.
        new_theta, new_m, new_v, point, slope : arrays (d_out, d_in)
            Written; the first three may be the inputs themselves, `slope` may be `g`, and `point` may be None.
        """

    def between(self, tau: float, a: Any, b: Any, out: Any) -> None:
        """Write the point at `tau` of the way from `a` to `b` (any one shape)."""

    def activate(self, name: str, z: Any, bias: Any, derivative: Any) -> None:
        """Turn `z` + bias into the activation in place, and write the derivative, but for ReLU's and the identity's."""

    def scale_by_derivative(self, name: str, b: Any, derivative: Any) -> None:
        """Multiply `b` in place by the derivative; for ReLU, `derivative` is the activation."""

    def column_norms(self, x: Any) -> Any:
        """Return the Euclidean norm of each column."""

    def ranges(self, x: Any) -> tuple[Any, Any]:
        """Return the largest size of an entry of each column, and the smallest that is not 0, infinity if all are 0."""

    def scaled_squares(self, x: Any, top: Any, scaling: Scaling) -> Any:
        """Return the squares of `x` with its columns divided by `top` and multiplied by ``scaling.scale``."""

    def roots(self, square: Any, units: slice, b: Any, a: Any, of_b: Any, of_a: Any, scaling: Scaling) -> None:
        """Turn the product of scaled squares into √Σ b² a², in place, for some of its rows.

        Parameters
        ----------
        square : array (d_out, d_in)
        units : slice
            The rows.
        b, a : arrays (n, d_out), (n, d_in)
        of_b, of_a : tuples of arrays
            Their `ranges`.
        scaling : Scaling
        """

    def row_dot(self, b: Any, z: Any, p: Any, out: Any) -> None:
        """Add ⟨b_i, z_i + p⟩ to ``out[i]``; `p` may be None."""

    def whitening(self, gram: Any) -> Any:
        """Return W (r, r) in double with ``Wᵀ gram W = I``; what double precision cannot resolve becomes 0."""


class Split(Protocol):
    """The pass of ``credit="carry"`` over one parameter, or over some of its rows. Arrays are as `Passes` has them."""

    def __call__(
        self,
        scalars: AdamScalars,
        plan: SplitPlan,
        n: int,
        g: Any,
        theta: Any,
        m: Any,
        v: Any,
        row: Any,
        col: Any,
        root: Any,
        gamma: Any,
        grow: float,
        less: float,
        owed: Any,
        product: Any,
    ) -> Any:
        """Split Adam's map into M and S; add what the step owes to K; write what its own batch is paid by.

        With O = Γ ⊙ M, K becomes ``K + grow · O``, and `product` ``Γ ⊙ S − less · K``.

        Parameters
        ----------
        n : int
            Samples of the batch.
        g, theta, m, v : arrays (d_out, d_in)
            The batch's gradient and the state before the step; θ may be None.
        row, col, root
            As in `Passes.attributed`.
        gamma : array (d_out, d_in)
            Γ, the validation gradient on the walked step.
        grow, less : float
        owed : array (d_out, d_in), or None
            K, changed in place.
        product : array (d_out, d_in)
            Written; may be `g`.

        Returns
        -------
        array (4,)
            In double precision, ⟨Γ ⊙ S, g⟩, ⟨O, m⟩, ‖O‖² and, with θ, ⟨Γ, θ⟩.
        """


def split_for(backend: Backend) -> Split:
    """Return the split for the arrays of `backend`."""
    if backend.on_cuda:
        from adamshap.gpu import splits_cuda

        return splits_cuda.split
    return _host_split()


@cache
def _host_split() -> Split:
    try:
        from adamshap.gpu import splits_numba
    except ImportError:
        from adamshap.gpu import splits

        return splits.split
    return splits_numba.split


class Fit(Protocol):
    """The pass of "two_term" over one parameter, or over some of its rows. Arrays are as `Passes` has them."""

    def __call__(
        self,
        scalars: AdamScalars,
        plan: FitPlan,
        n: int,
        g: Any,
        m: Any,
        v: Any,
        row: Any,
        col: Any,
        root: Any,
        slope: Any,
        second: Any,
    ) -> None:
        """Write the slopes of both terms, S and R.

        Parameters
        ----------
        n : int
            Samples of the batch.
        g, m, v : arrays (d_out, d_in)
            The batch's gradient and the state before the step.
        row, col, root
            As in `Passes.attributed`.
        slope, second : arrays (d_out, d_in)
            Written; none may be an input.
        """


def fit_for(backend: Backend) -> Fit:
    """Return the fit for the arrays of `backend`."""
    if backend.on_cuda:
        from adamshap.gpu import fits_cuda

        return fits_cuda.fit
    return _host_fit()


@cache
def _host_fit() -> Fit:
    try:
        from adamshap.gpu import fits_numba
    except ImportError:
        from adamshap.gpu import fits

        return fits.fit
    return fits_numba.fit


def passes_for(backend: Backend) -> Passes:
    """Return the passes that work on the arrays of `backend`."""
    if backend.on_cuda:
        from adamshap.gpu import passes_cuda

        return cast(Passes, passes_cuda)
    return _host_passes()


@cache
def _host_passes() -> Passes:
    try:
        from adamshap.gpu import passes_numba
    except ImportError:
        from adamshap.gpu import passes_numpy

        return cast(Passes, passes_numpy)
    return cast(Passes, passes_numba)
