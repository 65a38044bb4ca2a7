"""The self-check of the gradients: the optimiser consumes what was captured.

The gradient in the optimiser's hands must be f Σ_i x_i, with one number f for all parameters: f is the factor of
clipping, of a loss scale that was taken out, of accumulated losses divided afterwards. Of several processes, it must be
f times the mean of their sums. Differences are compared with what rounding explains (docs/method.md): an element of
Σ_t b_t a_tᵀ errs by u times Σ_t |b_t| |a_t|, so that the whole is off by no more than a few u ‖a‖ ‖b‖ (Frobenius norms,
by Cauchy and Schwarz); a result that is rounded to a low dtype (`captures.roundoff`) by that dtype's u times the
result.

======  ==============  ==================================================
paper   name            meaning
======  ==============  ==================================================
f       ``factor``      p.grad over Σ_i x_i, one number for all parameters
q²      ``grain``       squares of the results that were rounded, by element
======  ==============  ==================================================
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from adamshap.gpu.backend import Backend
from adamshap.gpu.captures import Capture, Captures
from adamshap.reference.contract import Array
from adamshap.torch.captures.roundoff import Roundoff
from adamshap.torch.checks.factor import LOOSE, UNITS, Comparison, common_factor
from adamshap.torch.checks.numbers import fetched, norm_of
from adamshap.torch.processes import Processes

__all__ = ["Passes", "cheapest", "factor_of", "size_of"]

FEW = (
    "a use of the parameter that no hook sees (F.linear or another function called with it, a penalty on it or on"
    " gradients, a compiled or fused path), an input whose first axis is not the samples', or an edit of its .grad"
)
MANY = (
    "a backward pass outside `samples`, zero_grad() in another place than right after step(), samples whose"
    " passes were not in `samples`, a term of the loss that is no sample's, such as a penalty on the parameters (use"
    " the optimiser's weight_decay), clipping by value, clipping between accumulated parts or not the same for all"
)


def cheapest(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the parameters that are compared in every step: the vectors, or the smallest parameter."""
    return [name for name, shape in shapes.items() if len(shape) == 1] or [
        min(shapes, key=lambda n: math.prod(shapes[n]))
    ]


@dataclass(frozen=True)
class Passes:
    """The backward passes of a step, as the optimiser's gradients are compared with them.

    Parameters
    ----------
    backend : Backend
    gradients : dict of arrays
        p.grad of every parameter that takes part in the step.
    chunks : list of Captures
        Of each pass.
    roundoffs : dict of Roundoff
        Of the parameters whose gradient was computed in lower precision than their dtype.
    modules : dict
        Modules that have a parameter, by its name, for messages.
    step : int
        For messages.
    processes : Processes
        Those whose mean the gradients are.
    """

    backend: Backend
    gradients: Mapping[str, Array]
    chunks: Collection[Captures]
    roundoffs: Mapping[str, Roundoff]
    modules: Mapping[str, list[str]]
    step: int
    processes: Processes = field(default_factory=Processes)


def factor_of(passes: Passes, names: Collection[str]) -> float:
    """Return f, after a comparison of the parameters in `names`, or of all where those do not determine it.

    Parameters
    ----------
    passes : Passes
    names : collection of str

    Raises
    ------
    ValueError
        No f fits: what is off, and why it may be.
    """
    backend, gradients = passes.backend, passes.gradients
    compared = _comparisons(passes, names)
    if len(names) < len(gradients) and not any(one.resolved for one in compared):
        compared = _comparisons(passes, gradients)
    factor = common_factor(compared, backend, passes.modules, passes.step, (FEW, MANY))
    return passes.processes.common_factor(factor, UNITS * float(np.finfo(backend.dtype).eps))


class Parts(NamedTuple):
    """Σ x of one parameter, a bound on Σ ‖x_i‖, q² if anything was rounded, and the number of uses."""

    name: str
    total: Array
    size: Any
    grain: Array | None
    uses: float


class Sums(NamedTuple):
    """p.grad and Σ x of one parameter, and numbers on the device: those that `_comparison` takes."""

    name: str
    given: Array
    total: Array
    uses: float
    numbers: list[Any]


def _comparisons(passes: Passes, names: Iterable[str]) -> list[Comparison]:
    found = [_sums(passes, one) for one in _averaged(passes, [_parts(passes, name) for name in names])]
    numbers = iter(fetched(passes.backend, [number for one in found for number in one.numbers]))
    return [_comparison(passes, one, *islice(numbers, len(one.numbers))) for one in found]


