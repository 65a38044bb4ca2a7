"""Mistakes in the slopes, and in their quadratures."""

from collections.abc import Callable
from typing import Any

import numpy as np

from adamshap.reference import adam, models, scoring, slopes, two_term, validation
from adamshap.reference.contract import Array, Step
from adamshap.verify.faults.fault import SEEN, Fault, Wrap, changes_scores, computes_with
from adamshap.verify.implementation import Query
from adamshap.verify.steps import adam_of


def _slope(right: Callable[..., Any], wrong: Callable[[slopes.SlopeInput], Array]) -> Wrap:
    """Return a fault that uses `wrong` for the slope `right`."""
    return computes_with(right, lambda current: wrong)


def _momentum_gain(step: Step, query: Query) -> Array:
    """Return ⟨Γ, A(0)⟩ for each column of the scores: the first-order effect of the momentum step on the loss."""
    g = models.batch_gradient(step)
    estimator = query.estimator
    part, each = scoring.part_of(estimator.slope, estimator.kind, step.n), estimator.per_validation
    gamma = validation.validation_gradients(step, estimator.gradient, g, estimator.nodes, each=each, part=part)
    gain: Array = scoring.dot_products({name: A[None] for name, A in adam.momentum_step(step).items()}, gamma)[0]
    return gain if each else gain[:1]  # one number per column, or one for all samples


def _chord_to_the_origin(given: slopes.SlopeInput) -> Array:
    """Return A(g)/g, which ignores that the step starts at A(0)."""
    full = adam.update_map(given.c, given.g)
    return np.divide(full, given.g, out=slopes.linearized(given), where=given.g != 0)


def _per_sample_squares(given: slopes.SlopeInput) -> Array:
    c, squares = given.c, (given.x**2).sum(axis=0)
    wrong: Array = c.lr * c.k / (np.sqrt(c.kappa + c.q * squares) + c.eps)
    return wrong


def _random_order_with(spread: Callable[[Array, float], Array], weight: float = 1.0, rule: Any = None) -> Wrap:
    """Return a fault of `random_order`: another deviation of the partial sums, or another rule for the normal."""

    def wrong(given: slopes.SlopeInput) -> Array:
        if len(given.x) == 1:
            return slopes.secant(given)
        sigma = slopes.partial_sum_deviation(given.x, given.g)
        slope = np.zeros_like(given.g)
        for tau, w in zip(*slopes.unit_interval_rule(given.nodes[0]), strict=True):
            s = spread(sigma, tau)
            for h, a in zip(*(rule or slopes.positive_normal_rule)(given.nodes[1]), strict=True):
                ends = tau * given.g + h * s, tau * given.g - h * s
                slope += weight * w * 2 * a * h**2 * adam.divided_difference(given.c, *ends)
        return slope

    return _slope(slopes.random_order, wrong)


def _physicists_rule(count: int) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.hermite.hermgauss(count)
    positive = np.arange(count) >= (count + 1) // 2
    return nodes[positive], weights[positive] / np.sqrt(np.pi)


def _unnormalized_rule(right: Any) -> Any:
    def rule(count: int) -> tuple[Array, Array]:
        nodes, weights = right(count)
        return nodes, weights * np.sqrt(2 * np.pi)

    return rule


def _with_nodes(change: Callable[[Query], tuple[int, int] | None]) -> Wrap:
    """Return a fault with other numbers of quadrature nodes."""
    return changes_scores(
        lambda step, query, result, ask: ask(step, Query("scores", {**query.options, "nodes": change(query)}))
    )


def _swapped_nodes(query: Query) -> tuple[int, int]:
    path, normal = query.estimator.nodes
    return normal, max(path, 2)


def other_nodes(path: int, normal: int) -> Fault:
    """Return the mistake of always using `path` and `normal` quadrature nodes."""
    return Fault(
        f"nodes-{path}-{normal}",
        f"({path}, {normal}) quadrature nodes, whatever is asked for",
        "a number of nodes of its own",
        _with_nodes(lambda query: (path, normal)),
    )


