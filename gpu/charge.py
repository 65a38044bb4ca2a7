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

from collections.abc import Iterable
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
    """K of some parameters, which grows by ``grow · O``; ``less · K`` is subtracted from the matrix of the scores."""

    total: Arrays
    grow: float
    less: float


@dataclass(frozen=True)
class Charge:
    """Totals of a step's account: ⟨Γ ⊙ S, g⟩, ⟨O, m⟩, ‖O‖² by parameter, and decay's share.

    That is ⟨Γ, ηλθ⟩, for L2 decay ⟨Γ ⊙ S, d⟩.
    """

    own: Any
    owed: Any
    squares: dict[str, Any]
    decay: Any


def charge(
    step: StepInput,
    plan: SplitPlan,
    forward: ForwardResult,
    validation: Captures,
    owed: Iterable[RunningSum],
    matrix: ScoreMatrix,
) -> Charge:
    """Split Adam's map for every parameter, with Γ from `validation`; see `Kernels.momentum_split`.

    `owed` has K of every parameter with momentum. `matrix`, which scores the batch, may share the memory of the batch's
    gradient.
    """
    context, state, n, scalars = step.context, step.state, step.batch.n, step.hyperparameters.scalars
    sums = {}
    running_sums = {name: one for one in owed for name in one.total}

    def use(key: str, units: slice, gamma: Any) -> None:
        def part(arrays: Arrays) -> Any:
            return as_matrix(arrays[key][units])

        norms = NO_NORMS if forward.norms is None else forward.norms.of(key, n, units)
        one = running_sums.get(key)
        running = None if one is None else OwedSum(part(one.total), one.grow, one.less)
        sums[key, units.start] = context.kernels.momentum_split(
            scalars[key], plan, part(forward.g), state.of(key, units), norms, as_matrix(gamma), running, part(matrix)
        )

    sum_blocks(context, validation, use, (4 * validation.n + FLOPS_OF_A_SPLIT) * validation.macs)
    ordered = sorted(sums)  # one order, whatever the threads' timing
    totals: Any = sum(sums[key] for key in ordered)
    own, owed_now, _, of_theta = totals
    rates = {name: one.l2 or 1 - one.shrink for name, one in scalars.items()}
    if len(set(rates.values())) == 1:
        decay = next(iter(rates.values())) * of_theta
    else:
        decay = sum(rates[name] * sums[name, first][3] for name, first in ordered)
    squares: dict[str, Any] = {}
    for name, first in ordered:
        squares[name] = squares.get(name, 0.0) + sums[name, first][2]
    return Charge(own, owed_now, squares, decay)
