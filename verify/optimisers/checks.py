"""The metamorphic checks of optimisers with groups, schedules, clipping and L2 decay.

Each compares a candidate's scores for two descriptions of one step, or for two steps whose scores differ by a known
factor. A step without the feature has nothing to compare, and holds.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from adamshap.reference import models
from adamshap.reference.contract import AdamGroups, AdamState, Clipped, Optimiser, Sequential, Step
from adamshap.verify.implementation import Query
from adamshap.verify.optimisers import rescaled, settings_by_name, with_settings
from adamshap.verify.property import Asker, Case, Check
from adamshap.verify.property_checks import agree
from adamshap.verify.steps import adam_of

__all__ = [
    "clipping_beyond_the_norm_changes_nothing",
    "clipping_scales_the_gradient",
    "groups_may_be_split_and_reordered",
    "l2_leaves_sgd",
    "names_mean_nothing",
    "one_group_is_no_group",
    "only_the_schedules_factor_counts",
    "rescaling_the_optimiser_changes_nothing",
]


def _same_scores(other: Callable[[Case], Step], ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare the scores of the case with those of the step `other` of it."""
    base, got = ask(case.step, case.query)["values"], ask(other(case), case.query)["values"]
    return agree(ask, case, got, base, base, case, dtype)


def _in_one_group(case: Case) -> Step:
    return _with(case, AdamGroups(((tuple(case.step.params), adam_of(case.step)),)))


def _in_split_groups(case: Case) -> Step:
    settings = list(settings_by_name(case.step).items())
    order = np.random.default_rng(case.seed).permutation(len(settings))
    return _with(case, AdamGroups(tuple(((settings[i][0],), settings[i][1]) for i in order)))


def _with_this_steps_rate(case: Case) -> Step:
    return _with(case, next(iter(settings_by_name(case.step).values())))


def _clipped_far_beyond(case: Case) -> Step:
    g = models.batch_gradient(case.step)
    return _with(case, Clipped(case.step.adam, 1e3 * (1 + sum(float(np.abs(array).sum()) for array in g.values()))))


def _with(case: Case, optimiser: Optimiser) -> Step:
    return replace(case.step, adam=optimiser)


one_group_is_no_group: Check = partial(_same_scores, _in_one_group)
"""Compare one group of all parameters with no groups."""

groups_may_be_split_and_reordered: Check = partial(_same_scores, _in_split_groups)
"""Compare with a group for each parameter, in another order."""

only_the_schedules_factor_counts: Check = partial(_same_scores, _with_this_steps_rate)
"""Compare with one Adam that has the step's own learning rate."""

clipping_beyond_the_norm_changes_nothing: Check = partial(_same_scores, _clipped_far_beyond)
"""Compare with clipping at a norm that the gradient does not reach."""


def rescaling_the_optimiser_changes_nothing(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare reduction "sum" with "mean": it scales g by n, and with it every setting that is a size of gradients."""
    mean = replace(case.step, reduction="mean")
    scaled = replace(mean, reduction="sum", state=_scaled(mean.state, mean.n), adam=rescaled(mean.adam, mean.n))
    base, got = ask(mean, case.query)["values"], ask(scaled, case.query)["values"]
    return agree(ask, case, got, base, base, replace(case, step=mean), dtype)


def clipping_scales_the_gradient(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare with the step without clipping whose m, √v and ε are 1/c times as large, for c of the whole batch.

    A_{m, v, ε}(c g) = A_{m/c, v/c², ε/c}(g): every slope but "sgd" cancels a common factor. With "sgd", which has no
    denominator, the scores are c times those without clipping.
    """
    clipped = case.step.adam
    if not isinstance(clipped, Clipped):
        return 0.0
    x = models.unclipped_gradients(case.step)
    c = models.clip_factor(clipped, {name: x_i.sum(axis=0) for name, x_i in x.items()})
    state, adam = _scaled(case.step.state, 1 / c), rescaled(clipped.adam, 1 / c)
    base = ask(case.step, case.query)["values"]
    got = ask(replace(case.step, adam=adam, state=state), case.query)["values"]
    factor = c if case.query.options["slope"] == "sgd" else 1.0
    return agree(ask, case, factor * got, base, base, case, dtype)


def _scaled(state: AdamState, factor: float) -> AdamState:
    """Return the moments of gradients that are `factor` times as large."""
    m = {name: factor * array for name, array in state.m.items()}
    return AdamState(state.step, m, {name: factor**2 * array for name, array in state.v.items()})


def l2_leaves_sgd(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare with no L2 decay, for slope "sgd" and the gradient at the start: the decay is no sample's."""
    query = Query("scores", {"slope": "sgd", "gradient": "start"})
    about = replace(case, query=query)
    without = replace(case.step, adam=with_settings(case.step.adam, lambda adam: replace(adam, l2=0.0)))
    base, got = ask(without, query)["values"], ask(case.step, query)["values"]
    return agree(ask, about, got, base, base, replace(about, step=without), dtype)


def names_mean_nothing(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare with the same stack of layers under names in the opposite order; groups follow their parameters."""
    net = case.step.net
    if not isinstance(net, Sequential):
        raise TypeError(f"stacks of layers, not {type(net).__name__}")
    new = {old: f"{chr(ord('z') - place)}{place}" for place, old in enumerate(net.names)}

    def renamed(name: str) -> str:
        layer, _, rest = name.partition(".")
        return f"{new[layer]}.{rest}"

    step, settings = case.step, settings_by_name(case.step)
    params, m, v = (
        {renamed(name): array for name, array in group.items()} for group in (step.params, step.state.m, step.state.v)
    )
    groups = AdamGroups(tuple(((renamed(name),), adam) for name, adam in settings.items()))
    model = Sequential(net.layers, tuple(new[name] for name in net.names), net.loss)
    other = Step(model, params, groups, AdamState(step.state.step, m, v), step.train, step.valid, step.reduction)
    base, got = ask(step, case.query)["values"], ask(other, case.query)["values"]
    return agree(ask, case, got, base, base, case, dtype)
