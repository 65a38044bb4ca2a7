"""How close is close enough, and why: the one place that knows. No test holds a tolerance of its own.

A result may differ from the oracle's for three honest reasons.

1. *Rounding.* A sum of `length` terms, each with a relative error of a few u, is off by about u √length times the sum
   of the terms' absolute values (errors of random sign). That sum is the result's own condition: where the terms
   cancel, the result may be off by much of itself.
2. *Conditioning.* Rounding errors made earlier act like small relative changes of the inputs, and of what is computed
   on the way. Where the method itself is steep (v = 0, tiny ε: Adam's update is nearly the gradient's sign) they are
   amplified. How much is measured: the oracle answers again for inputs changed by some u at random, and with products,
   derivatives, bias corrections, variances and places of arrival rounded as they are in every library
   (`usual_rounding`), and the spread of the answers counts.
3. *Underflow.* What is smaller than the smallest normal number of the dtype is rounded absolutely, and by libraries
   that flush such numbers to zero it is lost: each term of a sum may be off by that number.

A bound is the sum of the three, with `SAFETY` u for u.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.reference import carry, models, scoring, validation
from adamshap.reference.adam import apply_gradient
from adamshap.reference.contract import (
    AdamState,
    Array,
    Batch,
    Estimator,
    Gradient,
    MarginalKind,
    RunConfig,
    ScoreSlope,
    Slope,
    Step,
    quadrature_nodes,
)
from adamshap.verify.models import kind_of
from adamshap.verify.steps import perturbed
from adamshap.verify.usual_rounding import usual_rounding

SAFETY = 16.0
"""The constant in front of u that a count of operations would give: a term of a score goes through some ten roundings,
and a spread measured by a few draws can miss the largest by a small factor."""

DRAWN = 8.0
"""The part of `SAFETY` that is in the errors that are drawn, in units of u: the oracle answers in float64, where errors
of one u would often be rounded away. It leaves a factor of two for what few draws miss."""

DRAWS = 6
"""Perturbed answers for each measured spread."""

CLOSE = 8.0
"""An error of up to this many bounds may be one that few draws missed: where a saturated unit's derivative or a small
denominator decides, the largest of 6 draws was seen to be a fifth of the largest of 40."""

MORE_DRAWS = 40
"""Perturbed answers before an error of up to `CLOSE` bounds is reported."""


def unit_roundoff(dtype: npt.DTypeLike) -> float:
    """Return u, the largest relative error of one rounding to `dtype`.

    Parameters
    ----------
    dtype : dtype
        A binary floating-point type.

    Returns
    -------
    float
        Half the distance from 1 to the next number.
    """
    return float(np.finfo(dtype).eps) / 2


def rounding(magnitude: Any, length: int, dtype: npt.DTypeLike = np.float64) -> Any:
    """Return the bound on the rounding error of a sum, underflow included.

    Parameters
    ----------
    magnitude : float or array
        Σ_j |term_j|, of the sum (or of each sum).
    length : int
        Number of terms, at least 1.
    dtype : dtype
        In which the terms were computed and added.

    Returns
    -------
    float or array
        `SAFETY` u √length times `magnitude`.
    """
    smallest = float(np.finfo(dtype).smallest_normal)
    return SAFETY * (unit_roundoff(dtype) * np.sqrt(length) * np.asarray(magnitude) + length * smallest)


def conditioning(
    answer: Callable[[Step], Array],
    step: Step,
    dtype: npt.DTypeLike = np.float64,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Array:
    """Return how far `answer` may move with inputs off by some u(dtype) and with libraries' own rounding.

    Parameters
    ----------
    answer : callable
        From a step to an array, in float64.
    step : Step
    dtype : dtype
        Whose u is meant; the answers themselves are computed in float64.
    seed : int
        Of the random changes.
    draws : int
        How many there are.

    Returns
    -------
    array like the answer's
        The largest change of each number when errors are of `DRAWN` u, times `SAFETY` / `DRAWN`.
    """
    (last,) = deque(widening_conditioning(answer, step, dtype, seed=seed, draws=draws), maxlen=1)
    return last


def widening_conditioning(
    answer: Callable[[Step], Array],
    step: Step,
    dtype: npt.DTypeLike = np.float64,
    *,
    seed: int = 0,
    draws: int | None = DRAWS,
) -> Iterator[Array]:
    """Yield what `conditioning` returns for one draw, for two, and so on to `draws`: it never shrinks.

    What lies within an early one lies within the last, so the rest need not be computed.

    Parameters
    ----------
    answer : callable
        From a step to an array, in float64.
    step : Step
    dtype : dtype
        As for `conditioning`.
    seed : int
        Of the random changes.
    draws : int, optional
        How many there are; None for no end.

    Yields
    ------
    array like the answer's
        The largest change of each number so far, times `SAFETY` / `DRAWN`.
    """
    generator = np.random.default_rng(seed)
    base, size = np.asarray(answer(step)), DRAWN * unit_roundoff(dtype)
    moved = np.zeros_like(base)
    for _ in itertools.count() if draws is None else range(draws):
        with usual_rounding(size, generator):
            moved = np.maximum(moved, np.abs(np.asarray(answer(perturbed(step, size, generator))) - base))
        yield SAFETY / DRAWN * moved


def score_magnitude(
    step: Step,
    slope: ScoreSlope,
    gradient: Gradient,
    nodes: tuple[int, int] | None = None,
    *,
    per_validation: bool = False,
    kind: MarginalKind = "shapley",
) -> Array:
    """Return Σ_j |P_j x_ij| for each sample i: the condition of the score as a dot product, or as the sum of two.

    Parameters
    ----------
    step : Step
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "two_term"}
        S.
    gradient : {"start", "midpoint", "path"}
        Γ.
    nodes : tuple of two ints, optional
        (path, normal), as for `scores`.
    per_validation : bool
        For each validation sample's own loss.
    kind : {"first", "last", "shapley"}
        Of "two_term".

    Returns
    -------
    array (n,), or (n, n_val) with `per_validation`
        At least the absolute value of the score.
    """
    estimator = Estimator(slope, gradient, per_validation=per_validation, nodes=nodes, kind=kind)
    return estimator_magnitude(step.as_float64(), estimator)


def estimator_magnitude(step: Step, estimator: Estimator) -> Array:
    """Return `score_magnitude` of a step in float64 for an estimator.

    Parameters
    ----------
    step : Step
    estimator : Estimator
        Whose slope, gradient, nodes, kind and `per_validation` count.

    Returns
    -------
    array (n,) or (n, n_val)
        At least the absolute value of the score.
    """
    slope, nodes, kind, each = estimator.slope, estimator.nodes, estimator.kind, estimator.per_validation
    x = models.sample_gradients(step)
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    part = scoring.part_of(slope, kind, step.n)
    gamma = validation.validation_gradients(step, estimator.gradient, g, nodes, each=each, part=part)
    values = np.zeros((step.n, len(next(iter(gamma.values())))))
    for f, coefficient in scoring.terms_of(step, slope, x, g, nodes, kind):
        P = {name: np.abs(gamma[name] * coefficient[name]) for name in f}
        values += scoring.dot_products({name: np.abs(f_i) for name, f_i in f.items()}, P)
    return values if each else values[:, 0]


def score_bound(
    step: Step,
    slope: ScoreSlope = "random_order",
    gradient: Gradient = "midpoint",
    nodes: tuple[int, int] | None = None,
    dtype: npt.DTypeLike = np.float64,
    *,
    per_validation: bool = False,
    kind: MarginalKind = "shapley",
) -> Array:
    """Return how far scores computed in `dtype` may honestly be from the oracle's.

    The reduction is over the parameters; each gradient in it is itself a sum over a layer's width, which the spread of
    the answers covers.

    Parameters
    ----------
    step : Step
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "two_term"}
        S.
    gradient : {"start", "midpoint", "path"}
        Γ.
    nodes : tuple of two ints, optional
        (path, normal), as for `scores`.
    dtype : dtype
        In which the scores were computed.
    per_validation : bool
        For each validation sample's own loss.
    kind : {"first", "last", "shapley"}
        Of "two_term".

    Returns
    -------
    array (n,), or (n, n_val) with `per_validation`
        In units of the validation loss.
    """

    def answer(given: Step) -> Array:
        return scoring.scores(given, slope, gradient, nodes=nodes, per_validation=per_validation, kind=kind)

    magnitude = score_magnitude(step, slope, gradient, nodes, per_validation=per_validation, kind=kind)
    return rounding(magnitude, parameter_count(step), dtype) + conditioning(answer, step, dtype)  # type: ignore[no-any-return]


def account_bound(
    config: RunConfig,
    slope: Slope = "random_order",
    gradient: Gradient = "midpoint",
    nodes: tuple[int, int] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> float:
    """Return how far a run's account (scores and weight decay's shares) may be from the change of the loss.

    The account is one sum: of each step's losses, of ⟨Γ ⊙ S, x_i⟩, of weight decay, and of what past samples get for
    the momentum, ⟨Γ_t ⊙ M_t, β1^k x_i⟩. It does not depend on how exact S, M and Γ are: their errors are closed.

    Parameters
    ----------
    config : RunConfig
        The run.
    slope : {"frozen", "linearized", "tangent", "secant", "random_order"}
        As for `attribute`.
    gradient : {"start", "midpoint", "path"}
        As for `attribute`.
    nodes : tuple of two ints, optional
        As for `attribute`.
    dtype : dtype
        In which the account was computed.

    Returns
    -------
    float
        In units of the validation loss.
    """
    nodes, params = quadrature_nodes(nodes, slope), config.network.init(config.seed)
    state, momentum = AdamState.zeros(params), {name: np.zeros_like(p) for name, p in params.items()}
    magnitude, length = 0.0, 0
    for _, index in config.order():
        batch = config.train.take(index)
        step = Step(config.network, params, config.adam, state, batch, config.valid, config.reduction).as_float64()
        x = models.sample_gradients(step)
        g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
        after, state = apply_gradient(step, g)
        S, M = carry.splits(step, slope, x, g, nodes)
        gamma = carry.walked_gradient(step, after, gradient, nodes, each=False)
        size = {name: np.abs(x_i).sum(axis=0) for name, x_i in x.items()}
        for name, p in step.params.items():
            adam = step.settings(name)
            rate, beta1 = adam.lr * adam.weight_decay, adam.betas[0]
            terms = np.abs(S[name]) * size[name] + np.abs(M[name]) * momentum[name] + rate * np.abs(p)
            magnitude += float((np.abs(gamma[name][0]) * terms).sum())
            momentum[name] = beta1 * momentum[name] + (1 - beta1) * size[name]
        magnitude += sum(float(models.mean_loss(step.net, there, step.valid)) for there in (step.params, after))
        length += parameter_count(step) * (step.n + step.n_val)
        params = after
    return float(rounding(magnitude, length, dtype))


def run_conditioning(
    answer: Callable[[RunConfig], Sequence[Array]], config: RunConfig, dtype: npt.DTypeLike = np.float64
) -> list[float]:
    """Return how far each array of a run's answer moves with the samples, relatively by u, and with products' rounding.

    Parameters
    ----------
    answer : callable
        From a run's configuration to arrays, in float64.
    config : RunConfig
    dtype : dtype
        Whose u is meant.

    Returns
    -------
    list of float
        For each array, the largest change of any of its numbers, for the number of products in a whole run.
    """
    generator, base, size = np.random.default_rng(1), answer(config), unit_roundoff(dtype)

    def near(array: Array) -> Array:
        return array if array.dtype.kind == "i" else array * (1 + size * generator.choice((-1.0, 1.0), array.shape))

    moved = []
    for _ in range(DRAWS):
        train, valid = (Batch(near(batch.x), near(batch.y)) for batch in (config.train, config.valid))
        changed = answer(replace(config, train=train, valid=valid))
        moved.append([float(np.abs(a - b).max()) for a, b in zip(changed, base, strict=True)])
    kind = kind_of(config.network)
    longest = max(kind.longest_sum(config.network), config.train.n, config.valid.n)
    terms = kind.products(config.network) * longest * len(list(config.order()))
    return [float(SAFETY * np.sqrt(terms) * largest) for largest in np.max(moved, axis=0)]


def parameter_count(step: Step) -> int:
    """Return the number of the network's parameters.

    Parameters
    ----------
    step : Step

    Returns
    -------
    int
        Weights and biases.
    """
    return sum(p.size for p in step.params.values())


def assert_within(got: Any, expected: Any, bound: Any, what: str = "result") -> None:
    """Assert |got − expected| ≤ bound elementwise, NaN nowhere; the message names the worst element.

    Parameters
    ----------
    got, expected, bound : float or array
        Of one shape; `bound` is broadcast to it.
    what : str
        The result's name, for the message.

    Raises
    ------
    AssertionError
        With the element, both values, the bound and by how much it is exceeded.
    """
    __tracebackhide__ = True
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if got.shape != expected.shape:
        raise AssertionError(f"{what}: shape {got.shape}, expected {expected.shape}")
    bound = np.broadcast_to(np.asarray(bound, dtype=np.float64), got.shape)
    error = np.abs(got - expected)
    wrong = ~(error <= bound)  # so that NaN is wrong
    if wrong.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(wrong, np.nan_to_num(error / bound, nan=np.inf), -1.0)
        worst = np.unravel_index(np.argmax(ratio), got.shape)
        place = list(map(int, worst)) if worst else ""
        raise AssertionError(
            f"{what}{place}: got {float(got[worst])!r}, expected {float(expected[worst])!r}; "
            f"the error {error[worst]:.3g} exceeds the bound {bound[worst]:.3g} "
            f"({int(wrong.sum())} of {got.size} elements do)"
        )
