"""A training run with its attribution: each sample's scores, summed over the steps whose batch has it."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np

from adamshap.reference import carry
from adamshap.reference.accounts import Account, StepAccount, zero_scores
from adamshap.reference.adam import moved
from adamshap.reference.contract import (
    CREDITS,
    Array,
    Batch,
    Checkpointer,
    CompletedSteps,
    Contraction,
    Credit,
    Diverged,
    Estimator,
    Gradient,
    MarginalKind,
    Model,
    Optimiser,
    Progress,
    Reduction,
    Run,
    RunConfig,
    ScoreSlope,
    StepScores,
    check_callable,
    first_not_finite,
    is_validated,
    keeps_step_scores,
    logged,
    one_blas_thread,
    one_of,
    positive_integer,
    recorded_interval,
    refuse,
    resumed,
    run_settings,
    shown,
    true_or_false,
    validation_interval,
)
from adamshap.reference.models import batch_gradient, mean_loss
from adamshap.reference.run_state import RunState, StepResult
from adamshap.reference.scoring import unchecked_scores


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
    rank: None = None,
    variance: Literal["exact"] = "exact",
    micro_batch: int | None = None,
    carry_window: None = None,
    score_dtype: None = None,
    contraction: Contraction = "ghost",
    keep_step_scores: bool = False,
    with_sgd: bool = True,
    validation_every: int = 1,
    device: Literal["auto", "cpu"] = "auto",
    dtype: Literal["float64"] = "float64",
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
        Number of passes through `train`, each in a new order.
    steps : int, optional
        Number of steps after which the run ends, if `epochs` do not end earlier.
    batch_size : int
        Samples per batch; an epoch's last batch may be smaller.
    seed : int
        Seed of the parameters and of the order of the samples.
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "auto", "two_term"}
        S, as for `scores`.
    gradient : {"start", "midpoint", "path"}
        Γ, as for `scores`.
    credit : {"step", "carry"}
        "step" credits no sample with the step that momentum takes without data. "carry" credits it to the earlier
        samples that built up the momentum: scores and the shares of weight decay then add up to the whole change of the
        validation loss (docs/method.md 6); it excludes "two_term".
    per_validation : bool
        Score against each validation sample's own loss: (N, n_val).
    nodes : tuple of two ints, optional
        (path, normal), as for `scores`.
    kind : {"first", "last", "shapley"}
        The marginal that "two_term" approximates, as for `scores`.
    reduction : {"mean", "sum"}
        As for `Step`.
    rank : None
        No sketch. This and the following parameters are the engine's, so that both accept the same call; the oracle
        supports one value of each and refuses the others.
    variance : {"exact"}
        σ² of "random_order", "auto" and "two_term".
    micro_batch : int, optional
        Unused; the engine's results do not depend on it.
    carry_window : None
        The whole run, for "carry".
    score_dtype : None
        Products are computed in float64.
    contraction : {"ghost", "forward"}
        As for `scores`; "forward" not with "carry".
    keep_step_scores : bool
        Keep each step's scores, as ``Run.step_scores`` and ``Run.step_sgd_scores``; not with "carry", where a sample is
        credited by later steps as well.
    with_sgd : bool
        Score by SGD's formula as well; if not, ``Run.sgd_scores`` and ``Run.step_sgd_scores`` are NaN.
    validation_every : int
        Number of steps k for which a validation gradient is kept, SGD's too (docs/method.md 4): steps 1, 1 + k, 1 + 2k,
        … take it anew. The others have no validation loss: NaN in the history. Above 1 not with "path" or "carry".
    device : {"auto", "cpu"}
        The CPU.
    dtype : {"float64"}
        Dtype of all computations.
    on_step : callable, optional
        Called with a `Progress` after each step.
    on_checkpoint : callable, optional
        Called after each step with its number and a function that returns the state of the run, a `Snapshot`.
    resume : Snapshot, optional
        The state of the same run after a step, from which it resumes; the results equal those of an uninterrupted run.

    Returns
    -------
    Run
        Scores, final parameters and history.

    Raises
    ------
    ValueError, TypeError
        A bad argument, named in the message; a state of another run.
    Diverged
        A loss, score, parameter or moment is non-finite; the error has the run up to that step.
    """
    refuse_engine_options(
        rank=rank,
        variance=variance,
        carry_window=carry_window,
        score_dtype=score_dtype,
        device=device,
        dtype=dtype,
    )
    if micro_batch is not None:
        positive_integer("micro_batch", micro_batch)
    config = RunConfig(network, adam, train, valid, epochs, batch_size, seed, reduction, steps)
    one_of("credit", credit, CREDITS)
    keep = keeps_step_scores(keep_step_scores, credit)
    with_sgd = true_or_false("with_sgd", with_sgd)
    estimator = Estimator(
        slope, gradient, per_validation=per_validation, nodes=nodes, kind=kind, contraction=contraction
    )
    every = validation_interval(validation_every, estimator.gradient, credit=credit)
    estimator.refuse_large_batches(min(config.batch_size, train.n), train.n)
    kept = StepScores.empty(config, per_validation=estimator.per_validation, with_sgd=with_sgd) if keep else None
    of_sgd = zero_scores(config, estimator) if with_sgd else None
    state = RunState.fresh(config, credit, account_of(config, credit, estimator), of_sgd, kept, every)
    for name, function in (("on_step", on_step), ("on_checkpoint", on_checkpoint)):
        check_callable(name, function)
    on_step = logged(on_step, f"{network}, {train.n} training and {valid.n} validation samples, by the oracle")
    settings = "" if resume is None and on_checkpoint is None else settings_of(config, estimator, every)
    if resume is not None:
        state.restore(resumed(resume, settings, state.snapshot(settings), steps=config.length))
    sgd = None
    if with_sgd:
        sgd = Estimator("sgd", "start", per_validation=estimator.per_validation, contraction=contraction)
    with one_blas_thread():
        for epoch, index in islice(config.order(), state.adam.step, None):
            result = step_result(state, index, sgd)
            if result.bad is not None:
                advice = f"a smaller lr than {largest_lr(state)}, or smaller inputs"
                raise Diverged(state.adam.next_step, config.length, *result.bad, state.diverged_run(result), advice)
            state.record(result)
            completed = state.adam.step
            if on_step is not None:
                valid_loss = result.valid_loss if is_validated(CompletedSteps(completed - 1), every) else math.nan
                on_step(Progress(completed, config.length, epoch, result.train_loss, valid_loss))
            if on_checkpoint is not None:
                on_checkpoint(completed, partial(state.snapshot, settings))
        return state.run()


