"""The oracle as an implementation, its answers to calls, and the bound on an honest answer's distance from them."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap import reference
from adamshap.reference import game, ghost, network
from adamshap.reference.adam import denominator, divided_difference, step_coefficients
from adamshap.reference.problem import Array, Params, Step
from adamshap.verify.implementation import Answer, Implementation, Query, answer, implementation
from adamshap.verify.tolerance import DRAWS, conditioning, parameter_count, rounding, score_magnitude

ORACLE: Implementation = implementation(reference, "adamshap.reference")

REMEMBERED = 5000
"""Calls whose bounds are kept: a few profiles' worth, of a few kilobytes each."""

_remembered: dict[bytes, Answer] = {}


def expected(step: Step, query: Query) -> Answer:
    """Return the oracle's answer."""
    return answer(ORACLE, step, query)


def bounds(step: Step, query: Query, dtype: npt.DTypeLike, draws: int = DRAWS) -> Answer:
    """Return, for each array of the answer, how far an honest implementation in `dtype` may be from the oracle's.

    Rounding of the answer's own terms, and the spread of the oracle's answers to inputs changed by relative u(dtype),
    `draws` times. Remembered: one seed's cases are put to many candidates, and this is most of the work. The arrays
    cannot be written to.
    """
    key = _digest(step, query, dtype, draws)
    if key not in _remembered:
        if len(_remembered) >= REMEMBERED:
            del _remembered[next(iter(_remembered))]
        _remembered[key] = _bounds(step, query, dtype, draws)
        for array in _remembered[key].values():
            array.setflags(write=False)
    return dict(_remembered[key])


def _digest(step: Step, query: Query, dtype: npt.DTypeLike, draws: int) -> bytes:
    """Return a hash of everything that an answer's bounds depend on."""
    batches = (step.train, step.valid)
    arrays = [array for batch in batches for array in (batch.x, batch.y)]
    for name in sorted(step.params):
        arrays += [step.params[name], step.state.m[name], step.state.v[name]]
    plain = (step.net, step.adam, step.state.step, step.reduction, str(query), np.dtype(dtype), draws)
    digest = hashlib.blake2b(repr(plain).encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.digest()


def _bounds(step: Step, query: Query, dtype: npt.DTypeLike, draws: int) -> Answer:
    answers = expected(step, query)
    magnitudes = _magnitudes(step.as_float64(), query)
    length = parameter_count(step) + step.n + step.n_val

    def flat(given: Step) -> Array:
        return np.concatenate([array.ravel() for array in expected(given, query).values()])

    spread = np.split(
        conditioning(flat, step, dtype, draws=draws), np.cumsum([array.size for array in answers.values()])[:-1]
    )
    return {
        name: np.asarray(rounding(magnitudes[name], length, dtype) + part.reshape(answers[name].shape))
        for (name, part) in zip(answers, spread, strict=True)
    }


def _magnitudes(step: Step, query: Query) -> dict[str, Any]:
    """Return Σ |term| for each array of the answer: what it is the sum of."""
    if query.function == "update":
        return _update_magnitudes(step)
    if query.function == "utility":
        return {"values": _loss_magnitude(step)}
    if query.function == "marginals":
        first_order = query.options.get("loss") == "first_order"
        scale = _first_order_magnitude(step) if first_order else _loss_magnitude(step)
        return dict.fromkeys(("values", "empty", "total"), scale)
    if query.function == "influence":
        return {"values": _influence_magnitude(step)}
    each = bool(query.options.get("per_validation", False))
    slope = query.options.get("slope", "random_order")
    gradient = query.options.get("gradient", "midpoint")
    nodes = query.options.get("nodes", (4, 4))
    kind = query.options.get("kind", "shapley")
    size = score_magnitude(step, slope, gradient, nodes, per_validation=each, kind=kind)
    if query.options.get("denominator", "exact") == "previous":
        size = size * previous_ratio(step)
    if query.options.get("efficient", False):
        size = size + size.mean(axis=0) + _loss_magnitude(step) / step.n * (step.n_val if each else 1)
    return {"values": size}


def _absolute_sum(x: Params) -> Params:
    return {name: np.abs(x_i).sum(axis=0) for name, x_i in x.items()}


def _update_magnitudes(step: Step) -> dict[str, Any]:
    g, (beta1, beta2) = _absolute_sum(network.sample_gradients(step)), step.adam.betas
    true_g, c = network.batch_gradient(step), step_coefficients(step)
    sizes: dict[str, Any] = {"step": 0.0}
    for name, p in step.params.items():
        update = c[name].lr * (np.abs(c[name].mu) + c[name].k * g[name]) / denominator(c[name], true_g[name])
        sizes[f"params.{name}"] = np.abs(p) * (1 + step.adam.lr * step.adam.weight_decay) + update
        sizes[f"m.{name}"] = beta1 * np.abs(step.state.m[name]) + (1 - beta1) * g[name]
        sizes[f"v.{name}"] = beta2 * step.state.v[name] + (1 - beta2) * g[name] ** 2
    return sizes


def _loss_magnitude(step: Step) -> float:
    """The largest loss of a validation sample before the step and after it, with the logits that it is made of."""
    U = game.exact_game(step)
    before = network.mean_loss(step.net, step.params, step.valid)
    ends = [abs(before - U(mask)) for mask in (np.zeros(step.n, bool), np.ones(step.n, bool))]
    outputs = np.abs(network.outputs(step.net, step.params, step.valid.x)).max()
    targets = np.abs(step.valid.y).max() if step.net.loss == "mse" else 0.0
    squares = (outputs + targets) ** 2 if step.net.loss == "mse" else outputs
    return float(max(before, *ends) + squares + 1)


def _first_order_magnitude(step: Step) -> float:
    """Σ |∂L| (what Adam's step is made of): the terms of U₁."""
    g, c = _absolute_sum(network.sample_gradients(step)), step_coefficients(step)
    gamma = network.loss_gradient(step.net, step.params, step.valid)
    total = 0.0
    for name, coefficients in c.items():
        smallest = denominator(coefficients, np.zeros_like(g[name]))
        terms = coefficients.lr * (np.abs(coefficients.mu) + coefficients.k * g[name]) / smallest
        total += float((np.abs(gamma[name]) * np.minimum(terms, _largest_update(coefficients, g[name]))).sum())
    return total


def _largest_update(c: Any, g: Array) -> Array:
    """|A| ≤ η (|μ|/D(0) + k/√q): the k-part of Adam's update saturates."""
    smallest = denominator(c, np.zeros_like(g))
    size: Array = c.lr * (np.abs(c.mu) / smallest + c.k / np.sqrt(c.q))
    return size


def _influence_magnitude(step: Step) -> Array:
    x, g = network.sample_gradients(step), network.batch_gradient(step)
    after, _ = reference.update(step)
    gamma, c = network.loss_gradient(step.net, after, step.valid), step_coefficients(step)
    P = {name: np.abs(gamma[name] * divided_difference(c[name], g[name], g[name]))[None] for name in x}
    return ghost.dot_products({name: np.abs(x_i) for name, x_i in x.items()}, P)[:, 0]


def previous_ratio(step: Step) -> float:
    """The largest factor between the two denominators of the linearised slope."""
    previous = ghost.linearized_previous(step)
    ratios = []
    for name, c in step_coefficients(step).items():
        exact = c.lr * c.k / denominator(c, np.zeros_like(previous[name]))
        if exact.size and step.adam.lr > 0:
            ratios.append(float((previous[name] / exact).max()))
    return max(ratios, default=1.0)
