"""The estimators: score_i = ⟨Γ ⊙ S, x_i⟩, a validation gradient Γ times a slope S of Adam's map (docs/method.md 4).

An efficient implementation never forms x_i (*ghost* dot products). The oracle forms every x_i on purpose.

==================  ==============================  ============================================================
paper / method 4    name                            meaning
==================  ==============================  ============================================================
x_i, g              ``x``, ``g``                    sample i's contribution to the batch gradient; Σ_i x_i
S                   in `slopes`                     response of the update to x_i, elementwise
Γ                   in `validation`                 gradient of the validation loss
R, f(x_i)           in `two_term`                   slope and function of a second term
==================  ==============================  ============================================================
"""

import numpy as np

from adamshap.reference import models, two_term
from adamshap.reference.adam import divided_difference, moved, step_coefficients
from adamshap.reference.contract import (
    TWO_TERM,
    Array,
    Contraction,
    Denominator,
    Estimator,
    Gradient,
    MarginalKind,
    Params,
    ScoreSlope,
    Step,
    float64_step,
    refuse_overflow,
)
from adamshap.reference.forward_mode import forward_dot_products
from adamshap.reference.slopes import linearized_previous, step_slopes
from adamshap.reference.validation import GradientInput, between, validation_gradients


def scores(
    step: Step,
    slope: ScoreSlope = "random_order",
    gradient: Gradient = "midpoint",
    efficient: bool = False,
    per_validation: bool = False,
    nodes: tuple[int, int] | None = None,
    denominator: Denominator = "exact",
    kind: MarginalKind = "shapley",
    *,
    contraction: Contraction = "ghost",
) -> Array:
    """Return each training sample's score for this step: score_i = ⟨Γ ⊙ S, x_i⟩ (docs/method.md 4).

    With slope "two_term", ⟨Γ ⊙ S, x_i⟩ + ⟨Γ ⊙ R, sign(x_i) √|x_i|⟩.

    Parameters
    ----------
    step : Step
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "auto", "two_term"}
        S, one function each in `slopes`; "two_term" is in a module of its own.
    gradient : {"start", "midpoint", "path"}
        Γ, one function each in `validation`. With "two_term", "midpoint" and "path" are taken on the sample's own part
        of the step: the first or the last n-th of the way, or, for "shapley", all of it.
    efficient : bool
        Spread the difference to U(B) − U(∅) equally over the batch, so that the scores sum to it exactly.
    per_validation : bool
        Score against each validation sample's own loss: (n, n_val), whose mean over columns is the score.
    nodes : tuple of two ints, optional
        (path, normal): Gauss–Legendre nodes of "random_order", "auto" and "path", Gauss–Hermite nodes of the first two.
        For "two_term" with "shapley", nodes over positions of arrival (all positions for n ≤ path) and over the
        partial sum. By default (4, 4), for "two_term" (8, 2).
    denominator : {"exact", "previous"}
        The denominator of "linearized": "previous" is the paper's formula as printed in secondary sources, with
        v̂_{t−1}.
    kind : {"first", "last", "shapley"}
        The one of `marginals` that "two_term" approximates.
    contraction : {"ghost", "forward"}
        "ghost" multiplies P = Γ ⊙ S by every x_i; "forward" takes the derivative of the samples' losses along P, in
        forward mode, which never sees x_i. P itself, in which "random_order" needs Σ x_i², is the same. Not with
        "two_term".

    Returns
    -------
    array (n,) or (n, n_val)
        Scores in units of the validation loss; positive means that the sample lowered it.

    Raises
    ------
    ValueError, TypeError
        An unknown name, bad nodes; ``denominator="previous"`` at t = 1 or with another slope; a `kind` other than the
        default with another slope; a denominator of 0; results beyond float64.
    """
    estimator = Estimator(slope, gradient, efficient, per_validation, nodes, denominator, kind, contraction=contraction)
    step = float64_step(step)
    with np.errstate(over="ignore", invalid="ignore"):  # the results are checked below
        values = unchecked_scores(step, estimator)
    refuse_overflow({"scores": values}, np.float64)
    return values