def _averaged(passes: Passes, parts: list[Parts]) -> list[Parts]:
    """Return the means over the processes; q² is that of the mean, and the uses are those of all."""
    processes, xp = passes.processes, passes.backend.xp
    if not processes.several:
        return parts
    processes.agree()
    sizes, uses = xp.stack([one.size for one in parts]), xp.array([float(one.uses) for one in parts])
    grains = [one.grain for one in parts if one.grain is not None]
    processes.add_up([one.total for one in parts] + grains + [sizes, uses])
    count, uses = processes.count, passes.backend.host(uses).tolist()
    return [
        Parts(
            one.name,
            one.total / count,
            size / count,
            None if one.grain is None else one.grain / count**2,
            number,
        )
        for one, size, number in zip(parts, sizes, uses, strict=True)
    ]


def _parts(passes: Passes, name: str) -> Parts:
    xp, gradient = passes.backend.xp, passes.gradients[name]
    total = xp.zeros(gradient.shape)
    zero = xp.zeros((), np.float64)
    size, grain, units, uses = zero, None, slice(0, len(gradient)), 0
    if passes.processes.several and passes.roundoffs.get(name, Roundoff()).result:
        grain = xp.zeros(gradient.shape)  # in a process without a use, too
    for captures in passes.chunks:
        uses += len(captures.by_name.get(name, []))
        for use in captures.by_name.get(name, []):
            part = use.sum_of(xp, name, units).reshape(total.shape)
            total += part
            size = size + size_of(xp, use, gradient.ndim)
            roundoff = passes.roundoffs.get(name, Roundoff())
            if roundoff.result:
                more = _grain(xp, use, part, roundoff.terms)
                grain = more if grain is None else grain + more
    return Parts(name, total, size, grain, uses)


def _sums(passes: Passes, parts: Parts) -> Sums:
    xp, (name, total, size, grain, uses) = passes.backend.xp, parts
    given, zero = passes.gradients[name].astype(np.float64), xp.zeros((), np.float64)
    square, product = xp.vdot(total, total), xp.vdot(given, total)
    if grain is None:
        return Sums(name, given, total, uses, [square, product, size, zero, zero])
    return Sums(name, given, total, uses, [square, product, size, grain.sum(), xp.vdot(total * total, grain)])


def _comparison(
    passes: Passes, sums: Sums, square: float, product: float, size: float, grain: float, moment: float
) -> Comparison:
    """Return the comparison, from ‖Σ x‖², ⟨p.grad, Σ x⟩, Σ_i ‖x_i‖ at most, Σ_j q_j² and Σ_j (Σ x)_j² q_j²."""
    name, given, total, uses, _ = sums
    roundoff = passes.roundoffs.get(name, Roundoff())
    unit = UNITS * float(np.finfo(passes.gradients[name].dtype).eps) / 2
    sharp = unit * size
    low = 2 * roundoff.result * math.sqrt(uses * grain) + math.sqrt(total.size) * roundoff.least
    factors = 2 * roundoff.factors * size if total.ndim > 1 else 0.0
    noise = roundoff.result * math.sqrt(moment / 3)
    usual = max(LOOSE, 8 * roundoff.result)
    return Comparison(name, given, total, square, product, sharp, sharp + low + factors, noise, usual)


def _grain(xp: Any, use: Capture, total: Array, terms: bool) -> Array:
    """Return q², the squares of what was rounded to a low dtype: Σ_i x_i, and each x_i if its `terms` were."""
    found = xp.square(total, dtype=np.float64)
    arrays = list(use.kept().values())
    if terms and len(arrays) == 1 and arrays[0].ndim == total.ndim + 1:
        rows = xp.square(arrays[0], dtype=np.float64).sum(axis=0)
        found[: len(rows)] += rows
    return found


def size_of(xp: Any, use: Capture, axes: int) -> Any:
    """Return a bound on Σ_i ‖x_i‖, before terms of opposite sign cancel."""
    known = getattr(use, "bound", None)
    if known is not None:
        return known
    arrays = list(use.kept().values())
    rows = math.sqrt(max(math.prod(arrays[-1].shape[:-1]), 1))
    if len(arrays) == 1 or axes == 1:  # x or b alone; the input of a bias is 1
        return rows * norm_of(xp, arrays[-1])
    a, b = (norm_of(xp, array) for array in arrays[:2])
    window = getattr(use, "windows", None)
    return a * b * (1.0 if window is None else math.sqrt(math.prod(window.kernel)))
