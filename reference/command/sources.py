"""Recognises the kind of data that the command is given, a bundled data set or files, and reads it."""

import importlib
import os
from pathlib import Path

from adamshap.reference.command import arrays, columns, parquet, simulated_sources, text_table
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.table import TABLES, TEXT_TABLES, Fitted, Reading, Table
from adamshap.reference.contract import needed

BUNDLED = ("digits", "breast_cancer", "wine", "diabetes", *simulated_sources.NAMES)

INK, LIGHT = "gray_r", "gray"
"""Matplotlib's colours for images of one channel: high numbers are dark in the bundled data sets, bright in files."""

# Advice for files that cannot be read.
OTHER_FILES = {
    ".gz": "; unpack it: gunzip",
    ".zip": "; unpack it",
    ".bz2": "; unpack it",
    ".xz": "; unpack it",
    ".xlsx": "; export the sheet as .csv",
    ".xls": "; export the sheet as .csv",
    ".ods": "; export the sheet as .csv",
    ".txt": "; a table of text is named .csv or .tsv",
    ".dat": "; a table of text is named .csv or .tsv",
    ".data": "; a table of text is named .csv or .tsv",
    ".tab": "; a table of text is named .csv or .tsv",
}


def read(
    argument: str,
    data: str,
    label: str | None = None,
    reading: Reading | None = None,
    fitted: Fitted | None = None,
) -> Table:
    """Return the table that `data` names.

    Parameters
    ----------
    argument : str
        Name of the command's argument, for error messages.
    data : str
        As in `datasets.load`.
    label : str, optional
        The label column of a table; by default "label".
    reading : Reading, optional
    fitted : Fitted, optional
        Categories and means of the training data, for a validation file.

    Raises
    ------
    CommandError
        It cannot be read, or is not a table of numbers with a label for each row.
    """
    reading = Reading() if reading is None else reading
    if "\0" in data:
        raise CommandError(f"{argument}: got {data!r}; needs a name without the character 0")
    group = reading.group if fitted is None else None  # a validation file has none: they are of training examples
    path = Path(data)
    suffix = path.suffix.lower()
    if data in BUNDLED:
        return _bundled(data, group)
    if suffix in TABLES:
        column = "label" if label is None else label
        sheet = (text_table if suffix in TEXT_TABLES else parquet).read(path, column, reading)
        return columns.table_of(sheet, column, reading, fitted)
    if suffix == ".npz":
        return arrays.read_archive(path, group)
    if suffix == ".npy":
        return arrays.read_pair(argument, data)
    kind = ", which is a folder" if path.is_dir() else ""
    raise CommandError(
        f"{argument}: got {data!r}{kind}; needs one of {', '.join(BUNDLED)}, or a .csv, .tsv, .parquet or .npz file,"
        f" or x.npy,y.npy{OTHER_FILES.get(suffix, '')}"
    )


def check_options(files: list[str], label: str | None, reading: Reading) -> None:
    """Refuse options for columns if none of `files` has columns.

    Raises
    ------
    CommandError
    """
    grouped = files[0] in simulated_sources.NAMES or files[0].lower().endswith((*TABLES, ".npz"))
    if reading.group is not None and not grouped:
        raise CommandError(
            f"--group: got {reading.group!r} with {files[0]!r}; needs a file with columns or named arrays:"
            f" {', '.join((*TABLES, '.npz'))}"
        )
    given = (
        ("--label", label, TABLES),
        ("--sep", reading.sep, TEXT_TABLES),
        ("--decimal", reading.decimal, TEXT_TABLES),
        ("--missing", reading.missing, TABLES),
        ("--id", reading.id, TABLES),
        *(("--one-hot", column, TABLES) for column in reading.one_hot),
        *(("--drop", column, TABLES) for column in reading.drop),
    )
    for option, value, kinds in given:
        if value is not None and not any(file.lower().endswith(kinds) for file in files):
            raise CommandError(
                f"{option}: got {value!r} with {files[0]!r}; needs a file with columns: {', '.join(kinds)}"
            )


def absolute(data: str) -> str:
    """Return `data` with absolute paths; the name of a bundled data set stays as it is."""
    if data in BUNDLED:
        return data
    return ",".join(map(os.path.abspath, data.split(","))) if data.lower().endswith(".npy") else os.path.abspath(data)


def greys_of(data: str) -> str:
    """Return the colours for images of one channel of the data set `data`."""
    return INK if data in BUNDLED else LIGHT


def _bundled(name: str, group: str | None) -> Table:
    if name in simulated_sources.NAMES:
        return simulated_sources.table(name, group)
    with needed("scikit-learn", by=name, extra="demo", error=CommandError):
        sklearn_datasets = importlib.import_module("sklearn.datasets")
    bunch = getattr(sklearn_datasets, f"load_{name}")()
    features = tuple(bunch.feature_names)
    if "target_names" not in bunch:
        return Table(name, name, bunch.data, bunch.target[:, None], features, None, "regression")
    shape = bunch.images.shape[1:] if "images" in bunch else None
    classes = [str(target) for target in bunch.target_names]
    return Table(name, name, bunch.data, [classes[at] for at in bunch.target], features, shape, "classification")
