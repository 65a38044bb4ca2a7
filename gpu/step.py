"""One training step with its attribution, in six phases.

Data dependences fix their order. The batch's gradient g comes first; then one pass over the parameters takes
Adam's step and computes the slope S and the point where the validation gradient Γ is wanted; then P = Γ ⊙ S; then a
sample's score is ⟨P, x_i⟩, contracted with the batch's captures.

======  =====================  ==========================================================
paper   name                   meaning
======  =====================  ==========================================================
θ, m, v ``theta, m, v``        the state before the step, dicts by parameter name
g       ``g``                  gradient of the whole batch
Γ       ``gamma``              validation gradient
S, P    ``slope, matrix``      slope, and P, which takes its memory
σ²      ``norms.Norms``        variance of the sum of a random half, by norms
w       ``weight``             weight of a sample's gradient in the batch's: 1/n or 1
======  =====================  ==========================================================
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from adamshap.gpu.arrays import Arrays, BatchGradient, ScoreMatrix, SlopeArrays, like
from adamshap.gpu.captures import Captures, gradient_of, write_sums
from adamshap.gpu.clipping import clip, multiply
from adamshap.gpu.context import EngineContext
from adamshap.gpu.counting import completed_before
from adamshap.gpu.forward import ForwardResult, captured_chunks, forward_and_gradient
from adamshap.gpu.hyperparameters import Hyperparameters, refuse_division_by_zero
from adamshap.gpu.kept_gradients import HeldGradients, KeptGradients
from adamshap.gpu.kernels.plan import FitPlan, SlopePlan, path_nodes, slope_plan
from adamshap.gpu.parameter_pass import FusedOut, end_points, fused_step, slope_plans, take_step
from adamshap.gpu.scores import (
    Rerun,
    Scorer,
    ScoringTask,
    matrix_scorer,
    score_chunks,
    sgd_scorer,
    slope_scorer,
    two_term_scorer,
)
from adamshap.gpu.sketch import Sketch, of_low_rank
from adamshap.gpu.state import State, StepBatch, StepInput
from adamshap.gpu.two_term import fit_plan, may_come_first, own_segment, two_slopes
from adamshap.gpu.validation import at_point, on_segment, utility_of_batch
from adamshap.reference.contract import AUTO, TWO_TERM, Estimator, Optimiser

__all__ = ["StepPlan", "StepResult", "attribute_step", "plain_step", "score_step"]

Chunks = Iterable[tuple[slice, Captures | Rerun]]
"""Parts of the batch, with their captures, or a function that finds them again."""


def plain_step(
    context: EngineContext, optimiser: Optimiser, state: State, x: Any, y: Any, weight: float, new: State
) -> Any:
    """Take a step without attribution; return each sample's loss before it."""
    context.place.step = state.t
    context.now("forward pass", slice(0, len(x)))
    captures = context.stack.run(context, context.stack.workspace(context, "train", x), state.theta, y, weight)
    g = BatchGradient(like(context, "gradient"))
    write_sums(context, captures, g)
    hyperparameters = Hyperparameters.at(context, optimiser, state.t)
    clip(context, hyperparameters.clipped, g)
    take_step(context, hyperparameters.scalars, state, g, new)
    return captures.losses


@dataclass(frozen=True)
class StepResult:
    """The results of a step: scores (n,) or (n, n_val), SGD's if wanted, and the losses before it."""

    scores: Any
    sgd_scores: Any
    train_loss: Any
    valid_loss: Any


