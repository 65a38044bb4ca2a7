"""LESS's preconditioned gradient as a candidate, from a checkout of princeton-nlp/LESS.

``obtain_gradients_with_adam`` of ``less/data_selection/collect_grad_reps.py`` returns the direction Γ(z) of Adam's step
with one sample alone; ⟨∇L, η (Γ(x_i) − Γ(0))⟩ is the first-order marginal "first". β1, β2 and ε are constants there.
"""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peer_gradients import contributions, flat, functions_of, gradient

from adamshap.reference import Adam, Step

FILE = Path(os.environ["ADAMSHAP_LESS"]) / "less" / "data_selection" / "collect_grad_reps.py"
(obtain_gradients_with_adam,) = functions_of(FILE, "obtain_gradients_with_adam")


class _Model(torch.nn.Module):
    """A model whose gradient is `x`: its loss is linear."""

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros_like(x))
        self.x = x

    def forward(self) -> Any:
        return SimpleNamespace(loss=(self.theta * self.x).sum())


def marginals(step: Step, kind: str, loss: str) -> np.ndarray:
    if (kind, loss) != ("first", "first_order"):
        raise NotImplementedError(f"{kind}, {loss}")
    if (step.adam.betas, step.adam.eps, step.adam.eps_root) != (Adam().betas, Adam().eps, 0.0):
        raise NotImplementedError("other settings than β1 = 0.9, β2 = 0.999, ε = 1e-8")
    m, v, validation = flat(step.state.m), flat(step.state.v), gradient(step, step.valid, "mean")
    nothing, *alone = (
        obtain_gradients_with_adam(_Model(x), {}, m, v) for x in (torch.zeros_like(m), *contributions(step))
    )
    return (step.adam.lr * (torch.stack(alone) - nothing) @ validation).numpy()
