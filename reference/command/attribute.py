"""``adamshap attribute``: train on labelled data with Adam, and say which training examples helped and which hurt."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adamshap.reference.command import datasets, preparation, report, results, trainers, training
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.job import Options
from adamshap.reference.problem import Gradient, Slope


def attribute_command(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            show_default=False,
            help="digits, breast_cancer, wine or diabetes; or a file: .npz with the arrays x and y (x may be images),"
            " .csv with a header, or .parquet, with a label column and numbers; or two, x.npy,y.npy.",
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
        str | None,
        typer.Option(metavar="COLUMN", show_default="label", help="The label or target column of a .csv or .parquet."),
    ] = None,
    task: Annotated[
        datasets.TaskChoice,
        typer.Option(
            help="Whether labels are classes or quantities. auto: text is classes, several targets (N, k) are"
            " quantities; numbers are classes, unless they look like quantities: then you are asked to say.",
        ),
    ] = "auto",
    valid: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            show_default="held out from DATA",
            help="Examples to validate on, in a form that DATA may have; all of DATA is trained on.",
        ),
    ] = None,
    valid_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="F",
            show_default=str(preparation.VALIDATION_SHARE),
            help="Share of DATA, of each class, held out for validation, 0 < F < 1.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print config.json and the extreme examples as JSON, and nothing else.")
    ] = False,
) -> None:
    """Train on DATA with Adam, and say which training examples helped and which hurt.

    A positive score means that the example lowered the loss on the validation examples: one fifth of each class, held
    out, unless --valid or --valid-fraction says otherwise. Features, and the targets of a regression, are standardised.

    Writes scores.csv, scores.npz and config.json, and examples.png where examples are images.
    """
    if not 0 <= flip_labels < 1:
        raise CommandError(f"--flip-labels: got {flip_labels}; needs a share of at least 0 and less than 1")
    if valid_fraction is not None and not 0 < valid_fraction < 1:
        raise CommandError(f"--valid-fraction: got {valid_fraction}; needs a share between 0 and 1")
    if valid is not None and valid_fraction is not None:
        raise CommandError("--valid-fraction: got it with --valid; needs one of the two")
    options = Options(
        data,
        _widths(hidden),
        epochs,
        batch_size,
        lr,
        slope,
        gradient,
        flip_labels,
        seed,
        label,
        task,
        valid,
        valid_fraction,
    )
    console = Console(quiet=as_json)
    dataset = datasets.load(data, label, task)
    if flip_labels and dataset.task == "regression":
        raise CommandError(f"--flip-labels: got {flip_labels} for a regression; needs classes")
    judge = None if valid is None else datasets.load_valid(valid, label, dataset)
    target = results.choose(out, dataset.name)
    share = preparation.VALIDATION_SHARE if valid_fraction is None else valid_fraction
    prepared = preparation.prepare(dataset, flip=flip_labels, seed=seed, share=share, valid=judge)
    trainer = trainers.installed_trainer()
    report.announce(console, options, dataset, prepared, trainer.description)
    with report.progress_bar(console, epochs) as on_step:
        findings = training.train(options, dataset, prepared, trainer, on_step)
    folder, notes = results.write(target, findings)
    if as_json:
        found = {"folder": str(folder), "notes": notes, **results.config(findings)}
        print(results.as_json(found | results.extremes(findings, report.EXAMPLES)))
    else:
        report.show(console, findings, folder, notes)


def _widths(hidden: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(width) for width in hidden.split(",")) if hidden.strip() else ()
    except ValueError:
        widths = (0,)
    if any(width < 1 for width in widths):
        raise CommandError(f"--hidden: got {hidden!r}; needs whole numbers of at least 1, separated by commas: 64,64")
    return widths
