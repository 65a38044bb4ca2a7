"""The terminal output of ``adamshap attribute``: the progress bar while training, and the tables at the end."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.examples import extremes_of, fields_of
from adamshap.reference.command.folder import SavedRun
from adamshap.reference.command.job import Options
from adamshap.reference.command.overview import quality_rows
from adamshap.reference.command.preparation import VALIDATION_LIMIT, VALIDATION_SHARE, Prepared
from adamshap.reference.command.spelling import some
from adamshap.reference.contract import Progress

# Most classes to list before training; config.json lists all.
MOST_CLASSES = 20
MANY_VALIDATION_EXAMPLES = 2000
"""With more of them, the header says what they cost."""


def announce(console: Console, options: Options, dataset: Dataset, prepared: Prepared, computed_by: str) -> None:
    """Print the data set, the network and the trainer before training, and how the files were read."""
    regression = dataset.task == "regression"
    kinds = len(dataset.targets) if regression else len(dataset.classes)
    sizes = "-".join(map(str, (dataset.x.shape[1], *options.hidden, kinds)))
    flips = f", {int(prepared.flipped.sum())} with flipped labels" if options.flip_labels else ""
    task = "regression" if regression else f"{kinds} classes"
    lines = [
        f"{dataset.name}: {prepared.train.n} training examples{flips}; {prepared.valid.n} for validation;"
        f" {task} ({dataset.why}); network {sizes}; computed by {computed_by}"
    ]
    if dataset.classes != tuple(map(str, range(len(dataset.classes)))):
        named = [f"{number} = {name}" for number, name in enumerate(dataset.classes[:MOST_CLASSES])]
        more = ", ..." if len(dataset.classes) > MOST_CLASSES else ""
        lines.append(f"Classes: {', '.join(named)}{more}")
    what = "Features and targets are" if regression else "Features are"
    lines.append(f"{what} standardised by mean and deviation of the training examples, which config.json holds.")
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
def progress_bar(console: Console, epochs: int) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar (on a terminal only), and yield the function that advances it after a step."""
    columns = (
        TextColumn("Epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, epoch=f"1/{epochs}", loss="")

        def on_step(progress: Progress) -> None:
            bar.update(
                task,
                completed=progress.step,
                total=progress.steps,
                epoch=f"{progress.epoch + 1}/{epochs}",
                loss=f"loss {progress.train_loss:.3f}, validation {progress.valid_loss:.3f}",
            )

        yield on_step


def show(console: Console, saved: SavedRun, top: int, notes: list[str]) -> None:
    """Print the best and the worst examples, the validation results, and the folder of the files, of a finished run."""
    results: Any = saved.results
    extremes(console, saved, top)
    quality(console, saved)
    if results["flip_detection_roc_auc"] is not None:
        console.print()
        console.print(_detection(saved.config["options"], results["flip_detection_roc_auc"]))
    console.print()
    for line in (*notes, f"{results['seconds']:.1f} s of training and attribution; files in {saved.folder}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def extremes(console: Console, saved: SavedRun, top: int) -> None:
    """Print the `top` best and the `top` worst examples, side by side if they fit."""
    tables = []
    for kind, members in extremes_of(saved.columns["score"], top).items():
        fields = fields_of(saved, members)
        text = [place for place, field in enumerate(fields) if field.text]
        result = table(f"Most {kind} examples", text, *(field.head for field in fields))
        for row in zip(*(field.cells for field in fields), strict=True):
            result.add_row(*map(Text, row))
        tables.append(result)
    console.print()
    console.print(Columns(tables, padding=(1, 4)))


def quality(console: Console, saved: SavedRun) -> None:
    """Print how good the network was before and after the training, if the run has ended."""
    title, heads, rows = quality_rows(saved)
    if rows:
        result = table(title, (0,), *heads)
        for row in rows:
            result.add_row(*row)
        console.print()
        console.print(result)


def table(title: str, text: Collection[int], *columns: str) -> Table:
    """Return an empty table with text in the columns numbered `text` and numbers in all others."""
    result = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        result.add_column(column, justify="left" if number in text else "right", no_wrap=number not in text)
    return result


def _detection(options: Mapping[str, Any], found: Mapping[str, float]) -> Table:
    result = table("Low scores find flipped labels", (0,), "score", "ROC AUC")
    result.add_row(f"Adam-aware ({options['slope']}, {options['gradient']})", f"{found['adam']:.4f}")
    result.add_row("SGD", f"{found['sgd']:.4f}")
    return result
