"""How good the scores are for a PyTorch model and batch: their correlation with exact marginals, by the oracle.

=======  =======================  ==================================================
paper    name                     meaning
=======  =======================  ==================================================
U        ``exact_game``           utility of a coalition
φ        ``marginals.values``     marginals, exact or sampled
R        ``correlation``          Pearson's correlation of scores with them
s_i      ``standard_error``       standard error of φ_i
=======  =======================  ==================================================
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from adamshap.reference.contract import (
    MARGINALS,
    TWO_TERM,
    Array,
    Estimator,
    Gradient,
    MarginalKind,
    Marginals,
    Params,
    Reduction,
    ScoreSlope,
    Step,
    one_of,
    permutations_of,
    positive_integer,
    refuse,
    refuse_overflow,
    seed_of,
)
from adamshap.reference.game import exact_game, marginals, sampled_shapley_values, shapley_values
from adamshap.reference.models import sample_gradients
from adamshap.reference.scoring import dot_products, part_of, terms_of
from adamshap.reference.validation import validation_gradients
from adamshap.torch.oracle.own_model import Losses
from adamshap.torch.oracle.step import torch_step

__all__ = ["Fidelity", "fidelity"]

SLOPES: tuple[ScoreSlope, ...] = get_args(ScoreSlope)
GRADIENTS: tuple[Gradient, ...] = ("start", "midpoint")
"""The alternatives, in the order of the table."""

NAMES = {"first": "first-arrival marginals", "last": "leave-one-out marginals", "shapley": "Shapley values"}


@dataclass(frozen=True, eq=False)
class Fidelity:
    """The scores of one step beside its exact marginals; ``print`` shows it as a table.

    Parameters
    ----------
    chosen : tuple of two str
        Slope and gradient that were asked for.
    kind : {"first", "last", "shapley"}
        The marginals.
    permutations : int
        Number of orders that were drawn; 0 if the marginals are exact.
    marginals : Marginals
    scores : dict of arrays (n,)
        By slope and gradient.
    step : int
        t, the number of the step.
    n_val : int
        Number of validation samples.
    """

    chosen: tuple[ScoreSlope, Gradient]
    kind: MarginalKind
    permutations: int
    marginals: Marginals
    scores: dict[tuple[ScoreSlope, Gradient], Array]
    step: int
    n_val: int

    @property
    def correlation(self) -> dict[tuple[ScoreSlope, Gradient], float]:
        """Pearson's R of each score with the marginals; NaN if one of them is the same for all samples."""
        return {key: correlation(values, self.marginals)[0] for key, values in self.scores.items()}

    @property
    def error(self) -> dict[tuple[ScoreSlope, Gradient], float]:
        """Standard error of each R by that of sampled marginals."""
        return {key: correlation(values, self.marginals)[1] for key, values in self.scores.items()}

    @property
    def ceiling(self) -> float:
        """About the R of exact marginals with the sampled ones: √(1 − Σ s²/Σ(φ − φ̄)²)."""
        noise, spread = self.marginals.standard_error, self.marginals.values - self.marginals.values.mean()
        total = float(spread @ spread)
        return math.sqrt(max(1 - float(noise @ noise) / total, 0.0)) if total else math.nan

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        n = len(self.marginals.values)
        yield f"R with {NAMES[self.kind]} of {n} samples, step {self.step}, {self.n_val} validation samples"
        if self.permutations:
            yield f"({self.permutations} orders drawn; exact values would have R ≈ {_cut(self.ceiling):.4f})"
        gradients = list(dict.fromkeys(gradient for _, gradient in self.scores))
        yield f"{'slope':14}" + "".join(f"{gradient:20}" for gradient in gradients).rstrip()
        for slope in dict.fromkeys(slope for slope, _ in self.scores):
            cells = "".join(f"{self._cell((slope, gradient)):20}" for gradient in gradients)
            yield f"{slope:14}{cells}".rstrip()

    def _cell(self, key: tuple[ScoreSlope, Gradient]) -> str:
        if key not in self.scores:
            return ""
        r, error = correlation(self.scores[key], self.marginals)
        bar = f" ± {error:.1g}" if self.permutations else ""
        return f"{_cut(r):7.4f}{bar}" + ("  ←" if key == self.chosen else "")


