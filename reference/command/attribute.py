"""``adamshap attribute``: train on labelled data with Adam, and show which training examples helped and which hurt."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from adamshap.reference.command import datasets, folder, preparation, report, results, sources, trainers, training
from adamshap.reference.command.checkpointing import Checkpointer
from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.errors import INTERRUPTED, TRACEBACKS, TRAINING_DIVERGED, CommandError, one_line
from adamshap.reference.command.folder import RunFolder
from adamshap.reference.command.job import Findings, Options
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.sources import absolute
from adamshap.reference.command.spelling import Decimal
from adamshap.reference.command.table import Missing
from adamshap.reference.command.trainers import Trainer
from adamshap.reference.contract import Credit, Diverged, Gradient, MarginalKind, ScoreSlope, Snapshot

EPOCHS = 5
"""The default where neither --epochs nor --steps is given."""

DATA_PANEL, TRAINING_PANEL, SCORES_PANEL, OUTPUT_PANEL = "Data", "Training", "Scores", "Results"

ONLY_OF_THIS_PROCESS = ("resume", "checkpoint_seconds", "as_json")
"""Options that are not part of a run's config, and may be given with --resume."""


def attribute_command(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            show_default=False,
            help="digits, breast_cancer, wine or diabetes; or a file: .npz with the arrays x and y (x may be images);"
            " .csv or .tsv with a header, or .parquet, with a label column and numbers; or two, x.npy,y.npy.",
        ),
    ] = None,
    hidden: Annotated[
        str,
        typer.Option(
            rich_help_panel=TRAINING_PANEL,
            metavar="WIDTHS",
            help="Widths of the hidden layers (tanh), separated by commas; empty for none.",
        ),
    ] = "64,64",
    epochs: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=TRAINING_PANEL,
            metavar="N",
            min=1,
            show_default=str(EPOCHS),
            help="How often every training example is seen.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=TRAINING_PANEL,
            metavar="N",
            min=1,
            show_default="of all epochs",
            help="Number of training steps, instead of epochs.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(rich_help_panel=TRAINING_PANEL, metavar="N", min=1, help="Examples in a training step.")
    ] = 32,
    lr: Annotated[
        float, typer.Option(rich_help_panel=TRAINING_PANEL, metavar="RATE", help="Adam's learning rate.")
    ] = 0.001,
    slope: Annotated[
        ScoreSlope,
        typer.Option(
            rich_help_panel=SCORES_PANEL,
            metavar="SLOPE",
            help="How the score follows Adam's update: sgd, frozen, linearized, tangent, secant, random_order or"
            " two_term. The last two are the closest to the Shapley value; two_term is closer in the first steps, and"
            " more expensive.",
        ),
    ] = "random_order",
    kind: Annotated[
        MarginalKind,
        typer.Option(
            rich_help_panel=SCORES_PANEL,
            metavar="KIND",
            help="What the slope two_term is made for: first, an example alone; last, leaving it out of its batch; or"
            " shapley.",
        ),
    ] = "shapley",
    gradient: Annotated[
        Gradient,
        typer.Option(
            rich_help_panel=SCORES_PANEL,
            metavar="PLACE",
            help="Where on the step the validation gradient is taken: start, midpoint or path.",
        ),
    ] = "midpoint",
    credit: Annotated[
        Credit,
        typer.Option(
            rich_help_panel=SCORES_PANEL,
            metavar="CREDIT",
            help="Who is credited with the part of a step that momentum takes: step, nobody; carry, the earlier"
            " examples that the momentum comes from, so that scores add up to the whole change of the validation loss.",
        ),
    ] = "step",
    flip_labels: Annotated[
        float,
        typer.Option(
            rich_help_panel=DATA_PANEL,
            metavar="F",
            help="Give this share of the training labels, 0 <= F < 1, another class; see if low scores find them.",
        ),
    ] = 0.0,
    seed: Annotated[
        int,
        typer.Option(
            rich_help_panel=TRAINING_PANEL,
            metavar="N",
            min=0,
            help="Seed for the split, the label flips, the initialisation and the batch order.",
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT_PANEL,
            metavar="DIR",
            show_default="adamshap-DATA, or the next free number",
            help="Folder for the results; new or empty.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA_PANEL,
            metavar="COLUMN",
            show_default="label",
            help="The label or target column of a .csv, .tsv or .parquet.",
        ),
    ] = None,
    task: Annotated[
        datasets.TaskChoice,
        typer.Option(
            rich_help_panel=DATA_PANEL,
            metavar="TASK",
            help="What labels are: classification, regression or auto: then text is classes, fractions in a y (N, k)"
            " are quantities, and numbers are classes, unless they look like quantities: then you are asked to say.",
        ),
    ] = "auto",
    valid: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA_PANEL,
            metavar="FILE",
            show_default="held out from DATA",
            help="Examples to validate on, in a form that DATA may have; all of DATA is trained on.",
        ),
    ] = None,
    valid_fraction: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=DATA_PANEL,
            metavar="F",
            show_default=str(preparation.VALIDATION_SHARE),
            help="Share of DATA, of each class, held out for validation, 0 < F < 1.",
        ),
    ] = None,
    one_hot: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=DATA_PANEL,
            metavar="COLUMN",
            show_default="none",
            help="A column of categories in a .csv, .tsv or .parquet: each becomes a feature COLUMN=CATEGORY of 0 and"
            " 1. May be given more than once.",
        ),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=DATA_PANEL,
            metavar="COLUMN",
            show_default="none",
            help="A column of a .csv, .tsv or .parquet to leave out. May be given more than once.",
        ),
    ] = None,
    missing: Annotated[
        Missing | None,
        typer.Option(
            rich_help_panel=DATA_PANEL,
            metavar="HOW",
            show_default="refused",
            help="Missing values in a .csv, .tsv or .parquet: mean fills in the column's mean over the training"
            " examples, drop leaves the row out.",
        ),
    ] = None,
    sep: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=DATA_PANEL,
            metavar="CHARACTER",
            show_default="recognised",
            help="What separates the columns of a .csv or .tsv; tab for a tab.",
        ),
    ] = None,
    decimal: Annotated[
        Decimal | None,
        typer.Option(
            rich_help_panel=DATA_PANEL,
            metavar="MARK",
            show_default="recognised",
            help="The decimal mark of the numbers in a .csv or .tsv: . or ,",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=OUTPUT_PANEL,
            help="Print one JSON object and nothing else: config, results, extreme examples.",
        ),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT_PANEL,
            metavar="DIR",
            help="Go on with the run in this folder, which was interrupted; no DATA.",
        ),
    ] = None,
    checkpoint_seconds: Annotated[
        float,
        typer.Option(
            rich_help_panel=OUTPUT_PANEL,
            min=0,
            metavar="S",
            help="Time between two checkpoints, from which a run can go on.",
        ),
    ] = 60.0,
) -> None:
    """Train on DATA with Adam, and show which training examples helped and which hurt.

    A positive score means that the example lowered the loss on the validation examples: one fifth of each class, held
    out, unless --valid or --valid-fraction says otherwise. Features, and the targets of a regression, are standardised.

    Writes a folder with scores.csv, scores.npz, config.json, results.json, a log and checkpoints, and examples.png
    where examples are images. Ctrl-C saves the run; --resume continues it and gives the same numbers.
    """
    console = Console(quiet=as_json)
    trainer = trainers.installed_trainer()
    if resume is not None:
        _refuse_other_options(context)
        _resume(console, resume, trainer, checkpoint_seconds)
        return
    if data is None:
        raise CommandError(f"DATA: got nothing; needs a data set (see '{context.command_path} --help')")
    if not 0 <= flip_labels < 1:
        raise CommandError(f"--flip-labels: got {flip_labels}; needs a share of at least 0 and less than 1")
    if epochs is not None and steps is not None:
        raise CommandError(f"--steps: got {steps} with --epochs {epochs}; needs one of the two")
    if valid_fraction is not None and not 0 < valid_fraction < 1:
        raise CommandError(f"--valid-fraction: got {valid_fraction}; needs a share between 0 and 1")
    if valid is not None and valid_fraction is not None:
        raise CommandError("--valid-fraction: got it with --valid; needs one of the two")
    options = Options(
        data=data,
        hidden=_widths(hidden),
        epochs=EPOCHS if epochs is None and steps is None else epochs,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        slope=slope,
        gradient=gradient,
        flip_labels=flip_labels,
        seed=seed,
        label=label,
        task=task,
        valid=valid,
        valid_fraction=valid_fraction,
        credit=credit,
        kind=kind,
        sep=_separator(sep),
        decimal=decimal,
        one_hot=tuple(one_hot or ()),
        drop=tuple(drop or ()),
        missing=missing,
    )
    sources.check_options([file for file in (data, valid) if file is not None], label, options.reading)
    dataset, prepared, config = _prepared(options)
    target = results.choose_folder(out, dataset.name)
    path = results.create_folder(target, config, results.columns_of(prepared, None))
    run_folder = folder.open_to_write(path, trainer.description)
    checkpointer = Checkpointer(run_folder, prepared, checkpoint_seconds)
    try:
        with one_line(path):
            _run(console, options, dataset, prepared, trainer, checkpointer, None)
    except BaseException:
        # It failed before the first step: nothing to keep.
        if not (checkpointer.steps_completed or folder.results_of(path) is not None or (path / TRACEBACKS).exists()):
            folder.discard(path)
        raise
    finally:
        run_folder.close()


