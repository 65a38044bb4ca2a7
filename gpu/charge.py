"""The credit that a step owes to the momentum, and the matrix that scores its batch, in one pass (docs/method.md 6).

======  ==============  ==============================================================
paper   name            meaning
======  ==============  ==============================================================
S, M    no arrays       slopes of the batch's gradient and of the momentum
Γ       ``validation``  validation gradient on the walked step, as captures
O       no array        Γ ⊙ M, the credit owed to the momentum
K       ``owed``        running sum of O, weighted (`carry`)
======  ==============  ==============================================================
"""

from dataclasses import dataclass
from typing import Any

from adamshap.gpu.arrays import Arrays, ScoreMatrix, as_matrix
from adamshap.gpu.captures import Captures, sum_blocks
from adamshap.gpu.forward import ForwardResult
from adamshap.gpu.kernels.groups import NO_NORMS, OwedSum
from adamshap.gpu.kernels.plan import SplitPlan
from adamshap.gpu.state import StepInput

__all__ = ["Charge", "RunningSum", "charge"]

FLOPS_OF_A_SPLIT = 500
"""Cost of an element's split, as flops of matrix products that take as long."""


@dataclass(frozen=True)
class RunningSum:
    """K, which grows by ``grow · O``; ``less · K`` is subtracted from the matrix that scores the batch."""

    total: Arrays
    grow: float
    less: float


@dataclass(frozen=True)
class Charge:
    """Totals of a step's account: ⟨Γ ⊙ S, g⟩, ⟨O, m⟩, ‖O‖² and weight decay's share, ⟨Γ, ηλθ⟩."""

    own: Any
    owed: Any
    square: Any
    decay: Any


def charge(
    step: StepInput,
    plan: SplitPlan,
    forward: ForwardResult,
    validation: Captures,
    owed: RunningSum | None,
    matrix: ScoreMatrix,
) -> Charge:
    """Split Adam's map for every parameter, with Γ from `validation`; see `Kernels.momentum_split`.

    `matrix`, which scores the batch, may share the memory of the batch's gradient.
    """
    context, state, n, scalars = step.context, step.state, step.batch.n, step.hyperparameters.scalars
    sums = {}

    def use(key: str, units: slice, gamma: Any) -> None:
        def part(arrays: Arrays) -> Any:
            return as_matrix(arrays[key][units])

        norms = NO_NORMS if forward.norms is None else forward.norms.of(key, n, units)
        running = None if owed is None else OwedSum(part(owed.total), owed.grow, owed.less)
        sums[key, units.start] = context.kernels.momentum_split(
            scalars[key], plan, part(forward.g), state.of(key, units), norms, as_matrix(gamma), running, part(matrix)
        )

    sum_blocks(context, validation, use, (4 * validation.n + FLOPS_OF_A_SPLIT) * validation.macs)
    ordered = sorted(sums)  # one order, whatever the threads' timing
    totals: Any = sum(sums[key] for key in ordered)
    own, owed_now, square, of_theta = totals
    shrinks = {name: one.shrink for name, one in scalars.items()}
    if len(set(shrinks.values())) == 1:
        decay = (1 - next(iter(shrinks.values()))) * of_theta
    else:
        decay = sum((1 - shrinks[name]) * sums[name, first][3] for name, first in ordered)
    return Charge(own, owed_now, square, decay)