FAULTS: tuple[Fault, ...] = (
    Fault(
        "sgd-for-all",
        "SGD's slope for every slope",
        "Adam runs scored by SGD's dot product",
        changes_scores(
            lambda step, query, result, ask: ask(
                step,
                Query(
                    "scores",
                    {name: value for name, value in query.options.items() if name not in ("denominator", "kind")}
                    | {"slope": "sgd"},
                ),
            )
        ),
    ),
    Fault(
        "lr-left-out",
        "the learning rate left out of the scores",
        "a dot product of gradients",
        changes_scores(lambda step, query, result, ask: result / adam_of(step).lr),
    ),
    Fault(
        "momentum-per-sample",
        "the momentum step counted for every sample",
        "A(g_i) for A(g_i) − A(0)",
        changes_scores(lambda step, query, result, ask: result + _momentum_gain(step, query)),
    ),
    Fault(
        "momentum-shared",
        "the momentum step shared out among the samples",
        "scores that sum to U(B)",
        changes_scores(lambda step, query, result, ask: result + _momentum_gain(step, query) / step.n),
    ),
    Fault(
        "linearized-at-the-batch",
        "`linearized` with the batch's denominator D(g)",
        "the optimiser's own denominator",
        _slope(slopes.linearized, slopes.frozen),
    ),
    Fault("frozen-at-zero", "`frozen` with the denominator D(0)", SEEN, _slope(slopes.frozen, slopes.linearized)),
    Fault(
        "frozen-by-per-sample-squares",
        "`frozen` with Σ x_i² for g² in the denominator",
        "per-sample g² for batch g²",
        _slope(slopes.frozen, _per_sample_squares),
    ),
    Fault(
        "tangent-is-frozen",
        "`tangent` without the derivative of the denominator",
        "the denominator counted as a constant",
        _slope(slopes.tangent, slopes.frozen),
    ),
    Fault("secant-to-the-origin", "`secant` as A(g)/g", "A(0) forgotten", _slope(slopes.secant, _chord_to_the_origin)),
    Fault("secant-is-tangent", "`tangent` for `secant`", SEEN, _slope(slopes.secant, slopes.tangent)),
    Fault(
        "previous-not-corrected",
        'v̂_{t−1} without bias correction in denominator="previous"',
        SEEN,
        computes_with(
            slopes.linearized_previous,
            lambda _: (
                lambda step: {
                    name: c.lr * c.k / (np.sqrt(step.state.v[name] + step.settings(name).eps_root) + c.eps)
                    for name, c in adam.step_coefficients(step).items()
                }
            ),
        ),
    ),
    Fault(
        "variance-uncentred",
        "`random_order` with Σ x_i² for the variance",
        "the mean is not subtracted",
        computes_with(slopes.partial_sum_deviation, lambda right: lambda x, g: right(x, np.zeros_like(g))),
    ),
    Fault(
        "variance-with-replacement",
        "`random_order` without the factor n/(n − 1)",
        "drawn with replacement",
        computes_with(
            slopes.partial_sum_deviation, lambda right: lambda x, g: right(x, g) * np.sqrt((len(x) - 1) / len(x))
        ),
    ),
    Fault(
        "spread-constant",
        "`random_order` without the factor τ(1 − τ)",
        "the whole batch's spread at every τ",
        _random_order_with(lambda sigma, tau: sigma),
    ),
    Fault(
        "spread-of-independent-arrivals",
        "`random_order` with variance τ for τ(1 − τ)",
        "drawn with replacement",
        _random_order_with(lambda sigma, tau: np.sqrt(tau) * sigma),
    ),
    Fault(
        "physicists-hermite",
        "`random_order` with the physicists' Hermite nodes",
        "numpy's hermgauss for hermegauss",
        _random_order_with(lambda sigma, tau: np.sqrt(tau * (1 - tau)) * sigma, rule=_physicists_rule),
    ),
    Fault(
        "hermite-weights-not-normalised",
        "`random_order` with Hermite weights that sum to √(2π)",
        "numpy's hermegauss as it is",
        computes_with(slopes.positive_normal_rule, _unnormalized_rule),
    ),
    Fault(
        "nodes-ignored",
        "the default numbers of quadrature nodes, whatever is asked for",
        "the option is not handed on",
        _with_nodes(lambda query: None),
    ),
    Fault(
        "nodes-swapped",
        "nodes = (normal, path)",
        "argument order",
        _with_nodes(_swapped_nodes),
    ),
    other_nodes(8, 8),
    Fault(
        "half-the-normal",
        "`random_order` with the positive half of the normal only",
        "the factor 2 forgotten",
        _random_order_with(lambda sigma, tau: np.sqrt(tau * (1 - tau)) * sigma, weight=0.5),
    ),
    Fault(
        "one-term",
        "`two_term` without its second term",
        "a ghost dot product has one slope",
        computes_with(
            two_term.two_coefficients, lambda right: lambda *given: (right(*given)[0], np.zeros_like(given[2][0]))
        ),
    ),
    Fault(
        "root-without-sign",
        "`two_term` with a second term without x's sign",
        "the sign is lost under the root",
        computes_with(two_term.signed_root, lambda right: lambda x: np.abs(right(x))),
    ),
    Fault(
        "own-spread-with-n-minus-1",
        "`two_term` with n − 1 for n in the samples' own variance",
        "numpy's ddof, a sample's variance for a population's",
        computes_with(two_term.own_spread, lambda right: lambda x: right(x) * np.sqrt(len(x) / max(len(x) - 1, 1))),
    ),
    Fault(
        "two-term-at-the-middle",
        "`two_term` with the gradient on all of the way for `first` and `last`",
        "the same midpoint for all slopes",
        computes_with(two_term.part_of_the_way, lambda right: lambda kind, n: (0.0, 1.0)),
    ),
    Fault(
        "two-term-always-shapley",
        "`two_term` with the slopes of the Shapley value for `first` and `last`",
        "the kind is handed on to the gradient only",
        computes_with(two_term.two_coefficients, lambda right: lambda kind, *given: right("shapley", *given)),
    ),
    Fault(
        "found-with-replacement",
        "`two_term` with what a sample finds drawn with replacement",
        "τ N for τ(1 − τ) N²/(N − 1)",
        computes_with(two_term.found_variance, lambda right: lambda tau, others: tau * others),
    ),
)