@dataclass(frozen=True)
class StepPlan:
    """The computations that an estimator needs of a step.

    Parameters
    ----------
    estimator : Estimator
    slope : SlopePlan
        Slope of the fused pass, unused by "two_term".
    two_terms : FitPlan or None
        Plan of "two_term", whose slopes have a pass of their own.
    segment : tuple of two floats
        Part of the way from A(0) to A(g) on which Γ is wanted.
    gradient : {"start", "midpoint", "path", "after"}
        Point or path at which Γ is computed.
    with_sgd : bool
        Whether SGD's scores are wanted too.
    valid_weight : float
        Weight of a validation sample's own loss.
    idle_wanted : bool
        Whether scores divide by D(0), the denominator at zero gradient.
    """

    estimator: Estimator
    slope: SlopePlan
    two_terms: FitPlan | None
    segment: tuple[float, float]
    gradient: str
    with_sgd: bool
    valid_weight: float
    idle_wanted: bool

    @classmethod
    def of(cls, estimator: Estimator, batch: StepBatch, with_sgd: bool, after: bool) -> "StepPlan":
        """Return the plan for a batch."""
        n, nodes, kind, two = batch.n, estimator.nodes, estimator.kind, estimator.slope == TWO_TERM
        slope = slope_plan("sgd" if two else estimator.slope, nodes, n, estimator.denominator)
        gradient = "after" if after else estimator.gradient
        idle = gradient in ("midpoint", "path") or estimator.efficient or slope.needs_idle or estimator.slope == AUTO
        return cls(
            estimator,
            slope,
            fit_plan(kind, n, nodes) if two else None,
            own_segment(kind, n) if two else (0.0, 1.0),
            gradient,
            with_sgd,
            1.0 if estimator.per_validation else 1 / batch.n_val,
            idle or (two and may_come_first(kind, n, nodes[0])),
        )

    @property
    def start_wanted(self) -> bool:
        """Whether Γ at θ is wanted."""
        return self.with_sgd or self.gradient == "start"

    @property
    def norms_wanted(self) -> bool:
        """Whether σ takes part."""
        return self.two_terms is not None or self.slope.needs_spread

    @property
    def chooses(self) -> bool:
        """Whether each parameter has a plan of its own, by the batch's gradient."""
        return self.estimator.slope == AUTO and self.slope.needs_spread

    @property
    def divides(self) -> bool:
        """Whether scores divide by Adam's denominator, which must not be 0."""
        return self.idle_wanted or self.two_terms is not None or self.slope.kind != "sgd"

    @property
    def nodes(self) -> tuple[tuple[float, float], ...]:
        """The nodes of "path" between A(0) and A(g), with their weights."""
        low, high = self.segment
        return tuple((low + tau * (high - low), weight) for tau, weight in path_nodes(self.estimator.nodes[0]))


def attribute_step(
    context: EngineContext,
    optimiser: Optimiser,
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
    kept: KeptGradients | None = None,
) -> StepResult:
    """Take the step and score its samples.

    Parameters
    ----------
    optimiser : Optimiser
        Adam's settings, by step and parameter.
    state, new : State
        State before the step, and arrays for the state after it: the same ones if the old state is not needed, as by
        chunks and in forward mode.
    weight : float
        Weight of a sample's gradient in the batch's: 1/n or 1.
    micro_batch : int, optional
        Number of samples that go through the model at a time, and again for their scores.
    sketch : Sketch, optional
        Bases of the low-rank scores, kept from the step before; for parameters `of_low_rank`.
    with_sgd : bool
        Whether SGD's scores (slope "sgd", gradient "start") are wanted too.
    after : bool
        Take Γ = ∇L(θ⁺), for `influence`, whatever the estimator's gradient.
    kept : KeptGradients, optional
        Validation gradients of earlier steps, used or replaced by this one's.
    """
    step = StepInput.of(context, optimiser, state, batch, weight, micro_batch)
    plan = StepPlan.of(estimator, batch, with_sgd, after)
    held = None if kept is None else kept.held(completed_before(state.t), context.shapes)
    forward = forward_and_gradient(
        step,
        plan.valid_weight,
        start_wanted=plan.start_wanted and held is None,
        norms_wanted=plan.norms_wanted,
        variance=estimator.variance,
        some_norms=plan.chooses,
    )
    chunks = captured_chunks(step, forward.captures)
    return score_step(step, plan, forward, chunks, new, sketch, held=held, kept=kept)


def score_step(
    step: StepInput,
    plan: StepPlan,
    forward: ForwardResult,
    chunks: Chunks,
    new: State | None,
    sketch: Sketch | None = None,
    total_of: Callable[[Any], Any] = lambda sums: sums,
    *,
    held: HeldGradients | None = None,
    kept: KeptGradients | None = None,
) -> StepResult:
    """Take the step and score its samples, from the results of the batch's pass and its captures by chunks.

    Without `new`, the state after the step is not written; Γ at θ⁺ needs it. `total_of` returns the sum of all scores
    from the sum of those in `chunks`, if others score the rest of the batch. Γ is the one `held` of an earlier step, if
    given; else `kept`, if given, keeps this step's.
    """
    context, estimator, batch, state = step.context, plan.estimator, step.batch, step.state
    if plan.divides:
        if plan.idle_wanted:
            refuse_division_by_zero(context, step.hyperparameters, state.v, None, state.theta)
        refuse_division_by_zero(context, step.hyperparameters, state.v, forward.g, state.theta)
    utility = utility_of_batch(step, forward.g, estimator.per_validation) if estimator.efficient else None
    if held is not None:
        forward = replace(forward, start=held.start)
    validation = validation_before_step(step, plan, forward) if held is None else held.validation
    slopes = slopes_of_two_terms(step, plan, forward)
    fused = step_and_slope(step, plan, forward, validation, new)
    if validation is None:
        point = new.theta if fused.point is None and new is not None else fused.point
        if point is None:
            raise AssertionError("Γ at θ⁺ needs the state after the step")
        validation = at_point(step, point, plan.valid_weight)
        fused = replace(fused, point=None)
    if kept is not None and held is None:
        kept.hold(context, validation, forward.start)
    scores, sgd_scores = contraction(step, plan, forward, validation, slopes, fused, chunks, sketch)
    if utility is not None:
        scores += (utility - total_of(scores.sum(axis=1)))[:, None] / scores.dtype.type(batch.n)
    start = forward.start
    valid_loss = None if start is None or start.losses is None else start.losses.mean(dtype="float64")
    return StepResult(_shaped(plan, scores), _shaped(plan, sgd_scores), forward.train_loss, valid_loss)


