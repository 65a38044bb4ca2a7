"""Writes the folder of a run: its config at the start, the scores and results at the end."""

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adamshap.reference import checkpoint
from adamshap.reference.command import folder, group_pictures, pictures
from adamshap.reference.command.datasets import Dataset, label_names
from adamshap.reference.command.errors import CommandError, why_no_picture
from adamshap.reference.command.file_rows import FileRows
from adamshap.reference.command.folder import DIVERGED, FINISHED, RESULTS, RunFolder, SavedRun
from adamshap.reference.command.groups import scores_of_groups
from adamshap.reference.command.images import Images
from adamshap.reference.command.job import Findings, Options
from adamshap.reference.command.per_validation import FILE as PER_VALIDATION
from adamshap.reference.command.per_validation import losses_of, mean_over
from adamshap.reference.command.preparation import VALIDATION_SHARE, Prepared
from adamshap.reference.command.roc import detection_of
from adamshap.reference.command.weightings import scores_of
from adamshap.reference.contract import Array, Diverged, Network, Run, Sequential, Snapshot, checksum

T = TypeVar("T")

PICTURE = "examples.png"
PICTURE_OF_GROUPS = "groups.png"
HARDEST = 5
"""Validation examples that the results name: those with the highest loss."""
COLUMNS = ("index", "label", "flipped", "score", "sgd_score", "seen", "total")


def choose_folder(out: Path | None, name: str) -> Path:
    """Return the folder to write to: `out`, or the first of ``adamshap-NAME``, ``-2``, ... that does not exist yet.

    Raises
    ------
    CommandError
        The folder cannot be created, or is not empty.
    """
    # realpath, not resolve: it returns a loop of links unchanged, which is refused below because it exists.
    target = _free(Path.cwd() / f"adamshap-{name}") if out is None else Path(os.path.realpath(out))
    try:
        if out is not None and os.path.lexists(target):
            if not target.is_dir() or any(target.iterdir()):
                raise CommandError(f"--out: got {str(out)!r}, which exists; needs a new or empty folder")
            if target == Path.cwd() or target.is_mount():
                raise CommandError(
                    f"--out: got {str(out)!r}; needs a folder that can be replaced, such as one inside it"
                )
        if not target.parent.is_dir():
            raise CommandError(
                f"--out: got {str(out)!r}, but {str(target.parent)!r} is not a folder; needs an existing one"
            )
        # Errors from the name itself, or from creating a folder beside it, must show before the training.
        with suppress(FileNotFoundError):
            target.lstat()
        _temporary(target).rmdir()
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def create_folder(
    target: Path, config: dict[str, Any], columns: dict[str, Array], in_file: FileRows | None = None
) -> Path:
    """Create the folder of a new run, completely or not at all, and return it.

    It is `target`, or a new name beside it if `target` has been taken meanwhile.
    """
    return write_folder(target, lambda temporary: folder.create(temporary, config, columns, in_file))[0]


def write_folder(target: Path, fill: Callable[[Path], T]) -> tuple[Path, T]:
    """Let `fill` write to a temporary folder, move that to `target`, and return the final path and fill's result.

    The path is `target`, or a new name beside it if `target` has been taken meanwhile.
    """
    try:
        temporary = _temporary(target)
        try:
            result = fill(temporary)
            return _move(temporary, target), result
        except BaseException:  # not even an interrupt may leave the temporary folder behind
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise _unwritable(target, error) from error


def write(run_folder: RunFolder, findings: Findings) -> None:
    """Write the results of `findings` to the run's folder, except the picture."""
    run = findings.run
    columns = columns_of(findings.prepared, run, run_folder.config)
    _write_scores(run_folder, findings.dataset, columns, run.state.step)
    losses = losses_of(findings.network, run.params, findings.prepared.valid)
    if findings.options.per_validation:
        _write_per_validation(run_folder, findings, losses)
    detection = detection_of(columns)
    _write_end(
        run_folder,
        {
            "status": FINISHED,
            "step": run.state.step,
            "before": asdict(findings.before),
            "after": asdict(findings.after),
            "hardest": [
                {"index": int(findings.prepared.valid_index[place]), "loss": float(losses[place])}
                for place in np.argsort(-losses, kind="stable")[:HARDEST]
            ],
            "flip_detection_roc_auc": None if detection is None else asdict(detection),
            "seconds": findings.seconds,
        },
    )


def _write_per_validation(run_folder: RunFolder, findings: Findings, losses: Array) -> None:
    run, prepared = findings.run, findings.prepared
    score, sgd_score = scores_of(run, run_folder.config)
    arrays = {"score": score, "sgd_score": sgd_score, "total": run.scores}
    arrays |= {"index": prepared.train_index, "validation_index": prepared.valid_index}
    arrays |= {"loss_before": losses_of(findings.network, run.initial_params, prepared.valid), "loss_after": losses}
    checkpoint.write(run_folder.path / PER_VALIDATION, arrays, run_folder.owner)


