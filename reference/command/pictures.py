"""A picture of the most helpful and the most harmful training images."""

import io
from typing import TYPE_CHECKING

from adamshap.reference.command.datasets import label_names
from adamshap.reference.command.examples import extremes_of, score_text
from adamshap.reference.command.folder import SavedRun
from adamshap.reference.command.images import Images
from adamshap.reference.contract.drawing import plain_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, MOST_ROWS = 10, 5
"""Images side by side, and rows of them in each of the two lists: of longer lists the picture has the first ones."""
# Longest class name that fits above its image.
MOST_LETTERS = 12
SIDE, TITLE, LINE = 1.2, 0.35, 0.13
"""Inches: an image with the gap beside it, the title of a list, and a line of a note."""


def draw(saved: SavedRun, images: Images, top: int) -> bytes:
    """Return a PNG of the `top` best and worst examples of `saved`, which are in `images`.

    Raises
    ------
    ImportError
        Matplotlib is not installed.
    """
    with plain_style():
        return _drawn(saved, images, top)


def _drawn(saved: SavedRun, images: Images, top: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lists = extremes_of(saved.columns["score"], min(top, COLUMNS * MOST_ROWS))
    count = len(lists["helpful"])
    columns, rows = min(COLUMNS, count), -(-count // COLUMNS)
    lines = 3 + ("group" in saved.columns) + bool(saved.config["flips"])
    height = 2 * (TITLE + rows * (SIDE + lines * LINE))
    figure = Figure(figsize=(max(SIDE * columns, 2.4) + 0.4, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1)
    for part, (kind, members) in enumerate(lists.items()):
        half = figure.add_subfigure(grid[part])
        half.suptitle(f"Most {kind}", fontsize=10, fontweight="bold")
        for place, member in enumerate(members, start=1):
            _draw_example(half.add_subplot(rows, columns, place), saved, images, int(member))
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_example(axes: "Axes", saved: SavedRun, images: Images, member: int) -> None:
    columns = saved.columns
    index = int(columns["index"][member])
    axes.imshow(images.picture(index), cmap=images.greys)
    axes.set(xticks=[], yticks=[])
    (name,) = label_names(columns["label"][[member]], saved.config["dataset"]["classes"])
    axes.set_title(short(name, MOST_LETTERS), fontsize=9, parse_math=False)
    notes = [f"row {index}", score_text(saved.weighting, columns["score"][member])]
    if "group" in columns:
        notes.append(short(str(columns["group"][member]), MOST_LETTERS))
    notes += [
        f"flipped from {short(flip['from'], MOST_LETTERS)}" for flip in saved.config["flips"] if flip["index"] == index
    ]
    axes.set_xlabel("\n".join(notes), fontsize=7, parse_math=False)


def short(name: str, most: int) -> str:
    """Return the beginning of a name of more than `most` letters."""
    return name if len(name) <= most else name[: most - 1] + "…"
