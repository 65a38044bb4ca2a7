"""JAX: per-sample gradients by ``vmap(grad)``, with the step of ``optax.adamw``, for perceptrons and stacks of layers.

Short code rather than little memory: every per-sample gradient is formed, as one long vector. Sums over samples are
NumPy's, so that JAX compiles only for a few lengths of vectors, and once for each model and shape of a batch.

    adamshap verify adamshap.verify.candidates.jax_vmap

Not supported: settings by parameter, clipping, L2 decay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax

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
from adamshap.verify.candidates.jax_adam import AdamMap, legendre
from adamshap.verify.candidates.jax_compiling import compiled, padded
from adamshap.verify.candidates.jax_layers import losses_and_gradients
from adamshap.verify.candidates.parts import adam_of, stack_of

__all__ = ["SUPPORTS", "captures", "influence", "marginals", "scores", "update", "utility"]

SUPPORTS = ("sequential",)

MOST_ENUMERATED = 12
"""Samples of a batch whose coalitions are enumerated for Shapley values."""


def _flat(arrays: Params) -> Array:
    return np.concatenate([array.ravel() for array in arrays.values()])


@dataclass(frozen=True)
class _Problem:
    """A step; vectors have all parameters, in the order of ``step.params``."""

    step: Step

    @cached_property
    def model(self) -> Sequential:
        return stack_of(self.step.net)

    @cached_property
    def adam(self) -> AdamMap:
        state = self.step.state
        return AdamMap(adam_of(self.step), state.next_step, _flat(state.m), _flat(state.v))

    @cached_property
    def theta(self) -> Array:
        return _flat(self.step.params)

    @cached_property
    def decayed(self) -> Array:
        """θ − η λ θ."""
        adam = adam_of(self.step)
        return self.theta - adam.lr * adam.weight_decay * self.theta

    @cached_property
    def x(self) -> Array:
        """x_i of each training sample, one per row."""
        weight = 1 / self.step.n if self.step.reduction == "mean" else 1.0
        return weight * self.evaluated(self.theta, self.step.train)[1]

    @cached_property
    def g(self) -> Array:
        return self.x.sum(axis=0)

    def named(self, vector: Array) -> Params:
        """Return the parameters in a vector."""
        parts = np.split(vector, np.cumsum([p.size for p in self.step.params.values()])[:-1])
        return {name: part.reshape(p.shape) for (name, p), part in zip(self.step.params.items(), parts, strict=True)}

    def after(self, g: Array) -> Array:
        """Return θ after a step with the gradient g."""
        return self.decayed - self.adam.step(g)

    def evaluated(self, theta: Array, batch: Batch) -> tuple[Array, Array]:
        """Return ℓ_i and ∇ℓ_i, one per row; the shorter batch is padded with its first sample, to compile only once."""
        index = np.append(np.arange(batch.n), np.zeros(max(self.step.n, self.step.n_val) - batch.n, int))
        found = losses_and_gradients(self.model, self.named(theta), batch.x[index], batch.y[index])
        losses, gradients = jax.device_get(found)
        rows = [gradients[name][: batch.n].reshape(batch.n, -1) for name in self.step.params]
        return losses[: batch.n], np.concatenate(rows, axis=1)

    def validation_losses(self, theta: Array) -> Array:
        return self.evaluated(theta, self.step.valid)[0]

    def validation_gradients(self, theta: Array) -> Array:
        return self.evaluated(theta, self.step.valid)[1]

    def of_coalition(self, mask: Array, loss: str) -> float:
        """Return U(S), or its first-order version ⟨∇L(θ), A(g_S)⟩."""
        g = self.x[mask].sum(axis=0)
        if loss == "first_order":
            return float(self.start_gradient @ self.adam.step(g))
        return float(self.start_loss - self.validation_losses(self.after(g)).mean())

    @cached_property
    def start_loss(self) -> Any:
        return self.validation_losses(self.theta).mean()

    @cached_property
    def start_gradient(self) -> Array:
        mean: Array = self.validation_gradients(self.theta).mean(axis=0)
        return mean


def _x64(step: Step) -> Any:
    return jax.enable_x64(step.dtype == np.float64)


@compiled(0)
def _adamw(adam: Any, count: Any, theta: Any, m: Any, v: Any, g: Any) -> Any:
    optimizer = optax.adamw(adam.lr, *adam.betas, eps=adam.eps, eps_root=adam.eps_root, weight_decay=adam.weight_decay)
    state = (optax.ScaleByAdamState(count, m, v), *optimizer.init(theta)[1:])
    updates, (after, *_) = optimizer.update(g, state, theta)
    return optax.apply_updates(theta, updates), after.mu, after.nu, after.count


def update(step: Step) -> tuple[Params, AdamState]:
    """Take the step with ``optax.adamw``."""
    with _x64(step):
        problem, state = _Problem(step), step.state
        vectors = map(padded, (problem.theta, _flat(state.m), _flat(state.v), problem.g))
        *after, count = jax.device_get(_adamw(adam_of(step), np.int32(state.step), *vectors))
        # `device_get` may return views of the device's memory.
        params, m, v = (problem.named(vector[: len(problem.g)].copy()) for vector in after)
        return params, AdamState(CompletedSteps(int(count)), m, v)


def utility(step: Step, coalition: Array) -> float:
    """Return U(S)."""
    with _x64(step):
        return _Problem(step).of_coalition(coalition, "exact")


def marginals(step: Step, kind: str = "first", loss: str = "exact") -> Marginals:
    """Return the marginal utilities, Shapley values by enumeration of all coalitions."""
    with _x64(step):
        problem, n = _Problem(step), step.n
        nobody, alone = np.zeros(n, bool), np.eye(n, dtype=bool)
        empty, total = problem.of_coalition(nobody, loss), problem.of_coalition(~nobody, loss)
        if kind == "first":
            values = np.array([problem.of_coalition(mask, loss) - empty for mask in alone])
        elif kind == "last":
            values = np.array([total - problem.of_coalition(~mask, loss) for mask in alone])
        elif n > MOST_ENUMERATED:
            raise NotImplementedError(f"Shapley values of more than {MOST_ENUMERATED} samples")
        else:
            values = _shapley(problem, loss)
        return Marginals(values, empty, total, np.zeros(n))


def _shapley(problem: _Problem, loss: str) -> Array:
    n = problem.step.n
    masks = (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1  # coalition number S has the bits of S
    U = np.array([problem.of_coalition(mask, loss) for mask in masks])
    sizes = masks.sum(axis=1)
    factorial = np.cumprod([1, *range(1, n + 1)], dtype=float)
    weight = factorial[sizes] * factorial[np.maximum(n - 1 - sizes, 0)] / factorial[n]  # |S|! (n − 1 − |S|)! / n!
    without = [np.flatnonzero(~masks[:, i]) for i in range(n)]
    return np.array([weight[S] @ (U[S + 2**i] - U[S]) for i, S in enumerate(without)])


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
    with _x64(step):
        problem = _Problem(step)
        gamma: Any = sum(w * problem.validation_gradients(theta) for theta, w in _points(problem, given))
        if not per_validation:
            gamma = gamma.mean(axis=0, keepdims=True)
        values: Array = sum(x @ (gamma * coefficient).T for x, coefficient in _terms(problem, given))
        if efficient:
            empty, full = problem.after(np.zeros_like(problem.g)), problem.after(problem.g)
            gain = problem.validation_losses(empty) - problem.validation_losses(full)
            gain = gain if per_validation else gain.mean(keepdims=True)
            values = values + (gain - values.sum(axis=0)) / step.n
        return values if per_validation else values[:, 0]


def _terms(problem: _Problem, given: Estimator) -> list[tuple[Array, Array]]:
    """Return (x, S), and with slope "two_term" (f(x), R)."""
    x = problem.x
    if given.slope == TWO_TERM:
        S, R = problem.adam.two_terms(given.kind, x, given.nodes)
        return [(x, S), (np.sign(x) * np.sqrt(np.abs(x)), R)]
    if given.denominator == "previous":
        return [(x, problem.adam.previous())]
    return [(x, problem.adam.slope(given.slope, x, given.nodes))]


def _points(problem: _Problem, given: Estimator) -> Iterator[tuple[Array, float]]:
    """Yield the points θ at which Γ is a mean of ∇L, with their weights."""
    if given.gradient == "start":
        yield problem.theta, 1.0
        return
    n, low, high = problem.step.n, 0.0, 1.0
    if given.slope == TWO_TERM:
        low, high = {"first": (0.0, 1 / n), "last": (1 - 1 / n, 1.0), "shapley": (0.0, 1.0)}[given.kind]
    rule: Any = ([0.5], [1.0]) if given.gradient == "midpoint" else legendre(given.nodes[0])
    empty, full = problem.adam.step(np.zeros_like(problem.g)), problem.adam.step(problem.g)
    for place, w in zip(*rule, strict=True):
        along = float(low + (high - low) * place)
        yield problem.decayed - ((1 - along) * empty + along * full), float(w)


def influence(step: Step) -> Array:
    """Return ⟨∇L(θ⁺), A'(g) ⊙ x_i⟩."""
    with _x64(step):
        problem = _Problem(step)
        gamma = problem.validation_gradients(problem.after(problem.g)).mean(axis=0)
        return problem.x @ (gamma * problem.adam.difference(problem.g, problem.g))


def captures(params: Params, batch: Batch, *, model: Any, directions: Params) -> dict[str, dict[str, Array]]:
    """Return Σ_i x_i, ⟨direction, x_i⟩ and Σ_i x_i² of each parameter, where x_i = ∇ℓ_i has no weight."""
    with jax.enable_x64(next(iter(params.values())).dtype == np.float64):
        _, found = jax.device_get(losses_and_gradients(stack_of(model), dict(params), batch.x, batch.y))
    return {
        name: {
            "sum": x.sum(axis=0),
            "dot": x.reshape(len(x), -1) @ directions[name].ravel(),
            "squares": (x**2).sum(axis=0),
        }
        for name, x in found.items()
    }
