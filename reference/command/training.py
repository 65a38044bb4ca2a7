"""From prepared data to findings: builds the network, has it trained and attributed, and measures it."""

import math
import time
from collections.abc import Callable

import numpy as np

from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.job import Detection, Findings, Options, Quality
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.roc import roc_auc
from adamshap.reference.command.trainers import Trainer
from adamshap.reference.network import mean_loss, outputs
from adamshap.reference.problem import Adam, Batch, Network, Params, Progress, Run


def train(
    options: Options,
    dataset: Dataset,
    prepared: Prepared,
    trainer: Trainer,
    on_step: Callable[[Progress], None],
) -> Findings:
    """Have `trainer` train on `prepared` and attribute every step, and return what came of it.

    Raises
    ------
    CommandError
        Where the contract refuses an option, or training ends in numbers that are not finite.
    """
    started = time.perf_counter()
    try:
        network = Network((dataset.x.shape[1], *options.hidden, len(dataset.classes)), "tanh", "cross_entropy")
        adam = Adam(lr=options.lr)
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    # Overflow is told below, once and in words.
    with np.errstate(all="ignore"):
        run = _attributed(network, adam, options, prepared, trainer, on_step)
        before = _quality(network, run.initial_params, prepared.valid)
        after = _quality(network, run.params, prepared.valid)
    if not (np.isfinite(run.scores).all() and np.isfinite(run.sgd_scores).all() and math.isfinite(after.loss)):
        raise _diverged(options, "the scores or the final loss are not finite")
    detection = None
    if prepared.flipped.any():
        detection = Detection(*(roc_auc(-scores, prepared.flipped) for scores in (run.scores, run.sgd_scores)))
    seconds = time.perf_counter() - started
    return Findings(options, dataset, prepared, network, trainer.description, run, before, after, detection, seconds)


def _attributed(
    network: Network,
    adam: Adam,
    options: Options,
    prepared: Prepared,
    trainer: Trainer,
    on_step: Callable[[Progress], None],
) -> Run:
    taken = 0

    def watch(progress: Progress) -> None:
        nonlocal taken
        taken = progress.step
        if not math.isfinite(progress.train_loss + progress.valid_loss):
            raise _diverged(options, f"the loss is not finite at step {taken} of {progress.steps}")
        on_step(progress)

    try:
        return trainer.attribute(
            network,
            adam,
            prepared.train,
            prepared.valid,
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            slope=options.slope,
            gradient=options.gradient,
            credit=options.credit,
            on_step=watch,
        )
    except (ValueError, TypeError) as error:
        # Before the first step the contract refuses what it was given; after it, parameters that are not finite.
        raise _diverged(options, f"after step {taken}: {error}") if taken else CommandError(str(error)) from error


def _diverged(options: Options, what: str) -> CommandError:
    return CommandError(f"training broke off, {what}; a smaller --lr than {options.lr} may help")


def _quality(network: Network, params: Params, valid: Batch) -> Quality:
    right = np.argmax(outputs(network, params, valid.x), axis=1) == valid.y
    return Quality(float(mean_loss(network, params, valid)), float(right.mean()))
