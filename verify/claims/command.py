"""``adamshap claims``: test the claims about attribution under Adam, and write a page with the results."""

import importlib
import os
from pathlib import Path
from typing import Annotated

import typer

from adamshap.reference.command import results
from adamshap.reference.command.errors import CommandError, why_no_picture
from adamshap.reference.contract.drawing import plain_style


def claims_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes instead of an hour or more: fewer and shorter runs.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default="adamshap-claims, or the next free number",
            help="Folder for the results; new or empty.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="CLAIM", help="Test only this claim; may be given more than once.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, show_default="one per core", help="Number of parallel processes.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder that keeps each part as it is done; after an interruption the same command continues there.",
        ),
    ] = None,
    finished: Annotated[
        bool, typer.Option("--finished", help="Measure nothing: show the parts that --resume DIR has.")
    ] = False,
) -> None:
    """Test the claims about attribution under Adam on real data.

    Writes index.html, a self-contained page; results.json with every number; results.md and figures.
    """
    # One NumPy thread per process, since the processes already run in parallel; set before they start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["MPLBACKEND"] = "agg"  # the worker processes import matplotlib too, and need no display
    try:
        for package in ("sklearn", "statsmodels", "tokenizers"):
            importlib.import_module(package)
        with plain_style():
            plots = importlib.import_module("adamshap.verify.claims.plots")
            plots.svg(plots.blank(1, 1)[0])  # so that problems of matplotlib show now, not after an hour
    except ImportError as error:
        raise CommandError(
            f"claims needs scikit-learn, statsmodels, tokenizers and matplotlib ({error}):"
            ' pip install "adamshap[claims]"'
        ) from error
    except Exception as error:
        raise CommandError(f"claims cannot draw figures: {why_no_picture(error)}") from error
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from adamshap.gpu.threads import cpu_threads
    from adamshap.verify.claims import page, suite
    from adamshap.verify.claims.parts import Parts

    console = Console()
    settings = suite.profile(quick)
    for name in only or ():
        if name not in settings:
            raise CommandError(f"--only: got {name!r}; needs one of {', '.join(settings)}")
    if only:
        settings = {name: settings[name] for name in settings if name in only}
    target = results.choose_folder(out, "claims")
    if resume is not None and resume.exists() and not resume.is_dir():
        raise CommandError(f"--resume: got {str(resume)!r}, a file; needs a folder, new or of an interrupted command")
    if finished and resume is None:
        raise CommandError("--finished: needs --resume DIR, the folder of the finished parts")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        rows = {name: bar.add_task(name, total=suite.count(name, settings[name])) for name in settings}
        records = suite.measure(
            settings,
            workers=workers or cpu_threads(),
            on_done=lambda name, _: bar.advance(rows[name]),
            parts=Parts(resume),
            finished=finished,
        )
    settings = {name: its for name, its in settings.items() if records[name]}
    if not settings:
        raise CommandError(f"--finished: {str(resume)!r} has no part of this command; leave out --finished to measure")
    command = "adamshap claims" + (" --quick" if quick else "") + "".join(f" --only {name}" for name in only or ())
    command += " --finished" if finished else ""
    with plain_style():
        found = suite.sections(settings, records)
        report = page.to_json(command, settings, records, found)
        folder, _ = results.write_folder(target, lambda folder: page.write(folder, found, report))
    for section in found:
        console.print(f"[bold]{section.title}[/]")
        for finding in section.findings:
            console.print(f"  {finding}", markup=False, highlight=False)
    console.print(f"{folder / 'index.html'}", highlight=False, markup=False, soft_wrap=True)
