"""The files of a run. They are written beside their place and moved there at the end: all of them, or none."""

import csv
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.job import Findings
from adamshap.reference.command.pictures import draw
from adamshap.reference.command.preparation import VALIDATION_SHARE
from adamshap.reference.problem import Array

T = TypeVar("T")

COLUMNS = ("index", "label", "flipped", "score", "sgd_score", "seen")


def choose(out: Path | None, name: str) -> Path:
    """Return the folder to write to: `out`, or the first of ``adamshap-NAME``, ``-2``, ... that is free here.

    Raises
    ------
    CommandError
        Where that folder could not be made, or already holds something.
    """
    # realpath, not resolve: a loop of links comes back as it is, and is refused below for existing.
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
                f"--out: got {str(out)!r}, but {str(target.parent)!r} is no folder; needs one that exists"
            )
        # What the name itself, and a folder beside it, may run into shows now and not after the training.
        with suppress(FileNotFoundError):
            target.lstat()
        _temporary(target).rmdir()
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def write(target: Path, findings: Findings) -> tuple[Path, list[str]]:
    """Write the files of `findings`, and return the folder they are in and what the user should know about them.

    The folder is `target`, or, where something else took that place meanwhile, a free one beside it.
    """
    return place(target, lambda folder: _write_files(folder, findings))


def place(target: Path, fill: Callable[[Path], T]) -> tuple[Path, T]:
    """Have `fill` write to a folder beside `target`, move that to `target`, and return where it is and fill's result.

    The folder is `target`, or, where something else took that place meanwhile, a free one beside it.
    """
    try:
        temporary = _temporary(target)
        try:
            result = fill(temporary)
            return _move(temporary, target), result
        except BaseException:  # an interrupt too must leave nothing behind
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise _unwritable(target, error) from error


def _free(wanted: Path) -> Path:
    target, number = wanted, 1
    while os.path.lexists(target):
        number += 1
        target = wanted.with_name(f"{wanted.name}-{number}")
    return target


def _temporary(target: Path) -> Path:
    """Make a folder beside `target`, on the same file system, with the rights that a folder of the user's gets."""
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


def _write_files(folder: Path, findings: Findings) -> list[str]:
    columns = _columns(findings)
    np.savez(folder / "scores.npz", allow_pickle=False, **columns)
    _write_csv(folder / "scores.csv", columns, findings.label_names)
    config = json.dumps(_config(findings), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    if findings.dataset.image_shape is not None:
        try:
            draw(folder / "examples.png", findings)
        except ImportError as error:
            return [f'No examples.png, for want of matplotlib ({error}): pip install "adamshap[demo]"']
    return []


def _columns(findings: Findings) -> dict[str, Array]:
    prepared, run = findings.prepared, findings.run
    values = (prepared.train_index, prepared.train.y, prepared.flipped, run.scores, run.sgd_scores, run.seen)
    return dict(zip(COLUMNS, values, strict=True))


def _write_csv(path: Path, columns: dict[str, Array], label_names: list[str]) -> None:
    values = {name: column.tolist() for name, column in columns.items()}
    values["label"] = label_names
    values["flipped"] = ["true" if flipped else "false" for flipped in values["flipped"]]
    with path.open("w", newline="", encoding="utf-8") as file:
        # The csv module writes a float's repr, which reads back as the same number. With "\n" it overlooks a lone "\r".
        bare_return = any("\r" in name for name in label_names)
        writer = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if bare_return else csv.QUOTE_MINIMAL
        )
        writer.writerow(values)
        writer.writerows(zip(*values.values(), strict=True))


def _config(findings: Findings) -> dict[str, Any]:
    dataset, prepared = findings.dataset, findings.prepared
    flips = np.flatnonzero(prepared.flipped)
    constant = [dataset.features[feature] for feature in np.flatnonzero(prepared.constant)]
    return {
        "options": asdict(findings.options),
        "versions": {
            "python": platform.python_version(),
            "numpy": version("numpy"),
            "adamshap": version("adamshap"),
        },
        "dataset": {
            "name": dataset.name,
            "examples": len(dataset.x),
            "features": list(dataset.features),
            "classes": list(dataset.classes),
            "image_shape": dataset.image_shape,
            "train_examples": prepared.train.n,
            "validation_examples": prepared.valid.n,
            "validation_share": VALIDATION_SHARE,
            "validation_index": prepared.valid_index.tolist(),
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
            " Constant features have scale 1: they become 0 in training.",
            "constant_features": constant,
            "mean": prepared.mean.tolist(),
            "scale": prepared.scale.tolist(),
        },
        "network": asdict(findings.network),
        "computed_by": findings.computed_by,
        "results": {
            "before": asdict(findings.before),
            "after": asdict(findings.after),
            "flip_detection_roc_auc": None if findings.detection is None else asdict(findings.detection),
            "seconds": findings.seconds,
        },
    }
