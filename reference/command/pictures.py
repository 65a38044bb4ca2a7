"""A picture of the most helpful and the most harmful training images."""

import io
from typing import TYPE_CHECKING

import numpy as np

from adamshap.reference.command import images
from adamshap.reference.command.examples import score_text
from adamshap.reference.command.job import Findings
from adamshap.reference.contract.drawing import plain_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Images in each of the two rows.
COLUMNS = 10
# Longest class name that fits above its image.
MOST_LETTERS = 12


def draw(findings: Findings) -> bytes:
    """Return a PNG of the best and the worst examples of `findings`, which must be images.

    Raises
    ------
    ImportError
        Matplotlib is not installed.
    """
    with plain_style():
        return _drawn(findings)


def _drawn(findings: Findings) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = np.argsort(findings.scores, kind="stable")
    count = min(COLUMNS, len(order) // 2)
    figure = Figure(figsize=(1.2 * count + 0.4, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1)
    for row, title, members in ((0, "Most helpful", order[::-1][:count]), (1, "Most harmful", order[:count])):
        part = figure.add_subfigure(grid[row])
        part.suptitle(title, fontsize=10, fontweight="bold")
        for place, member in enumerate(members, start=1):
            _draw_example(part.add_subplot(1, count, place), findings, member)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw_example(axes: "Axes", findings: Findings, member: int) -> None:
    dataset, prepared = findings.dataset, findings.prepared
    index = prepared.train_index[member]
    axes.imshow(images.picture_of(dataset.x[index], dataset.image_shape or ()), cmap="gray_r")
    axes.set(xticks=[], yticks=[])
    axes.set_title(_short(findings.label_names[member]), fontsize=9, parse_math=False)
    note = f"row {index}\n{score_text(findings.options.weighting, findings.scores[member])}"
    if prepared.flipped[member]:
        note += f"\nflipped from {_short(dataset.classes[prepared.labels[member]])}"
    axes.set_xlabel(note, fontsize=7, parse_math=False)


def _short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"
