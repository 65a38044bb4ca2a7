"""A training run with its attribution: each sample's scores, summed over the steps that it took part in."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from adamshap.reference import carry, ghost
from adamshap.reference.adam import update
from adamshap.reference.network import mean_loss
from adamshap.reference.problem import (
    CREDITS,
    Adam,
    AdamState,
    Batch,
    Credit,
    Gradient,
    Network,
    Progress,
    Reduction,
    Run,
    RunConfig,
    Slope,
    Step,
    one_of,
    positive_integer,
    refuse,
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
    credit: Credit = "step",
    per_validation: bool = False,
    nodes: tuple[int, int] = (4, 4),
    reduction: Reduction = "mean",
    rank: None = None,
    variance: Literal["exact"] = "exact",
    micro_batch: int | None = None,
    carry_window: None = None,
    score_dtype: None = None,
    device: Literal["auto", "cpu"] = "auto",
    dtype: Literal["float64"] = "float64",
    on_step: Callable[[Progress], None] | None = None,
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
        As for `scores`; with ``credit="carry"``, as for `carry.ledger_of`.
    credit : {"step", "carry"}
        "step" leaves the step that momentum takes without data to nobody. "carry" credits it to the earlier samples
        whose gradients the momentum is made of: scores and weight decay's shares then add up to the whole change of the
        validation loss (docs/method.md 6).
    reduction : {"mean", "sum"}
        As for `Step`.
    rank, variance, micro_batch, carry_window, score_dtype, device, dtype
        The engine's, so that one call can be put to both. The oracle has one way of doing each thing (no sketch, exact
        variance, the whole run as window, float64 on the CPU) and refuses the others; `micro_batch` changes no result
        and is not used.
    on_step : callable, optional
        Called with a `Progress` after each step.

    Returns
    -------
    Run
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
        if value not in choices:
            refuse(name, repr(value), " or ".join(map(repr, choices)) + ": the oracle has nothing else")
    if micro_batch is not None:
        positive_integer("micro_batch", micro_batch)
    config = RunConfig(network, adam, train, valid, epochs, batch_size, seed, reduction)
    one_of("credit", credit, CREDITS)
    order = list(config.order())
    ledger = carry.ledger_of(slope, gradient, per_validation, nodes) if credit == "carry" else None
    initial = params = network.init(seed)
    state = AdamState.zeros(params)
    shape = (train.n, valid.n) if per_validation else (train.n,)
    totals, sgd_totals, seen = np.zeros(shape), np.zeros(shape), np.zeros(train.n, np.int64)
    epoch_log, train_log, valid_log = [], [], []
    for number, (epoch, index) in enumerate(order, start=1):
        step = Step(network, params, adam, state, train.take(index), valid, reduction)
        train_loss = float(mean_loss(network, params, step.train))
        valid_loss = float(mean_loss(network, params, valid))
        after = update(step)
        if ledger is None:
            totals[index] += ghost.scores(step, slope, gradient, per_validation=per_validation, nodes=nodes)
        else:
            ledger.enter(index, step, after[0])
        sgd_totals[index] += ghost.scores(step, "sgd", "start", per_validation=per_validation)
        seen[index] += 1
        params, state = after
        epoch_log.append(epoch)
        train_log.append(train_loss)
        valid_log.append(valid_loss)
        if on_step is not None:
            on_step(Progress(number, len(order), epoch, train_loss, valid_loss))
    history = {"epoch": np.array(epoch_log), "train_loss": np.array(train_log), "valid_loss": np.array(valid_log)}
    decay = closed = None
    if ledger is not None:
        totals, decay, closed = ledger.settle(totals)
    return Run(initial, params, state, totals, sgd_totals, seen, history, config, credit, decay, closed)
