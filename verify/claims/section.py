"""A claim's section of the page: sentences, tables and figures, all derived from its records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A caption, a header and rows of text; backticks mark code."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class Section:
    """One claim's section of the page; a figure is (file name without suffix, caption, figure)."""

    name: str
    title: str
    claim: str
    findings: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[tuple[str, str, "Figure"]]
