"""Mistakes in what a training loop adds to Adam: groups of parameters, schedules, clipping and L2 decay.

The vectors v1 have one plain Adam, so none of these can show there: vectors with such optimisers have to expose them.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from adamshap.reference import adam, models, scoring, slopes, two_term
from adamshap.reference.adam import Coefficients
from adamshap.reference.contract import Adam, AdamGroups, AdamState, Array, Clipped, Params, Schedule, Step, StepNumber
from adamshap.verify.faults.fault import SEEN, Fault, Wrap, computes_with, returns
from adamshap.verify.implementation import Ask, Query
from adamshap.verify.optimisers import Parts, members_of, parts_of, settings_by_name, with_settings

PARAM_GROUPS = "code that reads optimizer.param_groups[0] alone"


# --- ways to plant ---------------------------------------------------------------------------------------------------


def _parts(change: Callable[[Step, Parts], Parts]) -> Wrap:
    """Return a fault that changes the parts of the optimiser."""

    def wrap(ask: Ask) -> Ask:
        return lambda step, query: ask(replace(step, adam=change(step, parts_of(step.adam)).joined()), query)

    return wrap


def _settings(change: Callable[[Adam], Adam]) -> Wrap:
    return _parts(lambda step, parts: parts_of(with_settings(parts.joined(), change)))


def _groups(change: Callable[[AdamGroups, dict[str, Adam]], dict[str, Adam]]) -> Wrap:
    """Return a fault with other settings by name where there are groups: ``change(groups, right ones)``."""

    def wrong(step: Step, parts: Parts) -> Parts:
        if not isinstance(parts.adam, AdamGroups):
            return parts
        right = {name: parts.adam.at(StepNumber(1), name) for name in step.params}
        changed = tuple(((name,), one) for name, one in change(parts.adam, right).items())
        return replace(parts, adam=AdamGroups(changed))

    return _parts(wrong)


def _of_the_first(*fields: str) -> Wrap:
    """Return a fault in which every parameter has the first group's settings, in all `fields`."""

    def change(groups: AdamGroups, right: dict[str, Adam]) -> dict[str, Adam]:
        first = groups.groups[0][1]
        same = {field: getattr(first, field) for field in fields}
        return {name: replace(one, **same) for name, one in right.items()}

    return _groups(change)


def _in_no_group(change: Callable[[Adam], Adam]) -> Wrap:
    def of_the_rest(groups: AdamGroups, right: dict[str, Adam]) -> dict[str, Adam]:
        named = {name for members in members_of(groups, right) for name in members}
        return {name: one if name in named else change(one) for name, one in right.items()}

    return _groups(of_the_rest)


def _by_sorted_names(groups: AdamGroups, right: dict[str, Adam]) -> dict[str, Adam]:
    return dict(zip(sorted(right), right.values(), strict=True))


def _scheduled_by(factor: Callable[[Schedule, StepNumber], float]) -> Wrap:
    """Return a fault with another factor of the learning rate."""

    def wrong(step: Step, parts: Parts) -> Parts:
        if parts.schedule is None:
            return parts
        by = factor(parts.schedule, step.state.next_step)
        scaled = parts_of(with_settings(parts.adam, lambda one: replace(one, lr=by * one.lr)))
        return replace(parts, adam=scaled.adam, schedule=None)

    return _parts(wrong)


def _at(schedule: Schedule, t: int) -> float:
    """Return the factor of step `t`, or of the nearest step that the schedule has."""
    last = len(schedule.shape) if isinstance(schedule.shape, tuple) else t
    return schedule.factor(StepNumber(max(1, min(t, last))))


def _decay_at_the_base_rate(ask: Ask) -> Ask:
    def faulty(step: Step, query: Query) -> Any:
        base = replace(parts_of(step.adam), schedule=None).joined()
        wrong = computes_with(adam.decayed, lambda right: lambda one: right(replace(one, adam=base)))
        return wrong(ask)(step, query)

    return faulty


# --- clipping --------------------------------------------------------------------------------------------------------


def _clip(**changes: Any) -> Wrap:
    def change(step: Step, parts: Parts) -> Parts:
        return parts if parts.clip is None else replace(parts, clip=replace(parts.clip, **changes))

    return _parts(change)


def _samples(change: Callable[[Step, Clipped, Params, Params], Params]) -> Wrap:
    """Return a fault with other clipped contributions: ``change(step, clipped, w∇ℓ_i, their sum)``."""

    def make(right: Any) -> Any:
        def gradients(step: Step) -> Params:
            if not isinstance(step.adam, Clipped):
                return right(step)  # type: ignore[no-any-return]
            x = models.unclipped_gradients(step)
            return change(step, step.adam, x, _sum(x))

        return gradients

    return computes_with(models.sample_gradients, make)


