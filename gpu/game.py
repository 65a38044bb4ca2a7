"""The game of one step: utilities of coalitions, marginals and Shapley values.

======  =================  ==============================================================
paper   name               meaning
======  =================  ==============================================================
U       `Game.utility`     decrease of the validation loss by a step with a coalition
S       ``coalition``      mask of the samples that take part
======  =================  ==============================================================
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adamshap.gpu.arrays import BatchGradient, ValidationGradient, like
from adamshap.gpu.captures import Captures, write_sums
from adamshap.gpu.case import Case
from adamshap.gpu.clipping import clip, multiply
from adamshap.gpu.hyperparameters import Hyperparameters, refuse_division_by_zero
from adamshap.gpu.parameter_pass import take_step
from adamshap.reference.contract import Array, MarginalKind, MarginalLoss, Marginals

__all__ = ["Game", "marginals_of"]

ALL_COALITIONS_UP_TO = 12  # samples


@dataclass(frozen=True)
class Game:
    """The utility of coalitions of one batch."""

    case: Case
    hyperparameters: Hyperparameters
    captures: Captures
    base: float | ValidationGradient  # L(θ), or ∇L(θ) for the first-order loss
    factor: Any = None  # c of the whole batch, held for every coalition
    clip_each: bool = False

    @classmethod
    def of(cls, case: Case, loss: MarginalLoss, *, clip_each: bool = False) -> "Game":
        """Return the game of a case, with one of `MARGINAL_LOSSES`; `clip_each` clips each coalition anew."""
        context, batch = case.context, case.batch
        workspace = context.stack.workspace(context, "valid", batch.valid_x)
        validation = context.stack.run(context, workspace, case.state.theta, batch.valid_y, 1 / batch.n_val)
        base: float | ValidationGradient = float(validation.losses.mean(dtype="float64"))
        if loss == "first_order":
            base = ValidationGradient(like(context, "validation gradient"))
            write_sums(context, validation, base)
        held, captures, factor = case.hyperparameters, case.captures(), None
        if held.clipped is not None and not clip_each:
            g = BatchGradient(like(context, "coalition"))
            write_sums(context, captures, g)
            factor = clip(context, held.clipped, g)
        return cls(case, held, captures, base, factor, clip_each)

    @property
    def n(self) -> int:
        """Number of samples of the batch."""
        return self.case.batch.n

    def utility(self, coalition: Any) -> float:
        """Return U(S), or U₁(S)."""
        context = self.case.context
        mask = context.backend.real(coalition.astype(np.float64))[:, None]
        g = BatchGradient(like(context, "coalition"))
        write_sums(context, self.captures.weighted(mask), g)
        if self.clip_each:
            clip(context, self.hyperparameters.clipped, g)
        for array in g.values():
            multiply(context, array, self.factor)
        refuse_division_by_zero(context, self.hyperparameters, self.case.state.v, g, self.case.state.theta)
        return self._exact(g, self.base) if isinstance(self.base, float) else self._first_order(g, self.base)

    def _exact(self, g: BatchGradient, before: float) -> float:
        """Return the decrease of the loss from `before`, by a step with the gradient `g`."""
        context, batch, new = self.case.context, self.case.batch, self.case.fresh()
        take_step(context, self.hyperparameters.scalars, self.case.state, g, new)
        workspace = context.stack.workspace(context, "valid", batch.valid_x)
        losses = context.stack.losses(context, workspace, new.theta, batch.valid_y)
        return before - float(losses.mean(dtype="float64"))

    def _first_order(self, g: BatchGradient, gradient: ValidationGradient) -> float:
        """Return ⟨∇L(θ), A(g)⟩."""
        context, state, new = self.case.context, self.case.state, self.case.fresh()
        # From θ = 0 the step is −A(g_S) to its last digit; θ − A(g_S) would round it off. So L2 decay joins g here.
        zeros = {key: context.backend.xp.zeros_like(a) for key, a in g.items()}
        scalars = dict(self.hyperparameters.scalars)
        for key, one in scalars.items():
            if one.l2:
                g[key] += g[key].dtype.type(one.l2) * state.theta[key]
                scalars[key] = replace(one, l2=0.0)
        take_step(context, scalars, replace(state, theta=zeros), g, new)
        products = [(gradient[key] * moved).sum(dtype="float64") for key, moved in new.theta.items()]
        return -float(sum(products))


def marginals_of(game: Game, kind: MarginalKind, permutations: int, seed: int) -> Marginals:
    """Return the marginal of every sample; for "shapley", over all coalitions of few samples, else by sampling."""
    n = game.n
    error, singles = np.zeros(n), np.eye(n, dtype=bool)
    empty, total = game.utility(np.zeros(n, bool)), game.utility(np.ones(n, bool))
    if kind == "first":
        values = np.array([game.utility(alone) - empty for alone in singles])
    elif kind == "last":
        values = np.array([total - game.utility(~alone) for alone in singles])
    elif n > ALL_COALITIONS_UP_TO:
        values, error = _sampled_shapley(game, permutations // 2, seed)
    else:
        values = _exact_shapley(game)
    return Marginals(values, empty, total, error)


def _exact_shapley(game: Game) -> Array:
    """Return the Shapley values from all 2ⁿ coalitions; bit i of a coalition's number says whether i takes part."""
    n = game.n
    members = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    value = np.array([game.utility(row.astype(bool)) for row in members])
    size = members.sum(axis=1)
    chance = np.array([1 / (n * math.comb(n - 1, s)) for s in range(n)])
    values = np.empty(n)
    for i in range(n):
        without = np.flatnonzero(members[:, i] == 0)
        values[i] = chance[size[without]] @ (value[without | (1 << i)] - value[without])
    return values


def _sampled_shapley(game: Game, pairs: int, seed: int) -> tuple[Array, Array]:
    """Return means over random orders, each with its reverse, and the standard errors of these means."""
    generator, n = np.random.default_rng(seed), game.n
    drawn = np.zeros((pairs, n))
    for row in drawn:
        order = generator.permutation(n)
        for direction in (order, order[::-1]):
            mask = np.zeros(n, bool)
            before = game.utility(mask)
            for i in direction:
                mask[i] = True
                after = game.utility(mask)
                row[i] += (after - before) / 2
                before = after
    return drawn.mean(axis=0), drawn.std(axis=0, ddof=1) / math.sqrt(pairs)
