"""The fields of a table of examples, for the terminal and for the page: what each row says, and in what order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adamshap.reference.command.datasets import label_names
from adamshap.reference.command.file_rows import FileRows
from adamshap.reference.command.folder import SavedRun
from adamshap.reference.command.spelling import Decimal, in_one_line, number_or_none
from adamshap.reference.contract import Array
from adamshap.reference.weighting import Weighting

DECIMAL_MARKS: tuple[Decimal, ...] = (".", ",")
TOP = 10
"""Examples in each of the two lists, unless --top says otherwise."""


@dataclass(frozen=True)
class Field:
    """A column of a table of examples.

    Parameters
    ----------
    head : str
    cells : sequence of str
        One for each example of the table.
    text : bool
        Whether the cells are words, which begin at the left and may be wrapped.
    own : bool
        Whether the cells are the values of a column of the user's file.
    minor : bool
        Whether the user's own values come first where not all fields fit.
    """

    head: str
    cells: Sequence[str]
    text: bool = False
    own: bool = False
    minor: bool = False


def extremes_of(scores: Array, count: int) -> dict[str, Array]:
    """Return at most `count` places of the most "helpful" examples and of the most "harmful", the extreme one first.

    No example is in both lists.
    """
    order = np.argsort(scores, kind="stable")
    count = min(count, len(order) // 2)
    return {"helpful": order[::-1][:count], "harmful": order[:count]}


def score_text(weighting: Weighting, score: float) -> str:
    """Return a score as text: a share of the loss with an exponent, otherwise a plain number."""
    return f"{score:+.2e}" if weighting == "sum" else f"{score:+.3f}"


def fields_of(saved: SavedRun, members: Array, *, total: bool = False) -> list[Field]:
    """Return the fields of a table of the examples `members`, which are places in ``saved.columns``.

    With `total` the plain sum is beside a score that differs from it.
    """
    columns = saved.columns
    with_total = total and saved.weighting != "sum"
    fields = [
        *_places(saved, members),
        _about_label(saved, members),
        *_group(saved, members),
        Field("score", [score_text(saved.weighting, score) for score in columns["score"][members]]),
        *_spread(saved, members),
        *([Field("total", [score_text("sum", total) for total in columns["total"][members]])] * with_total),
        Field("SGD score", [score_text(saved.weighting, score) for score in columns["sgd_score"][members]], minor=True),
        Field("seen", [f"{count:g}" for count in columns["seen"][members]], minor=True),
    ]
    if saved.config["flips"]:
        flipped = columns["flipped"][members]
        fields.append(Field("flipped", ["yes" if is_flipped else "" for is_flipped in flipped], text=True))
    return fields + _own_values(saved, members)


def _about_label(saved: SavedRun, members: Array) -> Field:
    """Return what the examples are trained on; of a text, the file or folder that they come from."""
    dataset = saved.config["dataset"]
    if dataset.get("task") == "text":
        return Field(about_label(saved), list(map(in_one_line, saved.columns["group"][members])), text=True)
    names = label_names(saved.columns["label"][members], dataset["classes"])
    return Field(about_label(saved), list(map(in_one_line, names)), text=True)


def about_label(saved: SavedRun) -> str:
    """Return what an example's label is called; of a text, what it comes from."""
    dataset = saved.config["dataset"]
    if dataset.get("task") == "text":
        return str(saved.config["options"]["group"])
    return "target" if dataset["targets"] else "label"


def _group(saved: SavedRun, members: Array) -> list[Field]:
    """Return the examples' group; of a text, that is in place of the label."""
    if "group" not in saved.columns or saved.config["dataset"].get("task") == "text":
        return []
    names = saved.columns["group"][members].tolist()
    return [Field(in_one_line(saved.config["options"]["group"]), [in_one_line(name) for name in names], text=True)]


def _places(saved: SavedRun, members: Array) -> list[Field]:
    """Return where the examples are in the data: the line or the index, and the id."""
    in_file = saved.in_file
    if in_file is None or in_file.lines is None:
        found = [Field("index", [str(index) for index in saved.columns["index"][members]])]
    else:
        found = [Field("line", [str(line) for line in in_file.lines[members]])]
    if in_file is not None and in_file.ids is not None:
        name = saved.config["options"]["id"]
        found.append(_values(name, in_file.ids, members))
    return found


def values_in_words(in_file: FileRows, place: int) -> str:
    """Return the file's cells of the example number `place`, with their names."""
    return ", ".join(f"{in_one_line(name)} = {in_one_line(cell)}" for name, cell in in_file.row(place).items())


def _own_values(saved: SavedRun, members: Array) -> list[Field]:
    """Return the values of the file's other columns."""
    columns = {} if saved.in_file is None else saved.in_file.columns
    group = saved.config["options"].get("group")
    return [replace(_values(name, cells, members), own=True) for name, cells in columns.items() if name != group]


def _values(name: str, cells: Sequence[str], members: Array) -> Field:
    """Return a field of the file's `cells`: at the right if all are numbers, with either decimal mark."""
    shown = [in_one_line(cells[place]) for place in members]
    numbers = any(all(not cell or number_or_none(cell, mark) is not None for cell in shown) for mark in DECIMAL_MARKS)
    return Field(in_one_line(name), shown, text=not numbers)


def _spread(saved: SavedRun, members: Array) -> list[Field]:
    """Return the standard errors of the mean scores over several runs, and which examples differ from the rest."""
    if "score_se" not in saved.columns:
        return []
    marks = [("", "higher", "lower")[side] for side in saved.columns["distinct"][members]]
    errors = [score_text(saved.weighting, error).lstrip("+") for error in saved.columns["score_se"][members]]
    return [Field("±", errors), Field("distinct", marks, text=True)]