def _sum(x: Params) -> Params:
    return {name: x_i.sum(axis=0) for name, x_i in x.items()}


def _factor_of(step: Step) -> float:
    """Return c, 1 without clipping."""
    if not isinstance(step.adam, Clipped):
        return 1.0
    return models.clip_factor(step.adam, _sum(models.unclipped_gradients(step)))


def _each_sample(step: Step, clipped: Clipped, x: Params, g: Params) -> Params:
    c = np.array([models.clip_factor(clipped, {name: x_i[i] for name, x_i in x.items()}) for i in range(step.n)])
    return {name: x_i * c.reshape(-1, *[1] * (x_i.ndim - 1)) for name, x_i in x.items()}


def _by_parameter(step: Step, clipped: Clipped, x: Params, g: Params) -> Params:
    return {name: x_i * models.clip_factor(clipped, {name: g[name]}) for name, x_i in x.items()}


def _by_group(step: Step, clipped: Clipped, x: Params, g: Params) -> Params:
    settings = settings_by_name(step)
    factors = {
        one: models.clip_factor(clipped, {name: g[name] for name in g if settings[name] == one})
        for one in settings.values()
    }
    return {name: x_i * factors[settings[name]] for name, x_i in x.items()}


def _by_value(step: Step, clipped: Clipped, x: Params, g: Params) -> Params:
    limited = {name: np.clip(array, -clipped.norm, clipped.norm) for name, array in g.items()}
    return {
        name: x_i * np.divide(limited[name], g[name], out=np.ones_like(g[name]), where=g[name] != 0)
        for name, x_i in x.items()
    }


def _by_the_sum(step: Step, clipped: Clipped, x: Params, g: Params) -> Params:
    n = step.n if step.reduction == "mean" else 1
    c = models.clip_factor(clipped, {name: n * array for name, array in g.items()})
    return {name: c * x_i for name, x_i in x.items()}


def _never_one(right: Any) -> Any:
    def factor(clipped: Clipped, g: Params) -> float:
        norm = math.hypot(*np.concatenate([array.ravel() for array in g.values()])) + clipped.eps
        return clipped.norm / norm if norm else 1.0

    return factor


def _times(terms: list[tuple[Params, Params]], c: float) -> list[tuple[Params, Params]]:
    """Return the terms of a score for contributions c x_i: c x_i, and with a second term also √c f(x_i)."""
    return [
        ({name: by * f_i for name, f_i in f.items()}, coefficient)
        for (f, coefficient), by in zip(terms, (c, math.sqrt(c)), strict=False)
    ]


def _unclipped_in_the_scores(ask: Ask) -> Ask:
    def make(right: Any) -> Any:
        return lambda step, *given: _times(right(step, *given), 1 / _factor_of(step))

    scores = computes_with(scoring.terms_of, make)(ask)
    return returns(lambda step, query, result, ask: result / _factor_of(step), "influence")(scores)


def _clipped_in_the_scores_only(ask: Ask) -> Ask:
    def faulty(step: Step, query: Query) -> Any:
        c, unclipped = _factor_of(step.as_float64()), replace(parts_of(step.adam), clip=None).joined()
        wrong = computes_with(scoring.terms_of, lambda right: lambda *given: _times(right(*given), c))(ask)
        result = wrong(replace(step, adam=unclipped), query)
        return c * result if query.function == "influence" else result

    return faulty


def _unclipped_in_the_variance(ask: Ask) -> Ask:
    def faulty(step: Step, query: Query) -> Any:
        c = _factor_of(step.as_float64())
        partial_sum = computes_with(slopes.partial_sum_deviation, lambda right: lambda x, g: right(x, g) / c)
        own = computes_with(two_term.own_spread, lambda right: lambda x: right(x) / c)
        return partial_sum(own(ask))(step, query)

    return faulty


def _clipped_after_decay(ask: Ask) -> Ask:
    """Clip d + g by its norm: the decay is multiplied by the same factor."""

    def faulty(step: Step, query: Query) -> Any:
        parts, single = parts_of(step.adam), step.as_float64()
        if parts.clip is None:
            return ask(step, query)
        g = _sum(models.unclipped_gradients(single))
        whole = {name: g[name] + one.l2 * single.params[name] for name, one in settings_by_name(single).items()}
        c = models.clip_factor(parts.clip, whole)
        norm = math.hypot(*np.concatenate([array.ravel() for array in g.values()]))
        scaled = parts_of(with_settings(parts.adam, lambda one: replace(one, l2=c * one.l2)))
        limit = c * norm if c < 1 else 2 * norm  # without a gradient any limit will do
        clip = Clipped(Adam(), limit or 1.0, 0.0)
        return ask(replace(step, adam=replace(scaled, schedule=parts.schedule, clip=clip).joined()), query)

    return faulty


