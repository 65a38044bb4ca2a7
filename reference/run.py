"""A training run with its attribution: each sample's scores, summed over the steps that it took part in."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Literal

import numpy as np

from adamshap.reference import carry, ghost
from adamshap.reference.adam import moved
from adamshap.reference.contract import (
    CREDITS,
    Adam,
    AdamState,
    Array,
    Batch,
    Checkpointer,
    Credit,
    Diverged,
    Estimator,
    Gradient,
    MarginalKind,
    Network,
    Params,
    Progress,
    Reduction,
    Run,
    RunConfig,
    ScoreSlope,
    Snapshot,
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
from adamshap.reference.network import batch_gradient, mean_loss


def attribute(
    network: Network,
    adam: Adam,
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
    adam : Adam
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
    per_validation = estimator.per_validation
    sgd = Estimator("sgd", "start", per_validation=per_validation)
    ledger = carry.ledger_of(config, estimator) if credit == "carry" else None
    for name, function in (("on_step", on_step), ("on_checkpoint", on_checkpoint)):
        check_callable(name, function)
    on_step = logged(on_step, f"{network}, {train.n} training and {valid.n} validation samples, by the oracle")
    length = config.length
    initial = params = network.init(seed)
    state = AdamState.zeros(params)
    shape = (train.n, valid.n) if per_validation else (train.n,)
    totals, sgd_totals, seen = np.zeros(shape), np.zeros(shape), np.zeros(train.n, np.int64)
    train_log, valid_log = np.zeros(length), np.zeros(length)
    settings = ""
    if resume is not None or on_checkpoint is not None:
        settings = run_settings(
            train,
            valid,
            trainer="adamshap.reference",
            network=network,
            adam=adam,
            epochs=config.epochs,
            steps=length,
            batch_size=config.batch_size,
            seed=config.seed,
            estimator=estimator,
            reduction=reduction,
        )

    def snapshot() -> Snapshot:
        done = state.step
        arrays = {
            "scores": totals if ledger is None else ledger.own(totals),
            "sgd_scores": sgd_totals,
            "seen": seen,
            "history/train_loss": train_log[:done],
            "history/valid_loss": valid_log[:done],
        }
        for group, named in (("params", params), ("m", state.m), ("v", state.v)):
            arrays |= {f"{group}/{name}": array for name, array in named.items()}
        if ledger is not None:
            arrays |= {f"history/{name}": array for name, array in ledger.kept().items()}
        return {"step": np.array(done), "settings": np.array(settings)} | {k: a.copy() for k, a in arrays.items()}

    def so_far(done: int, params: Params, state: AdamState) -> Run:
        history: dict[str, Array] = {"epoch": np.arange(done) // config.per_epoch}
        history |= {"train_loss": train_log[:done], "valid_loss": valid_log[:done]}
        sums, decay, closed = (totals, None, None) if ledger is None else ledger.settle(totals)
        return Run(initial, params, state, sums, sgd_totals, seen, history, config, credit, decay, closed)

    if resume is not None:
        kept = resumed(resume, settings, snapshot(), steps=length)
        done = int(kept["step"])
        for array, name in ((totals, "scores"), (sgd_totals, "sgd_scores"), (seen, "seen")):
            array[...] = kept[name]
        train_log[:done], valid_log[:done] = kept["history/train_loss"], kept["history/valid_loss"]
        if ledger is not None:
            ledger.restore({name.removeprefix("history/"): array for name, array in kept.items()})
        params, m, v = ({name: kept[f"{group}/{name}"].copy() for name in initial} for group in ("params", "m", "v"))
        state = AdamState(done, m, v)

    with one_blas_thread():
        for number, (epoch, index) in islice(enumerate(config.order(), start=1), state.step, None):
            step = Step(network, params, adam, state, train.take(index), valid, reduction).as_float64()
            with np.errstate(over="ignore", invalid="ignore"):  # the results are checked below
                train_loss, valid_loss = (float(mean_loss(network, params, batch)) for batch in (step.train, valid))
                scores = np.zeros(shape)[index]  # with a ledger, known at the run's end
                if ledger is None:
                    scores = ghost.unchecked_scores(step, estimator)
                sgd_scores = ghost.unchecked_scores(step, sgd)
                g = batch_gradient(step)
                watched: dict[str, Any] = {"train_loss": train_loss, "valid_loss": valid_loss}
                watched |= {f"square of the gradient of {name!r}": array**2 for name, array in g.items()}
                watched |= {"scores": scores, "sgd_scores": sgd_scores}
                new_params, m, v = moved(step, g)
                watched |= {f"params[{name!r}]": p for name, p in new_params.items()}
                bad, entry = first_not_finite(watched), None
                if ledger is not None and bad is None:
                    entry = ledger.entry(index, step, new_params)
                    bad = first_not_finite(entry.numbers())
            if bad is not None:
                broken = so_far(number - 1, new_params, AdamState.unchecked(number, m, v))
                raise Diverged(number, length, *bad, broken, f"a smaller lr than {adam.lr}, or smaller inputs")
            if ledger is not None and entry is not None:
                ledger.entries.append(entry)
            totals[index] += scores
            sgd_totals[index] += sgd_scores
            seen[index] += 1
            params, state = new_params, AdamState(number, m, v)
            train_log[number - 1], valid_log[number - 1] = train_loss, valid_loss
            if on_step is not None:
                on_step(Progress(number, length, epoch, train_loss, valid_loss))
            if on_checkpoint is not None:
                on_checkpoint(number, snapshot)
        return so_far(length, params, state)
