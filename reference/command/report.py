"""The terminal output of ``adamshap attribute``: the progress bar while training, and the tables at the end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.job import Detection, Findings, Fit, Options, Quality
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.results import columns_of
from adamshap.reference.command.spelling import some
from adamshap.reference.contract import Array, Progress

# Examples in each of the two tables.
EXAMPLES = 10
# Most classes to list before training; config.json lists all.
MOST_CLASSES = 20


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
    for line in (*lines, *dataset.notes):
        console.print(line, markup=False, highlight=False)


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


def show(console: Console, findings: Findings, folder: Path, notes: list[str]) -> None:
    """Print the best and the worst examples, the validation results, and the folder of the files."""
    columns = columns_of(findings.prepared, findings.run)
    extremes(console, columns, findings.label_names, bool(findings.dataset.targets), findings.detection is not None)
    console.print()
    console.print(_summary(findings))
    if findings.detection is not None:
        console.print()
        console.print(_detection(findings.options, findings.detection))
    console.print()
    for line in (*notes, f"{findings.seconds:.1f} s of training and attribution; files in {folder}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def extremes(console: Console, columns: dict[str, Array], names: Sequence[str], targets: bool, flips: bool) -> None:
    """Print the best and the worst examples of the table `columns`, side by side if they fit.

    `names` are the labels as text; `targets` says whether they are a regression's, `flips` whether some are flipped.
    """
    order = np.argsort(columns["score"], kind="stable")
    count = min(EXAMPLES, len(order) // 2)
    tables = []
    for title, members in (("Most helpful examples", order[::-1][:count]), ("Most harmful examples", order[:count])):
        heads, rows = example_rows(columns, names, members, targets, flips)
        result = table(title, 1, *heads)
        for row in rows:
            result.add_row(*map(Text, row))
        tables.append(result)
    console.print()
    console.print(Columns(tables, padding=(1, 4)))


def example_rows(
    columns: dict[str, Array], names: Sequence[str], members: Array, targets: bool, flips: bool
) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of a table of the examples `members`; the other arguments are those of `extremes`."""
    heads = ["index", "target" if targets else "label", "score", "SGD score", "seen", "flipped"]
    cells = [
        [
            str(columns["index"][row]),
            names[row],
            f"{columns['score'][row]:+.2e}",
            f"{columns['sgd_score'][row]:+.2e}",
            str(columns["seen"][row]),
            "yes" if columns["flipped"][row] else "",
        ]
        for row in members
    ]
    return (heads, cells) if flips else (heads[:-1], [row[:-1] for row in cells])


def table(title: str, text: int, *columns: str) -> Table:
    """Return an empty table with text in column number `text` and numbers in all others."""
    result = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        result.add_column(column, justify="left" if number == text else "right", no_wrap=number != text)
    return result


def _summary(findings: Findings) -> Table:
    before, after = findings.before, findings.after
    result = table("Validation", 0, "", "before", "after")
    result.add_row("loss", f"{before.loss:.4g}", f"{after.loss:.4g}")
    if isinstance(before, Fit) and isinstance(after, Fit):
        result.add_row("R²", *("" if fit.r_squared is None else f"{fit.r_squared:.4f}" for fit in (before, after)))
        result.add_row("RMSE", f"{before.rmse:.4g}", f"{after.rmse:.4g}")
    if isinstance(before, Quality) and isinstance(after, Quality):
        result.add_row("accuracy", f"{before.accuracy:.1%}", f"{after.accuracy:.1%}")
    return result


def _detection(options: Options, found: Detection) -> Table:
    result = table("Low scores find flipped labels", 0, "score", "ROC AUC")
    result.add_row(f"Adam-aware ({options.slope}, {options.gradient})", f"{found.adam:.4f}")
    result.add_row("SGD", f"{found.sgd:.4f}")
    return result
