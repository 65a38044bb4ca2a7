"""``adamshap show``: show a run, finished or not: its best and worst examples, all scores, and its classes."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adamshap.reference import checkpoint
from adamshap.reference.command import explain as explanations
from adamshap.reference.command import folder, overview, page, report, results, seeds, trainers
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.examples import TOP, score_text
from adamshap.reference.command.explain import Explanation
from adamshap.reference.command.folder import SavedRun
from adamshap.reference.command.groups import scores_of_groups
from adamshap.reference.command.options.output import Top as TopOption
from adamshap.reference.command.weightings import reweighted
from adamshap.reference.weighting import Weighting

# Length of the histogram's longest bar, in characters.
LONGEST = 40
# Characters beside a bar: its edges and its number of examples.
BESIDE = 38


def show_command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", show_default=False, help="Folder that adamshap attribute writes to.")
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            show_default=False,
            help="Write a self-contained page instead, with plots and, for images, pictures.",
        ),
    ] = None,
    top: TopOption = TOP,
    weighting: Annotated[
        Weighting | None,
        typer.Option(
            metavar="WEIGHTING",
            show_default="that of the run",
            help="Weigh the steps in another way, without a new run: unit or sum, as for adamshap attribute.",
        ),
    ] = None,
    explain: Annotated[
        list[int] | None,
        typer.Option(
            metavar="K",
            min=0,
            show_default=False,
            help="Show instead which training examples moved the loss of the validation example in row K of its data;"
            " trains once more. May be given more than once.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show a run, finished or in progress: best and worst examples, a histogram of the scores, and the classes.

    The scores of a run in progress are those of its newest checkpoint.
    """
    if html is not None and (html.suffix.lower() != ".html" or as_json):
        raise CommandError(f"--html: got {str(html)!r}{' with --json' * as_json}; needs a FILE.html, and no --json")
    if seeds.are_in(directory):
        saved: SavedRun = seeds.read(directory, lambda run: reweighted(run, weighting))
    else:
        saved = reweighted(folder.read(directory), weighting)
    console = Console()
    if explain:
        found = explanations.explain(saved, explain, trainers.installed_trainer())
        if html is not None:
            _write_page(console, html, *page.page_of_explanations(found, top))
        else:
            _explain(console, found, top, as_json)
        return
    if as_json:
        more: dict[str, list[Any]] = {"histogram": [], "groups": []}
        if saved.columns:
            bins, groups = overview.bins_of(saved.columns["score"]), overview.groups_of(saved)
            more = {"histogram": list(map(asdict, bins)), "groups": list(map(asdict, groups))}
        print(results.as_json(results.summary(saved, top) | more))
    elif html is not None:
        _write_page(console, html, *page.page_of(saved, top))
    else:
        _print(console, saved, top)


def _write_page(console: Console, html: Path, text: str, notes: list[str]) -> None:
    try:
        checkpoint.write_whole(html, text.encode())
    except OSError as error:
        raise CommandError(f"--html: cannot write to {str(html)!r}: {error.strerror or error}") from error
    for line in (*notes, f"Written: {html}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _explain(console: Console, found: list[Explanation], top: int, as_json: bool) -> None:
    if as_json:
        said = []
        for one in found:
            lists = results.summary(one.saved, top)
            said.append(one.as_json() | {name: lists[name] for name in ("weighting", "helpful", "harmful")})
        print(results.as_json({"explanations": said}))
        return
    for one in found:
        for line in one.lines():
            console.print(line, markup=False, highlight=False)
        report.extremes(console, one.saved, top, one.meaning(), total=True)
        console.print()


def _print(console: Console, saved: SavedRun, top: int) -> None:
    console.print(overview.title_of(saved), markup=False, highlight=False)
    if saved.status == folder.DIVERGED and saved.results is not None:
        console.print(saved.results["message"], markup=False, highlight=False)
    if not saved.step:
        console.print(overview.no_scores(saved), markup=False, highlight=False)
        return
    report.extremes(console, saved, top)
    report.quality(console, saved)
    console.print()
    console.print(_histogram(saved, console))
    report.groups(console, scores_of_groups(saved))
    title, heads, rows = overview.group_rows(saved)
    if rows:
        table = report.table(title, (0,), *heads)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print()
        console.print(table)
    console.print()
    for line in seeds.spread_lines(saved):
        console.print(line, markup=False, highlight=False)


def _histogram(saved: SavedRun, console: Console) -> Table:
    table = report.table("Scores", (2,), "from", "to", "", "examples")
    bins = overview.bins_of(saved.columns["score"])
    most = max(bin_.count for bin_ in bins)
    longest = max(1, min(LONGEST, console.width - BESIDE))
    for bin_ in bins:
        length = -(-longest * bin_.count // most)  # rounded up, so that a single example shows
        bar = Text(("#" if console.options.ascii_only else "█") * length, style="red" if bin_.low < 0 else "blue")
        table.add_row(*(score_text(saved.weighting, edge) for edge in (bin_.low, bin_.high)), bar, str(bin_.count))
    return table
