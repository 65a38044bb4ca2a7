"""A training run with its attribution: each sample's scores, summed over the steps that it took part in."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from adamshap.reference import ghost
from adamshap.reference.adam import update
from adamshap.reference.network import mean_loss
from adamshap.reference.problem import (
    Adam,
    AdamState,
    Batch,
    Gradient,
    Network,
    Progress,
    Reduction,
    Run,
    Slope,
    Step,
    batch_order,
    check_batch,
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
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order"}
        S, as for `scores`.
    gradient : {"start", "midpoint", "path"}
        Γ, as for `scores`.
    per_validation : bool
        Score against each validation sample's own loss: (N, n_val).
    nodes : tuple of two ints
        (path, normal), as for `scores`.
    reduction : {"mean", "sum"}
        As for `Step`.
    rank : None
        The engine's, as are those that follow, so that one call can be put to both. The oracle has one way of doing
        each thing and refuses the others; here, no sketch.
    variance : {"exact"}
        Of "random_order".
    micro_batch : int, optional
        Changes no result, and is not used.
    score_dtype : None
        The products are made in float64.
    device : {"auto", "cpu"}
        The CPU.
    dtype : {"float64"}
        In which everything is computed.
    on_step : callable, optional
        Called with a `Progress` after each step.

    Returns
    -------
    Run
        Scores, final parameters and history.
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
            refuse(name, repr(value), " or ".join(map(repr, choices)) + ": the oracle has nothing else")
    if micro_batch is not None:
        positive_integer("micro_batch", micro_batch)
    check_batch("train", train, network)
    check_batch("valid", valid, network)
    order = list(batch_order(train.n, batch_size=batch_size, epochs=epochs, seed=seed))
    initial = params = network.init(seed)
    state = AdamState.zeros(params)
    shape = (train.n, valid.n) if per_validation else (train.n,)
    totals, sgd_totals, seen = np.zeros(shape), np.zeros(shape), np.zeros(train.n, np.int64)
    epoch_log, train_log, valid_log = [], [], []
    for number, (epoch, index) in enumerate(order, start=1):
        step = Step(network, params, adam, state, train.take(index), valid, reduction)
        train_loss = float(mean_loss(network, params, step.train))
        valid_loss = float(mean_loss(network, params, valid))
        totals[index] += ghost.scores(step, slope, gradient, per_validation=per_validation, nodes=nodes)
        sgd_totals[index] += ghost.scores(step, "sgd", "start", per_validation=per_validation)
        seen[index] += 1
        params, state = update(step)
        epoch_log.append(epoch)
        train_log.append(train_loss)
        valid_log.append(valid_loss)
        if on_step is not None:
            on_step(Progress(number, len(order), epoch, train_loss, valid_loss))
    history = {"epoch": np.array(epoch_log), "train_loss": np.array(train_log), "valid_loss": np.array(valid_log)}
    return Run(initial, params, state, totals, sgd_totals, seen, history)
