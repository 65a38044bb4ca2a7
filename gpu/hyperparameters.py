"""Adam's settings at one step, by parameter name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from adamshap.gpu.backend import Backend
from adamshap.gpu.context import EngineContext
from adamshap.gpu.kernels.plan import AdamScalars, adam_scalars
from adamshap.reference.contract import (
    Adam,
    Clipped,
    Optimiser,
    Step,
    StepNumber,
    adam_in,
    refuse,
    refuse_zero_denominator,
)

__all__ = ["Hyperparameters", "advice", "refuse_division_by_zero", "refuse_previous"]

held = lru_cache(maxsize=64)(adam_in)
scalars_of = lru_cache(maxsize=64)(adam_scalars)


@dataclass(frozen=True)
class Hyperparameters:
    """Adam's settings at one step by parameter, rounded to its dtype, and the kernels' scalars computed from them.

    Parameters
    ----------
    adam : dict of Adam
    scalars : dict of AdamScalars
    clipped : Clipped or None
        How the gradient is clipped, if it is.
    """

    adam: Mapping[str, Adam]
    scalars: Mapping[str, AdamScalars]
    clipped: Clipped | None = None

    @classmethod
    def at(cls, context: EngineContext, optimiser: Optimiser, t: StepNumber) -> "Hyperparameters":
        """Return the hyperparameters of step `t`."""
        adam: dict[str, Adam] = {}
        scalars: dict[str, AdamScalars] = {}
        last, pair = None, None
        for name in context.shapes:
            settings = optimiser.at(t, name)
            if pair is None or settings is not last:  # settings shared by all are looked up once
                rounded = held(settings, context.backend.dtype)
                last, pair = settings, (rounded, scalars_of(rounded, t))
            adam[name], scalars[name] = pair
        return cls(adam, scalars, optimiser if isinstance(optimiser, Clipped) else None)

    @property
    def lrs(self) -> dict[str, float]:
        """η of each parameter."""
        return {name: scalars.lr for name, scalars in self.scalars.items()}


def refuse_previous(step: Step) -> None:
    """Refuse the denominator "previous" with L2 decay: it has no term in the momentum, which A'(d) has."""
    for name in step.params:
        if l2 := step.settings(name).l2:
            refuse("denominator", f"'previous' with Adam.l2 {l2}", "'exact', or an l2 of 0")


def refuse_division_by_zero(
    context: EngineContext,
    hyperparameters: Hyperparameters,
    v: Mapping[str, Any],
    g: Mapping[str, Any] | None,
    theta: Mapping[str, Any] | None = None,
) -> None:
    """Refuse ε = 0 where κ is 0 and so is √q times the gradient; reads arrays only where ε is 0.

    The gradient is `g`, 0 if None, plus the L2 decay of `theta`, 0 if None.
    """
    f, count, where = context.backend.dtype.type, 0, "v is 0" if g is None else "v and the gradient are 0"
    for name, adam in hyperparameters.adam.items():
        if adam.eps > 0 or adam.eps_root > 0:
            continue
        scalars, received = hyperparameters.scalars[name], None if g is None else g[name]
        if theta is not None and scalars.l2:
            decay, where = f(scalars.l2) * theta[name], "v and the gradient are 0"
            received = decay if received is None else decay + received
        zero = f(scalars.kappa) * v[name] == 0
        if received is not None:
            zero &= abs(f(scalars.root_q) * received) < np.finfo(f).smallest_normal
        count += int(context.backend.xp.count_nonzero(zero))
    refuse_zero_denominator(count, where)


def advice(optimiser: Optimiser, names: Iterable[str], t: StepNumber, backend: Backend) -> str:
    """Return advice on a run that diverged at step `t`."""
    wider = "" if backend.dtype == np.float64 else ", or dtype='float64'"
    return f"a smaller lr than {max(optimiser.at(t, name).lr for name in names)}, smaller inputs{wider}"
