"""One training step with its attribution: gradient, fused pass, validation gradient, contraction.

The order is that of the data's dependence. The batch's gradient g comes first; then one pass over the parameters takes
Adam's step and makes the slope S and the point where the validation gradient Γ is asked for; then P = Γ ⊙ S; then a
sample's score is ``b_iᵀ P a_i``, summed over layers.

======  =====================  ==========================================================
paper   name                   meaning
======  =====================  ==========================================================
θ, m, v ``theta, m, v``        the state before the step, dicts by parameter name
g       ``g``                  gradient of the whole batch
Γ       ``gamma``              validation gradient
S, P    ``slope``              slope; P takes its place
σ²      ``norms.Norms``        variance of the sum of a random half, by norms
w       ``weight``             1/n or 1: what a sample's gradient counts in the batch's
======  =====================  ==========================================================
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adamshap.gpu.backend import Backend
from adamshap.gpu.ghost import Sketch, contract, pairwise, pairwise_is_cheaper
from adamshap.gpu.kernels.groups import (
    NO_NORMS,
    FirstMoment,
    FusedStepOut,
    ParameterState,
    SecondMoment,
)
from adamshap.gpu.kernels.plan import AdamScalars, SlopePlan, adam_scalars, path_nodes, slope_plan
from adamshap.gpu.layers import (
    EngineContext,
    Trace,
    as_matrix,
    gradients,
    new_trace,
    row_losses,
    run_rows,
    times_gradients,
)
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.threads import in_parts
from adamshap.gpu.two_term import finds_nothing, part_of_the_way, roots_of, two_slopes
from adamshap.reference.contract import TWO_TERM, Adam, Estimator, StepNumber, refuse_zero_denominator

__all__ = [
    "ForwardResult",
    "Norms",
    "State",
    "StepBatch",
    "StepResult",
    "add_norms",
    "advice",
    "along_segment",
    "attribute_step",
    "end_points",
    "first_pass",
    "like",
    "plain_step",
    "refuse_division_by_zero",
    "score_rows",
    "scorer_of",
    "take_step",
    "take_step_and_slope",
]

Arrays = dict[str, Any]


VALIDATION = "the validation samples"


@dataclass(frozen=True)
class State:
    """θ, m, v before step t, or where those after it are written."""

    theta: Arrays
    m: Mapping[str, FirstMoment]
    v: Mapping[str, SecondMoment]
    t: StepNumber

    def of(self, key: str, units: slice = slice(None)) -> ParameterState:
        """Return some units of one parameter, as matrices."""
        m, v = FirstMoment(self.m[key][units]), SecondMoment(self.v[key][units])
        return ParameterState(as_matrix(self.theta[key][units]), as_matrix(m), as_matrix(v))

    def suspects(self) -> Arrays:
        """Return the arrays that show an overflow, keyed by their names in error messages."""
        squares = {f"square of the gradient of {name!r}": v for name, v in self.v.items()}
        return squares | {f"params[{name!r}]": p for name, p in self.theta.items()}

    def is_finite(self) -> bool:
        """Whether `suspects` are all finite, and not so large that their squares overflow. Waits for a device.

        One reading of each array: quicker than `first_not_finite`, which says what is wrong where this is False.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            ends = [v.max() for v in self.v.values()] + [np.vdot(p, p) for p in self.theta.values()]
        return all(math.isfinite(end) for end in ends)


@dataclass(frozen=True)
class StepResult:
    """What a step gives: scores (n,) or (n, n_val), SGD's where they were asked for, and the losses before it."""

    scores: Any
    sgd_scores: Any
    train_loss: Any
    valid_loss: Any


@dataclass(frozen=True)
class StepBatch:
    """A batch in the backend and the validation samples beside it.

    With ``together``, one array of the validation inputs and then the training inputs, of which the others are views,
    both go through the network in one pass where the validation gradient at θ is wanted.
    """

    x: Any
    y: Any
    valid_x: Any
    valid_y: Any
    together: Any = None

    @property
    def n(self) -> int:
        """Number of training samples."""
        return len(self.x)

    @property
    def n_val(self) -> int:
        """Number of validation samples."""
        return len(self.valid_x)


