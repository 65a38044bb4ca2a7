"""Mistakes in the game: the reduction, coalitions, and marginal utilities."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from adamshap.reference import adam, game, models
from adamshap.reference.adam import Coefficients
from adamshap.reference.contract import Array, Marginals, Params, Step
from adamshap.verify.faults.fault import SEEN, Fault, computes_with, returns, sees
from adamshap.verify.implementation import Ask, Query
from adamshap.verify.optimisers import with_settings


def _own_coalition_size(right: Any) -> Any:
    def gradient(x: Params, coalition: Array) -> Params:
        size = max(int(coalition.sum()), 1)
        return {name: g * (len(coalition) / size) for name, g in right(x, coalition).items()}

    return gradient


def _last_micro_batch(size: int) -> Callable[[Any], Any]:
    """Average the means of micro-batches of `size`, the last one with the weight of a full one."""

    def make(right: Any) -> Any:
        def gradients(step: Step) -> Params:
            if step.reduction == "sum" or step.n <= size:
                return right(step)  # type: ignore[no-any-return]
            chunks = -(-step.n // size)
            last = step.n - (chunks - 1) * size
            weight = np.full(step.n, step.n / (chunks * size))
            weight[(chunks - 1) * size :] = step.n / (chunks * last)
            return {name: x * weight.reshape(-1, *[1] * (x.ndim - 1)) for name, x in right(step).items()}

        return gradients

    return make


def _with_history(marginals: Marginals) -> Marginals:
    return replace(marginals, values=marginals.values + marginals.empty)


def _nothing_for_nobody(step: Step, query: Query, result: Any, ask: Ask) -> Any:
    return result if np.any(query.options["coalition"]) else 0.0


def _frozen_game(step: Step, query: Query, result: Any, ask: Ask) -> Any:
    """Divide every coalition's update by the whole batch's denominator."""
    full = models.batch_gradient(step)
    denominators = {name: adam.denominator(c, full[name]) for name, c in adam.step_coefficients(step).items()}
    queue: list[Array] = []

    def make(right: Any) -> Any:
        def update_map(c: Coefficients, g: Array) -> Array:
            if not queue:
                queue.extend(denominators.values())
            wrong: Array = c.lr * (c.mu + c.k * g) / queue.pop(0)
            return wrong

        return update_map

    return computes_with(adam.update_map, make)(ask)(step, query)


def _banzhaf(right: Any) -> Any:
    def values(U: game.Game, n: int) -> Array:
        members = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
        utilities = np.array([U(coalition) for coalition in members])
        return np.array([utilities[members[:, i]].mean() - utilities[~members[:, i]].mean() for i in range(n)])

    return values


def _first_and_last(right: Any) -> Any:
    def values(U: game.Game, n: int) -> Array:
        everybody, nobody = np.ones(n, bool), np.zeros(n, bool)
        alone = np.eye(n, dtype=bool)
        return np.array([(U(i) - U(nobody) + U(everybody) - U(~i)) / 2 for i in alone])

    return values


FAULTS: tuple[Fault, ...] = (
    # reduction and coalitions
    Fault(
        "sum-for-mean",
        "sum for mean",
        "the loss's reduction is not undone",
        sees(lambda step: replace(step, reduction="sum")),
    ),
    Fault(
        "mean-for-sum",
        "mean for sum",
        "the loss's reduction is not undone",
        sees(lambda step: replace(step, reduction="mean")),
    ),
    Fault(
        "coalition-size-as-divisor",
        "|S| as the divisor of a coalition's gradient",
        "the mean over the coalition is at hand",
        computes_with(game.coalition_gradient, _own_coalition_size),
    ),
    Fault(
        "last-micro-batch-full",
        "the last, partial micro-batch weighted as a full one",
        "gradient accumulation",
        computes_with(models.sample_gradients, _last_micro_batch(4)),
    ),
    # the game
    Fault(
        "sign",
        "the opposite sign",
        "arXiv 2406.11011 has the opposite sign",
        returns(
            lambda step, query, result, ask: (
                replace(result, values=-result.values) if isinstance(result, Marginals) else -result
            ),
            "scores",
            "marginals",
            "influence",
            "utility",
        ),
    ),
    Fault(
        "history-in-first",
        "U(∅) left in the marginals",
        "the paper's marginal utility holds it",
        returns(lambda step, query, result, ask: _with_history(result), "marginals"),
    ),
    Fault(
        "nothing-for-nobody",
        "U(∅) taken as 0",
        "without data no step is taken, and the momentum's is forgotten",
        returns(_nothing_for_nobody, "utility"),
    ),
    Fault(
        "frozen-denominator-in-the-game",
        "the whole batch's denominator for every coalition",
        "batch g² for the coalition's",
        returns(_frozen_game, "utility", "marginals"),
    ),
    Fault(
        "banzhaf",
        "the Banzhaf value for the Shapley value",
        "all coalitions weigh the same",
        computes_with(game.shapley_values, _banzhaf),
    ),
    Fault(
        "first-and-last",
        "the mean of first and last for the Shapley value",
        "a cheap stand-in",
        computes_with(game.shapley_values, _first_and_last),
    ),
    Fault(
        "utility-without-decay",
        "weight decay left out of the utility",
        SEEN,
        returns(
            lambda step, query, result, ask: ask(
                replace(step, adam=with_settings(step.adam, lambda one: replace(one, weight_decay=0.0))), query
            ),
            "utility",
            "marginals",
        ),
    ),
)