def fidelity(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Losses,
    batch: Any,
    validation: Any,
    *,
    slope: ScoreSlope = "random_order",
    gradient: Gradient = "midpoint",
    nodes: tuple[int, int] | None = None,
    kind: MarginalKind = "shapley",
    validation_losses: Losses | None = None,
    reduction: Reduction = "mean",
    clip: float | None = None,
    permutations: int = 64,
    seed: int = 0,
    limit: int = 2**31,
) -> Fidelity:
    """Compare the scores of the step that the optimiser is about to take with its exact marginals.

    Everything is the oracle's, in double precision, with every x_i materialised: n + 2 utilities for "first" and
    "last", for "shapley" at most ``permutations`` times n + 1; each is a forward pass of the validation samples. The
    scores are those of `slope` and `gradient`, and of all other slopes with the gradients "start" and "midpoint".

    Parameters
    ----------
    model, optimizer, losses, batch, validation : object
        As for `torch_step`.
    slope, gradient, nodes : str, str, tuple of two ints
        The estimator, as for `Attribution`.
    kind : {"first", "last", "shapley"}
        The marginals, and what "two_term" approximates.
    validation_losses, reduction, clip : callable, str, float
        As for `torch_step`.
    permutations : int
        Even number of orders that are drawn for Shapley values, unless all coalitions are fewer evaluations.
    seed : int
        Seed of the orders.
    limit : int
        Largest size in bytes of the gradients of all training and validation samples.

    Returns
    -------
    Fidelity
        The correlations; ``print`` shows a table.

    Raises
    ------
    ValueError, TypeError
        As for `torch_step`; gradients beyond `limit`.

    Examples
    --------
    >>> print(fidelity(model, optimizer, losses, (x, y), (valid_x, valid_y)))  # doctest: +SKIP
    """
    one_of("kind", kind, MARGINALS)
    chosen = Estimator(slope, gradient, nodes=nodes, kind=kind if slope == TWO_TERM else "shapley")
    permutations, seed = permutations_of(permutations), seed_of(seed)
    limit = positive_integer("limit", limit)
    step = torch_step(
        model,
        optimizer,
        losses,
        batch,
        validation,
        validation_losses=validation_losses,
        reduction=reduction,
        clip=clip,
    )
    _refuse_size(step, limit)
    with np.errstate(over="ignore", invalid="ignore"):  # the results are checked below
        found, drawn = _marginals(step, kind, permutations, seed)
        scores = _scores(step, chosen, kind)
    named = {f"scores of {slope!r}, {gradient!r}": values for (slope, gradient), values in scores.items()}
    refuse_overflow(named | {"marginals": found.values}, np.float64)
    which = (chosen.slope, chosen.gradient)
    return Fidelity(which, kind, drawn, found, scores, step.state.next_step, step.n_val)


def correlation(scores: Array, found: Marginals) -> tuple[float, float]:
    """Return Pearson's R of scores with marginals, and its standard error by theirs (docs/method.md 4).

    With a and b the centred scores and marginals, each of length 1, and c the length before, ∂R/∂φ_i = (a_i − R b_i)/c.
    """
    a, b = scores - scores.mean(), found.values - found.values.mean()
    length = float(np.linalg.norm(b))
    if not length or not a.any():
        return math.nan, math.nan
    a, b = a / np.linalg.norm(a), b / length
    r = float(a @ b)
    return r, float(np.linalg.norm((a - r * b) * found.standard_error)) / length


def _cut(r: float) -> float:
    """Return R without the digits that are not shown: only 1 is shown as 1."""
    return r if math.isnan(r) else math.trunc(r * 1e4) / 1e4


def _refuse_size(step: Step, limit: int) -> None:
    count = sum(p.size for p in step.params.values())
    size = 8 * count * (step.n + step.n_val)
    if size > limit:
        refuse(
            "batch",
            f"gradients of {step.n} + {step.n_val} samples of {count} parameters, {size / 2**30:.3g} GiB in float64",
            f"at most limit={limit} bytes: fewer samples, training and validation, a smaller model, or a larger limit",
        )


def _marginals(step: Step, kind: MarginalKind, permutations: int, seed: int) -> tuple[Marginals, int]:
    """Return the marginals and the number of orders drawn: all coalitions are enumerated where they are fewer."""
    if kind != "shapley":
        return marginals(step, kind), 0
    n, game = step.n, exact_game(step)
    empty, total = game(np.zeros(n, bool)), game(np.ones(n, bool))
    if 2**n <= permutations * (n + 1):
        return Marginals(shapley_values(game, n), empty, total, np.zeros(n)), 0
    values, error = sampled_shapley_values(game, n, permutations=permutations, seed=seed)
    return Marginals(values, empty, total, error), permutations


def _scores(step: Step, chosen: Estimator, kind: MarginalKind) -> dict[tuple[ScoreSlope, Gradient], Array]:
    """Return the scores of all slopes with all gradients; x and each Γ are computed once."""
    x = sample_gradients(step)
    g: Params = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    gammas: dict[tuple[Gradient, tuple[float, float], int], Params] = {}

    def gamma(gradient: Gradient, part: tuple[float, float], nodes: tuple[int, int]) -> Params:
        key = (gradient, part, nodes[0])
        if key not in gammas:
            gammas[key] = validation_gradients(step, gradient, g, nodes, each=False, part=part)
        return gammas[key]

    found = {}
    for slope in SLOPES:
        nodes = Estimator(slope).nodes if slope != chosen.slope else chosen.nodes
        terms = terms_of(step, slope, x, g, nodes, kind)
        for gradient in dict.fromkeys((*GRADIENTS, *((chosen.gradient,) if slope == chosen.slope else ()))):
            point = gamma(gradient, part_of(slope, kind, step.n), nodes)
            dots = [dot_products(f, {name: point[name] * S[name] for name in f})[:, 0] for f, S in terms]
            found[slope, gradient] = np.sum(dots, axis=0)
    return found