def like(context: EngineContext, name: str) -> Arrays:
    """Return one buffer for each parameter, under `name`."""
    return {key: context.buffers.get(f"{name} {key}", shape) for key, shape in context.shapes.items()}


def plain_step(context: EngineContext, adam: Adam, state: State, x: Any, y: Any, weight: float, new: State) -> Any:
    """Take a step without attribution; return each sample's loss before it."""
    context.place.step = state.t
    context.now("forward pass", slice(0, len(x)))
    trace = new_trace(context, "train", len(x), x)
    run_rows(context, trace, state.theta, y, weight)
    g = like(context, "gradient")
    gradients(context, trace, g)
    take_step(context, adam_scalars(adam, state.t), state, g, new)
    return trace.losses


def take_step(context: EngineContext, scalars: AdamScalars, state: State, g: Arrays, new: State) -> None:
    """Write Adam's update."""
    context.now("pass over the parameters")
    for key in state.theta:
        context.kernels.adam_step(scalars, as_matrix(g[key]), state.of(key), new.of(key))


def attribute_step(
    context: EngineContext,
    adam: Adam,
    state: State,
    batch: StepBatch,
    weight: float,
    estimator: Estimator,
    new: State,
    *,
    micro_batch: int | None = None,
    sketch: Sketch | None = None,
    with_sgd: bool = False,
    after: bool = False,
) -> StepResult:
    """Take the step and score its samples.

    Parameters
    ----------
    state, new : State
        Before the step, and where the state after it is written; the same arrays, if the old ones are not needed.
    weight : float
        w, 1/n or 1.
    estimator : Estimator
    micro_batch : int, optional
        So many samples go through the network at a time, in two passes; scores and update are those of one pass.
    sketch : Sketch, optional
        Bases of the low-rank scores, kept from the step before.
    with_sgd : bool
        Whether SGD's scores (slope "sgd", gradient "start") are wanted too.
    after : bool
        Take Γ = ∇L(θ⁺), for `influence`, whatever the estimator's gradient.
    """
    context.place.step = state.t
    chunks = _chunks(batch.n, micro_batch)
    scalars = adam_scalars(adam, state.t)
    two = estimator.slope == TWO_TERM
    # Where there are two terms, their slopes are made by themselves, and the fused pass has none to make.
    plan = slope_plan("sgd" if two else estimator.slope, estimator.nodes, batch.n, estimator.denominator)
    low, high = part_of_the_way(estimator.kind, batch.n) if two else (0.0, 1.0)
    each = 1.0 if estimator.per_validation else 1 / batch.n_val  # weight of a validation sample's own loss
    needs_spread = two or plan.needs_spread
    gradient = "after" if after else estimator.gradient
    start_wanted = with_sgd or gradient == "start"
    first = first_pass(context, state, batch, weight, each, chunks, start_wanted, needs_spread, estimator.variance)
    idle_needed = gradient in ("midpoint", "path") or estimator.efficient or plan.meets_rest
    idle_needed = idle_needed or (two and finds_nothing(estimator.kind, batch.n, estimator.nodes[0]))
    if idle_needed or two or plan.kind != "sgd":
        refuse_division_by_zero(context, adam, state, None if idle_needed else first.g)
    gap = _gap(context, scalars, state, first.g, batch, estimator.per_validation) if estimator.efficient else None
    validation = first.start if gradient == "start" else None
    if gradient == "path":
        nodes = tuple((low + tau * (high - low), w) for tau, w in path_nodes(estimator.nodes[0]))
        validation = along_segment(context, end_points(context, scalars, state, first.g), nodes, batch, each)
    terms = None
    if two and first.norms is not None:
        terms = like(context, "first term"), like(context, "second term")
        two_slopes(context, scalars, estimator.kind, estimator.nodes, batch.n, first.g, state, first.norms, *terms)
    gamma = None
    if validation is not None and plan.kind != "sgd" and not estimator.per_validation:
        gamma = like(context, "validation gradient")
        gradients(context, validation, gamma)
    point = like(context, "point") if gradient == "midpoint" else None
    slope = first.g  # which nothing needs after this pass
    take_step_and_slope(context, scalars, plan, batch.n, state, first, gamma, (low + high) / 2, new, point, slope)
    if validation is None:
        context.now("forward pass", VALIDATION)
        validation = new_trace(context, "valid", batch.n_val, batch.valid_x)
        run_rows(context, validation, new.theta if point is None else point, batch.valid_y, each)
    if terms is not None:
        scorers = [two_term_scorer(context, estimator, batch.n, validation, *terms)]
    else:
        factor = scalars.lr if plan.kind == "sgd" else slope
        scorers = [scorer_of(context, estimator, batch.n, validation, factor, gamma is not None, sketch)]
    if with_sgd and first.start is not None:
        scorers.append(scorer_of(context, replace(estimator, gradient="start"), batch.n, first.start, scalars.lr))
    groups = batch.n_val if estimator.per_validation else 1
    scores, *sgd_scores = score_rows(context, state, batch, weight, chunks, first.trace, scorers, groups)
    if gap is not None:
        scores += (gap - scores.sum(axis=1))[:, None] / scores.dtype.type(batch.n)
    shaped = [s.T if estimator.per_validation else s[0] for s in (scores, *sgd_scores)]
    valid_loss = None if first.start is None else first.start.losses.mean(dtype="float64")
    return StepResult(shaped[0], shaped[1] if with_sgd else None, first.train_loss, valid_loss)


