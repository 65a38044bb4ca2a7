"""From a data set to what is trained on: hold-out for validation, standardised numbers, flipped labels. All seeded."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.table import EPS
from adamshap.reference.contract import Array, Batch, LazyRows, parts

# Of each class, held out for validation where nothing else is said.
VALIDATION_SHARE = 0.2


TINIEST = float(np.finfo(np.float64).smallest_subnormal)
ROUNDINGS = 4
"""Roundings that a value may have been through. A number scaled and shifted, a x + b, has had four: of x, a, a x, and
the sum."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """The training and validation data.

    Parameters
    ----------
    train_index, valid_index : int arrays (n,), (n_val,)
        Rows of the data set, ascending; those of `valid_index` are rows of the validation file, where there is one.
    train, valid : Batch
        Standardised features; the training labels are those after flipping, and a regression's targets standardised.
    labels : int array (n,), or float64 array (n, k)
        The training labels before flipping, or a regression's targets as they came.
    flipped : bool array (n,)
    mean, scale : arrays (d,)
        ``(x - mean) / scale`` is what the network is given.
    constant : bool array (d,)
        Features that never change in the training part, or by no more than rounding. They say nothing: in the
        training part they become 0, or as good as 0, and in the validation part 0, whatever their value.
    target_mean, target_scale : arrays (k,), or None
        The same of a regression's targets.
    valid_constant : bool
        Whether all targets that a regression is validated on are the same but for rounding: nothing to explain.
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
    target_mean: Array | None = None
    target_scale: Array | None = None
    valid_constant: bool = False


def prepare(
    dataset: Dataset, *, flip: float, seed: int, share: float = VALIDATION_SHARE, valid: Dataset | None = None
) -> Prepared:
    """Return `dataset` split, standardised, and with the share `flip` of its training labels changed.

    Parameters
    ----------
    dataset : Dataset
    flip : float
        Share of the training labels that get another class; 0 for a regression.
    seed : int
        Of the hold-out and the flips.
    share : float
        Of `dataset`, held out for validation; not used with `valid`.
    valid : Dataset, optional
        Other examples to validate on, of the same features and labels; then all of `dataset` is trained on.

    Raises
    ------
    CommandError
        Where the spread of a feature or target is beyond float64, or `flip` means no label or all of them.
    """
    # Streams of their own, so that the same examples are held out whatever is flipped.
    split_seed, flip_seed = np.random.SeedSequence(seed).spawn(2)
    if valid is None:
        held_out = hold_out(dataset.y, np.random.default_rng(split_seed), share)
        train_index, valid_index, source = np.flatnonzero(~held_out), np.flatnonzero(held_out), dataset
    else:
        train_index, valid_index, source = np.arange(len(dataset.x)), np.arange(len(valid.x)), valid
    raw_train, raw_valid = LazyRows(dataset.x, train_index), LazyRows(source.x, valid_index)
    mean, scale, constant = _standard(dataset.name, "feature", dataset.features, raw_train, dataset.x_eps)
    rows = _standardised(dataset.name, "feature", dataset.features, raw_train, mean, scale)
    train_x: Any = rows if isinstance(dataset.x, LazyRows) else rows[:]
    valid_x = _standardised(source.name, "feature", source.features, raw_valid, mean, scale)[:]
    # Training leaves their weights as they were drawn, so another value here would add noise to the outputs.
    valid_x[:, constant] = 0
    labels, valid_y = dataset.y[train_index], source.y[valid_index]
    target_mean = target_scale = None
    valid_constant = False
    if dataset.task == "regression":
        target_mean, target_scale, fixed = _standard(dataset.name, "target", dataset.targets, labels, dataset.y_eps)
        if fixed.any():
            name = dataset.targets[int(np.flatnonzero(fixed)[0])]
            raise CommandError(
                f"{dataset.name}: {name!r} is the same in all training examples, to rounding; needs different values"
            )
        valid_constant = bool(_constant(valid_y, source.y_eps).all())
        trained_on, valid_y = (
            _standardised(part.name, "target", part.targets, y, target_mean, target_scale)[:]
            for part, y in ((dataset, labels), (source, valid_y))
        )
        flipped = np.zeros(len(labels), bool)
    else:
        flipped, trained_on = flip_labels(labels, len(dataset.classes), flip, np.random.default_rng(flip_seed))
    train, valid_batch = Batch(train_x, trained_on), Batch(valid_x, valid_y)
    fitted = (mean, scale, constant, target_mean, target_scale, valid_constant)
    return Prepared(train_index, valid_index, train, valid_batch, labels, flipped, *fitted)


