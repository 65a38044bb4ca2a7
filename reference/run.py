"""A training run with its attribution: each sample's scores, summed over the steps that it took part in."""

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
    Step,
    check_callable,
    first_not_finite,
    logged,
    one_blas_thread,
    one_of,
    positive_integer,
    refuse,
    resumed,
    run_settings,
    shown,
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
        Every epoch goes once through `train` in a new order.
    steps : int, optional
        The run ends after so many, if `epochs` do not end before.
    batch_size : int
        An epoch's last batch holds what is left.
    seed : int
        Of the parameters and of the order of the samples.
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "two_term"}
        S, as for `scores`.
    gradient : {"start", "midpoint", "path"}
        Γ, as for `scores`.
    credit : {"step", "carry"}
        "step" leaves the step that momentum takes without data to nobody. "carry" credits it to the earlier samples
        whose gradients the momentum is made of: scores and weight decay's shares then add up to the whole change of the
        validation loss (docs/method.md 6); it has no "two_term".
    per_validation : bool
        Score against each validation sample's own loss: (N, n_val).
    nodes : tuple of two ints, optional
        (path, normal), as for `scores`.
    kind : {"first", "last", "shapley"}
        Of "two_term", as for `scores`.
    reduction : {"mean", "sum"}
        As for `Step`.
    rank : None
        The engine's, as are those that follow, so that one call can be put to both. The oracle has one way of doing
        each thing and refuses the others; here, no sketch.
    variance : {"exact"}
        Of "random_order" and "two_term".
    micro_batch : int, optional
        Changes no result, and is not used.
    carry_window : None
        The window of "carry" is the whole run.
    score_dtype : None
        The products are made in float64.
    device : {"auto", "cpu"}
        The CPU.
    dtype : {"float64"}
        In which everything is computed.
    on_step : callable, optional
        Called with a `Progress` after each step.
    on_checkpoint : callable, optional
        Called after each step with its number and a function that returns the state of the run, a `Snapshot`.
    resume : Snapshot, optional
        The state of the same run after some step: it goes on from there, and ends as it would have without a break.

    Returns
    -------
    Run
        Scores, final parameters and history.

    Raises
    ------
    ValueError, TypeError
        A bad argument, by its name; a state of another run.
    Diverged
        A loss, score, parameter or moment is no longer finite; holds the run up to there.
    """
    only_choices = {
        "rank": (rank, (None,)),
        "variance": (variance, ("exact",)),
        "carry_window": (carry_window, (None,)),
        "score_dtype": (score_dtype, (None,)),
        "device": (device, ("auto", "cpu")),
        "dtype": (dtype, ("float64",)),
    }
    for name, (value, choices) in only_choices.items():
        if not (value is None or isinstance(value, str)) or value not in choices:
            refuse(name, shown(value), " or ".join(map(repr, choices)) + ": the oracle has nothing else")
    if micro_batch is not None:
        positive_integer("micro_batch", micro_batch)
    config = RunConfig(network, adam, train, valid, epochs, batch_size, seed, reduction, steps)
    one_of("credit", credit, CREDITS)
    estimator = Estimator(slope, gradient, per_validation=per_validation, nodes=nodes, kind=kind)
    state = RunState.fresh(config, credit, account_of(config, credit, estimator), zero_scores(config, estimator))
    for name, function in (("on_step", on_step), ("on_checkpoint", on_checkpoint)):
        check_callable(name, function)
    on_step = logged(on_step, f"{network}, {train.n} training and {valid.n} validation samples, by the oracle")
    settings = "" if resume is None and on_checkpoint is None else settings_of(config, estimator)
    if resume is not None:
        state.restore(resumed(resume, settings, state.snapshot(settings), steps=config.length))
    sgd = Estimator("sgd", "start", per_validation=estimator.per_validation)
    with one_blas_thread():
        for epoch, index in islice(config.order(), state.adam.step, None):
            result = step_result(state, index, sgd)
            if result.bad is not None:
                advice = f"a smaller lr than {largest_lr(state)}, or smaller inputs"
                raise Diverged(state.adam.next_step, config.length, *result.bad, state.broken_off(result), advice)
            state.record(result)
            completed = state.adam.step
            if on_step is not None:
                on_step(Progress(completed, config.length, epoch, result.train_loss, result.valid_loss))
            if on_checkpoint is not None:
                on_checkpoint(completed, partial(state.snapshot, settings))
        return state.run()


def account_of(config: RunConfig, credit: Credit, estimator: Estimator) -> Account[Any]:
    """Return an empty account of a run."""
    if credit == "carry":
        return carry.ledger_of(config, estimator)
    return StepAccount(estimator, zero_scores(config, estimator))


def settings_of(config: RunConfig, estimator: Estimator) -> str:
    """Return the settings of a run that its snapshots hold."""
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
    )


def step_result(state: RunState, index: Array, sgd: Estimator) -> StepResult:
    """Return the next step of a run, with the samples `index`; changes nothing.

    Its losses, scores, gradient, parameters and the account's entry are checked in this order, and the entry is
    computed where all before it is finite.
    """
    config, account = state.config, state.account
    batch = config.train.take(index)
    step = Step(config.network, state.params, config.adam, state.adam, batch, config.valid, config.reduction)
    step = step.as_float64()
    with np.errstate(over="ignore", invalid="ignore"):  # the results are checked
        train_loss, valid_loss = (
            float(mean_loss(config.network, state.params, part)) for part in (step.train, config.valid)
        )
        scores = account.scores(step)
        sgd_scores = unchecked_scores(step, sgd)
        g = batch_gradient(step)
        watched: dict[str, Any] = {"train_loss": train_loss, "valid_loss": valid_loss}
        watched |= {f"square of the gradient of {name!r}": array**2 for name, array in g.items()}
        watched |= {} if scores is None else {"scores": scores}
        watched |= {"sgd_scores": sgd_scores}
        params, m, v = moved(step, g)
        watched |= {f"params[{name!r}]": p for name, p in params.items()}
        bad, entry = first_not_finite(watched), None
        if bad is None:
            entry = account.entry(index, scores, step, params)
            bad = first_not_finite(entry.numbers())
    return StepResult(index, params, m, v, train_loss, valid_loss, sgd_scores, entry, bad)


def largest_lr(state: RunState) -> float:
    """Return the largest learning rate of the next step."""
    adam, t = state.config.adam, state.adam.next_step
    return max(adam.at(t, name).lr for name in state.params)