# --- first pass: the batch's gradient --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForwardResult:
    """What the batch's pass leaves: its trace if it was one chunk, the validation samples' at θ, g, and norms for σ."""

    trace: Trace | None
    start: Trace | None
    g: Arrays
    norms: Norms | None
    train_loss: Any


def _chunks(n: int, micro_batch: int | None) -> list[slice]:
    size = micro_batch or n
    return [slice(low, min(low + size, n)) for low in range(0, n, size)]


def first_pass(
    context: EngineContext,
    state: State,
    batch: StepBatch,
    weight: float,
    each: float,
    chunks: list[slice],
    start_wanted: bool,
    spread_wanted: bool,
    variance: str,
) -> ForwardResult:
    """Run the batch through the network, in chunks, and the validation samples beside it where Γ at θ is wanted."""
    g = like(context, "gradient")
    norms = Norms() if spread_wanted else None
    start = trace = None
    if start_wanted and batch.together is not None and len(chunks) == 1:
        context.now("forward pass", slice(0, batch.n))
        both = new_trace(context, "train", batch.n_val + batch.n, batch.together)
        weights = context.buffers.get("weights", (batch.n_val + batch.n, 1))
        weights[: batch.n_val], weights[batch.n_val :] = each, weight
        run_rows(context, both, state.theta, context.backend.xp.concatenate([batch.valid_y, batch.y]), weights)
        start, trace = both.rows(slice(0, batch.n_val)), both.rows(slice(batch.n_val, None))
    elif start_wanted:
        context.now("forward pass", VALIDATION)
        start = new_trace(context, "start", batch.n_val, batch.valid_x)
        run_rows(context, start, state.theta, batch.valid_y, each)
    loss = 0.0
    for number, chunk in enumerate(chunks):
        if trace is None or number:
            trace = _run_chunk(context, state, batch, weight, chunk)
        gradients(context, trace, g, add=number > 0)
        loss = loss + trace.losses.sum(dtype="float64")
        if norms is not None:
            add_norms(context, norms, trace, variance)
    return ForwardResult(trace if len(chunks) == 1 else None, start, g, norms, loss / batch.n)


def _run_chunk(context: EngineContext, state: State, batch: StepBatch, weight: float, chunk: slice) -> Trace:
    context.now("forward pass", chunk)
    x = batch.x[chunk]
    trace = new_trace(context, "train", len(x), x)
    run_rows(context, trace, state.theta, batch.y[chunk], weight)
    return trace


