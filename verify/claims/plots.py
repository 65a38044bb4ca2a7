"""The figures of the page, drawn by matplotlib without a display."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from adamshap.verify.claims.statistics import Record, Spread, distinct, select, spread

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#222222", "#dd9955")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "adamshap",  # so that equal figures have equal bytes
    "svg.fonttype": "none",
}


def svg(figure: Figure) -> str:
    """Return the figure as SVG text."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def blank(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return an empty figure of this size in inches, and its axes as an array (rows, columns)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def heat_maps(records: Sequence[Record], truth: str, estimators: Sequence[str]) -> Figure:
    """Return heat maps of mean R over (t, β2): a row of panels for each estimator, a column for each batch size."""
    sizes, times, betas = (distinct(records, key) for key in ("n", "t", "beta2"))
    figure, axes = blank(2.7 * len(sizes) + 0.8, 1.45 * len(estimators) + 0.5, len(estimators), len(sizes))
    image = None
    for row, estimator in zip(axes, estimators, strict=True):
        for axis, n in zip(row, sizes, strict=True):
            chosen = select(records, truth=truth, estimator=estimator, n=n)
            means = np.array(
                [[spread(r["pearson"] for r in select(chosen, t=t, beta2=b)).mean for t in times] for b in betas]
            )
            image = axis.imshow(means, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for (i, j), value in np.ndenumerate(means):
                text = "–" if np.isnan(value) else f"{np.trunc(100 * value) / 100:.2f}"
                axis.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if value < 0.6 else "black")
            axis.set_xticks(range(len(times)), [str(t) for t in times], fontsize=7)
            axis.set_yticks(range(len(betas)), [f"{b:g}" for b in betas], fontsize=7)
            axis.set_title(f"{estimator}, n = {n}", fontsize=7)
            if axis in axes[-1]:
                axis.set_xlabel("t", fontsize=8)
            if axis is row[0]:
                axis.set_ylabel("β2", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.6, label="mean Pearson R")
    return figure


def lines(axis: Any, series: Mapping[str, Mapping[float, Spread]], *, log: bool = False) -> None:
    """Draw each series as a line of means over seeds, with the standard deviation as a band."""
    for (name, points), colour in zip(series.items(), _colours(len(series)), strict=True):
        at = np.array(list(points))
        mean, deviation = (np.array([getattr(p, key) for p in points.values()]) for key in ("mean", "deviation"))
        axis.plot(at, mean, label=name, color=colour, marker="o", markersize=3, linewidth=1.3)
        axis.fill_between(at, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
    if log:
        axis.set_xscale("log")
    axis.grid(alpha=0.25)


def bars(axis: Any, groups: Mapping[str, Mapping[str, Spread]]) -> None:
    """Draw groups of horizontal bars of means over seeds, with the standard deviation; one colour for each name."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    height = 0.8 / len(names)
    for place, (name, colour) in enumerate(zip(names, _colours(len(names)), strict=True)):
        at = np.arange(len(groups)) + (place - (len(names) - 1) / 2) * height
        found = [group.get(name) for group in groups.values()]
        axis.barh(
            at,
            [float("nan") if s is None else s.mean for s in found],
            height=height,
            xerr=[0 if s is None else s.deviation for s in found],
            color=colour,
            label=name,
            error_kw={"linewidth": 0.7},
        )
    axis.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.25)


def legend(figure: Figure, axis: Any, columns: int = 4) -> None:
    """Put the legend of `axis` under the figure."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)


def _colours(count: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(count)]
