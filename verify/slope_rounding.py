"""The bound's term for rounding errors of g that act on a score through Adam's slope S alone.

`tolerance.conditioning` perturbs the inputs, and with them x_i and g = Σ_i x_i alike. An implementation computes them
by different sums: g for the slope, x_i by a contraction with Γ ⊙ S. Three effects escape the draws.

1. With one sample x_i = g, and where |g_j| = ε the product S_j g_j is stationary (S = η ε/(|g| + ε)²): a common error
   of g and x_i leaves it as it is, one of g alone does not.
2. Where the terms of g_j cancel, as those of query and key do for a sequence of one position, or those below a norm
   over two numbers, all that an implementation has of g_j is a rounding error of some size ν_j. With v = 0 and a tiny ε
   the slope has a peak of height η k/D(0) and width of about D(0) at 0, far narrower than ν_j. Each draw hits one place
   on that peak, mostly far out: the errors have a heavy tail, and no number of draws bounds them.
3. The draws move every x_i by some u |x_i|, independently, and the oracle adds the results up in float64. An
   implementation's partial sums over the batch have errors too, of about u √n Σ_i |x_ij| in all: as a bound on g allows
   (`tolerance.rounding`), and more than √(Σ_i x_ij²), the size of the draws' change, by a factor of up to n.

With ν_j the largest error of g_j in some draws, plus that of the sum over the batch, the bound adds

    √Σ_j (|Γ_j| max_± |S_j(g_j ± ν_j) − S_j(g_j)| |x_ij|)²  over the elements with |g_j| > `CANCELLED` ν_j,
    Σ_j |Γ_j| max_{|g| ≤ ν_j} |S_j(g) − S_j(g_j)| |x_ij|    over the others, whose first digit may be wrong,

Γ and x_i enlarged by their own errors. It is computed only for an error that exceeds the bound without it.

======  ===============  ======================================================================
symbol  name             meaning
======  ===============  ======================================================================
ν       ``g_noise``      largest change of g over some draws, as in `conditioning`, plus the rounding of Σ_i x_i
S       in ``_terms``    slope, and for "two_term" also R
Γ       ``gamma``        validation gradient
======  ===============  ======================================================================
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.reference import adam, models, scoring, validation
from adamshap.reference.contract import Array, Estimator, Params, Step
from adamshap.verify.implementation import Query
from adamshap.verify.steps import perturbed
from adamshap.verify.tolerance import DRAWN, DRAWS, SAFETY, rounding, unit_roundoff
from adamshap.verify.usual_rounding import usual_rounding

__all__ = ["slope_rounding"]

CANCELLED = 2.0
"""Multiple of its rounding error up to which a gradient counts as cancelled."""

PLACES = (0.0, *(sign * 10.0**-power for power in range(13) for sign in (1, -1)))
"""Places at which the slope is evaluated, in units of ν: a peak at 0 may be far narrower."""


@dataclass(frozen=True)
class _Parts:
    """The factors of scores, by parameter: x_i (n, …), Γ (1 or n_val, …)."""

    x: Params
    gamma: Params

    @property
    def g(self) -> Params:
        return {name: x_i.sum(axis=0) for name, x_i in self.x.items()}


def slope_rounding(step: Step, query: Query, dtype: npt.DTypeLike) -> Array | float:
    """Return the bound on the error of each number of scores or influence by S alone; 0.0 for other functions.

    Parameters
    ----------
    step : Step
    query : Query
        Any call; those with other answers than dot products have no such error.
    dtype : dtype
        Dtype of the candidate's computation.

    Returns
    -------
    array like the answer, or float
        In units of the validation loss.
    """
    if query.function not in ("scores", "influence"):
        return 0.0
    step = step.as_float64()
    estimator = query.estimator if query.function == "scores" else None
    if estimator is not None and (estimator.slope == "sgd" or estimator.denominator == "previous"):
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # NaN is no bound: the error then counts as too large
        exact = _parts(step, estimator)
        noise, g_noise = _noise(step, estimator, exact, dtype)
        values = _errors(step, estimator, exact, noise, g_noise)
    if estimator is not None and estimator.efficient:
        values = values + values.mean(axis=0)
    return values if estimator is not None and estimator.per_validation else values[:, 0]


def _parts(step: Step, estimator: Estimator | None) -> _Parts:
    x = models.sample_gradients(step)
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    if estimator is None:
        after, _, _ = adam.moved(step, g)
        after_gradient = models.loss_gradient(step.net, after, step.valid)
        return _Parts(x, {name: array[None] for name, array in after_gradient.items()})
    part = scoring.part_of(estimator.slope, estimator.kind, step.n)
    each, nodes = estimator.per_validation, estimator.nodes
    return _Parts(x, validation.validation_gradients(step, estimator.gradient, g, nodes, each=each, part=part))


def _noise(step: Step, estimator: Estimator | None, exact: _Parts, dtype: npt.DTypeLike) -> tuple[_Parts, Params]:
    """Return the rounding errors of x_i and Γ, and those of g."""
    generator, size = np.random.default_rng(0), DRAWN * unit_roundoff(dtype)
    found: dict[str, Params] = {"x": {}, "gamma": {}, "g": {}}
    for _ in range(DRAWS):
        with usual_rounding(size, generator):
            moved = _parts(perturbed(step, size, generator), estimator)
        for role, largest in found.items():
            for name, array in getattr(moved, role).items():
                change = SAFETY / DRAWN * np.abs(array - getattr(exact, role)[name])
                largest[name] = np.maximum(largest.get(name, 0.0), change)
    for name, x in exact.x.items():  # the draws change each x_i, and not the additions
        found["g"][name] += rounding(np.abs(x).sum(axis=0), step.n - 1, dtype)
    return _Parts(found["x"], found["gamma"]), found["g"]


def _errors(step: Step, estimator: Estimator | None, exact: _Parts, noise: _Parts, g_noise: Params) -> Array:
    """Return the term of each score, (n, 1 or n_val)."""
    base = _terms(step, estimator, exact.x)
    where = {name: np.abs(g) <= CANCELLED * g_noise[name] for name, g in exact.g.items()}
    largest = [{name: np.zeros_like(slope) for name, slope in slopes.items()} for _, slopes in base]
    for place in PLACES:
        x = {}
        for name, g in exact.g.items():
            moved_by = place * g_noise[name] - where[name] * g  # from 0 if cancelled, else from g
            x[name] = exact.x[name] + moved_by / step.n
        for sizes, (_, slopes), (_, moved) in zip(largest, base, _terms(step, estimator, x), strict=True):
            for name, slope in slopes.items():
                sizes[name] = np.maximum(sizes[name], np.abs(moved[name] - slope))
    enlarged = _terms(step, estimator, {name: np.abs(x_i) + noise.x[name] for name, x_i in exact.x.items()})
    gamma = {name: np.abs(array) + noise.gamma[name] for name, array in exact.gamma.items()}
    total: Any = 0.0
    for (factors, _), sizes in zip(enlarged, largest, strict=True):
        P = {name: gamma[name] * sizes[name] for name in factors}
        cancelled = scoring.dot_products(factors, {name: where[name] * P[name] for name in P})
        squares = {name: (~where[name] * P[name]) ** 2 for name in P}
        total = total + cancelled + np.sqrt(scoring.dot_products({k: f**2 for k, f in factors.items()}, squares))
    return total  # type: ignore[no-any-return]


def _terms(step: Step, estimator: Estimator | None, x: Params) -> list[tuple[Params, Params]]:
    """Return the pairs of x, or a function of x, and its slope, whose products with Γ add up to a score."""
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    if estimator is None:
        c = adam.step_coefficients(step)
        return [(x, {name: adam.divided_difference(c[name], g[name], g[name]) for name in x})]
    return scoring.terms_of(step, estimator.slope, x, g, estimator.nodes, estimator.kind)