# --- the pass over the parameters ------------------------------------------------------------------------------------


def take_step_and_slope(
    context: EngineContext,
    scalars: AdamScalars,
    plan: SlopePlan,
    n: int,
    state: State,
    first: ForwardResult,
    gamma: Arrays | None,
    blend: float,
    new: State,
    point: Arrays | None,
    slope: Arrays,
) -> None:
    """Run the fused pass over every parameter; see `Kernels.fused_step`."""
    context.now("fused pass", slice(0, n))
    for key, g in first.g.items():
        norms = NO_NORMS if first.norms is None else first.norms.of(key, n)
        factor = None if gamma is None else as_matrix(gamma[key])
        there = None if point is None else as_matrix(point[key])
        out = FusedStepOut(new.of(key), there, as_matrix(slope[key]))
        context.kernels.fused_step(scalars, plan, as_matrix(g), state.of(key), norms, factor, blend, out)


def end_points(context: EngineContext, scalars: AdamScalars, state: State, g: Arrays) -> tuple[Arrays, Arrays]:
    """Return θ − ηλθ − A(0) and θ − ηλθ − A(g), in buffers."""
    new, idle, scratch = like(context, "end 1"), like(context, "end 0"), like(context, "slope")
    first = ForwardResult(None, None, g, None, None)
    after = State(new, like(context, "end m"), like(context, "end v"), state.t)
    take_step_and_slope(
        context, scalars, slope_plan("sgd", (1, 2), 1), 1, state, first, None, 0.0, after, idle, scratch
    )
    return idle, new


def along_segment(
    context: EngineContext,
    ends: tuple[Arrays, Arrays],
    nodes: tuple[tuple[float, float], ...],
    batch: StepBatch,
    each: float,
) -> Trace:
    """Return one trace of the validation samples at every node of a segment, node after node, weighted.

    Parameters
    ----------
    ends : tuple of dicts of arrays
        Parameters where the segment begins (0) and where it ends (1).
    nodes : tuple of (place, weight)
    each : float
        Weight of a validation sample's own loss.
    """
    n_val, count, point = batch.n_val, len(nodes), like(context, "point")
    x = batch.valid_x if count == 1 else context.backend.xp.concatenate([batch.valid_x] * count)
    trace = new_trace(context, "valid", n_val * count, x)
    for i, (tau, w) in enumerate(nodes):
        context.now("pass over the parameters")
        for key, there in point.items():
            context.ops.between(tau, ends[0][key], ends[1][key], there)
        context.now("forward pass", VALIDATION)
        run_rows(context, trace.rows(slice(i * n_val, (i + 1) * n_val)), point, batch.valid_y, each * w)
    return trace


def _gap(
    context: EngineContext, scalars: AdamScalars, state: State, g: Arrays, batch: StepBatch, per_validation: bool
) -> Any:
    """Return U(B) − U(∅), in the mean loss (1,) or for each validation sample (n_val,)."""
    losses = []
    ends = end_points(context, scalars, state, g)
    context.now("forward pass", VALIDATION)
    for params in ends:
        trace = new_trace(context, "end", batch.n_val, batch.valid_x)
        losses.append(row_losses(context, trace, params, batch.valid_y).copy())
    gap = losses[0] - losses[1]
    return gap if per_validation else gap.mean(keepdims=True)


# --- scores ----------------------------------------------------------------------------------------------------------

Scorer = Callable[[Trace, Any], None]


