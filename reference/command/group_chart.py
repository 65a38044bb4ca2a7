"""A picture of `GroupScores`: a bar for each group's mean score, with its interval."""

import io
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from adamshap.reference.command.groups import GroupScores, shown_groups
from adamshap.reference.command.pictures import short
from adamshap.reference.contract.drawing import plain_style
from adamshap.reference.contract.views import HARMFUL, HELPFUL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"helps": HELPFUL, "hurts": HARMFUL, "unclear": "#999999"}
MOST_LETTERS = 24
"""Longest name beside a bar."""


def draw(scores: GroupScores) -> str:
    """Return the picture as an ``<svg>`` element, the worst group at the top.

    Raises
    ------
    ImportError
        Matplotlib is not installed.
    """
    with plain_style():
        return _drawn(scores)


def _drawn(scores: GroupScores) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 0.32 * len(shown_groups(scores)) + 0.9), layout="constrained")
    FigureCanvasSVG(figure)
    bars(figure.add_subplot(), scores)
    text = io.StringIO()
    figure.savefig(text, format="svg")
    drawn = text.getvalue()
    said = escape(f"Mean scores of the groups by {scores.column}", quote=True)
    return drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{said}"', 1)


def bars(axes: "Axes", scores: GroupScores) -> None:
    """Draw a bar for each group with its interval, the worst at the top, at 0, 1, … of the vertical axis."""
    groups = shown_groups(scores)
    places = np.arange(len(groups))
    means = [group.mean for group in groups]
    colours = [COLOURS[group.effect] for group in groups]
    axes.barh(places, means, height=0.6, color=colours)
    for place, group in zip(places, groups, strict=True):
        if group.low is not None and group.high is not None:
            axes.errorbar(group.mean, place, xerr=(group.high - group.low) / 2, color="#222222", capsize=3, linewidth=1)
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_yticks(places, [short(group.name, MOST_LETTERS) for group in groups], parse_math=False)
    axes.invert_yaxis()
    axes.ticklabel_format(axis="x", scilimits=(-2, 3))
    axes.set_xlabel(f"mean score, with the interval over {scores.over}")
