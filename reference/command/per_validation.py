"""Scores of a run for every validation example (``--per-validation``): what they need, their mean, and their file.

``per_validation.npz``, sealed and written at the end, has the arrays ``score``, ``sgd_score`` and ``total`` (n, n_val),
under the run's weighting; ``index`` (n,) and ``validation_index`` (n_val,), the rows of the data; and ``loss_before``
and ``loss_after`` (n_val,). The mean over the columns is the run's score. So each step is divided by the same number
for all validation examples: that of their mean.
"""

from pathlib import Path

import numpy as np

from adamshap.reference import checkpoint
from adamshap.reference.checkpoint import CheckpointError
from adamshap.reference.command.errors import CommandError
from adamshap.reference.contract import Array, Batch, Model, Params
from adamshap.reference.models import sample_losses

FILE = "per_validation.npz"
MOST_BYTES = 2**30
"""Most bytes of scores that a run keeps in memory."""
COPIES = 3.5
"""Times as many bytes as the scores have that a run takes while it writes them."""

AT_ONCE = 32


def bytes_of(train: int, valid: int, steps: int, batch_size: int) -> int:
    """Return the bytes of the scores of all steps, by both formulas, and of their totals."""
    return 2 * np.dtype(np.float64).itemsize * valid * (steps * min(batch_size, train) + train)


def check_size(train: int, valid: int, steps: int, batch_size: int, *, from_file: bool) -> None:
    """Refuse a run whose scores of all steps, by both formulas, and their totals are beyond `MOST_BYTES`.

    Parameters
    ----------
    train, valid : int
        Numbers of training and validation examples.
    steps, batch_size : int
    from_file : bool
        Whether the validation examples are those of a file, all of them.

    Raises
    ------
    CommandError
    """
    needed = bytes_of(train, valid, steps, batch_size)
    if needed > MOST_BYTES:
        most = valid * MOST_BYTES // needed
        how = "a smaller --valid" if from_file else f"--valid-limit {most}"
        fewer = f"{most} validation examples ({how}) or fewer steps" if most else "fewer steps"
        raise CommandError(
            f"--per-validation: got {train} training examples, {valid} validation examples and {steps} steps, whose"
            f" scores take {needed} bytes; needs at most {MOST_BYTES}: {fewer}; or no --per-validation,"
            " as adamshap show DIR --explain K trains once more for single ones"
        )


def mean_over(scores: Array) -> Array:
    """Return scores (n,) of the mean loss from `scores`, which may have a column for each validation example."""
    return scores if scores.ndim == 1 else np.asarray(scores.mean(axis=1))


def losses_of(network: Model, params: Params, batch: Batch) -> Array:
    """Return the losses (n,) of the samples of `batch`.

    They are computed a few at a time: the oracle's outputs of text, a number for each token, take much memory.
    """
    places = np.arange(batch.n)
    parts = [places[start : start + AT_ONCE] for start in range(0, batch.n, AT_ONCE)]
    return np.concatenate([sample_losses(network, params, batch.take(part)) for part in parts])


def read(folder: Path, owner: str) -> dict[str, Array] | None:
    """Return the arrays in the file of a run's `folder`, or None if it has none.

    Raises
    ------
    CommandError
        The file is damaged.
    """
    if not (folder / FILE).exists():
        return None
    try:
        return checkpoint.read(folder / FILE, owner)
    except CheckpointError as error:
        raise CommandError(f"{error}; without this file, adamshap show --explain trains once more") from error
