"""The elementwise kernels of Adam: written for CUDA, as Numba loops, or in NumPy where Numba is missing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Protocol

from adamshap.gpu.backend import Backend
from adamshap.gpu.kernels.groups import FusedStepOut, GradientNorms, OwedSum, ParameterState, TwoTermOut
from adamshap.gpu.kernels.plan import AdamScalars, FitPlan, SlopePlan, SplitPlan

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from adamshap.reference.contract import Array

__all__ = ["Kernels", "kernels_for"]


class Kernels(Protocol):
    """The functions of each backend's module, for one parameter or some of its rows; `groups` describes the arrays.

    `auto_plans` takes all parameters: its calls for each would cost as much as its work on a small one.
    """

    def adam_step(
        self, scalars: AdamScalars, g: Float[Array, "d_out d_in"], state: ParameterState, new: ParameterState
    ) -> None:
        """Write Adam's update of `state` for the gradient `g` into `new`, which may be `state`."""

    def fused_step(
        self,
        scalars: AdamScalars,
        plan: SlopePlan,
        g: Float[Array, "d_out d_in"],
        state: ParameterState,
        norms: GradientNorms,
        gamma: Float[Array, "d_out d_in"] | None,
        blend: float,
        out: FusedStepOut,
    ) -> None:
        """Take Adam's step and compute the slope, in one pass over the parameter.

        Parameters
        ----------
        g : array
            The batch's gradient, without L2 decay, which the kernel adds.
        norms : GradientNorms
            Read where the plan needs σ.
        gamma : array or None
            Validation gradient that the slope is multiplied by.
        blend : float
            Position of ``out.point`` on the segment from ``θ − ηλθ − A(0)`` (0) to ``θ⁺`` (1). With L2 decay it
            starts at ``θ − A(d)``.
        """

    def auto_plans(
        self, scalars: Mapping[str, AdamScalars], order: SlopePlan, g: Mapping[str, Array], v: Mapping[str, Array]
    ) -> dict[str, SlopePlan]:
        """Return the plans of "auto" for all parameters, each from its gradient's own share in the radicand.

        Parameters
        ----------
        order : SlopePlan
            That of "random_order".
        g, v : dicts of arrays
            The batch's gradient, without L2 decay, and the second moment before the step.
        """

    def momentum_split(
        self,
        scalars: AdamScalars,
        plan: SplitPlan,
        g: Float[Array, "d_out d_in"],
        state: ParameterState,
        norms: GradientNorms,
        gamma: Float[Array, "d_out d_in"],
        owed: OwedSum | None,
        product: Float[Array, "d_out d_in"],
    ) -> Float64[Array, " 4"]:
        """Split Adam's map into M and S, add the credit owed to K, and write the matrix that scores the batch.

        With O = Γ ⊙ M, K becomes ``K + grow · O``, and `product` ``Γ ⊙ S − less · K``.

        Parameters
        ----------
        g, norms
            As in `fused_step`.
        gamma : array
            Γ, the validation gradient on the walked step.
        owed : OwedSum or None
            K, updated in place.
        product : array
            Written; may be `g`.

        Returns
        -------
        array (4,)
            In double precision, ⟨Γ ⊙ S, g⟩, ⟨O, m⟩, ‖O‖² and, where weights decay, ⟨Γ, θ⟩, with L2 decay ⟨Γ ⊙ S, θ⟩,
            else 0.
        """

    def two_term_fit(
        self,
        scalars: AdamScalars,
        plan: FitPlan,
        g: Float[Array, "d_out d_in"],
        state: ParameterState,
        norms: GradientNorms,
        out: TwoTermOut,
    ) -> None:
        """Write the slopes of both terms of "two_term", S and R; arguments are those of `fused_step`."""


def kernels_for(backend: Backend) -> Kernels:
    """Return the kernels that work on the arrays of `backend`."""
    if backend.on_cuda:
        from adamshap.gpu.kernels import cuda

        return cuda
    return _host_kernels()


@cache
def _host_kernels() -> Kernels:
    try:
        from adamshap.gpu.kernels import numba
    except ImportError:
        from adamshap.gpu.kernels import numpy

        return numpy
    return numba