def _game_of_each_coalition(ask: Ask) -> Ask:
    def faulty(step: Step, query: Query) -> Any:
        if query.function not in ("utility", "marginals"):
            return ask(step, query)
        return ask(step, Query(query.function, {**query.options, "clip_each": True}))

    return faulty


def _through_the_factor(step: Step, query: Query, result: Array, ask: Ask) -> Array:
    """Return the influence where c follows the sample's weight (docs/method.md 9)."""
    clipped = step.adam
    if not isinstance(clipped, Clipped) or _factor_of(step) == 1:
        return result
    x = models.unclipped_gradients(step)
    g = _sum(x)
    norm = math.hypot(*np.concatenate([array.ravel() for array in g.values()]))
    along = scoring.dot_products(x, {name: array[None] for name, array in g.items()})[:, 0]
    wrong: Array = result - along / (norm * (norm + clipped.eps)) * result.sum()
    return wrong


# --- L2 decay --------------------------------------------------------------------------------------------------------


def _coefficients(change: Callable[[str, Coefficients], Coefficients]) -> Wrap:
    """Return a fault with other coefficients of the parameters with L2 decay."""

    def make(right: Any) -> Any:
        return lambda step: {name: c if c.shift is None else change(name, c) for name, c in right(step).items()}

    return computes_with(adam.step_coefficients, make)


def _charged_gradients(right: Any) -> Any:
    """Return contributions with an n-th of the decay each."""

    def gradients(step: Step) -> Params:
        l2 = {name: one.l2 / step.n for name, one in settings_by_name(step).items()}
        return {name: x_i + l2[name] * step.params[name] for name, x_i in right(step).items()}

    return gradients


def _charged_to_samples(ask: Ask) -> Ask:
    inner = _coefficients(lambda name, c: replace(c, shift=None))(ask)
    return computes_with(models.sample_gradients, _charged_gradients)(inner)


def _not_in_v(ask: Ask) -> Ask:
    """Leave d out of the squared gradient: its part of the numerator joins μ, and m⁺ still receives it."""

    def constant(name: str, c: Coefficients) -> Coefficients:
        return c if c.shift is None else replace(c, mu=c.mu + c.k * c.shift, shift=None)

    def with_decay(step: Step, query: Query, result: Any, ask: Ask) -> Any:
        params, state = result
        m = {
            name: array + (1 - one.betas[0]) * one.l2 * step.params[name]
            for (name, array), one in zip(state.m.items(), settings_by_name(step).values(), strict=True)
        }
        return params, AdamState(state.step, m, state.v)

    return returns(with_decay, "update")(_coefficients(constant)(ask))


def _from_zero(right: Any) -> Any:
    """Return a slope that starts at the gradient 0 in place of the decay's."""

    def wrong(given: slopes.SlopeInput) -> Array:
        if given.c.shift is None:
            return right(given)  # type: ignore[no-any-return]
        moved = replace(given, c=replace(given.c, shift=None), g=given.c.shift + given.g)
        return right(moved)  # type: ignore[no-any-return]

    return wrong


def _slopes_from_zero(ask: Ask) -> Ask:
    return computes_with(slopes.linearized, _from_zero)(computes_with(slopes.secant, _from_zero)(ask))