def _resume(console: Console, path: Path, trainer: Trainer, seconds: float) -> None:
    path = Path(os.path.abspath(path))
    run_folder = folder.open_to_write(path, trainer.description)
    try:
        with one_line(path):
            _resume_locked(run_folder, console, trainer, seconds)
    finally:
        run_folder.close()


def _resume_locked(run_folder: RunFolder, console: Console, trainer: Trainer, seconds: float) -> None:
    path = run_folder.path
    if folder.results_of(path) is not None:
        console.print(f"{path}: this run has ended; nothing to resume", markup=False, soft_wrap=True)
        if console.quiet:
            print(results.as_json(results.summary(folder.read(path), report.EXAMPLES) | {"notes": []}))
        return
    options = _options(path, run_folder.config)
    dataset, prepared, config = _prepared(options)
    changed = [name for name in config if run_folder.config.get(name) != config[name]]
    if changed:
        raise CommandError(
            f"--resume: {options.data!r} has changed since the run started ({', '.join(changed)}); needs the same data"
        )
    snapshot, problems = run_folder.newest()
    for problem in problems:
        run_folder.note(problem)
        print(f"adamshap: {problem}; using an older checkpoint", file=sys.stderr)
    run_folder.note("resumed from " + ("the beginning" if snapshot is None else f"step {int(snapshot['step'])}"))
    _run(console, options, dataset, prepared, trainer, Checkpointer(run_folder, prepared, seconds), snapshot)