def unchecked_scores(step: Step, estimator: Estimator, validated: Step | None = None) -> Array:
    """Return `scores` of a step in float64, finite or not; with Γ of the step `validated`, if it is another one."""
    x = models.sample_gradients(step)
    g, each = {name: x_i.sum(axis=0) for name, x_i in x.items()}, estimator.per_validation
    terms = score_matrices(step, estimator, x, g, validated)
    if estimator.contraction == "forward":
        ((_, P),) = terms
        values = forward_dot_products(step, P, models.batch_clip_factor(step))
    else:
        values = np.sum([dot_products(f, P) for f, P in terms], axis=0)
    if estimator.efficient:
        values = values + (_gain_of_the_data(step, g, each=each) - values.sum(axis=0)) / step.n
    return values if each else values[:, 0]


def score_matrices(
    step: Step, estimator: Estimator, x: Params, g: Params, validated: Step | None = None
) -> list[tuple[Params, Params]]:
    """Return the terms of a score, as `terms_of`, with P = Γ ⊙ S (J, …) in place of S.

    Γ is that of the step `validated`, at that step's own point; None: of `step`.
    """
    slope, nodes = estimator.slope, estimator.nodes
    previous = estimator.denominator == "previous"
    terms = [(x, linearized_previous(step))] if previous else terms_of(step, slope, x, g, nodes, estimator.kind)
    where = step if validated is None else validated
    if where is not step:
        g = models.batch_gradient(where)
    part = part_of(slope, estimator.kind, where.n)
    gamma = validation_gradients(where, estimator.gradient, g, nodes, each=estimator.per_validation, part=part)
    return [(f, {name: gamma[name] * coefficient[name] for name in f}) for f, coefficient in terms]


def terms_of(
    step: Step, slope: ScoreSlope, x: Params, g: Params, nodes: tuple[int, int], kind: MarginalKind
) -> list[tuple[Params, Params]]:
    """Return the terms of a score: (x, S), and for "two_term" also (f(x), R); see `scores`."""
    if slope != TWO_TERM:
        return [(x, step_slopes(step, slope, x, g, nodes))]
    c = step_coefficients(step)
    both = {name: two_term.two_coefficients(kind, c[name], x_i, nodes) for name, x_i in x.items()}
    first, second = ({name: pair[term] for name, pair in both.items()} for term in (0, 1))
    return [(x, first), ({name: two_term.signed_root(x_i) for name, x_i in x.items()}, second)]


def part_of(slope: ScoreSlope, kind: MarginalKind, n: int) -> tuple[float, float]:
    """Return the part of the way from A(0) to A(g) on which Γ is taken: all of it, except for "two_term"."""
    return two_term.part_of_the_way(kind, n) if slope == TWO_TERM else (0.0, 1.0)


def dot_products(x: Params, P: Params) -> Array:
    """Return ⟨P_j, x_i⟩ over all parameters: (n, J) for contributions x (n, …) and score matrices P (J, …)."""
    parts = [x_i.reshape(len(x_i), -1) @ P[name].reshape(len(P[name]), -1).T for name, x_i in x.items()]
    total: Array = np.sum(parts, axis=0)
    return total


def _gain_of_the_data(step: Step, g: Params, *, each: bool) -> Array:
    """Return U(B) − U(∅): (1,) for the mean validation loss, or (n_val,) for `each` sample's own."""
    ends = (between(GradientInput(step, g, (1, 2)), fraction) for fraction in (0.0, 1.0))
    empty, full = (models.sample_losses(step.net, end, step.valid) for end in ends)
    return empty - full if each else np.array([np.mean(empty) - np.mean(full)])


def influence(step: Step) -> Array:
    """Return ⟨∇L(θ⁺), A'(g) ⊙ x_i⟩: the rate at which the loss after the step falls as sample i's weight grows from 1.

    Parameters
    ----------
    step : Step

    Returns
    -------
    array (n,)
        Minus the derivative of L(θ⁺) by the weight; positive means that more of the sample would lower the loss.

    Raises
    ------
    ValueError
        A denominator of 0; results beyond float64.
    """
    step = float64_step(step)
    with np.errstate(over="ignore", invalid="ignore"):  # the results are checked below
        x = models.sample_gradients(step)
        g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
        after, _, _ = moved(step, g)
        gamma = models.loss_gradient(step.net, after, step.valid)
        c = step_coefficients(step)
        P = {name: (gamma[name] * divided_difference(c[name], g[name], g[name]))[None] for name in x}
        values = dot_products(x, P)[:, 0]
    refuse_overflow({"influence": values}, np.float64)
    return values
