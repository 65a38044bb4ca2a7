"""Results: the folder of the results, and how to go on with a run."""

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Results"

Out = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="DIR",
        show_default="adamshap-DATA, or the next free number",
        help="Folder for the results; new or empty.",
    ),
]

Top = Annotated[
    int, typer.Option(rich_help_panel=PANEL, metavar="N", min=1, help="Examples in each list, best and worst.")
]

AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        rich_help_panel=PANEL,
        help="Print one JSON object and nothing else: configuration, results, best and worst examples.",
    ),
]

Resume = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="DIR",
        help="Continue the interrupted run in this folder, with its own data and options.",
    ),
]

CheckpointSeconds = Annotated[
    float,
    typer.Option(
        rich_help_panel=PANEL,
        min=0,
        metavar="S",
        help="Seconds between two checkpoints, from which an interrupted run can go on.",
    ),
]
