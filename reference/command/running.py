"""A run of ``adamshap attribute`` from its options to its results, and its resumption."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from adamshap.reference.command import (
    datasets,
    folder,
    images,
    per_validation,
    preparation,
    report,
    results,
    sources,
    text_data,
    training,
)
from adamshap.reference.command.checkpointing import Checkpointer
from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.errors import INTERRUPTED, TRACEBACKS, TRAINING_DIVERGED, CommandError, one_line
from adamshap.reference.command.folder import RunFolder, SavedRun
from adamshap.reference.command.job import Device, Options
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.sources import absolute
from adamshap.reference.command.trainers import Trainer
from adamshap.reference.contract import Diverged, Progress, Snapshot


def start(console: Console, options: Options, trainer: Trainer, out: Path | None, seconds: float, top: int) -> None:
    """Train and attribute by `options`, and write a new folder: `out`, or one named after the data.

    The time between checkpoints is `seconds`; `top` examples are shown in each list.

    Raises
    ------
    CommandError
        Bad data, a folder that cannot be written, a run that diverged or was interrupted.
    """
    trainer = trainer.on(options.device)
    dataset, prepared, config = prepared_run(options)
    target = results.choose_folder(out, dataset.name)
    path = results.create_folder(target, config, results.columns_of(prepared, None, config), prepared.in_file)
    prepared = replace(prepared, in_file=None, valid_in_file=None)  # the former is in the folder now
    run_folder = folder.open_to_write(path, trainer.description)
    checkpointer = Checkpointer(run_folder, prepared, seconds)
    try:
        with one_line(path):
            _run(console, options, dataset, prepared, trainer, checkpointer, None, top)
    except BaseException:
        # It failed before the first step: nothing to keep.
        if not (checkpointer.steps_completed or folder.results_of(path) is not None or (path / TRACEBACKS).exists()):
            folder.discard(path)
        raise
    finally:
        run_folder.close()


def resume(
    console: Console,
    path: Path,
    trainer: Trainer,
    seconds: float,
    top: int,
    device: Device | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> None:
    """Continue the run in the folder `path` to its end, on `device` or on the one that its options name.

    It is silent if `on_step`, called after each step, is given.

    Raises
    ------
    CommandError
        It is not a run's folder, its data has changed, or as for `start`.
    """
    path = Path(os.path.abspath(path))
    trainer = trainer.on(options_of(path, folder.config_of(path)).device if device is None else device)
    run_folder = folder.open_to_write(path, trainer.description)
    try:
        with one_line(path):
            _resume_locked(run_folder, console, trainer, seconds, top, on_step)
    finally:
        run_folder.close()


def _resume_locked(
    run_folder: RunFolder,
    console: Console,
    trainer: Trainer,
    seconds: float,
    top: int,
    on_step: Callable[[Progress], None] | None,
) -> None:
    path = run_folder.path
    if folder.results_of(path) is not None and folder.is_whole(path):
        console.print(f"{path}: this run has ended; nothing to resume", markup=False, soft_wrap=True)
        if console.quiet and on_step is None:
            print(results.as_json(results.summary(folder.read(path), top) | {"notes": []}))
        return
    options = options_of(path, run_folder.config)
    dataset, prepared = prepared_again(options, run_folder.config, "--resume")
    with _writing(run_folder):
        run_folder.mend_rows(prepared.in_file)
    snapshot, problems = run_folder.newest()
    for problem in problems:
        run_folder.note(problem)
        print(f"adamshap: {problem}; using an older checkpoint", file=sys.stderr)
    run_folder.note("resumed from " + ("the beginning" if snapshot is None else f"step {int(snapshot['step'])}"))
    checkpointer = Checkpointer(run_folder, prepared, seconds)
    _run(console, options, dataset, prepared, trainer, checkpointer, snapshot, top, on_step)


def prepared_again(options: Options, recorded: Mapping[str, Any], argument: str) -> tuple[Dataset, Prepared]:
    """Return the data of a run again, prepared as it was; `recorded` is the run's config.

    Raises
    ------
    CommandError
        The data has changed; the message begins with `argument`.
    """
    dataset, prepared, config = prepared_run(options)
    # The options are the run's own, and a newer version may have more of them, at their defaults.
    changed = [name for name in config if not _agrees(recorded.get(name), config[name])]
    if changed:
        files = " or ".join(repr(file) for file in (options.data, *options.more, options.valid) if file is not None)
        raise CommandError(
            f"{argument}: {files} has changed since the run started ({', '.join(changed)}); needs the same data"
        )
    return dataset, prepared


def _agrees(recorded: Any, now: Any) -> bool:
    """Return whether a part of a run's config is as it was, apart from keys that an older version did not record."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        return all(name in now and _agrees(value, now[name]) for name, value in recorded.items())
    return bool(recorded == now)


