"""DATA of the command: a name or files become arrays, class names and feature names, or one clear error."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.sources import EPS, TABLES, Label, Table, Task, number_or_none, read, some
from adamshap.reference.problem import Array, Rows
from adamshap.reference.rows import parts

TaskChoice = Literal["auto", "classification", "regression"]

# More numbers than this, as labels, are taken for a quantity where they also are fractions or mostly differ.
MANY_CLASSES = 20


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled examples, as the user gave them.

    Parameters
    ----------
    name : str
    x : float64 array or `Rows` (N, d)
    y : int64 array (N,), or float64 array (N, k)
        Class of each example, an index into `classes`; or, for a regression, its k targets.
    classes : tuple of str
        At least two, each with at least two examples; empty for a regression.
    features : tuple of d str
    image_shape : tuple (height, width), or None
        How an example's features make a picture, row by row.
    targets : tuple of k str
        What a regression's targets are called; empty for a classification.
    why : str
        What says that this is a classification, or a regression.
    x_eps, y_eps : float, or array (d,) or (k,)
        As of `sources.Table`.
    """

    name: str
    x: Array | Rows
    y: Array
    classes: tuple[str, ...]
    features: tuple[str, ...]
    image_shape: tuple[int, int] | None = None
    targets: tuple[str, ...] = ()
    why: str = ""
    x_eps: Array | float = EPS
    y_eps: Array | float = EPS

    @property
    def task(self) -> Task:
        """What the network is to learn."""
        return "regression" if self.targets else "classification"


def load(data: str, label: str | None = None, task: TaskChoice = "auto") -> Dataset:
    """Return the data set that `data` names.

    Parameters
    ----------
    data : str
        One of `sources.BUNDLED`; the path of a ``.npz``, ``.csv`` or ``.parquet`` file; or of two ``.npy`` files,
        ``"x.npy,y.npy"``.
    label : str, optional
        The label column of a table; by default "label".
    task : {"auto", "classification", "regression"}
        "auto": text and booleans are classes, several targets for an example are a regression's, and so is what a
        bundled data set is made for. Numbers are classes, unless they look like a quantity: then it must be said.

    Raises
    ------
    CommandError
        For everything that keeps `data` from being a data set to train on.
    """
    return _dataset(read("DATA", data, label), task)


def load_valid(valid: str, label: str | None, dataset: Dataset) -> Dataset:
    """Return the validation examples that `valid` names, of the same features and classes as `dataset`.

    Columns of a table may come in another order.

    Raises
    ------
    CommandError
        For everything that keeps them from judging a network trained on `dataset`.
    """
    table = read("--valid", valid, label if valid.lower().endswith(TABLES) else None)
    if sorted(table.features) != sorted(dataset.features) or table.image_shape != dataset.image_shape:
        raise CommandError(
            f"--valid: {table.source} has {len(table.features)} features ({some(table.features, 5)}), the training data"
            f" {len(dataset.features)} ({some(dataset.features, 5)}); needs the same ones"
        )
    place = {feature: column for column, feature in enumerate(table.features)}
    # All of them judge every step, so they are in memory whatever they come from.
    x = np.asarray(table.x)[:, [place[feature] for feature in dataset.features]]
    _refuse_not_finite(table.source, x, dataset.features)
    if dataset.task == "regression":
        y = _targets(table)
        if y.shape[1] != dataset.y.shape[1]:
            raise CommandError(
                f"--valid: {table.source} has {y.shape[1]} targets, the training data {dataset.y.shape[1]};"
                " needs the same ones"
            )
    else:
        y = _known_classes(table, dataset.classes)
    as_trained = dataset.classes, dataset.features, dataset.image_shape, dataset.targets, dataset.why
    return Dataset(table.name, x, y, *as_trained, y_eps=table.y_eps)


def label_names(labels: Array, classes: Sequence[str]) -> list[str]:
    """Return in words what each example is labelled with: its class, or, where there are none, its targets."""
    if classes:
        return [classes[label] for label in labels]
    return [", ".join(map(repr, targets)) for targets in labels.reshape(len(labels), -1).tolist()]


