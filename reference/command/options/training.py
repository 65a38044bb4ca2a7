"""Training: the network, the optimiser and the length of the run."""

from typing import Annotated

import typer

PANEL = "Training"

EPOCHS = 5
"""The default where neither --epochs nor --steps is given."""

Hidden = Annotated[
    str,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="WIDTHS",
        help="Widths of the hidden layers (tanh), separated by commas; empty for none.",
    ),
]

Epochs = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="N",
        min=1,
        show_default=str(EPOCHS),
        help="How often every training example is seen.",
    ),
]

Steps = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="N",
        min=1,
        show_default="of all epochs",
        help="Number of training steps, instead of epochs.",
    ),
]

BatchSize = Annotated[int, typer.Option(rich_help_panel=PANEL, metavar="N", min=1, help="Examples in a training step.")]

Lr = Annotated[float, typer.Option(rich_help_panel=PANEL, metavar="RATE", help="Adam's learning rate.")]

Seed = Annotated[
    int,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="N",
        min=0,
        help="Seed for the split, the label flips, the initialisation and the batch order.",
    ),
]