def scorer_of(
    context: EngineContext,
    estimator: Estimator,
    n: int,
    validation: Trace,
    slope: Arrays | float,
    merged: bool = False,
    sketch: Sketch | None = None,
) -> Scorer:
    """Return what adds the scores of a trace's rows to an array (1 or n_val, rows).

    `slope` is S, or P if `merged`, and is overwritten by P; SGD's S is a number.
    """
    per_validation = estimator.per_validation
    nodes = estimator.nodes[0] if estimator.gradient == "path" else 1
    n_val = len(validation.losses) // nodes
    if isinstance(slope, float) and (per_validation or pairwise_is_cheaper(context, len(validation.losses))):

        def by_pairs(trace: Trace, out: Any) -> None:
            def some(low: int, high: int) -> None:
                rows = slice(low, high)
                dots = pairwise(context, trace.rows(rows), validation)
                dots *= dots.dtype.type(slope)
                if per_validation:
                    out[:, rows] += dots.reshape(len(dots), -1, n_val).sum(axis=1).T
                else:
                    out[0, rows] += dots.sum(axis=1)

            count, sizes = len(trace.losses), context.net.sizes
            in_parts(some, count, 2 * count * len(validation.losses) * (sum(sizes[:-1]) + sum(sizes[1:])))

        return by_pairs

    def product_of(rows: slice, into: Arrays) -> Arrays:
        gamma = like(context, "validation gradient")
        gradients(context, validation.rows(rows), gamma)
        for key, factor in gamma.items():
            other = factor.dtype.type(slope) if isinstance(slope, float) else slope[key]
            context.backend.xp.multiply(factor, other, out=into[key])
        return into

    if not per_validation:
        if isinstance(slope, float):
            product = product_of(slice(None), like(context, "sgd product"))
        else:
            product = slope
            if not merged:
                times_gradients(context, validation, product)
        factors = None if sketch is None else sketch.factors(context, product, n)
        return lambda trace, out: contract(context, trace, product, out[0], factors, estimator.score_dtype)

    def one_by_one(trace: Trace, out: Any) -> None:
        for v in range(n_val):
            product = product_of(slice(v, None, n_val), like(context, "product"))
            factors = None if sketch is None else sketch.factors(context, product, n, v)
            contract(context, trace, product, out[v], factors, estimator.score_dtype)

    return one_by_one


def two_term_scorer(
    context: EngineContext, estimator: Estimator, n: int, validation: Trace, slope: Arrays, second: Arrays
) -> Scorer:
    """Return `scorer_of` for the two terms of "two_term", whose slopes are overwritten."""
    own, roots = (scorer_of(context, estimator, n, validation, factor) for factor in (slope, second))

    def both(trace: Trace, out: Any) -> None:
        own(trace, out)
        roots(roots_of(context, trace), out)

    return both


def score_rows(
    context: EngineContext,
    state: State,
    batch: StepBatch,
    weight: float,
    chunks: list[slice],
    trace: Trace | None,
    scorers: list[Scorer],
    groups: int,
) -> list[Any]:
    """Return each scorer's scores (groups, n); chunks go through the network again unless the trace was kept."""
    totals = [context.backend.xp.zeros((groups, batch.n), context.backend.dtype) for _ in scorers]
    for chunk in chunks:
        rows = trace if trace is not None else _run_chunk(context, state, batch, weight, chunk)
        context.now("contraction", chunk)
        for scorer, total in zip(scorers, totals, strict=True):
            scorer(rows, total[:, chunk])
    return totals


# --- refusals and advice ----------------------------------------------------------------------------------------------


def refuse_division_by_zero(context: EngineContext, adam: Adam, state: State, g: Arrays | None) -> None:
    """Refuse ε = 0 where κ is 0 and, if `g` is given, √q g is too; looks at arrays only where ε is 0.

    All as the dtype holds it; `adam` is from `adam_in`.
    """
    if adam.eps > 0 or adam.eps_root > 0:
        return
    scalars, f, count = adam_scalars(adam, state.t), context.backend.dtype.type, 0
    for key, v in state.v.items():
        zero = f(scalars.kappa) * v == 0
        if g is not None:
            zero &= abs(f(scalars.root_q) * g[key]) < np.finfo(f).smallest_normal
        count += int(context.backend.xp.count_nonzero(zero))
    refuse_zero_denominator(count, "v is 0" if g is None else "v and the gradient are 0")


def advice(adam: Adam, backend: Backend) -> str:
    """Return what may help a run that diverged."""
    wider = "" if backend.dtype == np.float64 else ", or dtype='float64'"
    return f"a smaller lr than {adam.lr}, smaller inputs{wider}"
