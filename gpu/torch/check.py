"""The self-check: the optimiser consumes what was captured, and takes the step that Adam's map says.

The gradient in the optimiser's hands must be f Σ_i x_i, with one number f for all parameters: f is the factor of
clipping, of a loss scale that was taken out, of accumulated losses divided afterwards. Of several processes, it must be
f times the mean of their sums. Differences are compared with what rounding explains: an element of Σ_t b_t a_tᵀ errs by
u times Σ_t |b_t| |a_t|, so that the whole is off by no more than a few u ‖a‖ ‖b‖ (Frobenius norms, by Cauchy and
Schwarz).

======  ===========  ==================================================
paper   name         meaning
======  ===========  ==================================================
f       ``factor``   p.grad over Σ_i x_i, one number for all parameters
======  ===========  ==================================================
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NoReturn

import numpy as np

from adamshap.gpu.captures import Capture, Captures
from adamshap.reference.contract import Array, refuse
from adamshap.torch.processes import Processes

__all__ = ["cheapest", "check_parameters", "factor_of"]

UNITS = 64.0
"""Roundings that a difference may have, in units of u: about as many as a sum of a few thousand terms has."""

LOOSE = 1e-3
"""Relative uncertainty of f from which on more parameters are summed."""


@dataclass(frozen=True)
class Comparison:
    """p.grad and Σ x of one parameter, in double: their products, and the largest error of Σ x by rounding."""

    name: str
    given: Array
    total: Array
    error: float

    @property
    def square(self) -> float:
        """‖Σ x‖²."""
        return float(np.vdot(self.total, self.total))

    @property
    def product(self) -> float:
        """⟨p.grad, Σ x⟩."""
        return float(np.vdot(self.given, self.total))

    @property
    def resolved(self) -> bool:
        """Whether Σ x is more than rounding."""
        return self.square > (self.error / LOOSE) ** 2

    def distance(self, factor: float) -> float:
        """Return ‖p.grad − f Σ x‖."""
        return float(np.linalg.norm(self.given - factor * self.total))


def cheapest(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the parameters that are compared in every step: the vectors, or the smallest parameter."""
    return [name for name, shape in shapes.items() if len(shape) == 1] or [
        min(shapes, key=lambda n: math.prod(shapes[n]))
    ]


def factor_of(
    gradients: Mapping[str, Array],
    chunks: Iterable[Captures],
    names: Collection[str],
    modules: Mapping[str, list[str]],
    step: int,
    processes: Processes,
) -> float:
    """Return f, after a comparison of the parameters in `names`, or of all where those do not determine it.

    Parameters
    ----------
    gradients : dict of arrays
        p.grad of every parameter that takes part in the step.
    chunks : iterable of Captures
    names : collection of str
    modules : dict
        Modules that have a parameter, by its name, for messages.
    step : int
        For messages.
    processes : Processes
        Those whose mean the gradients are.

    Raises
    ------
    ValueError
        No f fits: what is off, and why it may be.
    """
    chunks = list(chunks)
    compared = _mean([_comparison(name, gradients[name], chunks) for name in names], processes)
    if len(names) < len(gradients) and not any(one.resolved for one in compared):
        compared = _mean([_comparison(name, gradient, chunks) for name, gradient in gradients.items()], processes)
    resolved = [one for one in compared if one.resolved]
    if not resolved:
        middle, spread = 1.0, 0.0
    else:
        middle = median(one.product / one.square for one in resolved)
        near = [one for one in resolved if one.distance(middle) <= LOOSE * abs(middle) * math.sqrt(one.square)]
        near = near or resolved
        square = sum(one.square for one in near)
        middle = sum(one.product for one in near) / square
        spread = math.hypot(*(one.error for one in near)) / math.sqrt(square)
    off = [one for one in compared if not _fits(one, middle, spread)]
    if off or middle <= 0:
        _refuse(compared, off or compared, middle, modules, step)
    unit = UNITS * float(np.finfo(next(iter(gradients.values())).dtype).eps)
    return processes.common_factor(1.0 if abs(middle - 1) <= unit + spread else middle, unit)


def _fits(one: Comparison, factor: float, spread: float) -> bool:
    """Whether p.grad is f Σ x up to rounding, of itself and of f."""
    allowed = abs(factor) * (2 * one.error + 2 * spread * math.sqrt(one.square))
    return one.distance(factor) <= allowed


def _comparison(name: str, gradient: Array, chunks: list[Captures]) -> Comparison:
    total, error = np.zeros(gradient.shape), 0.0
    unit = UNITS * float(np.finfo(gradient.dtype).eps) / 2
    units = slice(0, len(gradient))
    for captures in chunks:
        for use in captures.by_name.get(name, []):
            total += use.sum_of(np, name, units).reshape(total.shape)
            error += unit * _size(use, gradient.ndim)
    return Comparison(name, gradient.astype(np.float64), total, error)


