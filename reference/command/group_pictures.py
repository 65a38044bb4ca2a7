"""A picture of a run's groups: some of each group's images with their labels, and its mean score with its interval."""

import io

import numpy as np

from adamshap.reference.command import group_chart
from adamshap.reference.command.datasets import label_names
from adamshap.reference.command.folder import SavedRun
from adamshap.reference.command.groups import GroupScores, shown_groups
from adamshap.reference.command.images import Images
from adamshap.reference.command.pictures import short
from adamshap.reference.contract.drawing import plain_style

SHOWN = 5
"""Images of each group: its first ones."""
SIDE, LETTER = 0.42, 0.085
"""Inches: side of an image, and width of a letter of the label beside it."""
ROW = SIDE + 0.08
MOST_LETTERS = 10
"""Longest label beside an image."""


def draw(saved: SavedRun, images: Images, scores: GroupScores) -> bytes:
    """Return a PNG of the groups of `saved`, whose examples are in `images`, the worst group at the top.

    Raises
    ------
    ImportError
        Matplotlib is not installed.
    """
    with plain_style():
        return _drawn(saved, images, scores)


def _drawn(saved: SavedRun, images: Images, scores: GroupScores) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {group.name: np.flatnonzero(saved.columns["group"] == group.name)[:SHOWN] for group in shown_groups(scores)}
    every = np.concatenate(list(shown.values()))
    names = label_names(saved.columns["label"][every], saved.config["dataset"]["classes"])
    labels = {int(member): short(name, MOST_LETTERS) for member, name in zip(every, names, strict=True)}
    gap = 0.1 + LETTER * max(map(len, labels.values()))
    count, beside, left, bars = len(shown), 1.5, SHOWN * (SIDE + gap), 4.2
    width, height, below = beside + left + bars + 0.5, ROW * count + 0.7, 0.6
    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    rows = below / height, ROW * count / height
    chart = figure.add_axes(((beside + left + 0.2) / width, rows[0], bars / width, rows[1]))
    group_chart.bars(chart, scores)
    examples = figure.add_axes((beside / width, rows[0], left / width, rows[1]))
    for row, members in enumerate(shown.values()):
        for column, member in enumerate(map(int, members)):
            picture = images.picture(int(saved.columns["index"][member]))
            high, wide = (side / max(picture.shape[:2]) for side in picture.shape[:2])
            right = column + wide * SIDE / (SIDE + gap)
            half = high * SIDE / ROW / 2
            place = (column, right, row + half, row - half)
            examples.imshow(picture, cmap=images.greys, extent=place, aspect="auto")
            examples.text(right + 0.04, row, labels[member], va="center", fontsize=9, color="#555555", parse_math=False)
    examples.set(xlim=(0, SHOWN), xticks=[])
    examples.spines[:].set_visible(False)
    examples.tick_params(left=False)
    examples.set_xlabel("first examples, with their labels")
    examples.set_yticks(chart.get_yticks(), [label.get_text() for label in chart.get_yticklabels()], parse_math=False)
    for axes in (chart, examples):
        axes.set_ylim(count - 0.5, -0.5)
    chart.set_yticks([])
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()
