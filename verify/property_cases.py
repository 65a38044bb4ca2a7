"""The Hypothesis strategies of cases: a step and a call."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from adamshap.reference import models
from adamshap.reference.contract import GRADIENTS, SLOPES, Step
from adamshap.verify.implementation import Query
from adamshap.verify.models import PERCEPTRON
from adamshap.verify.property import Case
from adamshap.verify.strategies import dimensions, seeds, steps

STEPS = steps(at_edges=dimensions())


def cases(
    query: Query, model: str = PERCEPTRON, layers: frozenset[str] | None = None, **limits: Any
) -> st.SearchStrategy[Case]:
    """Return cases of one call over random steps of a kind of model, some of them at an edge within `limits`.

    Stacks have some kinds of `layers` only, if given.
    """
    at_edges = tuple(name for name in dimensions(model, layers) if f"max_{name}" not in limits)
    return st.builds(Case, steps(at_edges=at_edges, model=model, layers=layers, **limits), st.just(query), seeds)


def score_cases(of: st.SearchStrategy[Step] | None = None, **options: Any) -> st.SearchStrategy[Case]:
    """Return cases of `scores` over steps `of`, with `options`; slope and gradient are random if not among them."""
    drawn = {"slope": st.sampled_from(SLOPES), "gradient": st.sampled_from(GRADIENTS)}
    fixed = {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in options.items()}
    query = st.fixed_dictionaries(drawn | fixed).map(lambda given: Query("scores", given))
    return st.builds(Case, STEPS if of is None else of, query, seeds)


SINGLE = np.finfo(np.float32)
OWN_SHARES = (0.4, 0.44, 0.45, 0.46, 0.5)
"""Own shares q g²/(κ + q g²); squared, the three in the middle are between the thresholds of "auto", 3/16 and 7/32."""


@st.composite
def steps_with_own_shares(draw: Any, of: st.SearchStrategy[Step] = STEPS) -> Step:
    """Return steps of `of`; in three of four that are not the first of a run, v gives one own share to all coordinates.

    Without them few steps have an own share near the thresholds, where both slopes count. m is then in proportion to
    the gradient, too: beside a tiny v, or with a tiny β2, a larger one makes steps that float32 cannot hold.
    """
    step: Step = draw(of)
    share = draw(st.sampled_from(OWN_SHARES), label="own share")
    if step.state.step == 0 or draw(st.integers(0, 3), label="as drawn") == 0:
        return step
    m, v = {}, {}
    for name, x in models.sample_gradients(step).items():
        (beta1, beta2), kept_m, kept = step.settings(name).betas, step.state.m[name], step.state.v[name]
        before = np.sqrt(1 / share - 1) * np.abs(x.sum(axis=0))
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            wanted = ((1 / np.float64(beta2) - 1) * before**2).astype(kept.dtype)
        # A v of 0 could make D(0) 0; steps are drawn in float64, and may be asked for in float32.
        held = (wanted > SINGLE.smallest_normal) & (wanted < SINGLE.max)
        v[name] = np.where(held, wanted, kept)
        m[name] = np.where(held, (1 - beta1) * before * np.clip(kept_m, -1, 1), kept_m).astype(kept_m.dtype)
    return replace(step, state=replace(step.state, m=m, v=v))


@st.composite
def micro_batch_cases(draw: Any, of: st.SearchStrategy[Case], sizes: st.SearchStrategy[int]) -> Case:
    """Return cases of `of` with `micro_batch`; in two of three, n is one more or one less than a multiple of it."""
    case: Case = draw(of)
    size = draw(sizes, label="micro_batch")
    over = draw(st.sampled_from((None, 1, -1)), label="samples over")
    if over is not None:
        fitting = [size for size in range(2, case.step.n) if (case.step.n - over) % size == 0]
        size = draw(st.sampled_from(fitting), label="fitting micro_batch") if fitting else size
    return replace(case, query=Query("scores", {**case.query.options, "micro_batch": size}))


@st.composite
def utility_cases(draw: Any, of: st.SearchStrategy[Step] = STEPS) -> Case:
    """Return cases of `utility` over random coalitions, including the empty and the whole one."""
    step = draw(of)
    some = st.lists(st.booleans(), min_size=step.n, max_size=step.n).map(lambda members: np.array(members, dtype=bool))
    nobody, everybody = (np.full(step.n, flag) for flag in (False, True))
    mask = draw(some | some | st.just(nobody) | st.just(everybody), label="coalition")
    return Case(step, Query("utility", {"coalition": mask}))
