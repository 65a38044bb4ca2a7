"""The cheap check of every step: SGD's scores add up to η ⟨Γ, p.grad⟩ over all parameters.

It sees an edit of any one gradient, for three passes over the parameters. It cannot say which one, and its bound is a
usual error, not the largest: where the sums differ, the full comparison of all gradients decides.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from adamshap.gpu.backend import Backend
from adamshap.reference.contract import Array
from adamshap.torch.captures.roundoff import Roundoff
from adamshap.torch.checks.numbers import fetched
from adamshap.torch.processes import Processes

__all__ = ["adds_up"]

USUAL = 8.0
"""Roundings in units of u, of the sizes of both sums, that a right step usually stays below."""


def adds_up(
    backend: Backend,
    of_sgd: Array,
    gamma: Mapping[str, Array],
    gradients: Mapping[str, Array],
    lrs: Mapping[str, float],
    roundoffs: Iterable[Roundoff],
    processes: Processes,
) -> bool:
    """Whether SGD's scores add up to the decrease that a step along p.grad has to first order.

    Parameters
    ----------
    backend : Backend
    of_sgd : array (n,) or (n, n_val)
        SGD's scores of this process's samples.
    gamma : dict of arrays (rows, …)
        Γ, or those of each validation sample, which are added.
    gradients : dict of arrays
        p.grad.
    lrs : dict of float
        η of each parameter.
    roundoffs : iterable of Roundoff
        Of the gradients in low precision.
    processes : Processes
    """
    xp, products = backend.xp, []
    for name, g in gradients.items():
        if name in gamma:
            rows = gamma[name]
            along = rows[0] if len(rows) == 1 else rows.sum(axis=0)
            products += [lrs[name] * xp.vdot(*pair) for pair in ((along, g), (along, along), (g, g))]
    total, magnitude, *rest = fetched(backend, [of_sgd.sum(), abs(of_sgd).sum(), *products])
    found = processes.agree((total, magnitude))[0].sum(axis=0)
    expected = math.fsum(rest[::3])
    size = math.fsum(math.sqrt(a * b) for a, b in zip(rest[1::3], rest[2::3], strict=True))
    unit = USUAL * float(np.finfo(backend.dtype).eps) / 2
    low = max((2 * (one.result + one.factors) for one in roundoffs), default=0.0)
    return bool(abs(found[0] - expected) <= unit * (found[1] + size) + low * size)