SUPPORTED: dict[str, tuple[str | None, ...]] = {
    "rank": (None,),
    "variance": ("exact",),
    "carry_window": (None,),
    "score_dtype": (None,),
    "device": ("auto", "cpu"),
    "dtype": ("float64",),
}
"""Values of the engine's options that the oracle supports."""


def refuse_engine_options(**options: object) -> None:
    """Refuse values of the engine's options that the oracle does not support."""
    for name, value in options.items():
        choices = SUPPORTED[name]
        if not (value is None or isinstance(value, str)) or value not in choices:
            refuse(name, shown(value), " or ".join(map(repr, choices)) + ": the oracle supports nothing else")


def account_of(config: RunConfig, credit: Credit, estimator: Estimator) -> Account[Any]:
    """Return an empty account of a run."""
    if credit == "carry":
        return carry.ledger_of(config, estimator)
    return StepAccount(estimator, zero_scores(config, estimator))


def settings_of(config: RunConfig, estimator: Estimator, validation_every: int) -> str:
    """Return the settings of a run as recorded in its snapshots."""
    return run_settings(
        config.train,
        config.valid,
        trainer="adamshap.reference",
        network=config.network,
        adam=config.adam,
        epochs=config.epochs,
        steps=config.length,
        batch_size=config.batch_size,
        seed=config.seed,
        estimator=estimator,
        reduction=config.reduction,
        **recorded_interval(validation_every),
    )


def step_result(state: RunState, index: Array, sgd: Estimator | None) -> StepResult:
    """Return the result of a run's next step, with the samples `index`, without changing the state.

    `sgd` is the estimator of SGD's scores; None: there are none.

    Losses, scores, gradient, parameters and the account's entry are checked in this order; the entry is only computed
    if everything before it is finite.
    """
    config, account = state.config, state.account
    step = state.next_step(index)
    validated = state.validated_for(step)
    with np.errstate(over="ignore", invalid="ignore"):  # the results are checked below
        train_loss = float(mean_loss(config.network, state.params, step.train))
        valid_loss = float(mean_loss(config.network, state.params, config.valid)) if validated is step else 0.0
        scores = account.scores(step, validated)
        sgd_scores = None if sgd is None else unchecked_scores(step, sgd, validated)
        g = batch_gradient(step)
        watched: dict[str, Any] = {"train_loss": train_loss, "valid_loss": valid_loss}
        watched |= {f"square of the gradient of {name!r}": array**2 for name, array in g.items()}
        watched |= {} if scores is None else {"scores": scores}
        watched |= {} if sgd_scores is None else {"sgd_scores": sgd_scores}
        params, m, v = moved(step, g)
        watched |= {f"params[{name!r}]": p for name, p in params.items()}
        bad, entry = first_not_finite(watched), None
        if bad is None:
            entry = account.entry(index, scores, step, params)
            bad = first_not_finite(entry.numbers())
    return StepResult(index, params, m, v, train_loss, valid_loss, sgd_scores, entry, bad, validated)


def largest_lr(state: RunState) -> float:
    """Return the largest learning rate of the next step."""
    adam, t = state.config.adam, state.adam.next_step
    return max(adam.at(t, name).lr for name in state.params)
