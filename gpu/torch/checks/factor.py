"""f, the one factor of all gradients over the samples' sums, and the refusal where none fits."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median
from typing import NoReturn

import numpy as np

from adamshap.gpu.backend import Backend
from adamshap.reference.contract import Array, refuse
from adamshap.torch.checks.numbers import fetched, length_of

__all__ = ["LOOSE", "UNITS", "Comparison", "common_factor"]

UNITS = 64.0
"""Roundings that a difference may have, in units of u: about as many as a sum of a few thousand terms has."""

LOOSE = 1e-3
"""Relative uncertainty of f from which on more parameters are summed."""

COARSE = 0.25
"""Relative uncertainty of Σ x from which on a parameter says nothing about f."""

DEVIATIONS = 6.0
"""Standard deviations of f, by roundings that are independent, within which it is taken for 1."""


@dataclass(frozen=True)
class Comparison:
    """p.grad and Σ x of one parameter, in double, and what rounding may have done to Σ x.

    Parameters
    ----------
    name : str
    given, total : arrays
        p.grad and Σ x.
    square, product : float
        ‖Σ x‖² and ⟨p.grad, Σ x⟩.
    sharp : float
        Largest error of Σ x by sums in the parameter's dtype.
    error : float
        Largest error of Σ x.
    noise : float
        Probable error of the product by results in a low dtype.
    usual : float
        Relative error of Σ x that its dtype explains.
    """

    name: str
    given: Array
    total: Array
    square: float
    product: float
    sharp: float
    error: float
    noise: float
    usual: float

    @classmethod
    def of(cls, backend: Backend, name: str, given: Array, total: Array, error: float) -> "Comparison":
        """Return the comparison of arrays in double, of which `error` is the largest error of `total`."""
        square, product = fetched(backend, [backend.xp.vdot(total, total), backend.xp.vdot(given, total)])
        return cls(name, given, total, square, product, error, error, 0.0, LOOSE)

    @property
    def relative(self) -> float:
        """Largest relative error of Σ x by rounding."""
        return self.error / math.sqrt(self.square) if self.square else math.inf

    @property
    def resolved(self) -> bool:
        """Whether Σ x is more than rounding."""
        return self.relative < self.usual

    @property
    def length(self) -> float:
        """‖Σ x‖."""
        return math.sqrt(self.square)


def common_factor(
    compared: Collection[Comparison],
    backend: Backend,
    modules: Mapping[str, list[str]],
    step: int,
    reasons: tuple[str, str],
) -> float:
    """Return the one factor of all comparisons; refuse if none fits.

    Parameters
    ----------
    compared : list of Comparison
    backend : Backend
        Of their arrays, and of the parameters' dtype.
    modules : dict
        Modules that have a parameter, by its name, for messages.
    step : int
        For messages.
    reasons : tuple of two str
        Likely reasons, where a few parameters are off and where many are.
    """
    resolved = _finest(compared)
    if not resolved:
        middle, sharp, noise, spread = 1.0, 0.0, 0.0, 0.0
    else:
        middle = median(one.product / one.square for one in resolved)
        lengths = _distances(backend, resolved, middle)
        near = [
            one
            for one, distance in zip(resolved, lengths, strict=True)
            if distance <= max(LOOSE, one.relative) * abs(middle) * one.length
        ]
        near = near or resolved
        square = sum(one.square for one in near)
        middle = sum(one.product for one in near) / square
        spread, sharp = (
            math.hypot(*errors) / math.sqrt(square)
            for errors in ([one.error for one in near], [one.sharp for one in near])
        )
        noise = math.hypot(*(one.noise for one in near)) / square
    distances = _distances(backend, compared, middle)
    off = {
        one.name: distance
        for one, distance in zip(compared, distances, strict=True)
        if not distance <= abs(middle) * (2 * one.error + 2 * spread * one.length)
    }
    if off or middle <= 0:
        of_all = dict(zip((one.name for one in compared), distances, strict=True))
        _refuse(compared, off or of_all, middle, backend, modules, step, reasons)
    unit = UNITS * float(np.finfo(backend.dtype).eps)
    return 1.0 if abs(middle - 1) <= unit + sharp + DEVIATIONS * noise else middle


def _finest(compared: Collection[Comparison]) -> list[Comparison]:
    """Return the parameters that determine f best: those in the parameter's dtype, where there are any."""
    resolved = [one for one in compared if one.resolved] or [one for one in compared if one.relative < COARSE]
    sharp = [one for one in resolved if one.error == one.sharp]
    best = min((one.relative for one in resolved), default=0.0)
    return sharp or [one for one in resolved if one.relative <= 2 * best]


def _distances(backend: Backend, compared: Collection[Comparison], factor: float) -> list[float]:
    """Return ‖p.grad − f Σ x‖ of each parameter."""
    return fetched(backend, [length_of(backend.xp, one.given - factor * one.total) for one in compared])


def _refuse(
    compared: Collection[Comparison],
    off: Mapping[str, float],
    factor: float,
    backend: Backend,
    modules: Mapping[str, list[str]],
    step: int,
    reasons: tuple[str, str],
) -> NoReturn:
    """Refuse the gradients; `off` has the distance of each parameter that is off."""
    if all(not one.given.any() for one in compared):
        needs = "the gradients that backward() left: no zero_grad() between backward() and step()"
        refuse("optimizer", f"gradients of 0 at step {step}, where the samples' are not 0", needs)
    if factor <= 0 and len(off) == len(compared):
        needs = "gradients that are the samples' times a positive number"
        refuse("optimizer", f"gradients of the opposite sign at step {step}", needs)
    worst = max((one for one in compared if one.name in off), key=lambda one: off[one.name] / (one.length or 1))
    length = float(length_of(backend.xp, worst.given))
    got = (
        f"a gradient of norm {length:.3g}, where {factor:.3g} times the sum over samples has"
        f" {abs(factor) * worst.length:.3g} and differs by"
        f" {off[worst.name]:.3g} at step {step}, in {' and '.join(modules.get(worst.name, ['no module']))}"
        f" ({len(off)} of {len(compared)} compared parameters are off)"
    )
    few, many = reasons
    reason = few if len(off) == 1 or 2 * len(off) < len(compared) else many
    refuse(f"gradient of {worst.name!r}", got, f"one factor times the samples' for all parameters; likely: {reason}")
