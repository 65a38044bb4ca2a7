"""The content of ``adamshap show``: title, histogram and classes of a run, for the terminal or a page."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from adamshap.reference.command import networks
from adamshap.reference.command.datasets import load
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.examples import score_text
from adamshap.reference.command.folder import SavedRun
from adamshap.reference.command.images import Images, is_drawable
from adamshap.reference.command.seeds import SavedSeeds
from adamshap.reference.command.sources import greys_of, read
from adamshap.reference.command.spelling import in_one_line, quoted
from adamshap.reference.command.spread import spread_of
from adamshap.reference.contract import Array
from adamshap.reference.contract.views import histogram

# Approximate number of histogram bins; number of groups of a regression's targets.
BINS = 16
GROUPS = 4


MEANING = "A positive score means that the example lowered the loss on the validation examples."


@dataclass(frozen=True)
class Group:
    """The training examples of one class, or of one range of a regression's target.

    Parameters
    ----------
    name : str
    count, harmful, flipped : int
        Number of examples, of those with a negative score, and of those with a flipped label.
    total, mean : float
        Sum and mean of their scores.
    total_se, mean_se : float or None
        Their standard errors over several runs.
    """

    name: str
    count: int
    harmful: int
    flipped: int
    total: float
    mean: float
    total_se: float | None = None
    mean_se: float | None = None


@dataclass(frozen=True)
class Bin:
    """A histogram bin: the number of examples with scores from `low` to `high`."""

    low: float
    high: float
    count: int


def bins_of(scores: Array) -> list[Bin]:
    """Return the histogram of `scores` (n,), with a bin edge at 0."""
    counts, edges = histogram(scores, BINS)
    return [Bin(*bin_) for bin_ in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)]


def groups_of(saved: SavedRun) -> list[Group]:
    """Return the training examples grouped by class, or by quarter of a regression's single target."""
    columns, classes = saved.columns, saved.config["dataset"]["classes"]
    labels, scores = columns["label"], columns["score"]
    members: dict[str, Array] = {}
    if classes:
        members = {name: labels == number for number, name in enumerate(classes)}
    elif labels.ndim == 1:
        order = np.argsort(labels, kind="stable")
        for part in np.array_split(order, min(GROUPS, len(order))):
            name = f"{labels[part[0]]:.4g} to {labels[part[-1]]:.4g}"
            members[name] = np.isin(np.arange(len(labels)), part) | members.get(name, False)
    return [
        Group(
            name,
            int(mask.sum()),
            int((scores[mask] < 0).sum()),
            int(columns["flipped"][mask].sum()),
            math.fsum(scores[mask]),
            math.fsum(scores[mask]) / int(mask.sum()),
            *_standard_errors(saved, mask),
        )
        for name, mask in members.items()
        if mask.any()
    ]


def _standard_errors(saved: SavedRun, mask: Array) -> tuple[float | None, float | None]:
    """Return the standard errors of sum and mean of the scores of the examples `mask`, over several runs."""
    if not isinstance(saved, SavedSeeds) or len(saved.runs) < 2:
        return None, None
    error = float(
        spread_of(np.array([math.fsum(run.columns["score"][mask]) for run in saved.runs.values()])).standard_error
    )
    return error, error / int(mask.sum())


def group_rows(saved: SavedRun) -> tuple[str, list[str], list[list[str]]]:
    """Return title, header and cells of the table of `groups_of`; no rows if there are no groups."""
    classes, flips = bool(saved.config["dataset"]["classes"]), bool(saved.config["flips"])
    heads = ["class" if classes else "target", "examples", "harmful", "mean score", "sum of scores", "flipped"]
    if saved.config["dataset"].get("task") == "text":  # folders of earlier versions do not say
        return "", [], []
    rows = [
        [
            in_one_line(group.name),
            str(group.count),
            f"{group.harmful / group.count:.0%}",
            with_deviation(partial(score_text, saved.weighting), group.mean, group.mean_se),
            with_deviation(partial(score_text, saved.weighting), group.total, group.total_se),
            str(group.flipped),
        ]
        for group in groups_of(saved)
    ]
    title = "Classes" if classes else "Targets"
    return (title, heads, rows) if flips else (title, heads[:-1], [row[:-1] for row in rows])


NUMBER, DEVIATION = "{:.4g}".format, "{:.2g}".format
"""Formats of a number of any size, and of its deviation, which has fewer digits that mean something."""

MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", NUMBER),
    "bits": ("bits per token", NUMBER),
    "perplexity": ("perplexity", NUMBER),
    "accuracy": ("accuracy", "{:.1%}".format),
    "roc_auc": ("ROC AUC", "{:.4f}".format),
    "r_squared": ("R²", "{:.4f}".format),
    "rmse": ("RMSE", NUMBER),
}
"""Label and format of what ``results.json`` says of the validation examples."""


WHEN = ("before", "after")


def with_deviation(shown: Callable[[float], str], value: float | None, deviation: float | None) -> str:
    """Return a result as text, with its deviation or standard error over several runs where there is one."""
    if value is None:
        return ""
    if deviation is None:
        return shown(value)
    return f"{shown(value)} ± {(DEVIATION if shown is NUMBER else shown)(deviation).lstrip('+')}"


def quality_rows(saved: SavedRun) -> tuple[str, list[str], list[list[str]]]:
    """Return title, header and cells of the table of validation results; no rows unless the run has finished."""
    results = saved.results or {}
    deviations = results.get("deviation") or {}
    rows = [
        [label, *(with_deviation(shown, results[when][name], deviations.get(when, {}).get(name)) for when in WHEN)]
        for name, (label, shown) in MEASURES.items()
        if name in results.get(WHEN[0], {})
    ]
    return "Validation", ["", "before", "after"], rows


def hardest_lines(saved: SavedRun) -> list[str]:
    """Return lines on the validation examples with the highest loss, which one may want to have explained."""
    found = (saved.results or {}).get("hardest")
    if not found:
        return []
    rows = ", ".join(f"{one['index']} ({NUMBER(one['loss'])})" for one in found)
    return [
        f"Validation examples with the highest loss after training, by row (from 0): {rows}",
        f"Training examples behind the first: adamshap show {quoted(str(saved.folder))} --explain {found[0]['index']}",
    ]


@dataclass(frozen=True, eq=False)
class Pictures:
    """The images of a run's data; or None, and the reason if they could not be had."""

    images: Images | None
    missing: str = ""


def pictures_of(saved: SavedRun) -> Pictures:
    """Return the images of the data set of `saved`, read again if it has images and has not changed."""
    shape, options = saved.config["dataset"]["image_shape"], saved.config["options"]
    if shape is None or not is_drawable(tuple(shape)):
        return Pictures(None)
    try:
        # Pictures never come from a table, whose columns have options.
        dataset = load(options["data"], options["label"], options["task"], held_out=options["valid"] is None)
    except CommandError as error:
        return Pictures(None, f"No pictures: {error}")
    if dataset.image_shape != tuple(shape) or len(dataset.x) != saved.config["dataset"]["examples"]:
        return Pictures(None, f"No pictures: {options['data']!r} has changed since the run started")
    return Pictures(Images(dataset.x, tuple(shape), greys_of(options["data"])))


def pictures_of_validation(saved: SavedRun) -> Pictures:
    """Return the images that the validation examples of `saved` are rows of."""
    shape, valid = saved.config["dataset"]["image_shape"], saved.config["options"]["valid"]
    if valid is None or shape is None or not is_drawable(tuple(shape)):
        return pictures_of(saved)
    try:
        table = read("--valid", valid)
    except CommandError as error:
        return Pictures(None, f"No pictures of validation examples: {error}")
    if table.image_shape != tuple(shape) or len(table.x) != saved.config["dataset"]["validation_examples"]:
        return Pictures(None, f"No pictures of validation examples: {valid!r} has changed since the run started")
    return Pictures(Images(table.x, tuple(shape), greys_of(valid)))


def no_scores(saved: SavedRun) -> str:
    """Return why a folder has no scores yet."""
    if isinstance(saved, SavedSeeds):
        return "No scores yet: they come with the first run that finishes."
    return "No scores yet: they come with the first checkpoint."


def title_of(saved: SavedRun) -> str:
    """Return one line on the data, the network and the progress of the run."""
    dataset, network = saved.config["dataset"], saved.config["network"]
    options = saved.config["options"]
    flips = f", {len(saved.config['flips'])} with flipped labels" if saved.config["flips"] else ""
    task = f"{len(dataset['classes'])} classes" if dataset["classes"] else dataset.get("task", "regression")
    credit = "" if options.get("credit", "step") == "step" else f", credit {options['credit']}"
    return (
        f"{dataset['name']}: {saved.progress};"
        f" {dataset['train_examples']} training examples{flips}; {dataset['validation_examples']} for validation;"
        f" {task}; {networks.shown(options, network)}; slope {options['slope']}, gradient {options['gradient']}{credit}"
    )
