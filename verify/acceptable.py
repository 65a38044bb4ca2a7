"""Acceptable variants: answers that differ from the oracle's for a stated reason, and are no mistake.

Each is the oracle with one change, like a fault. A candidate that disagrees with the oracle but agrees with a variant,
within the variant's own bounds and in every case of the property, neither passes without remark nor fails: the outcome
is "acceptable", and the report names the variant.

Adam's scalars in float32. C and CUDA code often keeps η, β1, β2, ε and λ in float32, and computes 1 − β and 1 − β^t
from them. To first order, with a rounding β (1 + δ), |δ| ≤ u,

    1 − β → (1 − β) − δ β,      1 − β^t → (1 − β^t) − δ t β^t,

so their relative errors are δ β/(1 − β) and δ t β^t/(1 − β^t) ≤ δ β/(1 − β): for β2 = 0.999, up to 999 u, or 6e-5.
k, κ and q inherit them. That is far beyond the usual rounding of a right step, but it is not random: the code takes
exactly the step of Adam with other settings, those rounded to float32. So the variant is the oracle with rounded
settings, and its bound is the ordinary one, which has an error of u in β^t already.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract import Adam, Clipped, Optimiser, Step, StepNumber
from adamshap.verify.faults.fault import Wrap, sees
from adamshap.verify.implementation import Implementation
from adamshap.verify.oracle import ORACLE

__all__ = ["ACCEPTABLE", "BY_NAME", "Acceptable"]


@dataclass(frozen=True)
class Acceptable:
    """One variant.

    Parameters
    ----------
    name : str
        Name in vectors and reports.
    sentence : str
        Completion of "your answers agree with ...".
    source : str
        Who computes it like this.
    wrap : callable
        Function from an implementation's `ask` to that of the variant, as for a `Fault`.
    concerns : callable
        Whether the variant is acceptable in a dtype.
    """

    name: str
    sentence: str
    source: str
    wrap: Wrap
    concerns: Callable[[np.dtype[np.generic]], bool] = lambda dtype: True

    def implementation(self) -> Implementation:
        """Return the oracle with this change."""
        return replace(ORACLE, name=self.name, ask=self.wrap(ORACLE.ask))


def variants_in(dtype: npt.DTypeLike) -> list[Acceptable]:
    """Return the variants that are acceptable for answers in `dtype`."""
    return [one for one in ACCEPTABLE if one.concerns(np.dtype(dtype))]


@dataclass(frozen=True)
class _InFloat32:
    """The settings of an optimiser, rounded to float32."""

    optimiser: Optimiser

    def at(self, t: StepNumber, name: str) -> Adam:
        return _rounded(self.optimiser.at(t, name))


def _rounded(adam: Adam) -> Adam:
    def single(value: float) -> float:
        return float(np.float32(value))

    lr, eps, eps_root, decay, l2 = map(single, (adam.lr, adam.eps, adam.eps_root, adam.weight_decay, adam.l2))
    beta1, beta2 = map(single, adam.betas)
    return Adam(lr=lr, betas=(beta1, beta2), eps=eps, eps_root=eps_root, weight_decay=decay, l2=l2)


def _scalars_in_float32(step: Step) -> Step:
    if isinstance(step.adam, Adam):
        return replace(step, adam=_rounded(step.adam))
    if isinstance(step.adam, Clipped):
        return replace(step, adam=replace(step.adam, adam=_InFloat32(step.adam.adam)))
    return replace(step, adam=_InFloat32(step.adam))


ACCEPTABLE: tuple[Acceptable, ...] = (
    Acceptable(
        "adam-scalars-in-float32",
        "Adam's scalars computed in float32",
        "C and CUDA code with η, β1, β2, ε and λ in float32",
        sees(_scalars_in_float32),
        lambda dtype: dtype.itemsize <= np.dtype(np.float32).itemsize,
    ),
)

BY_NAME: dict[str, Acceptable] = {one.name: one for one in ACCEPTABLE}
