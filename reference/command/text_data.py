"""Text as a data set: a transformer learns to predict the tokens of examples, whose classes are their files."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from adamshap.reference.command import texts
from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.file_rows import FileRows
from adamshap.reference.command.job import Options
from adamshap.reference.command.preparation import VALIDATION_SHARE, Prepared, hold_out
from adamshap.reference.command.texts import TextExamples, Texts
from adamshap.reference.contract import Array, Batch


def load(options: Options) -> tuple[Dataset, Dataset | None]:
    """Return the examples of the text files that `options` name, and those of the validation file, if there is one.

    Both have the same vocabulary: all characters of both, or all bytes.

    Raises
    ------
    CommandError
        A file is not text, or too short; an option that text does not have.
    """
    for option, value, default in (
        ("--group", options.group, "folder" if options.examples == "document" else "file"),
        ("--flip-labels", options.flip_labels, 0),
        ("--task", options.task, "auto"),
    ):
        if value != default:
            raise CommandError(f"{option}: got {value} for text; needs examples with labels")
    how = options.examples, options.tokens, options.context
    train = texts.read("DATA", (options.data, *options.more), *how)
    valid = None if options.valid is None else texts.read("--valid", (options.valid,), *how)
    if valid is None:
        _refuse_short(train, options)
    vocabulary = texts.vocabulary_of(filter(None, (train, valid)), options.tokens)
    length = max(len(passage.text) for part in filter(None, (train, valid)) for passage in part.passages)
    digest = train.digest if valid is None else f"{train.digest} {valid.digest}"
    dataset = _dataset(_name(options), replace(train, digest=digest), vocabulary, length)
    if valid is None:
        return dataset, None
    return dataset, _dataset(Path(options.valid or "").stem, valid, vocabulary, length)


def prepare(
    dataset: Dataset, *, seed: int, share: float = VALIDATION_SHARE, limit: int | None = None, valid: Dataset | None
) -> Prepared:
    """Return `dataset` split into training and validation examples; held-out ones come from all files alike.

    Parameters
    ----------
    dataset : Dataset
    seed, share, limit : as for `preparation.prepare`
    valid : Dataset, optional
        Separate validation examples; all of `dataset` is then trained on.
    """
    if valid is None:
        split_seed, _ = np.random.SeedSequence(seed).spawn(2)
        groups = dataset.y if np.bincount(dataset.y).min() > 1 else np.zeros_like(dataset.y)
        held_out = hold_out(groups, np.random.default_rng(split_seed), share, limit)
        train_index, valid_index, source = np.flatnonzero(~held_out), np.flatnonzero(held_out), dataset
    else:
        train_index, valid_index, source = np.arange(len(dataset.x)), np.arange(len(valid.x)), valid
    none = np.empty(0)
    return Prepared(
        train_index,
        valid_index,
        _batch(dataset, train_index),
        _batch(source, valid_index),
        labels=dataset.y[train_index],
        flipped=np.zeros(len(train_index), bool),
        mean=none,
        scale=none,
        constant=none.astype(bool),
        in_file=None if dataset.in_file is None else dataset.in_file.take(train_index),
        groups=None if dataset.groups is None else dataset.groups[train_index],
        valid_in_file=None if source.in_file is None else source.in_file.take(valid_index),
    )


def _batch(dataset: Dataset, rows: Array) -> Batch:
    return Batch(dataset.x[rows], dataset.text.following[rows])  # type: ignore[union-attr]


def _dataset(name: str, found: Texts, vocabulary: tuple[str, ...], length: int) -> Dataset:
    inputs, following = texts.tokens_of(found.passages, vocabulary, length)
    names = tuple(dict.fromkeys(found.groups))
    of_passage = [found.groups[passage.file] for passage in found.passages]
    lines = np.array([passage.line for passage in found.passages])
    return Dataset(
        name,
        inputs,
        np.array([names.index(group) for group in of_passage]),
        classes=(),
        features=(),
        notes=found.notes,
        in_file=FileRows({"text": [passage.shown for passage in found.passages]}, lines),
        groups=np.array(of_passage),
        text=TextExamples(following, vocabulary, names, found.digest),
    )


def _name(options: Options) -> str:
    """Return the name of the only file or folder, or "text" for several."""
    return "text" if options.more else Path(options.data).absolute().stem


def _refuse_short(found: Texts, options: Options) -> None:
    """Refuse files of which no example can be held out."""
    if options.examples == "document":
        if len(found.passages) < 2:
            raise CommandError("DATA: got one document; needs two, to train on and to validate, or --valid")
        return
    counts = np.bincount([passage.file for passage in found.passages], minlength=len(found.files))
    for file, count in zip(found.files, counts.tolist(), strict=True):
        if count < 2:
            raise CommandError(
                f"{file!r}: too short, one {options.examples} of --context {options.context} {options.tokens}; needs"
                " two, to train on and to validate, or --valid"
            )