def write_pictures(saved: SavedRun, shown: Images, top: int) -> list[str]:
    """Write pictures of the `top` examples of each list and of their groups, and return messages for the user.

    The results are already written, so a picture that cannot be drawn only costs a message.
    """
    notes = _write_picture(saved.folder, PICTURE, lambda: pictures.draw(saved, shown, top))
    by_group = scores_of_groups(saved)
    if by_group is not None:
        notes += _write_picture(saved.folder, PICTURE_OF_GROUPS, lambda: group_pictures.draw(saved, shown, by_group))
    return notes


def _write_picture(path: Path, name: str, draw: Callable[[], bytes]) -> list[str]:
    try:
        picture = draw()
    except Exception as error:  # matplotlib's settings, fonts and cache are beyond our control
        return [f"No {name}: {why_no_picture(error, path)}"]
    try:
        checkpoint.write_whole(path / name, picture)
    except OSError as error:
        return [f"No {name}: cannot write it ({error.strerror or error})"]
    return []


def write_diverged(run_folder: RunFolder, dataset: Dataset, prepared: Prepared, error: Diverged) -> None:
    """Write the results of a run up to the step at which it diverged."""
    done = error.step - 1
    _write_scores(
        run_folder, dataset, columns_of(prepared, error.run, run_folder.config), len(error.run.history["epoch"])
    )
    _write_end(run_folder, {"status": DIVERGED, "step": done, "tensor": error.tensor, "message": str(error)})


def _write_scores(run_folder: RunFolder, dataset: Dataset, columns: dict[str, Array], step: int) -> None:
    run_folder.write_scores(columns, step)
    names = label_names(columns["label"], dataset.classes)
    checkpoint.write_whole(run_folder.path / "scores.csv", csv_of(columns, names, run_folder.in_file()).encode())


def _write_end(run_folder: RunFolder, results: dict[str, Any]) -> None:
    checkpoint.write_whole(run_folder.path / RESULTS, (as_json(results) + "\n").encode())


def _free(wanted: Path) -> Path:
    target, number = wanted, 1
    while os.path.lexists(target):
        number += 1
        target = wanted.with_name(f"{wanted.name}-{number}")
    return target


def _temporary(target: Path) -> Path:
    """Create a folder beside `target`, on the same file system, with the permissions of any new folder."""
    folder = Path(tempfile.mkdtemp(prefix=".adamshap-", dir=target.parent))
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    return folder


def _move(temporary: Path, target: Path) -> Path:
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    place = _free(target)
    temporary.rename(place)
    return place


def _unwritable(target: Path, error: OSError) -> CommandError:
    return CommandError(f"cannot write to {str(target)!r}: {error.strerror or error}")


def columns_of(prepared: Prepared, run: Run | Snapshot | None, config: dict[str, Any]) -> dict[str, Array]:
    """Return the columns of the score table: for a run, a checkpoint, or (None) before the first step."""
    scores: tuple[Array, ...]
    if run is None:
        zeros = np.zeros(prepared.train.n)
        scores = zeros, zeros, zeros.astype(np.int64), zeros
    else:
        seen, totals = (run.seen, run.scores) if isinstance(run, Run) else (run["seen"], run["scores"])
        scores = *map(mean_over, scores_of(run, config)), seen, mean_over(totals)
    labels = prepared.labels if prepared.of_text else prepared.train.y
    if prepared.target_scale is not None:
        labels = prepared.labels[:, 0] if prepared.labels.shape[1] == 1 else prepared.labels
    values = (prepared.train_index, labels, prepared.flipped, *scores)
    columns = dict(zip(COLUMNS, values, strict=True))
    return columns if prepared.groups is None else columns | {"group": prepared.groups}


def csv_of(columns: dict[str, Array], label_names: list[str], in_file: FileRows | None) -> str:
    """Return a table of scores as CSV, with `label_names` in place of the column ``label``."""
    values = _numbered_and_named(columns, in_file)
    values["label"] = label_names  # one cell each, even for several targets
    values["flipped"] = ["true" if flipped else "false" for flipped in values["flipped"]]
    own = {} if in_file is None else in_file.columns
    taken = {*values, *own}
    for name, cells in own.items():
        column = name
        while column in values or (column != name and column in taken):
            column += " (DATA)"
        values[column] = cells
    # The csv module writes a float's repr, which reads back exactly. With "\n" it does not quote a lone "\r".
    bare_return = any("\r" in text for texts in (label_names, own, *own.values()) for text in texts)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if bare_return else csv.QUOTE_MINIMAL)
    writer.writerow(values)
    writer.writerows(zip(*values.values(), strict=True))
    return text.getvalue()


