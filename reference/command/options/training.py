"""Training: the network, the optimiser and the length of the run."""

from typing import Annotated

import typer

from adamshap.reference.command.job import Device as DeviceKind
from adamshap.reference.command.job import ModelName
from adamshap.reference.contract import ACTIVATIONS, ActivationName
from adamshap.reference.contract.schedule import Shape

PANEL = "Training"

MOST_SEEDS = 1000
"""More are a --seed with a letter too many; each run has a folder."""

EPOCHS = 5
"""The default where neither --epochs nor --steps is given."""

Model = Annotated[
    ModelName | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="MODEL",
        show_default="transformer for text, otherwise mlp",
        help="The network: mlp, a multilayer perceptron; convnet, a convolutional network, for images; or transformer,"
        " a causal language model, for text.",
    ),
]

Hidden = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="WIDTHS",
        show_default="64,64",
        help="Widths of the hidden layers of an mlp, separated by commas; empty for none.",
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

Width = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="N",
        min=1,
        show_default="8; 32 for a transformer",
        help="Channels of a convnet's first convolution, each further one having twice as many; or numbers for each"
        " position of a transformer.",
    ),
]

Depth = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="N",
        min=1,
        show_default="2",
        help="Convolutions of a convnet, or blocks of a transformer.",
    ),
]

Heads = Annotated[
    int | None,
    typer.Option(rich_help_panel=PANEL, metavar="N", min=1, show_default="2", help="Attention heads of a transformer."),
]

Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        rich_help_panel=PANEL,
        metavar="N",
        min=2,
        show_default="64",
        help="Most tokens of an example of a text.",
    ),
]

Activation = Annotated[
    ActivationName | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="NAME",
        show_default="tanh; relu for a convnet, gelu for a transformer",
        help="Between the layers: " + ", ".join(ACTIVATIONS) + ".",
    ),
]

Lr = Annotated[float, typer.Option(rich_help_panel=PANEL, metavar="RATE", help="Adam's learning rate.")]

Betas = Annotated[
    str,
    typer.Option(
        rich_help_panel=PANEL, metavar="B1,B2", help="Adam's decay rates of the two moments, separated by a comma."
    ),
]

Eps = Annotated[float, typer.Option(rich_help_panel=PANEL, metavar="E", min=0, help="Adam's epsilon.")]

WeightDecay = Annotated[
    float,
    typer.Option(
        rich_help_panel=PANEL, metavar="RATE", min=0, help="Decoupled weight decay, as in AdamW, of all parameters."
    ),
]

Schedule = Annotated[
    Shape,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="SHAPE",
        help="How the learning rate goes on after the warm-up: constant, or falling to 0 at the run's end along half a"
        " cosine or a line: cosine, linear.",
    ),
]

Warmup = Annotated[
    int,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="STEPS",
        min=0,
        help="Steps over which the learning rate first rises from 0 to --lr, along a line.",
    ),
]

Device = Annotated[
    DeviceKind,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="DEVICE",
        help="What computes: cpu, cuda (a GPU, with CuPy) or auto: a GPU if there is one. May be given with --resume.",
    ),
]

Seed = Annotated[
    int,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="N",
        min=0,
        help="Seed for the split, the label flips, the initialisation and the batch order.",
    ),
]

Seeds = Annotated[
    int,
    typer.Option(
        "--seeds",
        rich_help_panel=PANEL,
        metavar="K",
        min=1,
        max=MOST_SEEDS,
        help="Number of runs, one after another seed, on the same data and split: their mean scores with standard"
        " errors, and which examples stand out in all. 3 to look, 5 to act.",
    ),
]