def _prepared(options: Options) -> tuple[Dataset, Prepared, dict[str, Any]]:
    dataset = datasets.load(options.data, options.label, options.task, options.reading, held_out=options.valid is None)
    if options.flip_labels and dataset.task == "regression":
        raise CommandError(f"--flip-labels: got {options.flip_labels} for a regression; needs classes")
    valid = None
    if options.valid is not None:
        valid = datasets.load_valid(options.valid, options.label, dataset, options.reading)
    share = preparation.VALIDATION_SHARE if options.valid_fraction is None else options.valid_fraction
    asked: Any = {"flip": options.flip_labels, "seed": options.seed, "share": share, "valid": valid}
    prepared = preparation.prepare(dataset, **asked)
    if valid is None and options.missing == "mean":
        dataset = datasets.refilled(dataset, prepared.train_index)
        prepared = preparation.prepare(dataset, **asked)  # the same split
    prepared = _numbered_as_in_files(prepared, dataset, valid)
    if valid is not None:
        dataset = replace(dataset, notes=(*dataset.notes, *valid.notes))
    network, _ = training.plan(options, dataset)
    placed = replace(options, data=absolute(options.data), valid=options.valid and absolute(options.valid))
    return dataset, prepared, results.config_of(placed, dataset, prepared, network)


