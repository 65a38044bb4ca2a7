"""PyTorch: every function of the contract, for any model of layers, from materialised per-sample gradients.

Every x_i is formed, as one long vector, by ``vmap(grad)`` of the loss of one sample. Adam works elementwise, so all
parameters are one vector too; the step is that of ``torch.optim.AdamW``. Losses and derivatives are PyTorch's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamshap.reference.contract import (
    TWO_TERM,
    AdamState,
    Array,
    Batch,
    CompletedSteps,
    Estimator,
    Marginals,
    Params,
    Sequential,
    Step,
)
from adamshap.verify.candidates.parts import adam_of, stack_of
from adamshap.verify.candidates.torch_adam import AdamMap, fit_two_terms, path_rule, slope_of
from adamshap.verify.candidates.torch_layers import each_gradient, losses

__all__ = ["captures", "influence", "marginals", "scores", "update", "utility"]

MOST_ENUMERATED = 12
"""Samples of a batch whose coalitions are enumerated for Shapley values."""


def _tensor(array: Array) -> Tensor:
    return torch.tensor(np.array(array))


def _tensors(arrays: Params) -> dict[str, Tensor]:
    return {name: _tensor(array) for name, array in arrays.items()}


def _flat(arrays: Params) -> Tensor:
    return torch.cat([_tensor(array).flatten() for array in arrays.values()])


def _each_gradient(model: Sequential, params: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return ∇ℓ_i of each sample, one per row, in the order of `params`."""
    found = each_gradient(model, params, _tensor(batch.x), _tensor(batch.y))
    return torch.cat([found[name].flatten(1) for name in params], dim=1)


