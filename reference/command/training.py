"""Builds the network, has it trained and attributed, and measures the result."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from adamshap.reference.command import networks
from adamshap.reference.command.checkpointing import Checkpointer
from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.folder import IN_HISTORY, STEP_SCORES
from adamshap.reference.command.job import Findings, Fit, Likelihood, Options, Quality
from adamshap.reference.command.optimisers import optimiser
from adamshap.reference.command.per_validation import losses_of
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.roc import log_odds, mean_roc_auc
from adamshap.reference.command.trainers import Trainer
from adamshap.reference.contract import (
    Batch,
    Diverged,
    Model,
    Network,
    Optimiser,
    Params,
    Progress,
    Run,
    Sequential,
    Snapshot,
    first_not_finite,
)
from adamshap.reference.models import mean_loss, outputs


def plan(options: Options, dataset: Dataset, count: int) -> tuple[Network | Sequential, Optimiser]:
    """Return the network and the optimiser for `options` and `count` training examples."""
    return networks.network(options, dataset), optimiser(options, options.length(count)[1])


def train(
    options: Options,
    dataset: Dataset,
    prepared: Prepared,
    trainer: Trainer,
    on_step: Callable[[Progress], None],
    checkpointer: Checkpointer,
    resume: Snapshot | None,
) -> Findings:
    """Train on `prepared` with `trainer`, attribute every step, and return the results.

    Raises
    ------
    CommandError
        The run was interrupted.
    Diverged
        Training diverged (non-finite values).
    """
    started = time.perf_counter()
    network, adam = plan(options, dataset, prepared.train.n)
    # A run of an earlier version goes on without them.
    keep = options.credit == "step" and (resume is None or IN_HISTORY + STEP_SCORES[0] in resume)
    # Overflow is reported as `Diverged`, not as NumPy warnings.
    with np.errstate(all="ignore"), checkpointer.handle_signals(), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: checkpointer.warn(str(message))
        try:
            run = attributed(
                options,
                trainer,
                network,
                adam,
                prepared.train,
                prepared.valid,
                per_validation=options.per_validation,
                keep_step_scores=keep,
                on_step=on_step,
                on_checkpoint=checkpointer.on_checkpoint,
                resume=resume,
            )
        except Diverged as error:
            raise _diverged(options, error.step, error.steps, error.tensor, error.value, error.run) from error
    with np.errstate(all="ignore"):
        before = measure(network, run.initial_params, prepared)
        after = measure(network, run.params, prepared)
    bad = first_not_finite({"scores": run.scores, "sgd_scores": run.sgd_scores, "the final loss": after.loss})
    if bad is not None:
        raise _diverged(options, run.state.step + 1, run.state.step, *bad, run)
    seconds = time.perf_counter() - started
    return Findings(options, dataset, prepared, network, trainer.description, run, before, after, seconds)


def attributed(
    options: Options, trainer: Trainer, network: Model, adam: Optimiser, train: Batch, valid: Batch, **more: Any
) -> Run:
    """Return the run that `options` describe, by `trainer`; `more` are further arguments of its `attribute`."""
    epochs, steps = options.length(train.n)
    estimator = options.estimator
    return trainer.attribute(
        network,
        adam,
        train,
        valid,
        epochs=epochs,
        steps=steps,
        batch_size=options.batch_size,
        seed=options.seed_of_run,
        slope=estimator.slope,
        gradient=estimator.gradient,
        credit=options.credit,
        kind=estimator.kind,
        **more,
    )


def _diverged(options: Options, step: int, steps: int, tensor: str, value: float, run: Run) -> Diverged:
    """Return the error with advice for the command's user, who chooses no dtype and whose inputs are standardised."""
    return Diverged(step, steps, tensor, value, run, f"a smaller --lr than {options.lr}")


def measure(network: Model, params: Params, prepared: Prepared) -> Quality | Fit | Likelihood:
    """Return the network's loss and accuracy, R² and RMSE, or perplexity, on the validation examples."""
    valid = prepared.valid
    if prepared.of_text:
        loss = float(losses_of(network, params, valid).mean())
        return Likelihood(loss, loss / math.log(2), math.exp(loss))
    loss, answers = float(mean_loss(network, params, valid)), outputs(network, params, valid.x)
    if prepared.target_scale is None:
        right = float((np.argmax(answers, axis=1) == valid.y).mean())
        return Quality(loss, right, mean_roc_auc(log_odds(answers), valid.y))
    wrong, spread = answers - valid.y, valid.y - valid.y.mean(axis=0)
    explained = None if prepared.valid_constant else float(1 - np.sum(wrong**2) / np.sum(spread**2))
    return Fit(loss, explained, float(np.sqrt(np.mean((wrong * prepared.target_scale) ** 2))))