def _numbered_as_in_files(prepared: Prepared, dataset: Dataset, valid: Dataset | None) -> Prepared:
    """Return `prepared` with row numbers of the files, which count the rows that were left out."""
    train_index, valid_index = (
        index if part.rows is None else part.rows[index]
        for part, index in ((dataset, prepared.train_index), (valid or dataset, prepared.valid_index))
    )
    return replace(prepared, train_index=train_index, valid_index=valid_index)


def _run(
    console: Console,
    options: Options,
    dataset: Dataset,
    prepared: Prepared,
    trainer: Trainer,
    checkpointer: Checkpointer,
    resume: Snapshot | None,
) -> None:
    run_folder = checkpointer.run_folder
    report.announce(console, options, dataset, prepared, trainer.description)
    try:
        with report.progress_bar(console, options.length(prepared.train.n)[0]) as on_step:
            findings = training.train(options, dataset, prepared, trainer, on_step, checkpointer, resume)
        with _writing(run_folder):
            results.write(run_folder, findings)
    except Diverged as error:
        run_folder.note(str(error))
        with _writing(run_folder):
            results.write_diverged(run_folder, dataset, prepared, error)
        raise CommandError(
            f"training diverged: {error}; the scores of the earlier steps are in {run_folder.path}", TRAINING_DIVERGED
        ) from error
    except KeyboardInterrupt:
        if not checkpointer.steps_completed and resume is None:
            raise
        raise CommandError(f"interrupted; to resume: {folder.resume_hint(run_folder.path)}", INTERRUPTED) from None
    run_folder.note("finished")
    _show(console, run_folder, findings, results.write_picture(run_folder, findings))


@contextmanager
def _writing(run_folder: RunFolder) -> Iterator[None]:
    """Turn a failure to write the results into one line; the newest checkpoint has all of them."""
    try:
        yield
    except OSError as error:
        hint = folder.resume_hint(run_folder.path)
        raise CommandError(
            f"cannot write to {str(run_folder.path)!r}: {error.strerror or error}; to resume: {hint}"
        ) from error


def _show(console: Console, run_folder: RunFolder, findings: Findings, notes: list[str]) -> None:
    report.show(console, findings, run_folder.path, notes)
    if console.quiet:
        print(results.as_json(results.summary(folder.read(run_folder.path), report.EXAMPLES) | {"notes": notes}))


def _refuse_other_options(context: typer.Context) -> None:
    """Refuse options that the run's config already holds."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in ONLY_OF_THIS_PROCESS and source is not None and source.name == "COMMANDLINE":
            what = "DATA" if name == "data" else "--" + name.replace("_", "-")
            raise CommandError(f"{what}: got a value with --resume; needs none, as the run has its own")


def _options(path: Path, config: Mapping[str, Any]) -> Options:
    try:
        given = config["options"]
        return Options(**given | {name: tuple(given[name]) for name in ("hidden", "one_hot", "drop")})
    except (KeyError, TypeError) as error:
        raise CommandError(f"--resume: {str(path / folder.CONFIG)!r} lacks the options of this version") from error


def _widths(hidden: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(width) for width in hidden.split(",")) if hidden.strip() else ()
    except ValueError:
        widths = (0,)
    if any(width < 1 for width in widths):
        raise CommandError(f"--hidden: got {hidden!r}; needs whole numbers of at least 1, separated by commas: 64,64")
    return widths


def _separator(sep: str | None) -> str | None:
    if sep is None:
        return None
    character = {"tab": "\t", "\\t": "\t", "space": " "}.get(sep, sep)
    if len(character) != 1 or character in '"\r\n\0':
        raise CommandError(f"--sep: got {sep!r}; needs one character, such as ';', or tab")
    return character
