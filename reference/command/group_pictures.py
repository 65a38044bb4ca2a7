"""A picture of a run's groups: some of each group's images with their labels, and its mean score with its interval."""

import io
from typing import TYPE_CHECKING

import numpy as np

from adamshap.reference.command import group_chart, images
from adamshap.reference.command.groups import GroupScores, shown_groups
from adamshap.reference.command.job import Findings
from adamshap.reference.contract.drawing import plain_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = 5
"""Images of each group: its first ones."""
SIDE, GAP = 0.42, 0.22
"""Side of an image, and the space for its label beside it, in inches."""
ROW = SIDE + 0.08
MOST_LETTERS = 3
"""Longest label beside an image."""


def draw(findings: Findings, scores: GroupScores) -> bytes:
    """Return a PNG of the groups of `findings`, which must be images, the worst group at the top.

    Raises
    ------
    ImportError
        Matplotlib is not installed.
    """
    with plain_style():
        return _drawn(findings, scores)


def _drawn(findings: Findings, scores: GroupScores) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, names, left, bars = len(shown_groups(scores)), 1.5, IMAGES * (SIDE + GAP), 4.2
    width, height, below = names + left + bars + 0.5, ROW * count + 0.7, 0.6
    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    rows = below / height, ROW * count / height
    chart = figure.add_axes(((names + left + 0.2) / width, rows[0], bars / width, rows[1]))
    group_chart.bars(chart, scores)
    examples = figure.add_axes((names / width, rows[0], left / width, rows[1]))
    _draw_images(examples, findings, scores)
    examples.set_yticks(chart.get_yticks(), [label.get_text() for label in chart.get_yticklabels()], parse_math=False)
    for axes in (chart, examples):
        axes.set_ylim(count - 0.5, -0.5)
    chart.set_yticks([])
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_images(axes: "Axes", findings: Findings, scores: GroupScores) -> None:
    """Draw the first images of each group in a row of their own, with their labels; x and y count images and groups."""
    prepared, shape, labels = findings.prepared, findings.dataset.image_shape, findings.label_names
    assert prepared.groups is not None
    assert shape is not None
    wide, high = SIDE / (SIDE + GAP), SIDE / ROW
    for row, group in enumerate(shown_groups(scores)):
        for column, member in enumerate(np.flatnonzero(prepared.groups == group.name)[:IMAGES]):
            image = images.picture_of(findings.dataset.x[prepared.train_index[member]], shape)
            place = (column, column + wide, row + high / 2, row - high / 2)
            axes.imshow(image, cmap="gray_r", extent=place, aspect="auto")
            label = labels[member] if len(labels[member]) <= MOST_LETTERS else ""
            axes.text(column + wide + 0.04, row, label, va="center", fontsize=9, color="#555555", parse_math=False)
    axes.set(xlim=(0, IMAGES), xticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False)
    axes.set_xlabel("first examples, with their labels")
