"""The engine's public functions: they take the oracle's arguments and return NumPy arrays."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from adamshap.gpu.backend import DeviceName, DtypeName, pick_backend
from adamshap.gpu.carry_account import CarryAccount, refuse_with_carry
from adamshap.gpu.case import Case
from adamshap.gpu.counting import completed_after
from adamshap.gpu.game import Game, marginals_of
from adamshap.gpu.hyperparameters import refuse_division_by_zero, refuse_previous
from adamshap.gpu.products import refuse_score_dtype
from adamshap.gpu.run import OpenAccount, attributed_run
from adamshap.gpu.run_setup import RunSetup
from adamshap.gpu.sketch import Sketch
from adamshap.gpu.step import attribute_step, plain_step
from adamshap.gpu.step_account import StepAccount
from adamshap.reference.contract import (
    CREDITS,
    MARGINAL_LOSSES,
    MARGINALS,
    AdamState,
    Array,
    Batch,
    Checkpointer,
    Contraction,
    Credit,
    Denominator,
    Estimator,
    Gradient,
    MarginalKind,
    MarginalLoss,
    Marginals,
    Model,
    Optimiser,
    Params,
    Progress,
    Reduction,
    Run,
    RunConfig,
    ScoreDtype,
    ScoreSlope,
    Step,
    Variance,
    check_callable,
    coalition_mask,
    keeps_step_scores,
    logged,
    of_kind,
    one_of,
    optimiser_in,
    permutations_of,
    positive_integer,
    refuse,
    refuse_overflow,
    seed_of,
    shown,
    true_or_false,
    validation_interval,
)

__all__ = ["attribute", "influence", "marginals", "scores", "update", "utility"]


def update(
    step: Step, *, device: DeviceName = "auto", dtype: DtypeName = "float32", device_arrays: bool = False
) -> tuple[Params, AdamState]:
    """Take the step with the whole batch.

    Parameters
    ----------
    step : Step
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA if CuPy finds a device.
    dtype : {"float32", "float64"}
        Precision of the computation.
    device_arrays : bool
        Leave the results on the device, instead of copying them to NumPy arrays.

    Returns
    -------
    params : dict of arrays
        θ⁺ = θ − A(g) − η λ θ.
    state : AdamState
        m⁺ and v⁺, one step further.

    Raises
    ------
    ValueError, TypeError
        A bad argument; ε = 0 where v and the gradient are 0; results beyond the range of `dtype`.
    """
    device_arrays = true_or_false("device_arrays", device_arrays)
    case = Case.of(step, device, dtype)
    context, new = case.context, case.fresh()
    with context.at_work():
        if any(adam.eps == 0 for adam in case.hyperparameters.adam.values()):
            refuse_division_by_zero(context, case.hyperparameters, case.state.v, case.gradient(), case.state.theta)
        plain_step(context, case.adam, case.state, case.batch.x, case.batch.y, case.weight, new)
    groups = {"gradient of": new.m, "squared gradient of": new.v, "new": new.theta}
    named = {f"{group} {key!r}": array for group, arrays in groups.items() for key, array in arrays.items()}
    refuse_overflow(named, context.backend.dtype)
    theta, m, v = (
        {key: context.backend.out(a, device_arrays) for key, a in d.items()} for d in (new.theta, new.m, new.v)
    )
    return theta, AdamState(completed_after(case.state.t), m, v)


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
    rank: int | None = None,
    variance: Variance = "exact",
    micro_batch: int | None = None,
    score_dtype: ScoreDtype | None = None,
    contraction: Contraction = "ghost",
    device: DeviceName = "auto",
    dtype: DtypeName = "float32",
    device_arrays: bool = False,
) -> Any:
    """Return each training sample's score for this step: ``score_i = ⟨Γ ⊙ S, x_i⟩``.

    With slope "two_term", ``⟨Γ ⊙ S, x_i⟩ + ⟨Γ ⊙ R, sign(x_i) √|x_i|⟩``.

    Parameters
    ----------
    step : Step
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "auto", "two_term"}
        S.
    gradient : {"start", "midpoint", "path"}
        Γ. With "two_term", "midpoint" and "path" refer to the sample's own part of the step.
    efficient : bool
        Distribute U(B) − U(∅) less the sum of the scores equally over the batch.
    per_validation : bool
        Score against each validation sample's own loss: (n, n_val), whose mean over columns is the score.
    nodes : tuple of two ints, optional
        (path, normal): Gauss–Legendre nodes of "random_order", "auto" and "path", Gauss–Hermite nodes of the first two.
        "two_term" with "shapley" uses them for the sum of the samples before; for n ≤ path it is exact in their number.
        By default (4, 4), for "two_term" (8, 2).
    denominator : {"exact", "previous"}
        For "linearized".
    kind : {"first", "last", "shapley"}
        For "two_term": the marginal that the scores estimate, as for `marginals`.
    rank : int, optional
        Rank of the sketch of P that scores the layers where it costs less, usually from Adam's 17th step on
        (docs/choose.md). None is exact, the only choice with "two_term".
    variance : {"exact", "rank_one"}
        σ² of "random_order", "auto" and "two_term": exact at the cost of one more matrix product a layer, or from norms
        alone, which is far off where a single input is far larger than the others (docs/choose.md).
    micro_batch : int, optional
        Number of samples that go through the network at a time.
    score_dtype : {"tf32", "float16"}, optional
        Precision of the contraction's products on a CUDA device, for speed; the step itself stays in `dtype`.
    contraction : {"ghost", "forward"}
        "ghost" contracts P with the captures of each layer; "forward" takes the derivative of each sample's loss along
        P, by forward mode or, for a model with a layer that has no tangent, by differences (docs/engine.md). Layers
        need no captures then. It excludes "two_term", `rank` and `score_dtype`.
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA if CuPy finds a device.
    dtype : {"float32", "float64"}
        Precision of the computation.
    device_arrays : bool
        Leave the results on the device, instead of copying them to NumPy arrays.

    Returns
    -------
    array (n,) or (n, n_val)
        In units of the validation loss; positive means that the sample lowered it.

    Raises
    ------
    ValueError, TypeError
        An unknown name, bad nodes; ``denominator="previous"`` at t = 1 or with another slope; another `kind` with
        another slope; a `rank` with "two_term"; a denominator of 0; results beyond the range of `dtype`.
    """
    of_kind("step", step, Step)
    device_arrays = true_or_false("device_arrays", device_arrays)
    backend = pick_backend(device, dtype)
    estimator = Estimator(
        slope, gradient, efficient, per_validation, nodes, denominator, kind, variance, rank, score_dtype, contraction
    )
    refuse_score_dtype(estimator, backend)
    if estimator.denominator == "previous":
        refuse_previous(step)
    estimator.refuse_first_step(step.state.step)
    sketch = None if estimator.rank is None else Sketch(estimator.rank)
    size = None if micro_batch is None else positive_integer("micro_batch", micro_batch)
    case = Case.of(step, device, dtype)
    with case.context.at_work():
        result = attribute_step(
            case.context,
            case.adam,
            case.state,
            case.batch,
            case.weight,
            estimator,
            case.fresh(),
            micro_batch=size,
            sketch=sketch,
        )
    refuse_overflow({"scores": result.scores}, case.context.backend.dtype)
    return case.context.backend.out(result.scores, device_arrays)


def influence(
    step: Step, *, device: DeviceName = "auto", dtype: DtypeName = "float32", device_arrays: bool = False
) -> Any:
    """Return ⟨∇L(θ⁺), A'(g) ⊙ x_i⟩: how fast the loss after the step falls as sample i's weight grows from 1.

    Parameters
    ----------
    step : Step
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA if CuPy finds a device.
    dtype : {"float32", "float64"}
        Precision of the computation.
    device_arrays : bool
        Leave the results on the device, instead of copying them to NumPy arrays.

    Returns
    -------
    array (n,)
        Minus the derivative of L(θ⁺) in the weight; positive means that more of the sample would lower the loss.

    Raises
    ------
    ValueError, TypeError
        A bad argument; a denominator of 0; results beyond the range of `dtype`.
    """
    device_arrays = true_or_false("device_arrays", device_arrays)
    case = Case.of(step, device, dtype)
    estimator = Estimator("tangent")
    with case.context.at_work():
        result = attribute_step(
            case.context, case.adam, case.state, case.batch, case.weight, estimator, case.fresh(), after=True
        )
    refuse_overflow({"influence": result.scores}, case.context.backend.dtype)
    return case.context.backend.out(result.scores, device_arrays)


def utility(
    step: Step,
    coalition: Any,
    *,
    clip_each: bool = False,
    device: DeviceName = "auto",
    dtype: DtypeName = "float32",
) -> float:
    """Return U(S) = L(θ) − L(θ − A(g_S) − η λ θ), the decrease of the validation loss by a step with `coalition` alone.

    Parameters
    ----------
    step : Step
    coalition : bool array (n,)
        The samples that take part; the gradient's divisor stays n.
    clip_each : bool
        With `Clipped`, clip every coalition's gradient by its own norm, in place of the whole batch's factor held.
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA if CuPy finds a device.
    dtype : {"float32", "float64"}
        Precision of the computation.

    Returns
    -------
    float
        In units of the validation loss; positive where it fell.

    Raises
    ------
    ValueError, TypeError
        A bad argument; a denominator of 0; a result beyond the range of `dtype`.
    """
    mask = coalition_mask(coalition, of_kind("step", step, Step).n)
    clip_each = true_or_false("clip_each", clip_each)
    case = Case.of(step, device, dtype)
    with case.context.at_work():
        value = Game.of(case, "exact", clip_each=clip_each).utility(mask)
    refuse_overflow({"utility": value}, case.context.backend.dtype)
    return value


def marginals(
    step: Step,
    kind: MarginalKind = "first",
    loss: MarginalLoss = "exact",
    *,
    permutations: int = 1024,
    seed: int = 0,
    clip_each: bool = False,
    device: DeviceName = "auto",
    dtype: DtypeName = "float32",
) -> Marginals:
    """Return each sample's marginal contribution to the utility of the step.

    Parameters
    ----------
    step : Step
    kind : {"first", "last", "shapley"}
        "first": U({i}) − U(∅); "last": U(B) − U(B∖{i}); "shapley": the Shapley value of U, over all coalitions for
        n ≤ 12, above by antithetic permutations.
    loss : {"exact", "first_order"}
        "exact" evaluates the loss (U); "first_order" uses U₁(S) = ⟨∇L(θ), A(g_S)⟩.
    permutations : int
        Number of permutations, even, for sampled Shapley values.
    seed : int
        Seed of the permutations.
    clip_each : bool
        With `Clipped`, clip every coalition's gradient by its own norm, in place of the whole batch's factor held.
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA if CuPy finds a device.
    dtype : {"float32", "float64"}
        Precision of the computation.

    Returns
    -------
    Marginals
        ``values`` (n,), ``empty`` = U(∅), ``total`` = U(B), ``standard_error`` (n,).

    Raises
    ------
    ValueError, TypeError
        A bad argument; a denominator of 0; results beyond the range of `dtype`.
    """
    of_kind("step", step, Step)
    one_of("kind", kind, MARGINALS)
    one_of("loss", loss, MARGINAL_LOSSES)
    permutations, seed = permutations_of(permutations), seed_of(seed)
    clip_each = true_or_false("clip_each", clip_each)
    case = Case.of(step, device, dtype)
    with case.context.at_work():
        found = marginals_of(Game.of(case, loss, clip_each=clip_each), kind, permutations, seed)
    named = {"values": found.values, "empty": found.empty, "total": found.total}
    refuse_overflow(named, case.context.backend.dtype)
    return found


def attribute(
    network: Model,
    adam: Optimiser,
    train: Batch,
    valid: Batch,
    *,
    epochs: int = 10,
    steps: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    slope: ScoreSlope = "random_order",
    gradient: Gradient = "midpoint",
    credit: Credit = "step",
    per_validation: bool = False,
    nodes: tuple[int, int] | None = None,
    kind: MarginalKind = "shapley",
    reduction: Reduction = "mean",
    rank: int | None = None,
    variance: Variance = "exact",
    micro_batch: int | None = None,
    carry_window: int | None = None,
    score_dtype: ScoreDtype | None = None,
    contraction: Contraction = "ghost",
    keep_step_scores: bool = False,
    with_sgd: bool = True,
    validation_every: int = 1,
    device: DeviceName = "auto",
    dtype: DtypeName = "float32",
    on_step: Callable[[Progress], None] | None = None,
    on_checkpoint: Checkpointer | None = None,
    resume: Mapping[str, Array] | None = None,
) -> Run:
    """Train from ``network.init(seed)`` and attribute every step to the samples of its batch.

    Parameters
    ----------
    network : Network
        Or another `Model`.
    adam : Adam
        One set of settings, or an `Optimiser` with a set for each parameter and step.
    train, valid : Batch
        N training samples and n_val validation samples.
    epochs : int
        Passes over `train`, each in a new order.
    steps : int, optional
        Number of steps after which the run stops, if `epochs` do not end earlier.
    batch_size : int
        Samples of a batch; an epoch's last batch may be smaller.
    seed : int
        Seed of the parameters, the order of the samples and the sketch's first basis.
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "auto", "two_term"}
        S, as for `scores`.
    gradient : {"start", "midpoint", "path"}
        Γ, as for `scores`.
    credit : {"step", "carry"}
        Whether the step that momentum takes without data is credited to nobody, or to the earlier samples whose
        gradients make up the momentum. "carry" keeps the batches of a window of steps (docs/engine.md); it excludes
        `per_validation`, `rank`, `micro_batch` and "two_term"; on a device `on_step` and `on_checkpoint` wait for each
        step.
    per_validation : bool
        Score against each validation sample's own loss: (N, n_val).
    nodes : tuple of two ints, optional
        (path, normal), as for `scores`.
    kind : {"first", "last", "shapley"}
        For "two_term", as for `scores`.
    reduction : {"mean", "sum"}
        As for `Step`.
    rank : int, optional
        Rank of the sketch for the scores, its basis kept from step to step; the first steps are exact, as for
        `scores`. None is exact, the only choice with "two_term".
    variance : {"exact", "rank_one"}
        σ² of "random_order", "auto" and "two_term", as for `scores`.
    micro_batch : int, optional
        Number of samples that go through the network at a time, each twice: less memory, the same result.
    carry_window : int, optional
        Least number of later steps that credit a batch; None: until β1^k is below 1/1000. ``Run.truncated`` bounds the
        credit lost beyond them, and ``Run.closed`` includes it.
    score_dtype : {"tf32", "float16"}, optional
        As for `scores`.
    contraction : {"ghost", "forward"}
        As for `scores`, also of SGD's; "forward" not with "carry".
    keep_step_scores : bool
        Keep each step's scores, as ``Run.step_scores`` and ``Run.step_sgd_scores``; not with "carry", where a sample is
        credited by later steps as well.
    with_sgd : bool
        Score by SGD's formula as well; if not, ``Run.sgd_scores`` and ``Run.step_sgd_scores`` are NaN.
    validation_every : int
        Number of steps k for which a validation gradient is kept, SGD's too (docs/method.md 4): steps 1, 1 + k, 1 + 2k,
        … take it anew. The others have no validation loss: NaN in the history. Above 1 not with "path" or "carry".
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA if CuPy finds a device.
    dtype : {"float32", "float64"}
        Precision of the run.
    on_step : callable, optional
        Called with a `Progress` for each step, in order; on a device a few steps at a time.
    on_checkpoint : callable, optional
        Called after each step with its number and a function that returns the state of the run, a `Snapshot`; that
        function waits for the device.
    resume : Snapshot, optional
        State of the same run after some step: the run continues from there, and ends as if uninterrupted.

    Returns
    -------
    Run
        NumPy arrays; scores are added up in double precision.

    Raises
    ------
    ValueError, TypeError
        A bad argument, by its name; a state of another run.
    Diverged
        A loss, score, parameter or moment is no longer finite; holds the run up to there. On a device this is found
        when losses are fetched, and no score is added meanwhile.
    MemoryError
        Out of memory; the message names the buffer.
    """
    config = RunConfig(network, adam, train, valid, epochs, batch_size, seed, reduction, steps)
    one_of("credit", credit, CREDITS)
    keep = keeps_step_scores(keep_step_scores, credit)
    with_sgd = true_or_false("with_sgd", with_sgd)
    if credit == "step" and carry_window is not None:
        refuse("carry_window", f"{shown(carry_window)} with credit 'step'", "credit 'carry', or None")
    for name, function in (("on_step", on_step), ("on_checkpoint", on_checkpoint)):
        check_callable(name, function)
    backend = pick_backend(device, dtype)
    held = optimiser_in(adam, backend.dtype)
    estimator = Estimator(
        slope, gradient, False, per_validation, nodes, "exact", kind, variance, rank, score_dtype, contraction
    )
    refuse_score_dtype(estimator, backend)
    every = validation_interval(validation_every, estimator.gradient, credit=credit)
    estimator.refuse_large_batches(min(config.batch_size, train.n), train.n)
    open_account: OpenAccount
    if credit == "carry":
        refuse_with_carry(estimator, rank, micro_batch)
        window = None if carry_window is None else positive_integer("carry_window", carry_window)
        open_account = partial(CarryAccount.of, window=window)
    else:
        size = None if micro_batch is None else positive_integer("micro_batch", micro_batch)
        open_account = partial(StepAccount.of, micro_batch=size, validation_every=every, keep_step_scores=keep)
    where = "CUDA" if backend.on_cuda else "the CPU"
    about = f"{network}, {train.n} training and {valid.n} validation samples, by the engine on {where}, {dtype}"
    setup = RunSetup.of(config, estimator, held, backend, with_sgd, logged(on_step, about), on_checkpoint, resume)
    return attributed_run(setup, open_account)
