"""The command's DATA: turns a name or files into arrays, class names and feature names, or one clear error."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from adamshap.reference.command.columns import column_means
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.file_rows import FileRows
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
from adamshap.reference.command.texts import TextExamples
from adamshap.reference.contract import Array, LazyRows, parts

TaskChoice = Literal["auto", "classification", "regression"]

# Labels with more distinct numbers than this look like a quantity if some are fractions or occur only once.
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
        At least two, each with at least two examples if some are held out; empty for a regression.
    features : tuple of d str
    image_shape : tuple (height, width), (channels, height, width) or (height, width, channels), or None
        Layout of the image that an example's features form: `images`.
    targets : tuple of k str
        Names of a regression's targets; empty for a classification.
    why : str
        The reason for choosing classification or regression.
    rows : int array (N,), or None
        Row numbers in the file, if some rows were left out.
    notes : tuple of str
        Messages for the user about how the files were read.
    fitted : Fitted
        Categories and means to apply to a validation file.
    gaps : bool array (N, d), or None
        Values that were missing and are filled with the mean of the others.
    x_eps, y_eps : float, or array (d,) or (k,)
    in_file : FileRows of N rows, or None
        As in `table.Table`.
    groups : array of str (N,), or None
        The name of each example's group.
    text : TextExamples, or None
        The examples of a text, whose `x` are tokens; it has neither classes nor features.
    """

    name: str
    x: Array | LazyRows
    y: Array
    classes: tuple[str, ...]
    features: tuple[str, ...]
    image_shape: tuple[int, ...] | None = None
    targets: tuple[str, ...] = ()
    why: str = ""
    rows: Array | None = None
    notes: tuple[str, ...] = ()
    fitted: Fitted = field(default_factory=Fitted)
    gaps: Array | None = None
    x_eps: Array | float = EPS
    y_eps: Array | float = EPS
    in_file: FileRows | None = None
    groups: Array | None = None
    text: TextExamples | None = None

    @property
    def task(self) -> Task:
        """The network's task."""
        if self.text is not None:
            return "text"
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
        One of `sources.BUNDLED`; the path of a ``.csv``, ``.tsv``, ``.parquet`` or ``.npz`` file; or the paths of two
        ``.npy`` files, ``"x.npy,y.npy"``.
    label : str, optional
        The label column of a table; by default "label".
    task : {"auto", "classification", "regression"}
        "auto": text and booleans are classes, fractions in an array (N, k) are a regression's targets, and a bundled
        data set has its own task. Numbers are classes unless they look like a quantity. Those that do, and whole
        numbers (N, k), are refused with a request to state the task.
    reading : Reading, optional
        Options for reading a table.
    held_out : bool
        Whether to hold out some of the examples for validation, so that each class needs two.

    Raises
    ------
    CommandError
        If `data` is not a data set to train on.
    """
    dataset = _dataset(read("DATA", data, label, reading), task, held_out)
    return replace(dataset, notes=_of_file(data, dataset.notes))


def load_valid(valid: str, label: str | None, dataset: Dataset, reading: Reading | None = None) -> Dataset:
    """Return the validation examples that `valid` names, with the features and classes of `dataset`.

    Columns of a table may come in another order. Categories and the means for missing values are those of `dataset`.

    Raises
    ------
    CommandError
        If they cannot validate a network trained on `dataset`.
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
    # Every step uses all of them, so they are held in memory whatever their source.
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
    dataset = replace(dataset, name=table.name, rows=table.rows, y_eps=table.y_eps, in_file=table.in_file)
    return replace(dataset, x=x, y=y, notes=_of_file(valid, notes), groups=None)


def refilled(dataset: Dataset, rows: Array) -> Dataset:
    """Return `dataset` with its missing values filled with the means over the examples `rows` alone.

    Held-out examples must not influence the training data.

    Raises
    ------
    CommandError
        If a feature has no value in any of `rows`.
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
    with np.errstate(over="ignore"):  # `prepare` refuses such a spread
        means = column_means(known)
    return replace(dataset, x=np.where(gaps, means, dataset.x))


def _of_file(data: str, notes: Iterable[str]) -> tuple[str, ...]:
    """Return `notes` prefixed with the (first) file's name, which does not depend on the current folder."""
    name = os.path.basename(data.split(",")[0] if data.lower().endswith(".npy") else data)
    return tuple(f"{name}: {note}" for note in notes)


def label_names(labels: Array, classes: Sequence[str]) -> list[str]:
    """Return each example's label as text: its class name, or its targets in a regression."""
    if classes:
        return [classes[label] for label in labels]
    return [", ".join(map(repr, targets)) for targets in labels.reshape(len(labels), -1).tolist()]


def _dataset(table: Table, asked: TaskChoice, held_out: bool) -> Dataset:
    """Return the data set of `table`, or refuse one that cannot be split and trained on."""
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
    read = (table.rows, notes, table.fitted, table.gaps, table.x_eps, table.y_eps, table.in_file, table.groups)
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
    """Return the task and the reason for it, or refuse labels whose task would be a guess."""
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
    """Return the advice for turning an array (N, k) of whole numbers into classes."""
    if labels.shape[1] == 1 or _is_one_hot(labels):
        return "--task classification if they are classes"
    return f"one label for each row of x, ({len(labels)},), if they are classes"


def _is_one_hot(labels: Array) -> bool:
    return labels.shape[1] > 1 and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def _names(table: Table) -> list[str]:
    """Return each example's class name; a single column and a one-hot array give numbers as names."""
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
