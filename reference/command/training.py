"""From prepared data to findings: builds the network, has it trained and attributed, and measures it."""

import math
import time
from collections.abc import Callable

import numpy as np

from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.job import Detection, Findings, Fit, Options, Quality
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.roc import roc_auc
from adamshap.reference.command.trainers import Trainer
from adamshap.reference.network import mean_loss, outputs
from adamshap.reference.problem import Adam, Loss, Network, Params, Progress, Run


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
        width = len(dataset.classes) or len(dataset.targets)
        loss: Loss = "mse" if dataset.task == "regression" else "cross_entropy"
        network = Network((dataset.x.shape[1], *options.hidden, width), "tanh", loss)
        adam = Adam(lr=options.lr)
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    # Overflow is told below, once and in words.
    with np.errstate(all="ignore"):
        run = _attributed(network, adam, options, prepared, trainer, on_step)
        before = measure(network, run.initial_params, prepared)
        after = measure(network, run.params, prepared)
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
            on_step=watch,
        )
    except (ValueError, TypeError) as error:
        # Before the first step the contract refuses what it was given; after it, parameters that are not finite.
        raise _diverged(options, f"after step {taken}: {error}") if taken else CommandError(str(error)) from error


def _diverged(options: Options, what: str) -> CommandError:
    return CommandError(f"training broke off, {what}; a smaller --lr than {options.lr} may help")


def measure(network: Network, params: Params, prepared: Prepared) -> Quality | Fit:
    """Return how well the network does on the validation examples."""
    valid = prepared.valid
    loss, answers = float(mean_loss(network, params, valid)), outputs(network, params, valid.x)
    if prepared.target_scale is None:
        return Quality(loss, float((np.argmax(answers, axis=1) == valid.y).mean()))
    wrong, spread = answers - valid.y, valid.y - valid.y.mean(axis=0)
    explained = float(1 - np.sum(wrong**2) / np.sum(spread**2)) if spread.any() else None
    return Fit(loss, explained, float(np.sqrt(np.mean((wrong * prepared.target_scale) ** 2))))
