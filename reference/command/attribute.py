"""``adamshap attribute``: train on labelled data with Adam, and show which training examples helped and which hurt."""

from dataclasses import replace
from typing import Any

import typer
from rich.console import Console

from adamshap.reference.command import networks, running, seed_runs, sources, texts, trainers, weightings
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.examples import TOP
from adamshap.reference.command.job import Options
from adamshap.reference.command.optimisers import betas_of
from adamshap.reference.command.options import data as of_data
from adamshap.reference.command.options import output as of_output
from adamshap.reference.command.options import scores as of_scores
from adamshap.reference.command.options import training as of_training
from adamshap.reference.command.preparation import VALIDATION_LIMIT
from adamshap.reference.command.seeds import are_in as are_seeds_in

WITH_RESUME = ("resume", "checkpoint_seconds", "top", "as_json", "device")
"""Options that may be given with --resume: they change no number, except for the last digits on another device."""


def attribute_command(
    context: typer.Context,
    data: of_data.Data = None,
    model: of_training.Model = None,
    hidden: of_training.Hidden = None,
    width: of_training.Width = None,
    depth: of_training.Depth = None,
    heads: of_training.Heads = None,
    context_length: of_training.Context = None,
    examples: of_data.Examples = None,
    tokens: of_data.Tokens = None,
    activation: of_training.Activation = None,
    epochs: of_training.Epochs = None,
    steps: of_training.Steps = None,
    batch_size: of_training.BatchSize = 32,
    lr: of_training.Lr = 0.001,
    betas: of_training.Betas = "0.9,0.999",
    eps: of_training.Eps = 1e-8,
    weight_decay: of_training.WeightDecay = 0.0,
    schedule: of_training.Schedule = "constant",
    warmup: of_training.Warmup = 0,
    device: of_training.Device = "auto",
    slope: of_scores.Slope = "random_order",
    kind: of_scores.Kind = "shapley",
    gradient: of_scores.Gradient = "midpoint",
    credit: of_scores.Credit = "step",
    weighting: of_scores.Weighting = None,
    per_validation: of_scores.PerValidation = False,
    flip_labels: of_data.FlipLabels = 0.0,
    seed: of_training.Seed = 0,
    seeds: of_training.Seeds = 1,
    out: of_output.Out = None,
    label: of_data.Label = None,
    task: of_data.Task = "auto",
    valid: of_data.Valid = None,
    valid_fraction: of_data.ValidFraction = None,
    valid_limit: of_data.ValidLimit = None,
    one_hot: of_data.OneHot = None,
    id_column: of_data.Id = None,
    drop: of_data.Drop = None,
    missing: of_data.Missing = None,
    group: of_data.Group = None,
    sep: of_data.Sep = None,
    decimal: of_data.Decimal = None,
    top: of_output.Top = TOP,
    as_json: of_output.AsJson = False,
    resume: of_output.Resume = None,
    checkpoint_seconds: of_output.CheckpointSeconds = 60.0,
) -> None:
    """Train on DATA with Adam, and show which training examples helped and which hurt.

    A positive score means that the example lowered the loss on the validation examples: one fifth of each class, held
    out, but at most 500 in all, unless --valid or --valid-fraction says otherwise. Features, and the targets of a
    regression, are standardised.

    Writes a folder with scores.csv, scores.npz, config.json, results.json, a log and checkpoints, and examples.png
    where examples are images. Ctrl-C saves the run; --resume continues it and gives the same numbers.
    """
    console = Console(quiet=as_json)
    trainer = trainers.installed_trainer()
    if resume is not None:
        _refuse_other_options(context)
        other = device if _is_given(context, "device") else None
        if are_seeds_in(resume):
            seed_runs.resume(console, resume, checkpoint_seconds, top, other)
        else:
            running.resume(console, resume, trainer, checkpoint_seconds, top, other)
        return
    if not data:
        raise CommandError(f"DATA: got nothing; needs a data set (see '{context.command_path} --help')")
    if model is None:
        model = "transformer" if texts.is_text(data) else "mlp"
    texts.check(data, model)
    if not 0 <= flip_labels < 1:
        raise CommandError(f"--flip-labels: got {flip_labels}; needs a share of at least 0 and less than 1")
    if epochs is not None and steps is not None:
        raise CommandError(f"--steps: got {steps} with --epochs {epochs}; needs one of the two")
    if valid_fraction is not None and not 0 < valid_fraction < 1:
        raise CommandError(f"--valid-fraction: got {valid_fraction}; needs a share between 0 and 1")
    for option, value in (("--valid-fraction", valid_fraction), ("--valid-limit", valid_limit)):
        if valid is not None and value is not None:
            raise CommandError(f"{option}: got {value} with --valid; needs one of the two")
    if valid is None and valid_fraction is None and valid_limit is None:
        valid_limit = VALIDATION_LIMIT
    if per_validation and credit != "step":
        raise CommandError(
            f"--per-validation: got it with --credit {credit}; needs --credit step, or instead adamshap show DIR"
            " --explain K: each validation example needs a training of its own"
        )
    given: dict[str, Any] = {
        "hidden": _widths(hidden),
        "width": width,
        "depth": depth,
        "activation": activation,
        "heads": heads,
    }
    given |= {"context": context_length, "examples": examples, "tokens": tokens}
    if model == "transformer" and group is None:
        group = "folder" if examples == "document" else "file"
    options = Options(
        data=data[0],
        more=tuple(data[1:]),
        **{"hidden": (), "model": model} | networks.options_of(model, given),
        epochs=of_training.EPOCHS if epochs is None and steps is None else epochs,
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
        weighting=weightings.chosen(weighting, credit),
        kind=kind,
        sep=_separator(sep),
        decimal=decimal,
        one_hot=tuple(one_hot or ()),
        drop=tuple(drop or ()),
        missing=missing,
        valid_limit=valid_limit,
        id=id_column,
        betas=betas_of(betas),
        eps=eps,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        device=device,
        group=group,
        per_validation=per_validation,
    )
    # The groups of a text are its files.
    reading = replace(options.reading, group=None) if model == "transformer" else options.reading
    sources.check_options([file for file in (*data, valid) if file is not None], label, reading)
    if seeds > 1:
        seed_runs.start(console, options, seeds, trainer, out, checkpoint_seconds, top)
    else:
        running.start(console, options, trainer, out, checkpoint_seconds, top)


def _refuse_other_options(context: typer.Context) -> None:
    """Refuse options that the run's config already holds."""
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in WITH_RESUME and _is_given(context, name):
            what = "DATA" if name == "data" else parameter.opts[0]
            raise CommandError(f"{what}: got a value with --resume; needs none, as the run has its own")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _widths(hidden: str | None) -> tuple[int, ...] | None:
    if hidden is None:
        return None
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
