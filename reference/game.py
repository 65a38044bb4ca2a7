"""The step as a cooperative game: the utility of a coalition of samples, and each sample's marginal contribution.

The optimiser's state is fixed at its value before the step; only the coalition varies. Everything here is computed by
evaluating the loss (or its first-order approximation), never by an estimator.

=====================  ==========================  ==========================================================
paper / method 2       name                        meaning
=====================  ==========================  ==========================================================
S ⊆ B                  ``coalition``               boolean mask (n,)
g_S                    ``coalition_gradient``      Σ_{i∈S} x_i; the divisor stays n
U(S)                   ``utility``                 L(θ) − L(θ − A(g_S) − η λ θ)
U₁(S)                  ``loss="first_order"``      ⟨∇L(θ), A(g_S)⟩
φ_i                    ``kind="shapley"``          Shapley value of U
=====================  ==========================  ==========================================================

A positive value means that the sample lowered the validation loss (In-Run Data Shapley, arXiv 2406.11011, has the
opposite sign).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from adamshap.reference import models
from adamshap.reference.adam import decayed, step_coefficients, update_map
from adamshap.reference.contract import (
    MARGINAL_LOSSES,
    MARGINALS,
    Array,
    Clipped,
    MarginalKind,
    MarginalLoss,
    Marginals,
    Params,
    Step,
    coalition_mask,
    float64_step,
    of_kind,
    one_of,
    permutations_of,
    refuse_overflow,
    seed_of,
    true_or_false,
)

Game = Callable[[Array], float]
"""A set function: boolean mask (n,) to utility."""

EXACT_LIMIT = 12
"""Largest n for which `marginals` enumerates all 2ⁿ coalitions; above, it samples."""


def utility(step: Step, coalition: Any, *, clip_each: bool = False) -> float:
    """Return U(S) = L(θ) − L(θ − A(g_S) − η λ θ), the decrease of the validation loss by a step with `coalition` alone.

    Parameters
    ----------
    step : Step
    coalition : bool array (n,)
        Mask of the batch's samples in the coalition; the gradient's divisor stays n.
    clip_each : bool
        With `Clipped`, clip every coalition's gradient by its own norm, in place of the whole batch's factor held.

    Returns
    -------
    float
        Decrease in units of the validation loss; positive if the loss fell.

    Raises
    ------
    ValueError, TypeError
        A bad coalition; a denominator of 0; a result beyond float64.
    """
    mask = coalition_mask(coalition, of_kind("step", step, Step).n)
    clip_each = true_or_false("clip_each", clip_each)
    with np.errstate(over="ignore", invalid="ignore"):  # the result is checked below
        value = exact_game(step, clip_each=clip_each)(mask)
    refuse_overflow({"utility": value}, np.float64)
    return value


def coalition_gradient(x: Params, coalition: Array) -> Params:
    """Return g_S = Σ_{i∈S} x_i of the per-sample contributions `x`."""
    return {name: np.tensordot(coalition, x_i, axes=1) for name, x_i in x.items()}


def gradients_of_coalitions(step: Step, *, clip_each: bool) -> Callable[[Array], Params]:
    """Return the gradient that Adam receives as a function of the coalition: g_S, or, by `clip_each`, c_S g_S."""
    if not (clip_each and isinstance(step.adam, Clipped)):
        held = models.sample_gradients(step)
        return lambda coalition: coalition_gradient(held, coalition)
    clipped, x = step.adam, models.unclipped_gradients(step)

    def clipped_gradient(coalition: Array) -> Params:
        g = coalition_gradient(x, coalition)
        c = models.clip_factor(clipped, g)
        return {name: c * array for name, array in g.items()}

    return clipped_gradient


def exact_game(step: Step, *, clip_each: bool = False) -> Game:
    """Return U as a function of the coalition; quantities common to all coalitions are computed once."""
    step = float64_step(step)
    gradient_of = gradients_of_coalitions(step, clip_each=clip_each)
    start, c = decayed(step), step_coefficients(step)
    before = models.mean_loss(step.net, step.params, step.valid)

    def U(coalition: Array) -> float:
        g = gradient_of(coalition)
        after = {name: start[name] - update_map(c[name], g[name]) for name in start}
        return float(before - models.mean_loss(step.net, after, step.valid))

    return U


def first_order_game(step: Step, *, clip_each: bool = False) -> Game:
    """Return U₁(S) = ⟨∇L(θ), A(g_S)⟩, the form that the paper's closed form approximates.

    The weight decay part, ⟨∇L(θ), η λ θ⟩, is the same for every coalition and is omitted.
    """
    step = float64_step(step)
    gradient_of = gradients_of_coalitions(step, clip_each=clip_each)
    c = step_coefficients(step)
    gradient = models.loss_gradient(step.net, step.params, step.valid)

    def U1(coalition: Array) -> float:
        g = gradient_of(coalition)
        return float(sum(np.vdot(gradient[name], update_map(c[name], g[name])) for name in g))

    return U1


def marginals(
    step: Step,
    kind: MarginalKind = "first",
    loss: MarginalLoss = "exact",
    *,
    permutations: int = 1024,
    seed: int = 0,
    clip_each: bool = False,
) -> Marginals:
    """Return each sample's marginal contribution to the utility of the step (docs/method.md 2).

    Parameters
    ----------
    step : Step
    kind : {"first", "last", "shapley"}
        "first": U({i}) − U(∅), the paper's fixed-state marginal utility minus its sample-independent term U(∅), which
        is returned separately. "last": U(B) − U(B∖{i}), leave one out. "shapley": the Shapley value of U, over all
        coalitions for n ≤ 12, above by antithetic permutations.
    loss : {"exact", "first_order"}
        "exact" evaluates the loss (U); "first_order" uses U₁(S) = ⟨∇L(θ), A(g_S)⟩.
    permutations : int
        Even number of permutations drawn if Shapley values are sampled.
    seed : int
        Seed of those permutations.
    clip_each : bool
        With `Clipped`, clip every coalition's gradient by its own norm, in place of the whole batch's factor held.

    Returns
    -------
    Marginals
        ``values`` (n,), ``empty`` = U(∅), ``total`` = U(B), ``standard_error`` (n,).

    Raises
    ------
    ValueError, TypeError
        An unknown name; a bad number of permutations; a denominator of 0; results beyond float64.
    """
    of_kind("step", step, Step)
    one_of("kind", kind, MARGINALS)
    one_of("loss", loss, MARGINAL_LOSSES)
    permutations, seed = permutations_of(permutations), seed_of(seed)
    make_game = exact_game if loss == "exact" else first_order_game
    clip_each = true_or_false("clip_each", clip_each)
    with np.errstate(over="ignore", invalid="ignore"):  # the results are checked below
        found = _marginals(make_game(step, clip_each=clip_each), step.n, kind, permutations, seed)
    refuse_overflow({"values": found.values, "empty": found.empty, "total": found.total}, np.float64)
    return found


def _marginals(game: Game, n: int, kind: MarginalKind, permutations: int, seed: int) -> Marginals:
    nobody, everybody = np.zeros(n, bool), np.ones(n, bool)
    empty, total = game(nobody), game(everybody)
    error = np.zeros(n)
    if kind == "first":
        values = np.array([game(i) for i in np.eye(n, dtype=bool)]) - empty
    elif kind == "last":
        values = total - np.array([game(~i) for i in np.eye(n, dtype=bool)])
    elif n <= EXACT_LIMIT:
        values = shapley_values(game, n)
    else:
        values, error = sampled_shapley_values(game, n, permutations=permutations, seed=seed)
    return Marginals(values, empty, total, error)


def shapley_values(game: Game, n: int) -> Array:
    """Return the Shapley values of `game` over all 2ⁿ coalitions.

    φ_i = Σ_{S ∌ i} |S|! (n − 1 − |S|)! / n! · (U(S ∪ {i}) − U(S))      (Shapley 1953)
    """
    members = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1  # row S: the binary digits of S
    U = np.array([game(coalition) for coalition in members])
    sizes = members.sum(axis=1)
    weight = np.array([1 / (n * math.comb(n - 1, size)) for size in range(n)])
    values = np.empty(n)
    for i in range(n):
        without = np.flatnonzero(~members[:, i])
        values[i] = weight[sizes[without]] @ (U[without + 2**i] - U[without])
    return values


def sampled_shapley_values(game: Game, n: int, *, permutations: int, seed: int) -> tuple[Array, Array]:
    """Return an unbiased estimate of the Shapley values of `game`, and its standard error.

    Samples arrive in a random order and each is credited with its marginal contribution (Castro, Gómez & Tejada 2009).
    Every order is followed by its reverse, whose marginals are negatively correlated with the first's (antithetic
    pairs, Mitchell et al. 2022). The pairs are independent, so their spread gives the standard error. The values of
    every order sum to U(B) − U(∅), and so does the estimate.

    Parameters
    ----------
    game : callable
        Boolean mask (n,) to utility.
    n : int
    permutations : int
        Even number, at least 4: a standard error needs two pairs.
    seed : int

    Returns
    -------
    values, standard_error : array (n,)
    """
    pairs = permutations // 2
    generator = np.random.default_rng(seed)
    samples = np.empty((pairs, n))
    for pair in range(pairs):
        order = generator.permutation(n)
        samples[pair] = (arrival_marginals(game, order) + arrival_marginals(game, order[::-1])) / 2
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / math.sqrt(pairs)


def arrival_marginals(game: Game, order: Array) -> Array:
    """Return each sample's contribution on arrival, for samples arriving in `order`: (n,), indexed by sample."""
    marginal, present = np.empty(len(order)), np.zeros(len(order), bool)
    before = game(present)
    for i in order:
        present[i] = True
        after = game(present)
        marginal[i], before = after - before, after
    return marginal
