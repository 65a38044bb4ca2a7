"""The second opinion of ``verify_ghost``: ⟨P, x_i⟩ of captures against the derivative of the samples' losses along P.

Both are f x_i contracted with the same P, so that every sample is compared, which the sum Σ_i x_i of the self-check
cannot do. They differ by the rounding of the contraction, of some u ‖P‖ ‖x_i‖ for each use of parameters; by that of
the passes, which a deep model amplifies: ‖P‖ times what backward passes of other scales differ by; and by the error of
differences.

======  ===============  ==================================================
paper   name             meaning
======  ===============  ==================================================
P       ``direction``    score matrix, by parameter
======  ===============  ==================================================
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.gpu.captures import Captures
from adamshap.gpu.context import EngineContext
from adamshap.gpu.scores import contract
from adamshap.reference.contract import TWO_TERM, Array, Estimator, refuse
from adamshap.torch.captures.roundoff import Roundoff
from adamshap.torch.checks.factor import UNITS
from adamshap.torch.forward_mode.step import ForwardStep

__all__ = ["Verification", "refuse_low_dtypes", "refuse_unverifiable"]


def refuse_unverifiable(estimator: Estimator) -> None:
    """Refuse an estimator whose scores have no second opinion."""
    if estimator.contraction == "forward":
        refuse("verify_ghost", "True with contraction 'forward'", "'ghost', whose captures are compared with it")
    if estimator.slope == TWO_TERM:
        needs = "another slope: the second term, in sign(x) √|x|, is no derivative of the loss"
        refuse("verify_ghost", f"True with slope {estimator.slope!r}", needs)


def refuse_low_dtypes(roundoffs: Mapping[str, Roundoff]) -> None:
    """Refuse captures that autocast rounded to a low dtype, which would differ from the losses' derivatives by that."""
    for name, roundoff in roundoffs.items():
        if roundoff.result:
            needs = "a loop without autocast for the comparison; with it, the self-check alone"
            refuse("verify_ghost", f"a gradient of {name!r} in bfloat16 or float16, of autocast", needs)


@dataclass(frozen=True)
class Verification:
    """The samples of one step, whose scores are computed both ways (`captures.collection.Differentiable`).

    Parameters
    ----------
    forward : ForwardStep
    chunks : iterable of (slice, Captures)
        The same samples' captures.
    factor : float
        f of the captures.
    index : int array (n,)
        The samples.
    """

    forward: ForwardStep
    chunks: Iterable[tuple[slice, Captures]]
    factor: float
    index: Array

    @property
    def chunk(self) -> tuple[slice, Captures]:
        """All samples, without captures."""
        return slice(0, len(self.index)), Captures((), None, self)

    def rows(self, which: slice) -> "Verification":
        """Refuse: the user's function returns the losses of all samples of a block."""
        raise AssertionError("a block's samples have one function")

    def add_dots(self, context: EngineContext, direction: Mapping[str, Any], out: Any) -> None:
        """Add each sample's score by its loss to `out`, once it agrees with that of its captures."""
        xp, backend = context.backend.xp, context.backend
        by_losses, by_captures, sizes = (xp.zeros(out.shape, backend.dtype) for _ in range(3))
        self.forward.add_dots(context, direction, by_losses)
        unit = UNITS * float(np.finfo(backend.dtype).eps) / 2
        for rows, captures in self.chunks:
            contract(context, captures, direction, by_captures[rows])
            for use in captures.uses:
                length = math.hypot(*(float(xp.linalg.norm(direction[name].reshape(-1))) for name in use.names))
                sizes[rows] += length * use.row_norms(xp)
        ghost, forward, size = (backend.host(one).astype(np.float64) for one in (by_captures, by_losses, sizes))
        passes = sum(error * float(xp.linalg.norm(direction[name])) for name, error in self.forward.noise.items())
        allowed = self.factor * (unit * size + passes) + 2 * self.forward.error * abs(forward).max()
        self._compare(self.factor * ghost, forward, allowed)
        out += by_losses

    def _compare(self, ghost: Array, forward: Array, allowed: Array) -> None:
        off = abs(ghost - forward) - allowed
        if not (off <= 0).all():
            worst, count = int(off.argmax()), int((off > 0).sum())
            got = (
                f"{ghost[worst]:.6g} as the score of sample {self.index[worst]} by captures and"
                f" {forward[worst]:.6g} by its loss at step {self.forward.number}"
                f" ({count} of {len(off)} samples differ)"
            )
            needs = (
                "one score; likely: losses() in another order than the rows of `index`, samples that interact, or a"
                " layer registered by adamshap.torch.register whose captures are another sample's"
            )
            refuse("verify_ghost", got, needs)
