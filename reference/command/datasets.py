"""DATA of the command: a name or files become arrays, class names and feature names, or one clear error."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from adamshap.reference.command.columns import column_means
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.sources import read
from adamshap.reference.command.spelling import (
    are_codes,
    are_integers,
    class_name,
    in_order,
    matched,
    number_or_none,
    numbers_of,
    respelled,
    some,
    twice,
)
from adamshap.reference.command.table import EPS, TABLES, Fitted, Reading, Table, Task
from adamshap.reference.contract import Array, LazyRows, parts

TaskChoice = Literal["auto", "classification", "regression"]

# More numbers than this, as labels, are taken for a quantity where they also are fractions or mostly differ.
MANY_CLASSES = 20


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled examples, as the user gave them.

    Parameters
    ----------
    name : str
    x : float64 array or `LazyRows` (N, d)
    y : int64 array (N,), or float64 array (N, k)
        Class of each example, an index into `classes`; or, for a regression, its k targets.
    classes : tuple of str
        At least two, each with at least two examples where some are to be held out; empty for a regression.
    features : tuple of d str
    image_shape : tuple (height, width), or None
        How an example's features make a picture, row by row.
    targets : tuple of k str
        What a regression's targets are called; empty for a classification.
    why : str
        What says that this is a classification, or a regression.
    rows : int array (N,), or None
        Rows of the file, where some are left out.
    notes : tuple of str
        Facts about the reading of the files that the user should know.
    fitted : Fitted
        Categories and means that a validation file takes over.
    gaps : bool array (N, d), or None
        Values that were missing, and are the mean of all others.
    x_eps, y_eps : float, or array (d,) or (k,)
        As of `table.Table`.
    """

    name: str
    x: Array | LazyRows
    y: Array
    classes: tuple[str, ...]
    features: tuple[str, ...]
    image_shape: tuple[int, int] | None = None
    targets: tuple[str, ...] = ()
    why: str = ""
    rows: Array | None = None
    notes: tuple[str, ...] = ()
    fitted: Fitted = field(default_factory=Fitted)
    gaps: Array | None = None
    x_eps: Array | float = EPS
    y_eps: Array | float = EPS

    @property
    def task(self) -> Task:
        """What the network is to learn."""
        return "regression" if self.targets else "classification"


def load(
    data: str,
    label: str | None = None,
    task: TaskChoice = "auto",
    reading: Reading | None = None,
    *,
    held_out: bool = True,
) -> Dataset:
    """Return the data set that `data` names.

    Parameters
    ----------
    data : str
        One of `sources.BUNDLED`; the path of a ``.csv``, ``.tsv``, ``.parquet`` or ``.npz`` file; or of two ``.npy``
        files, ``"x.npy,y.npy"``.
    label : str, optional
        The label column of a table; by default "label".
    task : {"auto", "classification", "regression"}
        "auto": text and booleans are classes, fractions in an array (N, k) are a regression's targets, and a bundled
        data set has its own task. Numbers are classes, unless they look like a quantity, and whole numbers (N, k) may
        be either: then it must be said.
    reading : Reading, optional
        How a table is read.
    held_out : bool
        Whether some of its examples are to be held out for validation, so that one of a class does not suffice.

    Raises
    ------
    CommandError
        For everything that keeps `data` from being a data set to train on.
    """
    dataset = _dataset(read("DATA", data, label, reading), task, held_out)
    return replace(dataset, notes=_of_file(data, dataset.notes))


