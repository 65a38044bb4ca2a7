"""A training run with its attribution: each sample's scores, summed over the steps that it took part in."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Literal

import numpy as np

from adamshap.reference import ghost
from adamshap.reference.adam import apply_gradient
from adamshap.reference.network import batch_gradient, mean_loss
from adamshap.reference.problem import (
    REDUCTIONS,
    Adam,
    AdamState,
    Array,
    Batch,
    Checkpointer,
    Diverged,
    Gradient,
    Network,
    Progress,
    Reduction,
    Run,
    Slope,
    Snapshot,
    Step,
    batch_order,
    check_batch,
    check_callable,
    count_steps,
    first_not_finite,
    of_kind,
    one_of,
    positive_integer,
    refuse,
    resumed,
    run_settings,
    shown,
)


def attribute(
    network: Network,
    adam: Adam,
    train: Batch,
    valid: Batch,
    *,
    epochs: int = 10,
    batch_size: int = 64,
    seed: int = 0,
    slope: Slope = "random_order",
    gradient: Gradient = "midpoint",
    per_validation: bool = False,
    nodes: tuple[int, int] = (4, 4),
    reduction: Reduction = "mean",
    rank: None = None,
    variance: Literal["exact"] = "exact",
    micro_batch: int | None = None,
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
    epochs, batch_size : int
        Every epoch goes once through `train` in a new order; its last batch holds what is left.
    seed : int
        Of the parameters and of the order of the samples.
    slope, gradient, per_validation, nodes
        As for `scores`.
    reduction : {"mean", "sum"}
        As for `Step`.
    rank, variance, micro_batch, score_dtype, device, dtype
        The engine's, so that one call can be put to both. The oracle has one way of doing each thing (no sketch, exact
        variance, float64 on the CPU) and refuses the others; `micro_batch` changes no result and is not used.
    on_step : callable, optional
        Called with a `Progress` after each step.
    on_checkpoint : callable, optional
        Called after each step with its number and a function that returns the state of the run, a `Snapshot`.
    resume : Snapshot, optional
        The state of the same run after some step: it goes on from there, and ends as it would have without a break.

    Returns
    -------
    Run

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
        "score_dtype": (score_dtype, (None,)),
        "device": (device, ("auto", "cpu")),
        "dtype": (dtype, ("float64",)),
    }
    for name, (value, choices) in only_choices.items():
        if value not in choices:
            refuse(name, shown(value), " or ".join(map(repr, choices)) + ": the oracle has nothing else")
    if micro_batch is not None:
        positive_integer("micro_batch", micro_batch)
    kinds = (("network", network, Network), ("adam", adam, Adam), ("train", train, Batch), ("valid", valid, Batch))
    for name, thing, kind in kinds:
        of_kind(name, thing, kind)
    for name, function in (("on_step", on_step), ("on_checkpoint", on_checkpoint)):
        check_callable(name, function)
    one_of("reduction", reduction, REDUCTIONS)
    check_batch("train", train, network)
    check_batch("valid", valid, network)
    per_epoch, steps = count_steps(train.n, batch_size=batch_size, epochs=epochs)
    initial = params = network.init(seed)
    state = AdamState.zeros(params)
    shape = (train.n, valid.n) if per_validation else (train.n,)
    totals, sgd_totals, seen = np.zeros(shape), np.zeros(shape), np.zeros(train.n, np.int64)
    train_log, valid_log = np.zeros(steps), np.zeros(steps)
    settings = ""
    if resume is not None or on_checkpoint is not None:
        settings = run_settings(
            train,
            valid,
            trainer="adamshap.reference",
            network=network,
            adam=adam,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            slope=slope,
            gradient=gradient,
            per_validation=per_validation,
            nodes=nodes,
            reduction=reduction,
        )

    def snapshot() -> Snapshot:
        done = state.step
        arrays = {
            "scores": totals,
            "sgd_scores": sgd_totals,
            "seen": seen,
            "history/train_loss": train_log[:done],
            "history/valid_loss": valid_log[:done],
        }
        for group, named in (("params", params), ("m", state.m), ("v", state.v)):
            arrays |= {f"{group}/{name}": array for name, array in named.items()}
        return {"step": np.array(done), "settings": np.array(settings)} | {k: a.copy() for k, a in arrays.items()}

    def so_far(done: int) -> Run:
        history: dict[str, Array] = {"epoch": np.arange(done) // per_epoch}
        history |= {"train_loss": train_log[:done], "valid_loss": valid_log[:done]}
        return Run(initial, params, state, totals, sgd_totals, seen, history)

    if resume is not None:
        kept = resumed(resume, settings, snapshot(), steps=steps)
        done = int(kept["step"])
        for array, name in ((totals, "scores"), (sgd_totals, "sgd_scores"), (seen, "seen")):
            array[...] = kept[name]
        train_log[:done], valid_log[:done] = kept["history/train_loss"], kept["history/valid_loss"]
        params, m, v = ({name: kept[f"{group}/{name}"].copy() for name in initial} for group in ("params", "m", "v"))
        state = AdamState(done, m, v)

    order = batch_order(train.n, batch_size=batch_size, epochs=epochs, seed=seed)
    for number, (epoch, index) in islice(enumerate(order, start=1), state.step, None):
        step = Step(network, params, adam, state, train.take(index), valid, reduction)
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at, and told
            train_loss, valid_loss = (float(mean_loss(network, params, batch)) for batch in (step.train, valid))
            scores = ghost.scores(step, slope, gradient, per_validation=per_validation, nodes=nodes)
            sgd_scores = ghost.scores(step, "sgd", "start", per_validation=per_validation)
            g = batch_gradient(step.as_float64())
            watched: dict[str, Any] = {"train_loss": train_loss, "valid_loss": valid_loss}
            watched |= {f"square of the gradient of {name!r}": array**2 for name, array in g.items()}
            bad = first_not_finite(watched | {"scores": scores, "sgd_scores": sgd_scores})
            if bad is None:
                new_params, new_state = apply_gradient(step.as_float64(), g)
                bad = first_not_finite({f"params[{name!r}]": p for name, p in new_params.items()})
        if bad is not None:
            advice = f"a smaller lr than {adam.lr}, or smaller inputs"
            raise Diverged(number, steps, *bad, so_far(number - 1), advice)
        totals[index] += scores
        sgd_totals[index] += sgd_scores
        seen[index] += 1
        params, state = new_params, new_state
        train_log[number - 1], valid_log[number - 1] = train_loss, valid_loss
        if on_step is not None:
            on_step(Progress(number, steps, epoch, train_loss, valid_loss))
        if on_checkpoint is not None:
            on_checkpoint(number, snapshot)
    return so_far(steps)
