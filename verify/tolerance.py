"""All tolerances, with their reasons; `run_tolerance` applies them to runs. No test has a tolerance of its own.

A correct result may differ from the oracle's for three reasons.

1. *Rounding.* A sum of `length` terms, each with a relative error of a few u, has an error of about u √length times the
   sum of the terms' absolute values (errors of random sign). That sum is the condition of the result: if the terms
   cancel, the relative error may be large.
2. *Conditioning.* Earlier rounding errors act like small relative changes of the inputs and of intermediate results.
   Where the method itself is steep (v = 0, tiny ε: Adam's update is nearly the gradient's sign) they are amplified. The
   amplification is measured, as the spread of the oracle's answers for inputs randomly perturbed by some u, and with
   products, derivatives, bias corrections, variances and positions of arrival rounded as in common libraries
   (`usual_rounding`).
3. *Underflow.* Numbers below the smallest normal number of the dtype have an absolute rounding error, and libraries may
   flush them to zero: each term of a sum may be off by that number.

A bound is the sum of the three, with `SAFETY` u for u.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.reference import models, scoring, validation
from adamshap.reference.contract import Array, Estimator, Gradient, MarginalKind, ScoreSlope, Step
from adamshap.verify.steps import Normal, perturbed
from adamshap.verify.usual_rounding import usual_rounding

SAFETY = 16.0
"""The factor of u, as from a count of operations: a term of a score goes through some ten roundings, and a spread
measured by a few draws may underestimate the largest by a small factor."""

DRAWN = 8.0
"""The part of `SAFETY` in the size of the random errors, in units of u: the oracle computes in float64, where errors of
one u would often be rounded away. The remaining factor of two covers what few draws miss."""

DRAWS = 6
"""Number of perturbed answers for each measured spread."""

CLOSE = 8.0
"""An error of up to this many bounds may be one that few draws missed: with a saturated unit's derivative or a small
denominator, the largest of 6 draws has been a fifth of the largest of 40."""

MORE_DRAWS = 40
"""Number of perturbed answers before an error of up to `CLOSE` bounds is reported; those after `DRAWS` are uneven."""

DRAWS_BEYOND = 6
"""Number of uneven draws before an error beyond `CLOSE` bounds is reported. Where Adam's map is nearly a sign, a change
of the gradient is visible in full or not at all: a draw misses it with a certain probability."""

SMALL = 1 / DRAWN
"""Size of every second error of an uneven draw, in units of the others' in an even draw: one u, like a library's."""


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
        Σ_j |term_j| of the sum, or of each sum.
    length : int
        Number of terms, at least 1.
    dtype : dtype
        Dtype of the computation.

    Returns
    -------
    float or array
        `SAFETY` u √length times `magnitude`, plus the underflow.
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
    """Return the largest change of `answer` with inputs perturbed by some u(dtype) and with libraries' own rounding.

    Parameters
    ----------
    answer : callable
        Function from a step to an array, in float64.
    step : Step
    dtype : dtype
        Dtype of u; the answers themselves are computed in float64.
    seed : int
        Seed of the random changes.
    draws : int
        Number of perturbed answers.

    Returns
    -------
    array like the answer's
        The largest change of each number for errors of `DRAWN` u, times `SAFETY` / `DRAWN`.
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
    """Yield the result of `conditioning` for one draw, for two, and so on to `draws`: it never shrinks.

    An error within an early result is within the last, so the rest need not be computed.

    Parameters
    ----------
    answer : callable
        Function from a step to an array, in float64.
    step : Step
    dtype : dtype
        As for `conditioning`.
    seed : int
        Seed of the random changes.
    draws : int, optional
        Number of perturbed answers; None for no end.

    Yields
    ------
    array like the answer's
        The largest change of each number so far, times `SAFETY` / `DRAWN`.
    """
    generator = np.random.default_rng(seed)
    base, size = np.asarray(answer(step)), DRAWN * unit_roundoff(dtype)
    moved = np.zeros_like(base)
    for done in itertools.count() if draws is None else range(draws):
        further = done >= DRAWS
        errors: Normal = Uneven(generator) if further else generator
        with usual_rounding(size, errors, by_hand=further):
            moved = np.maximum(moved, np.abs(np.asarray(answer(perturbed(step, size, errors))) - base))
        yield SAFETY / DRAWN * moved