def load_valid(valid: str, label: str | None, dataset: Dataset, reading: Reading | None = None) -> Dataset:
    """Return the validation examples that `valid` names, of the same features and classes as `dataset`.

    Columns of a table may come in another order. Categories and the means for missing values are those of `dataset`.

    Raises
    ------
    CommandError
        For everything that keeps them from validating a network trained on `dataset`.
    """
    table = read("--valid", valid, label if valid.lower().endswith(TABLES) else None, reading, dataset.fitted)
    if sorted(table.features) != sorted(dataset.features) or table.image_shape != dataset.image_shape:
        lacks, more = set(dataset.features) - set(table.features), set(table.features) - set(dataset.features)
        raise CommandError(
            f"--valid: {table.source} has {len(table.features)} features, the training data {len(dataset.features)};"
            f" needs the same ones; it lacks {some(sorted(lacks), 5) or 'none'}, the training data lack"
            f" {some(sorted(more), 5) or 'none'}"
        )
    place = {feature: column for column, feature in enumerate(table.features)}
    # All of them validate every step, so they are in memory whatever they come from.
    x = np.asarray(table.x)[:, [place[feature] for feature in dataset.features]]
    _refuse_not_finite(table.source, x, dataset.features)
    notes = list(table.notes)
    if dataset.task == "regression":
        y = _targets(table)
        if y.shape[1] != dataset.y.shape[1]:
            raise CommandError(
                f"--valid: {table.source} has {y.shape[1]} targets, the training data {dataset.y.shape[1]};"
                " needs the same ones"
            )
    else:
        y = _known_classes(table, dataset.classes, notes)
    return replace(dataset, name=table.name, x=x, y=y, rows=table.rows, notes=_of_file(valid, notes), y_eps=table.y_eps)


def refilled(dataset: Dataset, rows: Array) -> Dataset:
    """Return `dataset` with its missing values filled in by the means of the examples `rows` alone.

    Held-out examples must not have a part in what is trained on.

    Raises
    ------
    CommandError
        Where a feature has no value in all of `rows`.
    """
    gaps = dataset.gaps
    if gaps is None or not gaps.any():
        return dataset
    known = np.where(gaps, np.nan, dataset.x)[rows]
    empty = np.flatnonzero(np.isnan(known).all(axis=0))
    if len(empty):
        raise CommandError(
            f"{dataset.name}: {dataset.features[empty[0]]!r} has no value in all training examples; --missing mean"
            " needs one, --drop leaves a column out"
        )
    with np.errstate(over="ignore"):  # refused with the spread
        means = column_means(known)
    return replace(dataset, x=np.where(gaps, means, dataset.x))


def _of_file(data: str, notes: Iterable[str]) -> tuple[str, ...]:
    """Return `notes` with the name of the (first) file, which is the same from any folder."""
    name = os.path.basename(data.split(",")[0] if data.lower().endswith(".npy") else data)
    return tuple(f"{name}: {note}" for note in notes)


def label_names(labels: Array, classes: Sequence[str]) -> list[str]:
    """Return in words what each example is labelled with: its class, or, where there are none, its targets."""
    if classes:
        return [classes[label] for label in labels]
    return [", ".join(map(repr, targets)) for targets in labels.reshape(len(labels), -1).tolist()]


def _dataset(table: Table, asked: TaskChoice, held_out: bool) -> Dataset:
    """Return the data set, if it is one that can be split and trained on."""
    _refuse_not_finite(table.source, table.x, table.features)
    task, why = _task(table, asked)
    notes = table.notes
    if task == "regression":
        y = _targets(table)
        if held_out and len(y) < 3:
            raise CommandError(f"{table.source}: got {len(y)} examples; needs three, to train on and to validate")
        names = ("target",) if y.shape[1] == 1 else tuple(f"target[{at}]" for at in range(y.shape[1]))
        kinds: list[str] = []
    else:
        labels = _names(table)
        counts = Counter(labels)
        kinds, names = in_order(counts), ()
        fewest = min(kinds, key=counts.__getitem__)
        if len(kinds) == 1:
            raise CommandError(
                f"{table.source}: all {len(labels)} examples are of class {kinds[0]!r}; needs two classes"
            )
        if held_out and counts[fewest] < 2:
            raise CommandError(
                f"{table.source}: class {fewest!r} has one example; needs two, to train on and to validate, or --valid"
            )
        index = {kind: number for number, kind in enumerate(kinds)}
        y = np.array([index[name] for name in labels], np.int64)
        pair = twice(kinds)
        if pair:
            notes = (*notes, f"{pair[0]!r} and {pair[1]!r} are two classes, as they are spelled")
    read = (table.rows, notes, table.fitted, table.gaps, table.x_eps, table.y_eps)
    return Dataset(table.name, table.x, y, tuple(kinds), table.features, table.image_shape, names, why, *read)


def _refuse_not_finite(source: str, x: Array | LazyRows, features: tuple[str, ...]) -> None:
    before = 0
    for part in parts(x):
        bad = np.argwhere(~np.isfinite(part))
        if len(bad):
            row, column = bad[0]
            raise CommandError(
                f"{source}: x, row {before + row}, {features[column]}: got {part[row, column]}; needs finite numbers"
                " (--missing can fill in or leave out only values of a .csv, .tsv or .parquet)"
            )
        before += len(part)


