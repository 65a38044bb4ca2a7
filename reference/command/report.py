"""The terminal output of ``adamshap attribute``: the progress bar while training, and the tables at the end."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from threading import Timer
from typing import Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from adamshap.reference.command import networks, optimisers
from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.examples import Field, extremes_of, fields_of
from adamshap.reference.command.folder import SavedRun
from adamshap.reference.command.groups import GroupScores, group_rows, scores_of_groups
from adamshap.reference.command.job import Options
from adamshap.reference.command.overview import MEANING, hardest_lines, quality_rows, with_deviation
from adamshap.reference.command.preparation import VALIDATION_LIMIT, VALIDATION_SHARE, Prepared
from adamshap.reference.command.seeds import spread_lines
from adamshap.reference.command.spelling import in_one_line, quoted, some
from adamshap.reference.command.weightings import lines_of
from adamshap.reference.contract import Progress

# Most classes to list before training; config.json lists all.
MOST_CLASSES = 20
PATIENCE = 2.0
"""Seconds of silence before the first step, after which the reason is printed."""
WIDEST_VALUE = 16
"""Characters of a value of the user's file that a table in the terminal shows, or more where the terminal has room."""
GAP = 3
"""Characters between two columns of a table."""
MANY_VALIDATION_EXAMPLES = 2000
"""With more of them, the header says what they cost."""


def announce(console: Console, options: Options, dataset: Dataset, prepared: Prepared, computed_by: str) -> None:
    """Print the data set, the network and the trainer before training, and how the files were read."""
    regression = dataset.task == "regression"
    kinds = len(dataset.targets) if regression else len(dataset.classes)
    flips = f", {int(prepared.flipped.sum())} with flipped labels" if options.flip_labels else ""
    task = "regression" if regression else f"{kinds} classes"
    if dataset.text is not None:
        task = f"{len(dataset.text.vocabulary)} different {options.tokens}"
    network = networks.shown(asdict(options), asdict(networks.network(options, dataset)))
    lines = [
        f"{dataset.name}: {prepared.train.n} training examples{flips}; {prepared.valid.n} for validation;"
        f" {task}{f' ({dataset.why})' if dataset.why else ''}; {network}; computed by {computed_by}"
    ]
    if dataset.classes and dataset.classes != tuple(map(str, range(len(dataset.classes)))):
        named = [f"{number} = {in_one_line(name)}" for number, name in enumerate(dataset.classes[:MOST_CLASSES])]
        more = ", ..." if len(dataset.classes) > MOST_CLASSES else ""
        lines.append(f"Classes: {', '.join(named)}{more}")
    if dataset.text is None:
        what, unit = ("Pixels", "of each channel in") if options.model == "convnet" else ("Features", "of")
        what += " and targets" if regression else ""
        lines.append(
            f"{what} are standardised by mean and deviation {unit} the training examples, which config.json holds."
        )
    else:
        lines.append(
            f"Examples are {options.examples}s of at most {options.context} {options.tokens}, from"
            f" {some(dataset.text.names, MOST_CLASSES)}. Losses are in nats per token, the mean over each example's."
        )
    settings = optimisers.shown(options)
    if settings:
        lines.append(f"Adam with {settings}.")
    if dataset.groups is not None and dataset.text is None:
        feature = "also a feature" if options.group in options.one_hot else "no feature"
        lines.append(f"Groups by {in_one_line(str(options.group))}: {len(np.unique(dataset.groups))}; it is {feature}.")
    constant = [dataset.features[at] for at in np.flatnonzero(prepared.constant)]
    if constant:
        lines.append(f"Constant in the training examples, so of no use: {some(constant, MOST_CLASSES)}.")
    lines += _about_validation(options, prepared)
    for line in (*lines, *dataset.notes):
        console.print(line, markup=False, highlight=False)


def _about_validation(options: Options, prepared: Prepared) -> list[str]:
    """Return a line on the number of validation examples, if it was limited or makes the run slow."""
    count, limit = prepared.valid.n, options.valid_limit
    share = VALIDATION_SHARE if options.valid_fraction is None else options.valid_fraction
    if limit is not None and limit <= count < share * (prepared.train.n + count):
        return [
            f"At most {limit} examples are held out, as every step looks at all of them; the others are trained on."
            " --valid-limit sets this limit."
        ]
    if count > MANY_VALIDATION_EXAMPLES:
        return [
            f"Every step looks at all {count} validation examples, and takes longer the more they are;"
            f" {VALIDATION_LIMIT} often suffice."
        ]
    return []


