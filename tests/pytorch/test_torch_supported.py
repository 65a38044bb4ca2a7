"""The tables of what is supported: each row names tests that exist, or is tested as the row above it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABOVE = "the same"
"""How a row begins that has the tests of the one above."""


def rows_of(page: str) -> list[tuple[str, str]]:
    """Return what is supported and how it is tested, from the tables of docs/torch.md."""
    section = page.partition("\n## What is supported\n")[2].partition("\n## ")[0]
    cells = [line.strip("|").rsplit(" | ", 1) for line in section.splitlines() if line.startswith("|")]
    return [(what.strip(), how.strip()) for what, how in (row for row in cells if len(row) == 2) if "tested" not in how]


def untested(rows: list[tuple[str, str]]) -> list[str]:
    """Return the rows that name no test, or one that does not exist."""
    known = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    found, above = [], False
    for what, how in rows:
        named = re.findall(r"`(test_\w+\.py)`", how)
        above = (bool(named) and known.issuperset(named)) or (not named and how.startswith(ABOVE) and above)
        if not above:
            found.append(what)
    return found


def test_each_row_names_its_test() -> None:
    rows = rows_of((ROOT / "docs" / "torch.md").read_text())
    assert len(rows) > 40
    assert untested(rows) == []


@pytest.mark.parametrize("how", ["refused, by name", "against the oracle (`test_torch_nothing.py`)"])
def test_a_row_without_a_test_is_found(how: str) -> None:
    rows = [
        ("one", "against the oracle (`test_torch_scores.py`)"),
        ("two", "the same"),
        ("three", how),
        ("four", ABOVE),
    ]
    assert untested(rows) == ["three", "four"]
