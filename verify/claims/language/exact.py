"""Exact quantities of a step of a language model: losses by the engine's forward pass, all else by the oracle.

=============================  ============================================================================
target                         meaning (docs/method.md 2 and 4)
=============================  ============================================================================
first                          U({i}) − U(∅)
U({i})                         the paper's marginal: `first` with the step that momentum takes without data
first, weight 1                `first` with x_i = ∇ℓ_i in place of ∇ℓ_i/n, at the same state
U({i}), weight 1               likewise U({i})
own step                       ⟨Γ, A(∇ℓ_i)⟩, Γ at θ: each sample's own step of Adam
own step, no history           ⟨Γ, A(∇ℓ_i) − A(0)⟩
last                           U(B) − U(B∖{i})
shapley                        the Shapley value of U
shapley + U(∅)                 the same with the momentum's step in every marginal
=============================  ============================================================================
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from adamshap.gpu.case import Case
from adamshap.gpu.validation import mean_loss
from adamshap.reference.adam import decayed, step_coefficients, update_map
from adamshap.reference.contract import Array, Params, Step
from adamshap.reference.game import coalition_gradient, sampled_shapley_values, shapley_values
from adamshap.verify.claims.language.models import KINDS, kind_of

FIRST, PAPER = "first", "U({i})"
FIRST_1, PAPER_1 = "first, weight 1", "U({i}), weight 1"
OWN, OWN_DATA = "own step", "own step, no history"
LAST, SHAPLEY, SHAPLEY_HISTORY = "last", "shapley", "shapley + U(∅)"

Utility = Callable[..., float]
"""Gradient of a coalition, and optionally names of the only parameters that move, to the decrease of the loss."""


@contextmanager
def utilities(step: Step) -> Iterator[Utility]:
    """Give the function from a coalition's gradient to its utility; the loss is the engine's, in float64."""
    case = Case.of(step, "cpu", "float64")
    context, batch = case.context, case.batch
    start, c = decayed(step), step_coefficients(step)
    with context.at_work():

        def loss(params: Mapping[str, Array]) -> float:
            return float(mean_loss(context, dict(params), batch.valid_x, batch.valid_y))

        before = loss(step.params)

        def utility(g: Params, only: frozenset[str] | None = None) -> float:
            moved = {
                name: start[name] - update_map(c[name], array) if only is None or name in only else step.params[name]
                for name, array in g.items()
            }
            return before - loss(moved)

        yield utility


def targets(step: Step, x: Params, gamma: Params, *, shapley: int = 0, counted: int, seed: int) -> dict[str, Array]:
    """Return the exact quantities of a step, by name.

    Parameters
    ----------
    step : Step
    x : dict of arrays (n, …)
        The samples' contributions.
    gamma : dict of arrays
        Γ at θ.
    shapley : int
        Number of utilities for sampled Shapley values; 0 for no Shapley values.
    counted : int
        Largest n whose Shapley values come from all coalitions.
    seed : int
        Of the sampled orders.
    """
    n = step.n
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    with utilities(step) as U:
        empty, total = U({name: np.zeros_like(a) for name, a in g.items()}), U(g)
        alone = np.array([U({name: x_i[i] for name, x_i in x.items()}) for i in range(n)])
        alone_1 = np.array([U({name: n * x_i[i] for name, x_i in x.items()}) for i in range(n)])
        without = np.array([U({name: g[name] - x_i[i] for name, x_i in x.items()}) for i in range(n)])
        found = {
            FIRST: alone - empty,
            PAPER: alone,
            FIRST_1: alone_1 - empty,
            PAPER_1: alone_1,
            LAST: total - without,
        }
        if shapley:
            values = _shapley(lambda coalition: U(coalition_gradient(x, coalition)), n, shapley, counted, seed)
            found |= {SHAPLEY: values, SHAPLEY_HISTORY: values + empty}
    own = own_steps(step, x, gamma)
    return found | {OWN: own, OWN_DATA: own - history(step, gamma, decay=False)}


def _shapley(game: Callable[[Array], float], n: int, evaluations: int, counted: int, seed: int) -> Array:
    if n <= counted:
        return shapley_values(game, n)
    permutations = 2 * max(2, evaluations // (2 * n))
    return sampled_shapley_values(game, n, permutations=permutations, seed=seed)[0]


def own_steps(step: Step, x: Params, gamma: Params) -> Array:
    """Return ⟨Γ, A(∇ℓ_i)⟩ of each sample: the paper's own "ground truth", not the step that training takes."""
    c = step_coefficients(step)
    return total_over({name: update_map(c[name], step.n * x_i) * gamma[name] for name, x_i in x.items()}, step.n)


def history(step: Step, gamma: Params, *, decay: bool = True) -> float:
    """Return ⟨Γ, A(0)⟩, the same for every sample; by default with the weight decay's part of the step."""
    c = step_coefficients(step)
    start = decayed(step) if decay else step.params
    return float(
        sum(
            np.vdot(gamma[name], update_map(c[name], np.zeros_like(theta)) + theta - start[name])
            for name, theta in step.params.items()
        )
    )


def total_over(parts: Mapping[str, Array], n: int) -> Array:
    """Return the sum of arrays (n, …) over parameters and elements: (n,)."""
    total: Array = np.sum([part.reshape(n, -1).sum(axis=1) for part in parts.values()], axis=0)
    return total


def firsts_by_kind(step: Step, x: Params) -> dict[str, Array]:
    """Return `first` of the step in which the parameters of one kind alone move, by kind."""
    found = {}
    zero = {name: np.zeros_like(x_i[0]) for name, x_i in x.items()}
    with utilities(step) as U:
        for kind in KINDS:
            only = frozenset(name for name in x if kind_of(name) == kind)
            if only:
                alone = [U({name: x_i[i] for name, x_i in x.items()}, only) for i in range(step.n)]
                found[str(kind)] = np.array(alone) - U(zero, only)
    return found
