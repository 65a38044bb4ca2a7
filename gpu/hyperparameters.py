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
    StepNumber,
    adam_in,
    refuse,
    refuse_zero_denominator,
)

__all__ = ["Hyperparameters", "advice", "refuse_clipped", "refuse_division_by_zero"]

held = lru_cache(maxsize=64)(adam_in)
scalars_of = lru_cache(maxsize=64)(adam_scalars)


ORACLE = "adamshap.reference has"
"""Where a user finds what the engine refuses."""


@dataclass(frozen=True)
class Hyperparameters:
    """Adam's settings at one step by parameter, rounded to its dtype, and the kernels' scalars computed from them.

    Parameters
    ----------
    adam : dict of Adam
    scalars : dict of AdamScalars
    """

    adam: Mapping[str, Adam]
    scalars: Mapping[str, AdamScalars]

    @classmethod
    def at(cls, context: EngineContext, optimiser: Optimiser, t: StepNumber) -> "Hyperparameters":
        """Return the hyperparameters of step `t`."""
        adam: dict[str, Adam] = {}
        scalars: dict[str, AdamScalars] = {}
        last, pair = None, None
        for name in context.shapes:
            settings = optimiser.at(t, name)
            if pair is None or settings is not last:  # settings shared by all are looked up once
                if settings.l2:
                    refuse("Adam.l2", settings.l2, f"0: the engine has no L2 decay, {ORACLE}")
                rounded = held(settings, context.backend.dtype)
                last, pair = settings, (rounded, scalars_of(rounded, t))
            adam[name], scalars[name] = pair
        return cls(adam, scalars)

    @property
    def lrs(self) -> dict[str, float]:
        """η of each parameter."""
        return {name: scalars.lr for name, scalars in self.scalars.items()}

    def one_beta1(self) -> float:
        """Return β1; refuse parameters that do not share it."""
        found = {scalars.b1 for scalars in self.scalars.values()}
        if len(found) > 1:
            got = ", ".join(f"{beta1:g}" for beta1 in sorted(found))
            refuse("Adam.betas[0]", f"{got} with credit 'carry'", "one β1 for all parameters")
        return found.pop()


def refuse_clipped(optimiser: Optimiser) -> None:
    """Refuse an optimiser that clips: the engine has no norm of the whole gradient."""
    if isinstance(optimiser, Clipped):
        refuse("adam", "a Clipped", f"an optimiser without clipping: the engine has none, {ORACLE}")


def refuse_division_by_zero(
    context: EngineContext, hyperparameters: Hyperparameters, v: Mapping[str, Any], g: Mapping[str, Any] | None
) -> None:
    """Refuse ε = 0 where κ is 0 and, if `g` is given, √q g is too; reads arrays only where ε is 0."""
    f, count = context.backend.dtype.type, 0
    for name, adam in hyperparameters.adam.items():
        if adam.eps > 0 or adam.eps_root > 0:
            continue
        scalars = hyperparameters.scalars[name]
        zero = f(scalars.kappa) * v[name] == 0
        if g is not None:
            zero &= abs(f(scalars.root_q) * g[name]) < np.finfo(f).smallest_normal
        count += int(context.backend.xp.count_nonzero(zero))
    refuse_zero_denominator(count, "v is 0" if g is None else "v and the gradient are 0")


def advice(optimiser: Optimiser, names: Iterable[str], t: StepNumber, backend: Backend) -> str:
    """Return advice on a run that diverged at step `t`."""
    wider = "" if backend.dtype == np.float64 else ", or dtype='float64'"
    return f"a smaller lr than {max(optimiser.at(t, name).lr for name in names)}, smaller inputs{wider}"