def _mean(compared: list[Comparison], processes: Processes) -> list[Comparison]:
    """Return the comparisons with the mean of Σ x over the processes, and of its error."""
    if not processes.several:
        return compared
    errors = np.array([one.error for one in compared])
    processes.agree()
    processes.add_up([one.total for one in compared])
    processes.add_up([errors])
    count = processes.count
    return [replace(one, total=one.total / count, error=e / count) for one, e in zip(compared, errors, strict=True)]


def _size(use: Capture, axes: int) -> float:
    """Return a bound on Σ_i ‖x_i‖, before terms of opposite sign cancel."""
    arrays = list(use.kept().values())
    rows = math.sqrt(max(math.prod(arrays[-1].shape[:-1]), 1))
    if len(arrays) == 1 or axes == 1:  # x or b alone; the input of a bias is 1
        return rows * _norm(arrays[-1])
    a, b = (_norm(array) for array in arrays[:2])
    window = getattr(use, "windows", None)
    return a * b * (1.0 if window is None else math.sqrt(math.prod(window.kernel)))


def _norm(array: Array) -> float:
    """Return the norm of a large array in its own precision, unless squares over- or underflow there."""
    norm = float(np.linalg.norm(array.ravel()))
    return norm if 0 < norm < math.inf else float(np.linalg.norm(array.astype(np.float64).ravel()))


def _refuse(
    compared: list[Comparison], off: list[Comparison], factor: float, modules: Mapping[str, list[str]], step: int
) -> NoReturn:
    if all(not one.given.any() for one in compared):
        needs = "the gradients that backward() left: no zero_grad() between backward() and step()"
        refuse("optimizer", f"gradients of 0 at step {step}, where the samples' are not 0", needs)
    if factor <= 0 and len(off) == len(compared):
        needs = "gradients that are the samples' times a positive number"
        refuse("optimizer", f"gradients of the opposite sign at step {step}", needs)
    worst = max(off, key=lambda one: one.distance(factor) / (math.sqrt(one.square) or 1))
    norms = f"norm {np.linalg.norm(worst.given):.3g}, where {factor:.3g} times the sum over samples has"
    got = (
        f"a gradient of {norms} {abs(factor) * math.sqrt(worst.square):.3g} and differs by"
        f" {worst.distance(factor):.3g} at step {step}, in {' and '.join(modules.get(worst.name, ['no module']))}"
        f" ({len(off)} of {len(compared)} compared parameters are off)"
    )
    few = (
        "a use of the parameter that no hook sees (F.linear or another function called with it, a compiled or fused"
        " path), an input whose first axis is not the samples', or an edit of its .grad"
    )
    many = (
        "a backward pass outside `samples`, zero_grad() in another place than right after step(), samples whose"
        " passes were not in `samples`, clipping by value, or a clipping that is not the same for all"
    )
    reason = few if len(off) == 1 or 2 * len(off) < len(compared) else many
    refuse(f"gradient of {worst.name!r}", got, f"one factor times the samples' for all parameters; likely: {reason}")


def check_parameters(
    before: Mapping[str, Array], expected: Mapping[str, Array], got: Mapping[str, Array], eps: float, step: int
) -> None:
    """Refuse a step that is not Adam's: θ⁺ is compared with what the engine computed.

    Parameters
    ----------
    before, expected, got : dicts of arrays
        θ, θ − A(g) − ηλθ, and what the optimiser made of it.
    eps : float
        2 u of the optimiser's arithmetic.
    step : int
        For messages.
    """
    for name, array in got.items():
        unit = max(float(np.finfo(array.dtype).eps), eps) / 2
        moved = float(np.linalg.norm((expected[name] - before[name]).astype(np.float64).ravel()))
        size = float(np.linalg.norm(before[name].astype(np.float64).ravel()))
        off = float(np.linalg.norm((array - expected[name]).astype(np.float64).ravel()))
        if not off <= unit * (16 * size + 16 * UNITS * moved):
            needs = "PyTorch's own Adam or AdamW, and no hook of the optimiser that edits gradients or parameters"
            refuse(
                f"parameter {name!r}",
                f"after step {step} a value {off:.3g} from Adam's, which moved {moved:.3g}",
                needs,
            )


def check_finite(gradients: Mapping[str, Any], step: int) -> None:
    """Refuse gradients that are not finite."""
    for name, array in gradients.items():
        if not math.isfinite(float(np.vdot(array, array))) and not np.isfinite(array).all():
            needs = "finite gradients: a smaller lr, or clipping, may help"
            refuse(f"gradient of {name!r}", f"a number that is not finite at step {step}", needs, FloatingPointError)
