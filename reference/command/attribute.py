"""``adamshap attribute``: train on labelled data with Adam, and say which training examples helped and which hurt."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adamshap.reference.command import datasets, preparation, report, results, trainers, training
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.job import Options
from adamshap.reference.problem import Credit, Gradient, Slope


def attribute_command(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            show_default=False,
            help="digits, breast_cancer or wine; or a file: .npz with the arrays x and y (x may be images), or .csv"
            " with a header, a label column and numbers.",
        ),
    ],
    hidden: Annotated[
        str, typer.Option(help="Widths of the hidden layers (tanh), separated by commas; empty for none.")
    ] = "64,64",
    epochs: Annotated[int, typer.Option(min=1, help="How often every training example is seen.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a training step.")] = 32,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 0.001,
    slope: Annotated[
        Slope, typer.Option(help="How the score follows Adam's update; random_order is closest to the Shapley value.")
    ] = "random_order",
    gradient: Annotated[
        Gradient, typer.Option(help="Where on the step the validation gradient is taken.")
    ] = "midpoint",
    credit: Annotated[
        Credit,
        typer.Option(
            help="Whom the step belongs to that momentum takes alone: step, nobody; carry, the earlier examples that"
            " it is made of, so that scores add up to the whole change of the validation loss."
        ),
    ] = "step",
    flip_labels: Annotated[
        float,
        typer.Option(
            metavar="F",
            help="Give this share of the training labels, 0 <= F < 1, another class; see if low scores find them.",
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the hold-out, the flips, the network and the batches.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default="adamshap-DATA, or the next free number",
            help="Folder for the results; new or empty.",
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", show_default="label", help="The label column of a .csv file.")
    ] = None,
) -> None:
    """Train on DATA with Adam, and say which training examples helped and which hurt.

    One fifth of each class is held out for validation; a positive score means that the example lowered the loss on it.

    Writes scores.csv, scores.npz and config.json, and examples.png where examples are images.
    """
    if not 0 <= flip_labels < 1:
        raise CommandError(f"--flip-labels: got {flip_labels}; needs a share of at least 0 and less than 1")
    options = Options(data, _widths(hidden), epochs, batch_size, lr, slope, gradient, flip_labels, seed, label, credit)
    console = Console()
    dataset = datasets.load(data, label)
    target = results.choose(out, dataset.name)
    prepared = preparation.prepare(dataset, flip=flip_labels, seed=seed)
    trainer = trainers.installed_trainer()
    report.announce(console, options, dataset, prepared, trainer.description)
    with report.progress_bar(console, epochs) as on_step:
        findings = training.train(options, dataset, prepared, trainer, on_step)
    folder, notes = results.write(target, findings)
    report.show(console, findings, folder, notes)


def _widths(hidden: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(width) for width in hidden.split(",")) if hidden.strip() else ()
    except ValueError:
        widths = (0,)
    if any(width < 1 for width in widths):
        raise CommandError(f"--hidden: got {hidden!r}; needs whole numbers of at least 1, separated by commas: 64,64")
    return widths