def prepared_run(options: Options) -> tuple[Dataset, Prepared, dict[str, Any]]:
    """Return the data of a run, read and prepared, and the content of its ``config.json``."""
    dataset, prepared = _of_text(options) if options.model == "transformer" else _of_table(options)
    if options.per_validation:
        steps = options.length(prepared.train.n)[1]
        per_validation.check_size(
            prepared.train.n, prepared.valid.n, steps, options.batch_size, from_file=options.valid is not None
        )
    network, _ = training.plan(options, dataset, prepared.train.n)
    placed = replace(
        options,
        data=absolute(options.data),
        more=tuple(map(absolute, options.more)),
        valid=options.valid and absolute(options.valid),
    )
    return dataset, prepared, results.config_of(placed, dataset, prepared, network)


def _of_text(options: Options) -> tuple[Dataset, Prepared]:
    dataset, valid = text_data.load(options)
    asked: Any = {"seed": options.seed, "share": _share(options), "limit": options.valid_limit}
    prepared = text_data.prepare(dataset, **asked, valid=valid)
    notes = (*dataset.notes, *(() if valid is None else valid.notes))
    return replace(dataset, in_file=None, notes=notes), prepared


def _share(options: Options) -> float:
    return preparation.VALIDATION_SHARE if options.valid_fraction is None else options.valid_fraction


def _of_table(options: Options) -> tuple[Dataset, Prepared]:
    dataset = datasets.load(options.data, options.label, options.task, options.reading, held_out=options.valid is None)
    if options.flip_labels and dataset.task == "regression":
        raise CommandError(f"--flip-labels: got {options.flip_labels} for a regression; needs classes")
    valid = None
    if options.valid is not None:
        valid = datasets.load_valid(options.valid, options.label, dataset, options.reading)
    asked: Any = {
        "flip": options.flip_labels,
        "seed": options.seed,
        "share": _share(options),
        "limit": options.valid_limit,
    }
    asked |= {"valid": valid, "as_images": options.model == "convnet" and dataset.image_shape is not None}
    prepared = preparation.prepare(dataset, **asked)
    if valid is None and options.missing == "mean":
        dataset = datasets.refilled(dataset, prepared.train_index)
        prepared = preparation.prepare(dataset, **asked)  # the same split
    prepared = _numbered_as_in_files(prepared, dataset, valid)
    dataset = replace(dataset, in_file=None)  # `prepared` has the rows that are trained on
    if valid is not None:
        dataset = replace(dataset, notes=(*dataset.notes, *valid.notes))
    return dataset, prepared


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
    top: int,
    silent_step: Callable[[Progress], None] | None = None,
) -> None:
    run_folder = checkpointer.run_folder
    if silent_step is None:
        report.announce(console, options, dataset, prepared, trainer.description)
    shown = report.progress_bar(console, options.length(prepared.train.n)[0], trainer.slow_start)
    try:
        with shown if silent_step is None else nullcontext(silent_step) as on_step:
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
    saved = folder.read(run_folder.path)
    notes: list[str] = []
    if dataset.image_shape is not None and images.is_drawable(dataset.image_shape):
        drawn = images.Images(dataset.x, dataset.image_shape, sources.greys_of(options.data))
        notes = results.write_pictures(saved, drawn, top)
    if silent_step is None:
        _show(console, saved, top, notes)


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


def _show(console: Console, saved: SavedRun, top: int, notes: list[str]) -> None:
    report.show(console, saved, top, notes)
    if console.quiet:
        print(results.as_json(results.summary(saved, top) | {"notes": notes}))


def options_of(path: Path, config: Mapping[str, Any], argument: str = "--resume") -> Options:
    """Return the options in the config of a run; the error names its folder, `path`, and begins with `argument`.

    Raises
    ------
    CommandError
        An option is missing or unknown.
    """
    try:
        return Options.from_config(config["options"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CommandError(
            f"{argument}: {str(path / folder.CONFIG)!r} has other options than this version; needs the version of"
            f" adamshap that {folder.ENVIRONMENT} names"
        ) from error