@dataclass(frozen=True)
class Uneven:
    """Errors of unequal sizes, with the variance of a standard normal number: each is small or large, at random.

    Where a function saturates, errors of one size move all of its terms to the limit at once, and terms of opposite
    signs hide each other's change. A library's own errors move some of the terms only.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of the errors.
    """

    generator: np.random.Generator

    def standard_normal(self, shape: tuple[int, ...], /) -> Array:
        """Return random numbers of mean 0 and variance 1, half of them with the deviation `SMALL`.

        Parameters
        ----------
        shape : tuple of int

        Returns
        -------
        ndarray
            The numbers, of this shape.
        """
        large = np.sqrt(2 - SMALL**2)
        sizes = np.where(self.generator.random(shape) < 0.5, SMALL, large)
        return sizes * self.generator.standard_normal(shape)


def score_magnitude(
    step: Step,
    slope: ScoreSlope,
    gradient: Gradient,
    nodes: tuple[int, int] | None = None,
    *,
    per_validation: bool = False,
    kind: MarginalKind = "shapley",
) -> Array:
    """Return Σ_j |P_j x_ij| for each sample i: the condition of the score as a dot product, or as a sum of two.

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
        One result for each validation sample's own loss.
    kind : {"first", "last", "shapley"}
        The marginal that "two_term" approximates.

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
        The estimator, without `efficient` and `denominator`.

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
    """Return the bound on the error of scores computed in `dtype`.

    The sum is over the parameters; each gradient in it is itself a sum over a layer's width, which the spread of the
    answers covers.

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
        Dtype of the scores' computation.
    per_validation : bool
        One bound for each validation sample's own loss.
    kind : {"first", "last", "shapley"}
        The marginal that "two_term" approximates.

    Returns
    -------
    array (n,), or (n, n_val) with `per_validation`
        Bound in units of the validation loss.
    """

    def answer(given: Step) -> Array:
        return scoring.scores(given, slope, gradient, nodes=nodes, per_validation=per_validation, kind=kind)

    magnitude = score_magnitude(step, slope, gradient, nodes, per_validation=per_validation, kind=kind)
    return rounding(magnitude, parameter_count(step), dtype) + conditioning(answer, step, dtype)  # type: ignore[no-any-return]


def parameter_count(step: Step) -> int:
    """Return the number of the network's parameters.

    Parameters
    ----------
    step : Step

    Returns
    -------
    int
        Number of weights and biases.
    """
    return sum(p.size for p in step.params.values())


def assert_within(got: Any, expected: Any, bound: Any, what: str = "result") -> None:
    """Assert |got − expected| ≤ bound elementwise, without NaN; the message names the worst element.

    Parameters
    ----------
    got, expected, bound : float or array
        Arrays of one shape; `bound` is broadcast to it.
    what : str
        Name of the result in the message.

    Raises
    ------
    AssertionError
        An element exceeds its bound; the message has the element, both values, the error and the bound.
    """
    __tracebackhide__ = True
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if got.shape != expected.shape:
        raise AssertionError(f"{what}: shape {got.shape}, expected {expected.shape}")
    bound = np.broadcast_to(np.asarray(bound, dtype=np.float64), got.shape)
    error = np.abs(got - expected)
    wrong = ~(error <= bound)  # negated, so that NaN is wrong
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


def difference_bound(
    losses: Callable[[float], Array], derivative: Array, farthest: float, move: float, dtype: npt.DTypeLike
) -> Array:
    """Return the bound on the error of a central difference whose step h moves the losses by about `move`.

    The largest change of a loss lies between a quarter and twice `move`, in units of the largest loss, unless h has
    reached `farthest`. Truncation grows with h² and is measured at the largest h; rounding, some u of a loss over h, is
    largest at the smallest.

    Parameters
    ----------
    losses : callable
        Function from h to the losses (n,) at θ + h P, in float64.
    derivative : array (n,)
        The exact derivative by h at 0.
    farthest : float
        The largest h.
    move : float
    dtype : dtype
        Dtype of the computation.

    Returns
    -------
    array (n,)
        Bound in units of `derivative`.
    """
    size, steepest = float(np.abs(losses(0.0)).max()), float(np.abs(derivative).max())
    h = min(farthest, 2 * move * size / steepest) if steepest > 0 else farthest
    truncation = np.abs((losses(h) - losses(-h)) / (2 * h) - derivative)
    return 2 * truncation + rounding(size, 1, dtype) / (h / 8)  # type: ignore[no-any-return]