def hold_out(y: Array, generator: np.random.Generator, share: float = VALIDATION_SHARE) -> Array:
    """Return which examples validate (N,): of each class the `share`, but at least one and not all.

    With real targets (N, k), that share of all of them.
    """
    held_out = np.zeros(len(y), bool)
    groups = [np.arange(len(y))] if y.ndim == 2 else [np.flatnonzero(y == label) for label in np.unique(y)]
    for members in groups:
        count = min(max(round(share * len(members)), 1), len(members) - 1)
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


def is_constant(low: Array, high: Array, eps: Array | float, whole: Array | bool = False) -> Array:
    """Return whether values from `low` to `high` are one number but for rounding.

    A value that went through k = `ROUNDINGS` roundings is v (1 + δ), |δ| ≤ k u with u = ε/2, so two such values of one
    v differ by at most 2 k u |v| = k ε |v|. Below the normal numbers the spacing of the values stands for ε |v|. The
    count of values does not matter: the bound holds for each of them.

    Parameters
    ----------
    low, high : arrays (d,)
    eps : array (d,), or float
        ε of the dtype that the values were stored in, `numpy.finfo`'s; 0 where nothing was rounded, as with integers.
    whole : bool array (d,)
        Columns of whole numbers only. Up to 2/ε a float holds each of them as it is: ids and counts have no rounding.
    """
    size = np.maximum(np.abs(low), np.abs(high))
    with np.errstate(over="ignore", under="ignore"):
        exact = np.equal(eps, 0) | (np.asarray(whole) & (size * eps <= 2))
        unit = np.where(exact, 0.0, np.maximum(size * eps, TINIEST))
        found: Array = high - low <= ROUNDINGS * unit
    return found


def _standard(
    source: str, kind: str, names: tuple[str, ...], values: Array | LazyRows, eps: Array | float
) -> tuple[Array, Array, Array]:
    """Return mean, deviation and which of the columns never change but for rounding."""
    count, low, high = len(values), *_ends(values)
    size = np.maximum(np.abs(low), np.abs(high))
    with np.errstate(over="ignore", invalid="ignore"):
        # A sum of n values may be off by n ε of its size. Where this could show beside the spread, at large offsets,
        # the differences from the least value are summed, which are exact.
        base = np.where(high - low < np.sqrt(EPS) * count * size, low, 0.0)
        rest = sum((part - base).sum(axis=0) for part in parts(values)) / count
        scale = np.sqrt(sum(np.square(part - base - rest).sum(axis=0) for part in parts(values)) / count)
        mean = base + rest
    constant = _constant(values, eps)
    # Rounding beside a large number is itself no small number: it is measured by that number.
    mean[constant], scale[constant] = low[constant], np.where(low == high, 1.0, np.maximum(size, 1.0))[constant]
    bad: Array = (scale == 0) | ~np.isfinite(scale) | ~np.isfinite(mean)
    _refuse_spread(source, kind, names, low, high, bad)
    return mean, scale, constant


def _constant(values: Array | LazyRows, eps: Array | float) -> Array:
    """Return which of the columns are one number but for rounding, as `is_constant` says."""
    low, high = _ends(values)
    found = is_constant(low, high, eps)
    if (found & (low != high)).any():
        whole = np.all([(part == np.rint(part)).all(axis=0) for part in parts(values)], axis=0)
        found = is_constant(low, high, eps, whole)
    return found


def _standardised(
    source: str, kind: str, names: tuple[str, ...], values: Array | LazyRows, mean: Array, scale: Array
) -> LazyRows:
    ends = _ends(values)
    # A larger number never becomes a smaller one: if the ends are within float32, so is all between them.
    with np.errstate(over="ignore"):
        standard = LazyRows(np.stack(ends), None, mean, scale)[:].astype(np.float32)
    bad = np.asarray(~np.isfinite(standard).all(axis=0))
    _refuse_spread(source, kind, names, *ends, bad, "numbers nearer to those of the training examples")
    return LazyRows(values, None, mean, scale)


def _ends(values: Array | LazyRows) -> tuple[Array, Array]:
    """Return the least and the greatest number of each column."""
    ends = [(part.min(axis=0), part.max(axis=0)) for part in parts(values)]
    low, high = zip(*ends, strict=True)
    return np.min(low, axis=0), np.max(high, axis=0)


def _refuse_spread(
    source: str,
    kind: str,
    names: tuple[str, ...],
    low: Array,
    high: Array,
    bad: Array,
    needs: str = "a spread that can be standardised in float64",
) -> None:
    if bad.any():
        column = int(np.flatnonzero(bad)[0])
        raise CommandError(
            f"{source}: {kind} {names[column]!r} goes from {low[column]} to {high[column]}; needs {needs}"
        )