def _numbered_and_named(columns: dict[str, Array], in_file: FileRows | None) -> dict[str, list[Any]]:
    """Return `columns` as lists, with the line and the id, where there are any, after the index."""
    first, *others = ((name, column.tolist()) for name, column in columns.items())
    found = [first]
    if in_file is not None and in_file.lines is not None:
        found.append(("line", in_file.lines.tolist()))
    if in_file is not None and in_file.ids is not None:
        found.append(("id", in_file.ids))
    return dict([*found, *others])


def as_json(value: Any) -> str:
    """Return `value` as JSON text, in the style of all of the command's JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def summary(saved: SavedRun, count: int) -> dict[str, Any]:
    """Return a run's JSON summary, with its `count` best and `count` worst examples as in scores.csv.

    The lists are empty for several runs of which none has finished.
    """
    columns: dict[str, list[Any]] = {}
    order: list[int] = []
    if saved.columns:
        columns = _numbered_and_named(saved.columns, saved.in_file)
        columns["label"] = label_names(saved.columns["label"], saved.config["dataset"]["classes"])
        order = np.argsort(saved.columns["score"], kind="stable").tolist()
    by_group = scores_of_groups(saved)
    rows = {"helpful": order[::-1][:count], "harmful": order[:count]}
    return {
        "folder": str(saved.folder),
        "status": saved.status,
        "step": saved.step,
        "steps": saved.steps,
        "weighting": saved.weighting,
        "config": saved.config,
        "results": saved.results,
        "by_group": None if by_group is None else by_group.as_json(),
        **{name: [_row(columns, saved.in_file, row) for row in at] for name, at in rows.items()},
    }


def _row(columns: dict[str, list[Any]], in_file: FileRows | None, row: int) -> dict[str, Any]:
    found = {key: column[row] for key, column in columns.items()}
    return found if in_file is None else found | {"values": in_file.row(row)}


def config_of(options: Options, dataset: Dataset, prepared: Prepared, network: Network | Sequential) -> dict[str, Any]:
    """Return ``config.json``: the options and the data set. The same call gives the same content."""
    flips = np.flatnonzero(prepared.flipped)
    constant = [dataset.features[feature] for feature in np.flatnonzero(prepared.constant)]
    config = {
        "options": asdict(options),
        "steps": {
            "per_epoch": -(-prepared.train.n // options.batch_size),
            "total": options.length(prepared.train.n)[1],
        },
        "dataset": {
            "name": dataset.name,
            "examples": len(dataset.x),
            "features": list(dataset.features),
            "task": dataset.task,
            "task_known": dataset.why,
            "notes": list(dataset.notes),
            "classes": list(dataset.classes),
            "targets": list(dataset.targets),
            "image_shape": dataset.image_shape,
            "text": None if dataset.text is None else dataset.text.as_json(),
            "groups": [] if dataset.groups is None else np.unique(dataset.groups).tolist(),
            "train_examples": prepared.train.n,
            "validation_examples": prepared.valid.n,
            "validation_file": options.valid,
            "validation_share": None if options.valid is not None else options.valid_fraction or VALIDATION_SHARE,
            "validation_index": prepared.valid_index.tolist(),
            "checksums": _checksums(prepared),
        },
        "flips": [
            {
                "index": int(prepared.train_index[row]),
                "from": dataset.classes[prepared.labels[row]],
                "to": dataset.classes[prepared.train.y[row]],
            }
            for row in flips
        ],
        "standardisation": {
            "note": "The network is given (x - mean) / scale, both of the training examples."
            " Constant features become 0 in training, those that change by rounding as good as 0. Their scale is 1, or"
            " with rounding their size, if that is larger. In validation they are 0, whatever their value.",
            "constant_features": constant,
            "mean": prepared.mean.tolist(),
            "scale": prepared.scale.tolist(),
            "target_mean": None if prepared.target_mean is None else prepared.target_mean.tolist(),
            "target_scale": None if prepared.target_scale is None else prepared.target_scale.tolist(),
        },
        "network": asdict(network),
    }
    plain: dict[str, Any] = json.loads(json.dumps(config))  # as it will be read back
    return plain


def _checksums(prepared: Prepared) -> dict[str, str]:
    """Return checksums of what the runs of several seeds, a resumption and an explanation must find unchanged."""
    arrays = {
        "x": prepared.train.x,
        "y": prepared.train.y,
        "validation_x": prepared.valid.x,
        "validation_y": prepared.valid.y,
    }
    if prepared.groups is not None:
        arrays["groups"] = prepared.groups
    return {name: checksum(array) for name, array in arrays.items()}
