"""The fields of a table of examples, for the terminal and for the page: what each row says, and in what order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adamshap.reference.command.datasets import label_names
from adamshap.reference.command.folder import SavedRun
from adamshap.reference.contract import Array

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
    """

    head: str
    cells: Sequence[str]
    text: bool = False


def extremes_of(scores: Array, count: int) -> dict[str, Array]:
    """Return at most `count` places of the most "helpful" examples and of the most "harmful", the extreme one first.

    No example is in both lists.
    """
    order = np.argsort(scores, kind="stable")
    count = min(count, len(order) // 2)
    return {"helpful": order[::-1][:count], "harmful": order[:count]}


def fields_of(saved: SavedRun, members: Array) -> list[Field]:
    """Return the fields of a table of the examples `members`, which are places in ``saved.columns``."""
    columns, dataset = saved.columns, saved.config["dataset"]
    names = label_names(columns["label"][members], dataset["classes"])
    fields = [
        Field("index", [str(index) for index in columns["index"][members]]),
        Field("target" if dataset["targets"] else "label", names, text=True),
        Field("score", [f"{score:+.2e}" for score in columns["score"][members]]),
        Field("SGD score", [f"{score:+.2e}" for score in columns["sgd_score"][members]]),
        Field("seen", [str(count) for count in columns["seen"][members]]),
    ]
    if saved.config["flips"]:
        flipped = columns["flipped"][members]
        fields.append(Field("flipped", ["yes" if is_flipped else "" for is_flipped in flipped], text=True))
    return fields
