"""dattri-llm's kernels as a candidate: the push of AdamW-influence, and the preconditioning of LESS.

Its gradients are taken from PyTorch here, not from its hooks. Its AdamW-influence of one step is the response of θ⁺ to
the removal of a sample, times ∇L(θ⁺): `influence`, where its own score has the opposite sign by definition. Its Γ(z) is
the direction of Adam's step with the sample alone: ⟨∇L, η (Γ(x_i) − Γ(0))⟩ is the first-order marginal "first".
It computes in float32.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from dattri_llm.gradient import ops
from peer_gradients import contributions, flat, gradient

from adamshap.reference import Step
from adamshap.verify.candidates import torch_ghost


def _moments(step: Step) -> dict[str, Any]:
    if step.adam.eps_root > 0:
        raise NotImplementedError("eps_root: PyTorch has none")
    return {"exp_avg": flat(step.state.m), "exp_avg_sq": flat(step.state.v)}


def influence(step: Step) -> np.ndarray:
    state, x, (beta1, beta2), t = _moments(step), contributions(step), step.adam.betas, step.state.step + 1
    g = x.sum(dim=0)
    m = beta1 * state["exp_avg"] + (1 - beta1) * g
    v = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
    d, s = ops.adam_preconditioner(m / (1 - beta1**t), v / (1 - beta2**t), eps=step.adam.eps)
    push = ops.adamw_influence_push(x, g, d, s, lr=step.adam.lr, step=t, beta1=beta1, beta2=beta2)
    after = replace(step, params=torch_ghost.update(step)[0])
    return (push[:, : len(g)] @ gradient(after, step.valid, "mean").float()).numpy()


def marginals(step: Step, kind: str, loss: str) -> np.ndarray:
    if (kind, loss) != ("first", "first_order"):
        raise NotImplementedError(f"{kind}, {loss}")
    state, x = _moments(step), contributions(step)
    settings = {"betas": step.adam.betas, "eps": step.adam.eps, "step": step.state.step + 1}
    alone, nothing = (ops.precondition(z, state, optimizer_type="AdamW", **settings) for z in (x, torch.zeros_like(x)))
    return (step.adam.lr * (alone - nothing) @ gradient(step, step.valid, "mean").float()).numpy()