def _shaped(plan: StepPlan, scores: Any) -> Any:
    """Return scores (groups, n) as (n,), or as (n, n_val) for each validation sample."""
    if scores is None:
        return None
    return scores.T if plan.estimator.per_validation else scores[0]


# --- phases after the forward pass -----------------------------------------------------------------------------------


def validation_before_step(step: StepInput, plan: StepPlan, forward: ForwardResult) -> Captures | None:
    """Return the validation samples' captures if Γ does not need the fused pass: at θ, or on the path."""
    if plan.gradient == "start":
        return forward.start
    if plan.gradient == "path":
        return on_segment(step, end_points(step, forward.g), plan.nodes, plan.valid_weight)
    return None


def slopes_of_two_terms(
    step: StepInput, plan: StepPlan, forward: ForwardResult
) -> tuple[SlopeArrays, SlopeArrays] | None:
    """Return both slopes of "two_term"; None for any other estimator."""
    if plan.two_terms is None or forward.norms is None:
        return None
    out = SlopeArrays(like(step.context, "first term")), SlopeArrays(like(step.context, "second term"))
    two_slopes(step, plan.two_terms, forward.g, forward.norms, out)
    return out


@dataclass(frozen=True)
class FusedResult:
    """The results of the fused pass: S, or P if Γ was known, and the point where Γ is wanted."""

    slope: SlopeArrays | None
    matrix: ScoreMatrix | None
    point: Arrays | None


def step_and_slope(
    step: StepInput, plan: StepPlan, forward: ForwardResult, validation: Captures | None, new: State | None
) -> FusedResult:
    """Take the step; compute S, in the memory of g unless another is given, or P if `validation` already gives Γ."""
    context, gamma = step.context, None
    if validation is not None and plan.slope.kind != "sgd" and not plan.estimator.per_validation:
        gamma = gradient_of(context, validation)
    point = like(context, "point") if plan.gradient == "midpoint" and validation is None else None
    slope = SlopeArrays(forward.g if forward.slope is None else forward.slope)
    blend, norms = sum(plan.segment) / 2, forward.norms
    plans = slope_plans(step, plan.slope, forward.g, chooses=plan.chooses)
    if norms is None and forward.norms_of is not None:
        norms = forward.norms_of([name for name, own in plans.items() if own.needs_spread])
    fused_step(step, plans, forward.g, norms, gamma, blend, FusedOut(new, point, slope))
    if gamma is None:
        return FusedResult(slope, None, point)
    return FusedResult(None, ScoreMatrix(slope), point)


def contraction(
    step: StepInput,
    plan: StepPlan,
    forward: ForwardResult,
    validation: Captures,
    slopes: tuple[SlopeArrays, SlopeArrays] | None,
    fused: FusedResult,
    chunks: Chunks,
    sketch: Sketch | None,
) -> tuple[Any, Any]:
    """Return the scores, and SGD's or None, both (groups, n)."""
    context, estimator, batch = step.context, plan.estimator, step.batch
    each, forward_mode = estimator.per_validation, estimator.contraction == "forward"
    exact = ScoringTask(batch.n, batch.n_val, each, estimator.score_dtype, None, forward_mode)
    task = exact if sketch is None else replace(exact, sketch=sketch, names=of_low_rank(step.hyperparameters.scalars))
    scorer: Scorer
    if slopes is not None:
        scorer = two_term_scorer(context, exact, validation, slopes, forward.factor)
    elif plan.slope.kind == "sgd":
        scorer = sgd_scorer(context, task, validation, step.hyperparameters.lrs, "product")
    elif fused.matrix is not None:
        scorer = matrix_scorer(context, task, fused.matrix, validation)
    elif fused.slope is not None:
        scorer = slope_scorer(context, task, validation, fused.slope)
    scorers = [scorer]
    if plan.with_sgd and forward.start is not None:
        scorers.append(sgd_scorer(context, exact, forward.start, step.hyperparameters.lrs, "sgd product"))
    scores, *others = score_chunks(context, task, scorers, chunks)
    for clipped in (scores, *others):
        multiply(context, clipped, forward.factor)
    return scores, others[0] if others else None