def _task(table: Table, asked: TaskChoice) -> tuple[Task, str]:
    """Return the task and the reason for it; where it could only be guessed, refuse and ask."""
    labels = table.labels
    if asked != "auto":
        return asked, f"by --task {asked}"
    if table.task is not None:
        return table.task, "as the data set is meant"
    if isinstance(labels, np.ndarray):
        if (labels == np.floor(labels)).all():
            raise CommandError(
                f"{table.source}: y: got shape {labels.shape} of whole numbers; needs --task regression if they are"
                f" quantities, or {_classes_from(labels)}"
            )
        return "regression", f"y has the shape {labels.shape}"
    names = _names(table)
    kinds = sorted(set(names))
    numbers = [] if are_codes(kinds) else numbers_of(kinds)
    if not numbers and not are_codes(kinds) and None not in map(number_or_none, kinds):
        raise CommandError(f"{table.source}: got NaN or infinity as a label; needs finite numbers, or text")
    if not numbers:
        return "classification", "the labels are text"
    fewest = min(Counter(names).values())
    many = len(numbers) > MANY_CLASSES and (fewest < 2 or any(number != int(number) for number in numbers))
    if many or (len(numbers) > 2 and 2 * len(numbers) > len(labels)):
        raise CommandError(
            f"{table.source}: the labels are {len(numbers)} different numbers in {len(labels)} examples, which looks"
            " like the target of a regression; needs --task regression, or --task classification if they are classes"
        )
    if isinstance(labels[0], str) and not are_integers(kinds):
        return "classification", "the labels are text"
    return "classification", f"the labels are {len(numbers)} different numbers"


def _classes_from(labels: Array) -> str:
    """Return what makes classes of an array (N, k) of whole numbers."""
    if labels.shape[1] == 1 or _is_one_hot(labels):
        return "--task classification if they are classes"
    return f"one label for each row of x, ({len(labels)},), if they are classes"


def _is_one_hot(labels: Array) -> bool:
    return labels.shape[1] > 1 and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def _names(table: Table) -> list[str]:
    """Return the name of each example's class; those of one column, or of a 1 among zeros, are numbers."""
    labels = table.labels
    if isinstance(labels, np.ndarray):
        if labels.shape[1] == 1:
            labels = labels[:, 0].tolist()
        elif _is_one_hot(labels):
            labels = np.argmax(labels, axis=1).tolist()
        else:
            raise CommandError(
                f"{table.source}: y: got shape {labels.shape}; needs one label for each row of x, ({len(table.x)},)"
            )
    return list(map(class_name, labels))


def _targets(table: Table) -> Array:
    """Return the targets of a regression (N, k)."""
    if isinstance(table.labels, np.ndarray):
        return table.labels.astype(np.float64)
    values = []
    for row, label in enumerate(table.labels):
        value = number_or_none(label) if isinstance(label, str) else float(label)
        if value is None or not math.isfinite(value):
            row = row if table.rows is None else int(table.rows[row])
            raise CommandError(f"{table.source}: label, row {row}: got {label!r}; a regression needs a finite number")
        values.append(value)
    return np.array(values)[:, None]


def _known_classes(table: Table, classes: tuple[str, ...], notes: list[str]) -> Array:
    names = _names(table)
    if are_codes(classes) and not isinstance(table.labels[0], str):
        raise CommandError(
            f"--valid: {table.source} has numbers as labels, and the training data text with leading zeros,"
            f" {some([name for name in classes if are_codes([name])], 3)}; needs text in both files"
        )
    different = in_order(names)
    same = matched(different, classes)
    unknown = [name for name in different if name not in same]
    if unknown:
        other = respelled(unknown, classes)
        spelling = f"; {other[0]!r} may be {other[1]!r}, which needs one spelling in both files" if other else ""
        raise CommandError(
            f"--valid: {table.source} has the labels {some(unknown)};"
            f" needs classes of the training data, {some(classes)}{spelling}"
        )
    changed = [f"{name!r} is {known!r}" for name, known in same.items() if name != known]
    if changed:
        notes.append(f"the label {', '.join(changed)} of the training data")
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[same[name]] for name in names], np.int64)
