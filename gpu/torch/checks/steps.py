"""Checks of a step as taken: finite gradients before it, and Adam's parameters after it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adamshap.gpu.backend import Backend
from adamshap.reference.contract import Array, refuse
from adamshap.torch.checks.factor import UNITS
from adamshap.torch.checks.numbers import fetched, length_of

__all__ = ["check_finite", "check_parameters"]


def check_parameters(
    backend: Backend,
    before: Mapping[str, Array],
    expected: Mapping[str, Array],
    got: Mapping[str, Array],
    eps: float,
    step: int,
) -> None:
    """Refuse a step that is not Adam's: θ⁺ is compared with what the engine computed.

    Parameters
    ----------
    backend : Backend
    before, expected, got : dicts of arrays
        θ, θ − A(g) − ηλθ, and what the optimiser made of it.
    eps : float
        2 u of the optimiser's arithmetic.
    step : int
        For messages.
    """
    pairs = [(expected[name] - before[name], before[name], array - expected[name]) for name, array in got.items()]
    lengths = iter(fetched(backend, [length_of(backend.xp, one.astype(np.float64)) for pair in pairs for one in pair]))
    for name, array in got.items():
        unit = max(float(np.finfo(array.dtype).eps), eps) / 2
        moved, size, off = next(lengths), next(lengths), next(lengths)
        if not off <= unit * (16 * size + 16 * UNITS * moved):
            needs = "PyTorch's own Adam or AdamW, and no hook of the optimiser that edits gradients or parameters"
            refuse(
                f"parameter {name!r}",
                f"after step {step} a value {off:.3g} from Adam's, which moved {moved:.3g}",
                needs,
            )


def check_finite(backend: Backend, gradients: Mapping[str, Any], step: int) -> None:
    """Refuse gradients that are not finite."""
    xp = backend.xp
    squares = fetched(backend, [xp.vdot(array, array) for array in gradients.values()])
    for square, (name, array) in zip(squares, gradients.items(), strict=True):
        if not math.isfinite(square) and not xp.isfinite(array).all():
            needs = "finite gradients: inputs and losses without NaN; a smaller lr, or clipping, may help"
            refuse(f"gradient of {name!r}", f"a number that is not finite at step {step}", needs, FloatingPointError)