FAULTS: tuple[Fault, ...] = (
    # groups
    Fault("lr-of-the-first-group", "the first group's η for all parameters", PARAM_GROUPS, _of_the_first("lr")),
    Fault(
        "settings-of-the-first-group",
        "the first group's settings for all parameters",
        PARAM_GROUPS,
        _of_the_first("lr", "betas", "eps", "eps_root", "weight_decay", "l2"),
    ),
    Fault("betas-of-the-first-group", "the first group's β1 and β2 for all parameters", SEEN, _of_the_first("betas")),
    Fault("eps-of-the-first-group", "the first group's ε for all parameters", SEEN, _of_the_first("eps")),
    Fault(
        "decay-of-the-first-group",
        "the first group's decay for all parameters",
        "groups for what is not decayed are forgotten",
        _of_the_first("weight_decay", "l2"),
    ),
    Fault(
        "groups-by-sorted-names",
        "groups assigned to the sorted names of the parameters",
        "JAX sorts the keys of a dict",
        _groups(_by_sorted_names),
    ),
    Fault(
        "rest-at-defaults",
        "Adam's default settings for parameters in no group",
        SEEN,
        _in_no_group(lambda one: Adam()),
    ),
    Fault(
        "rest-not-trained",
        "η = 0 for parameters in no group",
        "PyTorch trains only parameters that are in a group",
        _in_no_group(lambda one: replace(one, lr=0.0)),
    ),
    # schedules
    Fault("schedule-left-out", "the base η for the schedule's", SEEN, _scheduled_by(lambda schedule, t: 1.0)),
    Fault(
        "schedule-of-the-step-before",
        "the schedule's η of step t − 1",
        "the factor of t completed steps is shifted once too often",
        _scheduled_by(lambda schedule, t: _at(schedule, t - 1)),
    ),
    Fault(
        "schedule-of-the-step-after",
        "the schedule's η of step t + 1",
        "scheduler.step() before optimizer.step(), as PyTorch had it before 1.1",
        _scheduled_by(lambda schedule, t: _at(schedule, t + 1)),
    ),
    Fault(
        "decay-not-scheduled",
        "decoupled decay multiplied by the base η",
        "1 − η λ is computed once",
        _decay_at_the_base_rate,
    ),
    # clipping
    Fault("clip-left-out", "no clipping", SEEN, _parts(lambda step, parts: replace(parts, clip=None))),
    Fault(
        "clip-not-in-the-scores",
        "unclipped contributions in the scores, and the clipped step",
        "hooks keep gradients before clip_grad_norm_",
        _unclipped_in_the_scores,
    ),
    Fault(
        "clip-in-the-scores-only",
        "clipped contributions in the scores, and the unclipped step",
        "the step is recomputed without clipping",
        _clipped_in_the_scores_only,
    ),
    Fault(
        "clip-not-in-the-variance",
        "the variance of unclipped contributions",
        "squares are summed in hooks, before clip_grad_norm_",
        _unclipped_in_the_variance,
    ),
    Fault(
        "clip-each-sample",
        "each sample clipped by its own norm",
        "differentially private SGD (arXiv 1607.00133)",
        _samples(_each_sample),
    ),
    Fault("clip-by-parameter", "each parameter clipped by its own norm", "clipnorm of Keras", _samples(_by_parameter)),
    Fault(
        "clip-by-group",
        "each group clipped by its own norm",
        "clip_grad_norm_ called for each group",
        _samples(_by_group),
    ),
    Fault(
        "clip-by-value",
        "each element clipped to ± the largest norm",
        "clip_grad_value_ of PyTorch, clipvalue of Keras",
        _samples(_by_value),
    ),
    Fault(
        "clip-by-the-sum",
        "the norm of the sum over samples for that of the mean",
        "clipped before the division by n, as with gradient accumulation",
        _samples(_by_the_sum),
    ),
    Fault(
        "clip-always",
        "every gradient scaled to the largest norm, also a smaller one",
        "the minimum with 1 left out",
        computes_with(models.clip_factor, _never_one),
    ),
    Fault(
        "clip-eps-of-pytorch",
        "1e-6 for ε_c, a variant of clipping",
        "clip_grad_norm_ of PyTorch",
        _clip(eps=1e-6),
    ),
    Fault("clip-eps-left-out", "0 for ε_c, a variant of clipping", "clip_by_global_norm of optax", _clip(eps=0.0)),
    Fault(
        "clip-each-coalition",
        "each coalition clipped by its own norm, the game of a trainer that clips anew",
        "clip_each=True of the oracle",
        _game_of_each_coalition,
    ),
    Fault(
        "clip-factor-follows-the-weight",
        "the influence on the clipping factor added",
        "a derivative through clip_grad_norm_",
        returns(_through_the_factor, "influence"),
    ),
    # L2 decay
    Fault("l2-left-out", "L2 decay left out", SEEN, _settings(lambda one: replace(one, l2=0.0))),
    Fault(
        "l2-decoupled",
        "L2 decay decoupled: η λ θ subtracted",
        "AdamW for Adam",
        _settings(lambda one: replace(one, weight_decay=one.weight_decay + one.l2, l2=0.0)),
    ),
    Fault(
        "decay-as-l2",
        "decoupled decay as L2 decay, λ θ added to the gradient",
        "Adam for AdamW",
        _settings(lambda one: replace(one, weight_decay=0.0, l2=one.weight_decay + one.l2)),
    ),
    Fault(
        "l2-charged-to-samples",
        "L2 decay charged to the samples, an n-th each",
        "L2 in the loss of every sample",
        _charged_to_samples,
    ),
    Fault(
        "l2-of-weights-alone",
        "L2 decay of the weights alone, not of the biases",
        "parameter groups without decay, as for transformers",
        _coefficients(lambda name, c: c if name.endswith("weight") else replace(c, shift=None)),
    ),
    Fault("l2-not-in-v", "λ θ left out of the squared gradient", SEEN, _not_in_v),
    Fault(
        "l2-slope-from-0",
        "slopes that start at the gradient 0 in place of λ θ",
        "A[g, 0] of the whole gradient",
        _slopes_from_zero,
    ),
    Fault(
        "l2-before-clipping",
        "L2 decay added before clipping, and clipped with the gradient",
        "L2 in the loss",
        _clipped_after_decay,
    ),
)