@contextmanager
def progress_bar(console: Console, epochs: int, slow_start: str = "") -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar (on a terminal only), and yield the function that advances it after a step.

    If the first step takes longer than `PATIENCE`, print the reason, `slow_start`, above the bar.
    """
    columns = (
        TextColumn("Epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, epoch=f"1/{epochs}", loss="")
        waiting = Timer(PATIENCE, console.print, (slow_start,), {"markup": False, "highlight": False})
        waiting.daemon = True

        def on_step(progress: Progress) -> None:
            waiting.cancel()
            bar.update(
                task,
                completed=progress.step,
                total=progress.steps,
                epoch=f"{progress.epoch + 1}/{epochs}",
                loss=f"loss {progress.train_loss:.3f}, validation {progress.valid_loss:.3f}",
            )

        if console.is_terminal and slow_start:
            waiting.start()
        try:
            yield on_step
        finally:
            waiting.cancel()


def show(console: Console, saved: SavedRun, top: int, notes: list[str]) -> None:
    """Print the best and the worst examples, the validation results, and the folder of the files, of a finished run."""
    results: Any = saved.results
    extremes(console, saved, top)
    groups(console, scores_of_groups(saved))
    quality(console, saved)
    if results["flip_detection_roc_auc"] is not None:
        console.print()
        console.print(_detection(saved))
    console.print()
    seconds = f"{results['seconds']:.1f} s of training and attribution; files in {saved.folder}"
    page = f"A page to look at: adamshap show {quoted(str(saved.folder))} --html {saved.folder.name}.html"
    for line in spread_lines(saved):
        console.print(line, markup=False, highlight=False)
    for line in (*notes, seconds, page):  # with paths, to be copied whole
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def extremes(console: Console, saved: SavedRun, top: int, meaning: Sequence[str] = (), *, total: bool = False) -> None:
    """Print what a score means, and the `top` best and the `top` worst examples, side by side if they fit.

    `meaning` is what a score means, where that is not as in other runs; `total` is as for `fields_of`.
    """
    places = extremes_of(saved.columns["score"], top)
    fields = fields_of(saved, np.concatenate(list(places.values())), total=total)
    widths: dict[int, int | None] = dict.fromkeys(range(len(fields)))
    if any(field.own for field in fields):
        widths = fitting(fields, console.width)
    kept = [field for at, field in enumerate(fields) if at in widths]
    tables, start = [], 0
    for kind, members in places.items():
        result = table(f"Most {kind} examples", ())
        for at, field in enumerate(fields):
            if at not in widths:
                continue
            result.add_column(
                Text(field.head),
                justify="left" if field.text else "right",
                no_wrap=field.own or not field.text,
                max_width=widths[at],
            )
        for row in zip(*(field.cells[start : start + len(members)] for field in kept), strict=True):
            result.add_row(*map(Text, row))
        tables.append(result)
        start += len(members)
    console.print()
    for line in meaning or (MEANING, *lines_of(saved)):
        console.print(line, markup=False, highlight=False)
    console.print()
    console.print(Columns(tables, padding=(1, 4)))
    hidden = [field.head for field in fields if field not in kept]
    if hidden:
        console.print(f"Not shown, for want of width: {some(hidden, MOST_CLASSES)}", markup=False, highlight=False)


def fitting(fields: Sequence[Field], width: int) -> dict[int, int | None]:
    """Return which fields a table of `width` characters has, by place, with the most characters of each (None: all).

    All fields are in it but values of the user's file and minor fields. Of those, as many as fit: first the user's own
    values, then what longer ones lack of their full length, then the minor fields.
    """
    widest = [max(map(cell_len, (field.head, *field.cells))) for field in fields]
    always = [at for at, field in enumerate(fields) if not (field.own or field.minor)]
    room = width - sum(GAP + widest[at] for at in always)
    own: dict[int, int] = {}
    for at, needs in ((at, min(widest[at], WIDEST_VALUE)) for at, field in enumerate(fields) if field.own):
        if GAP + needs <= room:
            own[at] = needs
            room -= GAP + needs
    for after, at in enumerate(sorted(own, key=widest.__getitem__)):  # what a shorter one does not need is for others
        more = min(widest[at] - own[at], max(room, 0) // (len(own) - after))
        own[at] += more
        room -= more
    minor = []
    for at in (at for at, field in enumerate(fields) if field.minor):
        if GAP + widest[at] <= room:
            minor.append(at)
            room -= GAP + widest[at]
    return dict.fromkeys((*always, *minor)) | own


def quality(console: Console, saved: SavedRun) -> None:
    """Print how good the network was before and after the training, if the run has ended."""
    title, heads, rows = quality_rows(saved)
    if rows:
        result = table(title, (0,), *heads)
        for row in rows:
            result.add_row(*row)
        console.print()
        console.print(result)
    for line in hardest_lines(saved):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def groups(console: Console, scores: GroupScores | None) -> None:
    """Print the table of groups and how to read it, if there are groups."""
    if scores is None:
        return
    title, heads, rows, reading = group_rows(scores)
    widest = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
    kept = list(range(len(heads)))
    for head, name in (("harmful", widest[0]), ("others", WIDEST_VALUE), ("sum", WIDEST_VALUE)):
        # The first is left out for the sake of a whole name, the others only if a name had next to no room.
        if min(widest[0], name) + sum(widest[at] for at in kept[1:]) + GAP * len(kept) > console.width:
            kept = [at for at in kept if not heads[at].startswith(head)]
    result = table(title, (0,), *(heads[at] for at in kept))
    result.columns[0].overflow = "fold"  # a name must be whole, as people act on it
    for row in rows:
        result.add_row(*(Text(row[at]) for at in kept))
    console.print()
    console.print(result)
    hidden = [head for at, head in enumerate(heads) if at not in kept]
    if hidden:
        console.print(f"Not shown, for want of width: {some(hidden)}", markup=False, highlight=False)
    for line in reading:
        console.print(line, markup=False, highlight=False)


def table(title: str, text: Collection[int], *columns: str) -> Table:
    """Return an empty table with text in the columns numbered `text` and numbers in all others."""
    result = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        result.add_column(column, justify="left" if number in text else "right", no_wrap=number not in text)
    return result


def _detection(saved: SavedRun) -> Table:
    options, results = saved.config["options"], saved.results or {}
    found, deviation = results["flip_detection_roc_auc"], results.get("deviation", {}).get("flip_detection_roc_auc")
    result = table("Low scores find flipped labels", (0,), "score", "ROC AUC")
    names = {"adam": f"Adam-aware ({options['slope']}, {options['gradient']})", "sgd": "SGD"}
    for key, name in names.items():
        result.add_row(name, with_deviation("{:.4f}".format, found[key], (deviation or {}).get(key)))
    return result
