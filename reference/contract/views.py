"""A run's scores as a table and as a figure. pandas and matplotlib are imported when used."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from adamshap.reference.contract.arrays import Array
from adamshap.reference.contract.drawing import import_matplotlib
from adamshap.reference.contract.extras import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure", "frame", "histogram"]

BINS = 40
HELPFUL, HARMFUL, OTHER = "#2166ac", "#b2182b", "#777777"
LINES: dict[str, dict[str, Any]] = {
    "train_loss": {"color": OTHER, "linewidth": 0.7, "label": "training batch"},
    "valid_loss": {"color": HELPFUL, "linewidth": 1.4, "label": "validation"},
}


def frame(scores: Array, sgd_scores: Array, seen: Array) -> Any:
    """Return the scores of a run as a ``pandas.DataFrame``; see `Run.to_frame`.

    Parameters
    ----------
    scores, sgd_scores : arrays (N,), or (N, n_val)
    seen : int array (N,)

    Raises
    ------
    ImportError
        Without pandas.
    """
    with needed("pandas", by="Run.to_frame", extra="tables"):
        import pandas
    columns: dict[str, Array] = {}
    for name, array in (("score", scores), ("sgd_score", sgd_scores)):
        each = {f"{name}[{k}]": column for k, column in enumerate(array.T)} if array.ndim == 2 else {name: array}
        columns |= each
    return pandas.DataFrame({**columns, "seen": seen}, index=pandas.RangeIndex(len(seen), name="index"))


def figure(scores: Array, sgd_scores: Array, history: dict[str, Array]) -> "Figure":
    """Return a figure of three parts: histogram of the scores, the scores against SGD's, and the losses of the steps.

    Parameters
    ----------
    scores, sgd_scores : arrays (N,), or (N, n_val), which are averaged over the validation samples
    history : dict of arrays (steps,)
        ``train_loss`` and ``valid_loss``, of which those that are known are drawn.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    import_matplotlib()
    from matplotlib.figure import Figure

    # L is a mean over the validation samples, and a score is linear in its gradient: the mean is the score.
    score, sgd = (s.mean(axis=1) if s.ndim == 2 else s for s in (scores, sgd_scores))
    drawn = Figure(figsize=(11, 3.2), layout="constrained")
    known = [name for name in LINES if name in history]
    axes = drawn.subplots(1, 3 if known else 2)
    _histogram(axes[0], score)
    axes[1].scatter(sgd, score, s=6, c=np.where(score < 0, HARMFUL, HELPFUL), alpha=0.6, linewidths=0)
    axes[1].locator_params(axis="x", nbins=4)
    axes[1].set(title="Beside SGD's score", xlabel="SGD's score", ylabel="score")
    if known:
        for name in known:
            steps = np.flatnonzero(np.isfinite(history[name]))  # a run may not know the validation loss of every step
            axes[2].plot(steps + 1, history[name][steps], **LINES[name])
        axes[2].set(title="Loss before each step", xlabel="step")
        axes[2].legend(frameon=False)
    for part in axes[:2]:
        part.ticklabel_format(scilimits=(-2, 3))
    return drawn


def histogram(scores: Array, bins: int) -> tuple[Array, Array]:
    """Return counts and edges of about `bins` bins of equal width, with 0 on an edge, so that no bin mixes signs.

    A score of 0 falls into the bin above.
    """
    low, high = min(float(scores.min()), 0.0), max(float(scores.max()), 0.0)
    width = (high - low) / bins or 1.0
    first, last = math.floor(low / width), math.floor(high / width) + 1
    edges = width * np.arange(first, last + 1)
    place = np.clip(np.floor(scores / width).astype(int), first, last - 1) - first
    return np.bincount(place, minlength=last - first), edges


def _histogram(axes: "Axes", score: Array) -> None:
    heights, edges = histogram(score, BINS)
    colours = [HARMFUL if left < 0 else HELPFUL for left in edges[:-1]]
    axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=colours)
    axes.set(title="Scores of the training examples", xlabel="score (red: harmful)", ylabel="examples")
