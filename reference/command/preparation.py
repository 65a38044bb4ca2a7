"""Prepares a data set for training: validation split, standardisation, flipped labels. Everything is seeded."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.reference.command import images
from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.file_rows import FileRows
from adamshap.reference.command.table import EPS
from adamshap.reference.contract import Array, Batch, LazyRows, parts

# Share of each class held out for validation by default.
VALIDATION_SHARE = 0.2
VALIDATION_LIMIT = 500
"""Most examples held out by default: every step looks at all of them, so they set the cost of a run of much data."""

TINIEST = float(np.finfo(np.float64).smallest_subnormal)
ROUNDINGS = 4
"""Roundings that a value may have undergone. A scaled and shifted number, a x + b, has four: x, a, a x and the sum."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """The training and validation data.

    Parameters
    ----------
    train_index, valid_index : int arrays (n,), (n_val,)
        Rows of the data set, ascending; `valid_index` refers to the validation file if there is one.
    train, valid : Batch
        Standardised features, or images, with the training labels after flipping, or a regression's standardised
        targets.
    labels : int array (n,), or float64 array (n, k)
        The training labels before flipping, or a regression's original targets.
    flipped : bool array (n,)
    mean, scale : arrays (d,)
        The network's inputs are ``(x - mean) / scale``.
    constant : bool array (d,)
        Features that are constant in the training part up to rounding, and so carry no information. They become 0, or
        almost 0, in the training part, and 0 in the validation part whatever their value.
    target_mean, target_scale : arrays (k,), or None
        The same for a regression's targets.
    valid_constant : bool
        Whether a regression's validation targets are all equal up to rounding, so that R² is undefined.
    in_file : FileRows of n rows, or None
        The training examples as a file with columns has them.
    valid_in_file : FileRows of n_val rows, or None
        The same for the validation examples.
    groups : array of str (n,), or None
        The group of each training example.
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
    in_file: FileRows | None = None
    groups: Array | None = None
    valid_in_file: FileRows | None = None

    @property
    def of_text(self) -> bool:
        """Whether labels are the tokens of a text, and not classes or targets."""
        return self.train.y.ndim > 1 and self.target_scale is None


def prepare(
    dataset: Dataset,
    *,
    flip: float,
    seed: int,
    share: float = VALIDATION_SHARE,
    limit: int | None = None,
    valid: Dataset | None = None,
    as_images: bool = False,
) -> Prepared:
    """Return `dataset` split and standardised, with the share `flip` of its training labels flipped.

    Parameters
    ----------
    dataset : Dataset
    flip : float
        Share of the training labels that get another class; 0 for a regression.
    seed : int
        Seed of the split and the flips.
    share : float
        Share of `dataset` held out for validation; not used with `valid`.
    limit : int, optional
        Most examples held out; the others are trained on. Not used with `valid`.
    valid : Dataset, optional
        Separate validation examples with the same features and labels; all of `dataset` is then trained on.
    as_images : bool
        Whether inputs are images (n, channels, height, width), standardised by channel, in place of rows of features.

    Raises
    ------
    CommandError
        The spread of a feature or target is beyond float64, or `flip` amounts to no label or to all of them.
    """
    # Separate streams, so that the split does not depend on the flips.
    split_seed, flip_seed = np.random.SeedSequence(seed).spawn(2)
    if valid is None:
        held_out = hold_out(dataset.y, np.random.default_rng(split_seed), share, limit)
        train_index, valid_index, source = np.flatnonzero(~held_out), np.flatnonzero(held_out), dataset
    else:
        train_index, valid_index, source = np.arange(len(dataset.x)), np.arange(len(valid.x)), valid
    raw_train, raw_valid = LazyRows(dataset.x, train_index), LazyRows(source.x, valid_index)
    layout = dataset.image_shape if as_images else None
    if layout is None:
        mean, scale, constant = _standard(dataset.name, "feature", dataset.features, raw_train, dataset.x_eps)
    else:
        mean, scale, constant = _standard_of_channels(dataset, raw_train, layout)
    rows = _standardised(dataset.name, "feature", dataset.features, raw_train, mean, scale)
    train_x: Any = rows if isinstance(dataset.x, LazyRows) else rows[:]
    valid_x = _standardised(source.name, "feature", source.features, raw_valid, mean, scale)[:]
    # Training leaves their weights at their initial values, so any other input here would add noise to the outputs.
    valid_x[:, constant] = 0
    if layout is not None:
        train_x, valid_x = (images.channels_first(part[:], layout) for part in (train_x, valid_x))
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
    in_file = None if dataset.in_file is None else dataset.in_file.take(train_index)
    valid_in_file = None if source.in_file is None else source.in_file.take(valid_index)
    groups = None if dataset.groups is None else dataset.groups[train_index]
    fitted = (mean, scale, constant, target_mean, target_scale, valid_constant, in_file, groups, valid_in_file)
    return Prepared(train_index, valid_index, train, valid_batch, labels, flipped, *fitted)