def _dataset(table: Table, asked: TaskChoice) -> Dataset:
    """Return the data set, if it is one that can be split and trained on."""
    _refuse_not_finite(table.source, table.x, table.features)
    task, why = _task(table, asked)
    shape = table.image_shape
    if task == "regression":
        y = _targets(table)
        if len(y) < 3:
            raise CommandError(f"{table.source}: got {len(y)} examples; needs three, to train on and to validate")
        names = ("target",) if y.shape[1] == 1 else tuple(f"target[{at}]" for at in range(y.shape[1]))
        return Dataset(table.name, table.x, y, (), table.features, shape, names, why, table.x_eps, table.y_eps)
    labels = _flat_labels(table)
    counts = Counter(labels)
    kinds = sorted(counts)  # all numbers, or all text
    fewest = min(kinds, key=counts.__getitem__)
    if len(kinds) == 1:
        raise CommandError(
            f"{table.source}: all {len(labels)} examples are of class {_class_name(kinds[0])!r}; needs two classes"
        )
    if counts[fewest] < 2:
        raise CommandError(
            f"{table.source}: class {_class_name(fewest)!r} has one example; needs two, to train on and to validate"
        )
    index = {kind: number for number, kind in enumerate(kinds)}
    y = np.array([index[kind] for kind in labels], np.int64)
    classes = tuple(map(_class_name, kinds))
    return Dataset(table.name, table.x, y, classes, table.features, shape, (), why, table.x_eps)


def _refuse_not_finite(source: str, x: Array | Rows, features: tuple[str, ...]) -> None:
    before = 0
    for part in parts(x):
        bad = np.argwhere(~np.isfinite(part))
        if len(bad):
            row, column = bad[0]
            raise CommandError(
                f"{source}: x, row {before + row}, {features[column]}: got {part[row, column]}; needs finite numbers"
            )
        before += len(part)


def _task(table: Table, asked: TaskChoice) -> tuple[Task, str]:
    """Return what is to be learnt and what says so; where only a guess could tell, refuse and ask."""
    labels = table.labels
    if asked != "auto":
        return asked, f"by --task {asked}"
    if table.task is not None:
        return table.task, "as the data set is meant"
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind != "f":
            raise CommandError(
                f"{table.source}: y: got shape {labels.shape} of whole numbers; needs labels ({len(labels)},),"
                " or --task regression if they are quantities"
            )
        return "regression", f"y has the shape {labels.shape}"
    kinds = set(labels)
    numbers = [kind for kind in kinds if not isinstance(kind, str)]
    if not numbers:
        return "classification", "the labels are text"
    fewest = min(Counter(labels).values())
    many = len(numbers) > MANY_CLASSES and (fewest < 2 or any(number != int(number) for number in numbers))
    if many or (len(numbers) > 2 and 2 * len(numbers) > len(labels)):
        raise CommandError(
            f"{table.source}: the labels are {len(numbers)} different numbers in {len(labels)} examples, which looks"
            " like the target of a regression; needs --task regression, or --task classification if they are classes"
        )
    return "classification", f"the labels are {len(numbers)} different numbers"


def _flat_labels(table: Table) -> Sequence[Label]:
    if not isinstance(table.labels, np.ndarray):
        return table.labels
    raise CommandError(
        f"{table.source}: y: got shape {table.labels.shape}; needs one label for each row of x, ({len(table.x)},)"
    )


def _targets(table: Table) -> Array:
    """Return the targets of a regression (N, k)."""
    if isinstance(table.labels, np.ndarray):
        return table.labels.astype(np.float64)
    values = []
    for row, label in enumerate(table.labels):
        value = number_or_none(label) if isinstance(label, str) else float(label)
        if value is None or not math.isfinite(value):
            raise CommandError(f"{table.source}: label, row {row}: got {label!r}; a regression needs a finite number")
        values.append(value)
    return np.array(values)[:, None]


def _known_classes(table: Table, classes: tuple[str, ...]) -> Array:
    index = {name: number for number, name in enumerate(classes)}
    names = list(map(_class_name, _flat_labels(table)))
    unknown = sorted(set(names) - set(index))
    if unknown:
        raise CommandError(
            f"--valid: {table.source} has the labels {some(unknown)};"
            f" needs classes of the training data, {some(classes)}"
        )
    return np.array([index[name] for name in names], np.int64)


def _class_name(kind: Label) -> str:
    if isinstance(kind, str):
        return kind
    return str(int(kind)) if kind == int(kind) else repr(kind)