@dataclass(frozen=True)
class _Problem:
    """A step in PyTorch; vectors have all parameters, in the order of ``step.params``."""

    step: Step

    @cached_property
    def model(self) -> Sequential:
        return stack_of(self.step.net)

    @cached_property
    def adam(self) -> AdamMap:
        given, state = adam_of(self.step), self.step.state
        return AdamMap(
            given.lr, given.betas, given.eps, given.eps_root, state.next_step, _flat(state.m), _flat(state.v)
        )

    @cached_property
    def theta(self) -> Tensor:
        return _flat(self.step.params)

    @cached_property
    def decayed(self) -> Tensor:
        """θ − η λ θ."""
        adam = adam_of(self.step)
        return self.theta - adam.lr * adam.weight_decay * self.theta

    @cached_property
    def x(self) -> Tensor:
        """x_i of each training sample, one per row."""
        weight = 1 / self.step.n if self.step.reduction == "mean" else 1.0
        return weight * _each_gradient(self.model, self.named(self.theta), self.step.train)

    @cached_property
    def g(self) -> Tensor:
        return self.x.sum(dim=0)

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the parameters in a vector."""
        shapes = {name: p.shape for name, p in self.step.params.items()}
        parts = vector.split([int(np.prod(shape)) for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def after(self, g: Tensor) -> Tensor:
        """Return θ after a step with the gradient g."""
        return self.decayed - self.adam.step(g)

    def validation_losses(self, theta: Tensor) -> Tensor:
        valid = self.step.valid
        return losses(self.model, self.named(theta), _tensor(valid.x), _tensor(valid.y))

    def validation_gradients(self, theta: Tensor) -> Tensor:
        return _each_gradient(self.model, self.named(theta), self.step.valid)

    def of_coalition(self, mask: Array, loss: str) -> float:
        """Return U(S), or its first-order version ⟨∇L(θ), A(g_S)⟩."""
        g = self.x[_tensor(mask)].sum(dim=0)
        if loss == "first_order":
            return float(self.validation_gradients(self.theta).mean(dim=0) @ self.adam.step(g))
        return float(self.validation_losses(self.theta).mean() - self.validation_losses(self.after(g)).mean())


def update(step: Step) -> tuple[dict[str, Array], AdamState]:
    """Take the step: ``loss.backward(); optimizer.step()``."""
    adam, params = adam_of(step), {name: torch.nn.Parameter(p) for name, p in _tensors(step.params).items()}
    if adam.eps_root > 0:
        raise NotImplementedError("update with eps_root: PyTorch has none")
    optimizer = torch.optim.AdamW(
        params.values(), lr=adam.lr, betas=adam.betas, eps=adam.eps, weight_decay=adam.weight_decay
    )
    for name, p in params.items():
        optimizer.state[p] = {
            "step": torch.tensor(float(step.state.step)),
            "exp_avg": _tensor(step.state.m[name]),
            "exp_avg_sq": _tensor(step.state.v[name]),
        }
    each = losses(stack_of(step.net), dict(params), _tensor(step.train.x), _tensor(step.train.y))
    (each.mean() if step.reduction == "mean" else each.sum()).backward()
    for p in params.values():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # of a parameter that no loss depends on
    optimizer.step()
    state = {name: optimizer.state[p] for name, p in params.items()}
    return (
        {name: p.detach().numpy() for name, p in params.items()},
        AdamState(
            CompletedSteps(step.state.next_step),
            {name: each["exp_avg"].numpy() for name, each in state.items()},
            {name: each["exp_avg_sq"].numpy() for name, each in state.items()},
        ),
    )


def utility(step: Step, coalition: Array) -> float:
    """Return U(S)."""
    return _Problem(step).of_coalition(coalition, "exact")


def marginals(step: Step, kind: str = "first", loss: str = "exact") -> Marginals:
    """Return the marginal utilities, Shapley values by enumeration of all coalitions."""
    problem, n = _Problem(step), step.n
    nobody = np.zeros(n, bool)
    empty, total = problem.of_coalition(nobody, loss), problem.of_coalition(~nobody, loss)
    alone = np.eye(n, dtype=bool)
    if kind == "first":
        values = [problem.of_coalition(mask, loss) - empty for mask in alone]
    elif kind == "last":
        values = [total - problem.of_coalition(~mask, loss) for mask in alone]
    elif n > MOST_ENUMERATED:
        raise NotImplementedError(f"Shapley values of more than {MOST_ENUMERATED} samples")
    else:
        masks = (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1  # coalition number S has the bits of S
        U = np.array([problem.of_coalition(mask, loss) for mask in masks])
        # |S|! (n − 1 − |S|)! / n!
        weights = np.array([1 / (n * float(np.prod([(n - k) / k for k in range(1, s + 1)]))) for s in range(n)])
        values = []
        for i in range(n):
            without = np.flatnonzero(~masks[:, i])
            values.append(float(weights[masks[without].sum(axis=1)] @ (U[without + 2**i] - U[without])))
    return Marginals(np.array(values), empty, total, np.zeros(n))


def scores(
    step: Step,
    slope: str = "random_order",
    gradient: str = "midpoint",
    efficient: bool = False,
    per_validation: bool = False,
    nodes: tuple[int, int] | None = None,
    denominator: str = "exact",
    kind: str = "shapley",
) -> Array:
    """Return ⟨Γ ⊙ S, x_i⟩, and with slope "two_term" also ⟨Γ ⊙ R, f(x_i)⟩."""
    given: Any = Estimator(slope, gradient, efficient, per_validation, nodes, denominator, kind)  # type: ignore[arg-type]
    problem = _Problem(step)
    gamma: Any = sum(w * problem.validation_gradients(theta) for theta, w in _points(problem, given))
    if not per_validation:
        gamma = gamma.mean(dim=0, keepdim=True)
    values = torch.zeros(step.n, len(gamma), dtype=gamma.dtype)
    for x, coefficient in _terms(problem, given):
        values += x @ (gamma * coefficient).T
    if efficient:
        empty = problem.validation_losses(problem.after(torch.zeros_like(problem.g)))
        gain = empty - problem.validation_losses(problem.after(problem.g))
        gain = gain if per_validation else gain.mean(dim=0, keepdim=True)
        values += (gain - values.sum(dim=0)) / step.n
    found: Array = (values if per_validation else values[:, 0]).numpy()
    return found


def _terms(problem: _Problem, given: Estimator) -> list[tuple[Tensor, Tensor]]:
    """Return (x, S), and with slope "two_term" (f(x), R)."""
    x, g, adam, n = problem.x, problem.g, problem.adam, problem.step.n
    if given.slope == TWO_TERM:
        S, R = fit_two_terms(given.kind, adam, x, given.nodes)
        return [(x, S), (x.sign() * x.abs().sqrt(), R)]
    if given.denominator == "previous":
        return [(x, adam.previous())]
    variance = (x - g / n).square().sum(dim=0) * (n / max(n - 1, 1))
    return [(x, slope_of(given.slope, adam, g, variance, n, given.nodes))]


def _points(problem: _Problem, given: Estimator) -> Iterator[tuple[Tensor, float]]:
    """Yield the points θ at which Γ is a mean of ∇L, with their weights."""
    if given.gradient == "start":
        yield problem.theta, 1.0
        return
    n, low, high = problem.step.n, 0.0, 1.0
    if given.slope == TWO_TERM:
        low, high = {"first": (0.0, 1 / n), "last": (1 - 1 / n, 1.0), "shapley": (0.0, 1.0)}[given.kind]
    empty, full = problem.adam.step(torch.zeros_like(problem.g)), problem.adam.step(problem.g)
    for place, w in [(0.5, 1.0)] if given.gradient == "midpoint" else path_rule(given.nodes[0]):
        along = low + (high - low) * place
        yield problem.decayed - ((1 - along) * empty + along * full), w


def influence(step: Step) -> Array:
    """Return ⟨∇L(θ⁺), A'(g) ⊙ x_i⟩."""
    problem = _Problem(step)
    gamma = problem.validation_gradients(problem.after(problem.g)).mean(dim=0)
    values: Array = (problem.x @ (gamma * problem.adam.difference(problem.g, problem.g))).numpy()
    return values


def captures(params: Params, batch: Batch, *, model: Any, directions: Params) -> dict[str, dict[str, Array]]:
    """Return Σ_i x_i, ⟨direction, x_i⟩ and Σ_i x_i² of each parameter, where x_i = ∇ℓ_i has no weight."""
    found = each_gradient(stack_of(model), _tensors(params), _tensor(batch.x), _tensor(batch.y))
    return {
        name: {
            "sum": x.sum(dim=0).numpy(),
            "dot": (x.flatten(1) @ _tensor(directions[name]).flatten()).numpy(),
            "squares": x.square().sum(dim=0).numpy(),
        }
        for name, x in found.items()
    }