def hold_out(
    y: Array, generator: np.random.Generator, share: float = VALIDATION_SHARE, limit: int | None = None
) -> Array:
    """Return the mask (N,) of validation examples: the `share` of each class, but at least one and not all.

    With a `limit`, at most so many in proportion, but still one of each class. They are among those without a limit.
    Real targets (N, k) are treated as one class.
    """
    held_out = np.zeros(len(y), bool)
    groups = [np.arange(len(y))] if y.ndim == 2 else [np.flatnonzero(y == label) for label in np.unique(y)]
    counts = np.array([min(max(round(share * len(members)), 1), len(members) - 1) for members in groups])
    if limit is not None and counts.sum() > limit:
        counts = _in_proportion(counts, limit)
    for members, count in zip(groups, counts, strict=True):
        held_out[generator.permutation(members)[:count]] = True
    return held_out


def _in_proportion(counts: Array, total: int) -> Array:
    """Return whole numbers of at least 1, in the proportions of `counts`, with the sum `total` if that is possible."""
    exact = counts * (total / counts.sum())
    found: Array = np.maximum(np.floor(exact).astype(int), 1)
    for _ in range(total - int(found.sum())):
        found[np.argmax(exact - found)] += 1
    for _ in range(min(int(found.sum()) - total, int((found - 1).sum()))):
        found[np.argmin(np.where(found > 1, exact - found, np.inf))] -= 1
    return found


def flip_labels(y: Array, classes: int, share: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """Return the mask of flipped labels, and all labels; a flipped label is drawn uniformly from the other classes."""
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
    """Return whether values from `low` to `high` are equal up to rounding.

    A value after k = `ROUNDINGS` roundings is v (1 + δ), |δ| ≤ k u with u = ε/2, so two such values of the same v
    differ by at most 2 k u |v| = k ε |v|. Among subnormal numbers their spacing replaces ε |v|. The bound holds for
    every pair, whatever the number of values.

    Parameters
    ----------
    low, high : arrays (d,)
    eps : array (d,), or float
        ε of the stored dtype, as in `numpy.finfo`; 0 for values that were not rounded, such as integers.
    whole : bool array (d,)
        Columns of whole numbers only. A float represents them exactly up to 2/ε: ids and counts have no rounding.
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
    """Return each column's mean and scale, and the mask of columns that are constant up to rounding."""
    count, low, high = len(values), *_ends(values)
    size = np.maximum(np.abs(low), np.abs(high))
    with np.errstate(over="ignore", invalid="ignore"):
        # A sum of n values has a relative error of up to n ε. At large offsets, where this could be comparable to the
        # spread, sum the differences from the smallest value instead, which are exact.
        base = np.where(high - low < np.sqrt(EPS) * count * size, low, 0.0)
        rest = sum((part - base).sum(axis=0) for part in parts(values)) / count
        scale = np.sqrt(sum(np.square(part - base - rest).sum(axis=0) for part in parts(values)) / count)
        mean = base + rest
    constant = _constant(values, eps)
    # Rounding errors of a large constant are not small: scale them by its size.
    mean[constant], scale[constant] = low[constant], np.where(low == high, 1.0, np.maximum(size, 1.0))[constant]
    bad: Array = (scale == 0) | ~np.isfinite(scale) | ~np.isfinite(mean)
    _refuse_spread(source, kind, names, low, high, bad)
    return mean, scale, constant


def _standard_of_channels(dataset: Dataset, rows: LazyRows, layout: images.Layout) -> tuple[Array, Array, Array]:
    """Return `_standard` of each channel, as one value for each of an image's numbers."""
    pixels = images.pixels_of(rows[:], layout)
    names = tuple(f"channel {number}" for number in range(pixels.shape[1]))
    found = _standard(dataset.name, "the images'", names, pixels, dataset.x_eps)
    mean, scale, constant = (images.for_each_number(part, layout) for part in found)
    return mean, scale, constant


def _constant(values: Array | LazyRows, eps: Array | float) -> Array:
    """Return the mask of columns that are constant up to rounding, by `is_constant`."""
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
    # Standardising is monotonic: if both ends are within float32, so are all values between them.
    with np.errstate(over="ignore"):
        standard = LazyRows(np.stack(ends), None, mean, scale)[:].astype(np.float32)
    bad = np.asarray(~np.isfinite(standard).all(axis=0))
    _refuse_spread(source, kind, names, *ends, bad, "numbers nearer to those of the training examples")
    return LazyRows(values, None, mean, scale)


def _ends(values: Array | LazyRows) -> tuple[Array, Array]:
    """Return the minimum and the maximum of each column."""
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
            f"{source}: {kind} {names[column]!r} ranges from {low[column]} to {high[column]}; needs {needs}"
        )
