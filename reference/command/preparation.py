"""From a data set to what is trained on: hold-out for validation, standardised features, flipped labels. All seeded."""

from dataclasses import dataclass

import numpy as np

from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.errors import CommandError
from adamshap.reference.problem import Array, Batch

# Of each class, held out for validation.
VALIDATION_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is trained on and what judges it.

    Parameters
    ----------
    train_index, valid_index : int arrays (n,), (n_val,)
        Rows of the data set, ascending.
    train, valid : Batch
        Standardised features; the training labels are those after flipping.
    labels : int array (n,)
        The training labels before flipping.
    flipped : bool array (n,)
    mean, scale : arrays (d,)
        ``(x - mean) / scale`` is what the network is given.
    constant : bool array (d,)
        Features that never change in the training part: their scale is 1, so that they become 0 and say nothing.
    """

    train_index: Array
    valid_index: Array
    train: Batch
    valid: Batch
    labels: Array
    flipped: Array
    mean: Array
    scale: Array
    constant: Array


def prepare(dataset: Dataset, *, flip: float, seed: int) -> Prepared:
    """Return `dataset` split, standardised, and with the share `flip` of its training labels changed.

    Raises
    ------
    CommandError
        Where a feature's spread is beyond float64, or `flip` means no label or all of them.
    """
    # Streams of their own, so that the same examples are held out whatever is flipped.
    split_seed, flip_seed = np.random.SeedSequence(seed).spawn(2)
    held_out = hold_out(dataset.y, np.random.default_rng(split_seed))
    train_index, valid_index = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    mean, scale, constant = _standard(dataset, train_index)
    with np.errstate(over="ignore", invalid="ignore"):
        x = (dataset.x - mean) / scale
    _refuse_features(dataset, ~np.all(np.isfinite(x), axis=0))
    labels = dataset.y[train_index]
    flipped, trained_on = flip_labels(labels, len(dataset.classes), flip, np.random.default_rng(flip_seed))
    train = Batch(x[train_index], trained_on)
    valid = Batch(x[valid_index], dataset.y[valid_index])
    return Prepared(train_index, valid_index, train, valid, labels, flipped, mean, scale, constant)


def hold_out(y: Array, generator: np.random.Generator) -> Array:
    """Return which examples validate: of each class `VALIDATION_SHARE`, but at least one (N,)."""
    held_out = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        count = max(round(VALIDATION_SHARE * len(members)), 1)
        held_out[generator.permutation(members)[:count]] = True
    return held_out


def flip_labels(y: Array, classes: int, share: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """Return which of `y` were flipped, and all labels after it: each flipped one is any *other* class, uniformly."""
    flipped = np.zeros(len(y), bool)
    count = round(share * len(y))
    if share and not 0 < count < len(y):
        raise CommandError(
            f"--flip-labels: got {share}, which is {count} of {len(y)} training labels; needs at least one, and not all"
        )
    flipped[generator.permutation(len(y))[:count]] = True
    labels = y.copy()
    labels[flipped] = (y[flipped] + generator.integers(1, classes, count)) % classes
    return flipped, labels


def _standard(dataset: Dataset, rows: Array) -> tuple[Array, Array, Array]:
    x = dataset.x[rows]
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = x.mean(axis=0), x.std(axis=0)
    # By comparison, not by a zero deviation: the mean of equal numbers may differ from them by a rounding.
    constant = (x == x[0]).all(axis=0)
    mean[constant], scale[constant] = x[0, constant], 1.0
    _refuse_features(dataset, (scale == 0) | ~np.isfinite(scale) | ~np.isfinite(mean))
    return mean, scale, constant


def _refuse_features(dataset: Dataset, bad: Array) -> None:
    if bad.any():
        feature = int(np.flatnonzero(bad)[0])
        low, high = dataset.x[:, feature].min(), dataset.x[:, feature].max()
        raise CommandError(
            f"{dataset.name}: feature {dataset.features[feature]!r} goes from {low} to {high}; needs a spread that"
            " can be standardised in float64"
        )
