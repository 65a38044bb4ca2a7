"""The oracle as an implementation, its answers to calls, and the bound on a correct answer's error."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap import reference
from adamshap.reference import game, models, scoring, slopes
from adamshap.reference.adam import (
    bias_correction,
    decay_gradients,
    denominator,
    divided_difference,
    step_coefficients,
)
from adamshap.reference.contract import AUTO, Array, Params, Step
from adamshap.verify.implementation import (
    CAPTURES,
    Answer,
    Implementation,
    KitError,
    Misbehaviour,
    Query,
    answer,
    implementation,
)
from adamshap.verify.layers.captures import captures, captures_magnitudes
from adamshap.verify.models import KINDS, kind_of
from adamshap.verify.optimisers import FEATURES
from adamshap.verify.tolerance import (
    DRAWS,
    MORE_DRAWS,
    estimator_magnitude,
    parameter_count,
    rounding,
    widening_conditioning,
)

_REFERENCE = implementation(reference, "adamshap.reference")


def _ask(step: Step, query: Query) -> Any:
    if query.function == CAPTURES:
        return captures(step.params, step.train, model=step.net, **query.options)
    return _REFERENCE.ask(step, query)


ORACLE: Implementation = replace(
    _REFERENCE,
    offers=_REFERENCE.offers | {CAPTURES},
    ask=_ask,
    supports=frozenset((*KINDS, *FEATURES, AUTO)),
    guard=None,
)

REMEMBERED = 1000
"""Number of calls whose bounds are kept: those of a quick profile in both dtypes, each with a step of some 10 kB."""

DOT_PRODUCTS = ("scores", "influence")
"""Functions whose answers are dot products."""

_remembered: dict[bytes, "_Widening"] = {}


def expected(step: Step, query: Query, oracle: Implementation = ORACLE) -> Answer:
    """Return the oracle's answer, or that of a variant of the `oracle`.

    Raises
    ------
    KitError
        It fails: that says nothing about a candidate.
    """
    try:
        return answer(oracle, step, query)
    except Misbehaviour as error:
        raise KitError(
            f"{query}: the kit's own {oracle.name} {error}: a defect of the kit, which says nothing about the candidate"
        ) from error


def bounds(step: Step, query: Query, dtype: npt.DTypeLike, draws: int = DRAWS) -> Answer:
    """Return, for each array of the answer, the bound on the error of a correct implementation in `dtype`.

    It covers the rounding of the answer's own terms, and the spread of the oracle's answers over `draws` draws of
    perturbed inputs and of libraries' own rounding (`conditioning`). The arrays are read-only.
    """
    return dict(_remembering(step, query, dtype)[draws + 1])


def expected_and_bounds(
    step: Step, query: Query, dtype: npt.DTypeLike, oracle: Implementation = ORACLE
) -> tuple[Answer, Iterator[Answer]]:
    """Return the oracle's answer, and bounds: a lower limit of the rounding, all of it, then with 1 … 40 draws.

    Of a variant of the `oracle`, they are the variant's answer and the spread of its answers.

    They never shrink, and those with `DRAWS` are `bounds`: an error within an early bound is within all later ones,
    which saves the expensive draws. They are cached as far as computed: many candidates get the cases of one seed.
    """
    known = _remembering(step, query, dtype, oracle)
    return dict(known.expected), (dict(known[place]) for place in range(MORE_DRAWS + 2))


def _remembering(step: Step, query: Query, dtype: npt.DTypeLike, oracle: Implementation = ORACLE) -> "_Widening":
    key = digest(step, query, dtype, oracle)
    if key not in _remembered:
        if len(_remembered) >= REMEMBERED:
            del _remembered[next(iter(_remembered))]
        step = deepcopy(step)  # the caller may change its arrays before the last bound is computed
        wanted = _read_only(expected(step, query, oracle))
        _remembered[key] = _Widening(wanted, _widening(step, query, wanted, dtype, oracle))
    return _remembered[key]


@contextmanager
def without_memory() -> Iterator[None]:
    """Compute bounds anew within the context, in which the oracle computes otherwise, and forget them after it."""
    _remembered.clear()
    try:
        yield
    finally:
        _remembered.clear()


def _read_only(answer: Answer) -> Answer:
    for array in answer.values():
        array.setflags(write=False)
    return answer


@dataclass
class _Widening:
    """An answer, and the sequence of its bounds, computed on demand."""

    expected: Answer
    rest: Iterator[Answer]
    known: list[Answer] = field(default_factory=list)

    def __getitem__(self, place: int) -> Answer:
        while len(self.known) <= place:
            self.known.append(_read_only(next(self.rest)))
        return self.known[place]


def digest(step: Step, query: Query, dtype: npt.DTypeLike, oracle: Implementation) -> bytes:
    """Return a hash of all inputs of an answer's bounds, but for the name of the `oracle` those of an answer."""
    batches = (step.train, step.valid)
    arrays = [array for batch in batches for array in (batch.x, batch.y)]
    for name in sorted(step.params):
        arrays += [step.params[name], step.state.m[name], step.state.v[name]]
    directions = query.options.get("directions", {})
    arrays += [directions[name] for name in sorted(directions)]
    plain = (step.net, step.adam, step.state.step, step.reduction, str(query), np.dtype(dtype), oracle.name)
    digest = hashlib.blake2b(repr(plain).encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.digest()


def _widening(
    step: Step, query: Query, answers: Answer, dtype: npt.DTypeLike, oracle: Implementation
) -> Iterator[Answer]:
    length = parameter_count(step) + step.n + step.n_val
    # The sum of a dot product's absolute terms is at least its own absolute value, which is known already.
    least = {
        name: np.abs(array) if query.function in DOT_PRODUCTS else np.zeros_like(array)
        for name, array in answers.items()
    }
    yield {name: rounding(size, length, dtype) for name, size in least.items()}
    magnitudes = _magnitudes(step.as_float64(), query)
    rounded = {
        name: np.array(np.broadcast_to(rounding(magnitudes[name], length, dtype), array.shape))
        for name, array in answers.items()
    }
    yield rounded

    def flat(given: Step) -> Array:
        return np.concatenate([array.ravel() for array in expected(given, query, oracle).values()])

    ends = np.cumsum([array.size for array in answers.values()])[:-1]
    for spread in widening_conditioning(flat, step, dtype, draws=None):
        parts = np.split(spread, ends)
        yield {
            name: bound + part.reshape(bound.shape) for (name, bound), part in zip(rounded.items(), parts, strict=True)
        }


def _magnitudes(step: Step, query: Query) -> dict[str, Any]:
    """Return Σ |term| of the sum that each array of the answer is."""
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
    if query.function == CAPTURES:
        return captures_magnitudes(step, query.options["directions"])
    estimator = query.estimator
    size = estimator_magnitude(step, estimator)
    if estimator.denominator == "previous":
        size = size * previous_ratio(step)
    if estimator.efficient:
        columns = step.n_val if estimator.per_validation else 1
        size = size + size.mean(axis=0) + _loss_magnitude(step) / step.n * columns
    return {"values": size}


def _absolute_sum(x: Params) -> Params:
    return {name: np.abs(x_i).sum(axis=0) for name, x_i in x.items()}


def _terms_received(step: Step, g: Params) -> Params:
    """Return |λ₂ θ| + Σ_i |x_i|, the terms of the gradient that Adam receives."""
    d = decay_gradients(step)
    return {name: size + np.abs(d[name]) if name in d else size for name, size in g.items()}


def _update_magnitudes(step: Step) -> dict[str, Any]:
    g = _terms_received(step, _absolute_sum(models.sample_gradients(step)))
    true_g, c = models.batch_gradient(step), step_coefficients(step)
    sizes: dict[str, Any] = {"step": 0.0}
    for name, p in step.params.items():
        adam = step.settings(name)
        beta1, beta2 = adam.betas
        # PyTorch computes m⁺ as m + (1 − β1)(g − m), with an error of u |m| even for a small β1.
        factor = max(beta1, 1 - beta1) if beta1 else 0.0
        correction = bias_correction(beta1, step.state.next_step)
        m = factor * np.abs(step.state.m[name])
        update = c[name].lr * (m / correction + c[name].k * g[name]) / denominator(c[name], true_g[name])
        sizes[f"params.{name}"] = np.abs(p) * (1 + adam.lr * adam.weight_decay) + update
        sizes[f"m.{name}"] = m + (1 - beta1) * g[name]
        sizes[f"v.{name}"] = beta2 * step.state.v[name] + (1 - beta2) * g[name] ** 2
    return sizes


def _loss_magnitude(step: Step) -> float:
    """Return the larger validation loss, before the step or after it, plus the size of the terms of its sum."""
    U = game.exact_game(step)
    before = models.mean_loss(step.net, step.params, step.valid)
    ends = [abs(before - U(mask)) for mask in (np.zeros(step.n, bool), np.ones(step.n, bool))]
    return float(max(before, *ends) + kind_of(step.net).loss_terms(step) + 1)


def _first_order_magnitude(step: Step) -> float:
    """Return Σ |∂L| · Σ |terms of Adam's step|: the terms of U₁."""
    samples, c, d = _absolute_sum(models.sample_gradients(step)), step_coefficients(step), decay_gradients(step)
    g = _terms_received(step, samples)
    gamma = models.loss_gradient(step.net, step.params, step.valid)
    total = 0.0
    for name, coefficients in c.items():
        # The smallest gradient of any coalition: 0 without L2 decay, which every coalition receives.
        least = np.maximum(np.abs(d[name]) - samples[name], 0.0) if name in d else np.zeros_like(samples[name])
        smallest = denominator(replace(coefficients, shift=None), least)
        terms = coefficients.lr * (np.abs(coefficients.mu) + coefficients.k * g[name]) / smallest
        total += float((np.abs(gamma[name]) * np.minimum(terms, _largest_update(coefficients, smallest))).sum())
    return total


def _largest_update(c: Any, smallest: Array) -> Array:
    """Return the limit of |A| ≤ η (|μ|/D + k/√q), D the smallest denominator: the k-part of Adam's update saturates."""
    size: Array = c.lr * (np.abs(c.mu) / smallest + c.k / np.sqrt(c.q))
    return size


def _influence_magnitude(step: Step) -> Array:
    x, g = models.sample_gradients(step), models.batch_gradient(step)
    after, _ = reference.update(step)
    gamma, c = models.loss_gradient(step.net, after, step.valid), step_coefficients(step)
    P = {name: np.abs(gamma[name] * divided_difference(c[name], g[name], g[name]))[None] for name in x}
    return scoring.dot_products({name: np.abs(x_i) for name, x_i in x.items()}, P)[:, 0]


def previous_ratio(step: Step) -> float:
    """Return the largest ratio between the two denominators of the linearised slope."""
    previous = slopes.linearized_previous(step)
    ratios = []
    for name, c in step_coefficients(step).items():
        exact = c.lr * c.k / denominator(c, np.zeros_like(previous[name]))
        if exact.size and c.lr > 0:
            ratios.append(float((previous[name] / exact).max()))
    return max(ratios, default=1.0)
