"""The examples as their file has them: line, id and cells, which the results show beside the scores."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from adamshap.reference.contract import Array


@dataclass(frozen=True, eq=False)
class FileRows:
    """Rows of a table.

    Parameters
    ----------
    columns : dict of str to n str
        The cells of each column but the label's and the id's; empty where a value is missing.
    lines : int array (n,), or None
        The line of the file on which a row starts; the first line is 1. None where the file has no lines.
    ids : list of n str, or None
        The cells of the id column, if there is one.
    """

    columns: dict[str, list[str]]
    lines: Array | None = None
    ids: list[str] | None = None

    def row(self, place: int) -> dict[str, str]:
        """Return the cells of the row number `place`, by column."""
        return {name: cells[place] for name, cells in self.columns.items()}

    def take(self, rows: Array) -> "FileRows":
        """Return the rows numbered `rows`."""
        places = rows.tolist()
        return FileRows(
            {name: [cells[place] for place in places] for name, cells in self.columns.items()},
            None if self.lines is None else self.lines[rows],
            None if self.ids is None else [self.ids[place] for place in places],
        )


def to_arrays(rows: FileRows) -> dict[str, Array]:
    """Return `rows` as arrays, from which `from_arrays` makes them again.

    A column is its text in UTF-8, ``text[k]``, and the number of characters of each cell, ``length[k]``: an array of
    text would take the space of the longest cell for each.
    """
    parts = [(str(place), cells) for place, cells in enumerate(rows.columns.values())]
    arrays = {"names": _bytes(json.dumps(list(rows.columns)))}
    for key, cells in parts if rows.ids is None else [*parts, ("id", rows.ids)]:
        arrays[f"text[{key}]"] = _bytes("".join(cells))
        arrays[f"length[{key}]"] = np.array(list(map(len, cells)), np.int64)
    return arrays if rows.lines is None else arrays | {"line": rows.lines}


def from_arrays(arrays: Mapping[str, Array]) -> FileRows:
    """Return the rows that `to_arrays` has turned into `arrays`."""
    names = json.loads(_text(arrays["names"]))
    columns = {name: _cells(arrays, str(place)) for place, name in enumerate(names)}
    return FileRows(columns, arrays.get("line"), _cells(arrays, "id") if "text[id]" in arrays else None)


def _cells(arrays: Mapping[str, Array], key: str) -> list[str]:
    text, ends = _text(arrays[f"text[{key}]"]), accumulate(arrays[f"length[{key}]"].tolist(), initial=0)
    return [text[start:end] for start, end in pairwise(ends)]


def _bytes(text: str) -> Array:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def _text(array: Array) -> str:
    return array.tobytes().decode("utf-8", "surrogatepass")
