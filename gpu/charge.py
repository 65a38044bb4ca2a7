"""What one step owes to the momentum, and what it pays its own batch by (docs/method.md 6): one pass over Γ's blocks.

======  ==============  ==============================================================
paper   name            meaning
======  ==============  ==============================================================
S, M    no arrays       slopes of the batch's gradient and of the momentum
Γ       ``validation``  validation gradient on the walked step, as captures
O       no array        Γ ⊙ M, what the step owes to the momentum
K       ``owed``        running sum of O, weighted (`carry`)
======  ==============  ==============================================================
"""

from dataclasses import dataclass
from typing import Any

from adamshap.gpu.arrays import Arrays, ScoreMatrix, as_matrix
from adamshap.gpu.captures import Captures, sum_blocks
from adamshap.gpu.forward import ForwardResult
from adamshap.gpu.kernels import split_for
from adamshap.gpu.kernels.plan import SplitPlan
from adamshap.gpu.state import StepInput

__all__ = ["Charge", "RunningSum", "charge"]

FLOPS_OF_A_SPLIT = 500
"""What the split of an element costs, as products cost them."""


@dataclass(frozen=True)
class RunningSum:
    """K, which grows by ``grow · O``; ``less · K`` is subtracted from what the batch is paid by."""

    total: Arrays
    grow: float
    less: float


@dataclass(frozen=True)
class Charge:
    """What a step's account comes to: ⟨Γ ⊙ S, g⟩, ⟨O, m⟩, ‖O‖² and weight decay's share, ⟨Γ, ηλθ⟩."""

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
    """Split Adam's map over every parameter, with the validation's gradient for Γ; see `kernels.Split`.

    `matrix`, by which the batch is paid, may be in the memory of the batch's gradient.
    """
    context, state, n, scalars = step.context, step.state, step.batch.n, step.hyperparameters.scalars
    split, sums = split_for(context.backend), {}

    def use(key: str, units: slice, gamma: Any) -> None:
        def part(arrays: Arrays) -> Any:
            return as_matrix(arrays[key][units])

        row, col, root = (None, None, None) if forward.norms is None else forward.norms.of(key, n, units)
        sums[key, units.start] = split(
            scalars[key],
            plan,
            n,
            part(forward.g),
            part(state.theta) if scalars[key].shrink < 1 else None,
            part(state.m),
            part(state.v),
            row,
            col,
            root,
            as_matrix(gamma),
            0.0 if owed is None else owed.grow,
            0.0 if owed is None else owed.less,
            None if owed is None else part(owed.total),
            part(matrix),
        )

    sum_blocks(context, validation, use, (4 * validation.n + FLOPS_OF_A_SPLIT) * validation.macs)
    ordered = sorted(sums)  # one order, whichever thread was first
    own, owed_now, square, of_theta = sum(sums[key] for key in ordered)
    shrinks = {name: one.shrink for name, one in scalars.items()}
    if len(set(shrinks.values())) == 1:
        decay = (1 - next(iter(shrinks.values()))) * of_theta
    else:
        decay = sum((1 - shrinks[name]) * sums[name, first][3] for name, first in ordered)
    return Charge(own, owed_now, square, decay)
