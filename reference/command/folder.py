"""The folder of a run: it exists before the first step, and the run can always be resumed from it.

==================  ==================================================================================================
file                holds
==================  ==================================================================================================
config.json         options and data set; never changes. Its SHA-256 marks the sealed files as this run's
environment.json    a list with one entry for each start or resumption: time, versions, machine, trainer
log.txt             events, with the time in UTC
checkpoints/N.npz   sealed: the `Snapshot` after step N (twelve digits), without its history; the newest two
history/N.npz       sealed: the history (``train_loss``, ``valid_loss`` and others) of the steps after step N, up to
                    the next file's N; with --credit step, ``step_scores`` and ``step_sgd_scores`` (steps, batch), or
                    with --per-validation (steps, batch, n_val)
scores.npz          sealed: ``index``, ``label``, ``flipped``, ``score``, ``sgd_score``, ``seen``, ``total`` (n,), with
                    --group ``group``, and ``step``, at the newest checkpoint or at the end
rows.npz            sealed: the training examples as their file has them, where that has columns (`file_rows`)
scores.csv          at the end: scores and rows as a table
per_validation.npz  sealed, at the end, with --per-validation: the scores for every validation example
                    (`per_validation`)
results.json        at the end, after the scores: ``status`` "finished" or "diverged", the step, and the results
examples.png        at the end, for images: after the results, which must not depend on a picture
groups.png          the same, with --group
traceback.txt       after an internal error: its traceback; later ones are appended
==================  ==================================================================================================

Sealed files are written by `checkpoint`: ``numpy.load(path, allow_pickle=False)`` reads them, and their last bytes show
whether they are complete and belong to this run. `read` reads a run, finished or not, without write access.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from adamshap.reference import checkpoint
from adamshap.reference.checkpoint import CheckpointError
from adamshap.reference.command import file_rows, per_validation
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.file_rows import FileRows
from adamshap.reference.command.spelling import quoted
from adamshap.reference.contract import Array, Snapshot
from adamshap.reference.weighting import Weighting

FORMAT, VERSION = "adamshap-run", 1
CONFIG, ENVIRONMENT, LOG, RESULTS, SCORES = "config.json", "environment.json", "log.txt", "results.json", "scores.npz"
ROWS = "rows.npz"
CHECKPOINTS, HISTORY = "checkpoints", "history"
ENDS = FINISHED, DIVERGED = "finished", "diverged"
KEPT = 2
"""Number of checkpoints: the newest, and the previous one in case the newest is damaged."""

PACKAGES = ("adamshap", "numpy", "autograd", "numba", "threadpoolctl", "cupy-cuda13x", "cupy-cuda12x")
LOSSES = ("train_loss", "valid_loss")
STEP_SCORES = ("step_scores", "step_sgd_scores")
IN_HISTORY = "history/"
"""Prefix of the names of a `Snapshot`'s history."""


@dataclass(frozen=True, eq=False)
class SavedRun:
    """The content of a run's folder.

    Parameters
    ----------
    folder : Path
    config : dict
        ``config.json``.
    environment : list of dict
        ``environment.json``.
    status : {"unfinished", "finished", "diverged"}
    step, steps : int
        Steps that the scores cover, and steps of the whole run.
    columns : dict of arrays (n,)
        ``scores.npz`` without ``step``: ``label`` and ``flipped`` as trained on, ``index`` the row of the data set.
    history : dict of arrays
        ``epoch``, ``train_loss``, ``valid_loss`` of each step so far; may extend a little beyond `step`.
    results : dict or None
        ``results.json``.
    in_file : FileRows of n rows, or None
        ``rows.npz``, if there is one.
    weighting : {"sum", "unit"}
        The weighting of the steps in the columns ``score`` and ``sgd_score``.
    """

    folder: Path
    config: dict[str, Any]
    environment: list[Any]
    status: str
    step: int
    steps: int
    columns: dict[str, Array]
    history: dict[str, Array]
    results: dict[str, Any] | None
    in_file: FileRows | None = None
    weighting: Weighting = "sum"

    @property
    def progress(self) -> str:
        """How far the run is."""
        return f"{self.status}, {self.step} of {self.steps} steps"

    @property
    def columns_of_runs(self) -> list[dict[str, Array]]:
        """The columns of each run: of this one, unless the folder has several."""
        return [self.columns]


def read(folder: Path) -> SavedRun:
    """Return the content of a run's folder.

    Raises
    ------
    CommandError
        It is not a run folder, or damaged.
    """
    config, owner = _config(folder)
    environment = _sessions(folder)
    results = results_of(folder)
    try:
        columns = checkpoint.read(folder / SCORES, owner)
        step = int(columns.pop("step"))
        history = _history(folder, owner, step, names=LOSSES)
        in_file = _in_file(folder, owner)
    except CheckpointError as error:
        raise CommandError(f"{error}; the run can still be resumed: {resume_hint(folder)}") from error
    columns.setdefault("total", columns["score"])  # runs of earlier versions have the sum alone
    epoch = np.arange(len(history["train_loss"])) // config["steps"]["per_epoch"]
    status = "unfinished" if results is None else results["status"]
    return SavedRun(
        folder,
        config,
        environment,
        status,
        step,
        config["steps"]["total"],
        columns,
        {"epoch": epoch, **history},
        results,
        in_file,
        weighting_of(config),
    )


def config_of(folder: Path) -> dict[str, Any]:
    """Return ``config.json``.

    Raises
    ------
    CommandError
        It is not a run folder, or damaged.
    """
    return _config(folder)[0]


def seed_of_run(config: Mapping[str, Any]) -> int:
    """Return the seed of a run's initialisation and batch order: one of several runs on the same data has its own."""
    own = config["options"].get("run_seed")
    return int(config["options"]["seed"] if own is None else own)


def weighting_of(config: Mapping[str, Any]) -> Weighting:
    """Return the weighting of the steps that the run of ``config.json`` was started with."""
    weighting: Weighting = config["options"].get("weighting", "sum")
    return weighting


def step_scores(saved: SavedRun) -> dict[str, Array] | None:
    """Return the arrays `STEP_SCORES` up to the step of `saved`, 0 where there is no example; None if not kept."""
    if saved.config["options"].get("credit", "step") != "step":
        return None
    try:
        history = _history(saved.folder, _config(saved.folder)[1], saved.step, most=saved.step)
    except CheckpointError as error:
        raise CommandError(str(error)) from error
    return {name: history[name] for name in STEP_SCORES} if STEP_SCORES[0] in history else None


def per_validation_of(saved: SavedRun) -> dict[str, Array] | None:
    """Return the arrays of `per_validation`, or None without --per-validation."""
    return per_validation.read(saved.folder, _config(saved.folder)[1])


def results_of(folder: Path) -> dict[str, Any] | None:
    """Return ``results.json``, or None if the run has not ended."""
    path = folder / RESULTS
    if not path.exists():
        return None
    mend = f"; without this file, the run can be resumed: {resume_hint(folder)}"
    results = _json(path, mend)
    if not isinstance(results, dict) or results.get("status") not in ENDS:
        raise CommandError(f"{str(path)!r} is damaged: it does not say how the run ended{mend}")
    return results


def is_whole(folder: Path) -> bool:
    """Return whether `read` can read the run's folder."""
    try:
        read(folder)
    except CommandError:
        return False
    return True


def resume_hint(folder: Path) -> str:
    """Return the command that resumes the run."""
    return f"adamshap attribute --resume {quoted(str(folder))}"


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class RunFolder:
    """The folder of a run in progress; call `close` at the end.

    Parameters
    ----------
    path : Path
    config : dict
    owner : str
        Digest of ``config.json``.
    log : file
        Kept open and locked, so that only one process at a time computes the run.
    rows : int
        Number of steps whose history is on disk.
    """

    path: Path
    config: dict[str, Any]
    owner: str
    log: TextIO
    rows: int = 0
    kept: list[Path] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return int(self.config["steps"]["total"])

    def note(self, text: str) -> None:
        """Write a line to the log, and ignore a full disk."""
        with suppress(OSError):
            self.log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")
            self.log.flush()

    def save(self, snapshot: Snapshot, columns: Mapping[str, Array]) -> None:
        """Write a checkpoint, the history up to it, and the scores.

        Raises
        ------
        OSError
            Something could not be written; earlier checkpoints are intact.
        """
        step = int(snapshot["step"])
        if step > self.rows:
            whole = {name.removeprefix(IN_HISTORY): a for name, a in snapshot.items() if name.startswith(IN_HISTORY)}
            chunk = {name: array[self.rows :] for name, array in whole.items()}
            checkpoint.write(self.path / HISTORY / _file(self.rows), chunk, self.owner)
        state = {name: array for name, array in snapshot.items() if not name.startswith(IN_HISTORY)}
        path = self.path / CHECKPOINTS / _file(step)
        checkpoint.write(path, state, self.owner)
        self.rows = step
        self.write_scores(columns, step)
        self.kept = [*(kept for kept in self.kept if kept != path), path]
        while len(self.kept) > KEPT:
            self.kept.pop(0).unlink(missing_ok=True)

    def write_scores(self, columns: Mapping[str, Array], step: int) -> None:
        """Write ``scores.npz`` with the scores after `step`."""
        checkpoint.write(self.path / SCORES, {**columns, "step": np.array(step)}, self.owner)

    def mend_rows(self, in_file: FileRows | None) -> None:
        """Write ``rows.npz`` again if it is damaged; `in_file` is what it held."""
        path = self.path / ROWS
        if in_file is not None and path.exists() and not _is_good(path, self.owner):
            checkpoint.write(path, file_rows.to_arrays(in_file), self.owner)

    def in_file(self) -> FileRows | None:
        """Return the training examples as their file has them, if that has columns and the copy is intact."""
        try:
            return _in_file(self.path, self.owner)
        except CheckpointError as error:  # results without them are better than none
            self.note(str(error))
            print(f"adamshap: {error}; scores.csv lacks the values of the rows", file=sys.stderr)
            return None

    def newest(self) -> tuple[Snapshot | None, list[str]]:
        """Return the newest valid checkpoint (None without any) and the problems of newer ones.

        Raises
        ------
        CommandError
            There are checkpoints, but none is valid.
        """
        problems: list[str] = []
        paths = sorted((self.path / CHECKPOINTS).glob("*.npz"))
        for place, path in reversed(list(enumerate(paths))):
            try:
                snapshot = checkpoint.read(path, self.owner)
                step = int(snapshot["step"])
                history = _history(self.path, self.owner, step, most=step)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            for bad in paths[place + 1 :]:  # renamed, not deleted: it must not count as the newest
                bad.replace(bad.with_suffix(".damaged"))
            self.rows, self.kept = step, paths[: place + 1]
            return snapshot | {IN_HISTORY + name: array for name, array in history.items()}, problems
        if paths:
            raise CommandError(f"--resume: no valid checkpoint: {problems[0]}; needs one, or a new run")
        return None, problems

    def close(self) -> None:
        """Close the log, which releases the lock."""
        self.log.close()


def create(empty: Path, config: dict[str, Any], columns: Mapping[str, Array], in_file: FileRows | None = None) -> None:
    """Fill an `empty` folder with the files of a run before its first step."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **config}, indent=2, ensure_ascii=False, allow_nan=False)
    content = (text + "\n").encode()
    for name in (CHECKPOINTS, HISTORY):
        (empty / name).mkdir()
    checkpoint.write_whole(empty / CONFIG, content)
    checkpoint.write(empty / SCORES, {**columns, "step": np.array(0)}, checkpoint.digest(content))
    if in_file is not None:
        checkpoint.write(empty / ROWS, file_rows.to_arrays(in_file), checkpoint.digest(content))
    (empty / LOG).touch()


def open_to_write(path: Path, computed_by: str) -> RunFolder:
    """Open the folder of a run to continue it, and lock it until it is closed.

    Raises
    ------
    CommandError
        It is not a run folder, is damaged, cannot be written to, or another process is computing the run.
    """
    config, owner = _config(path)
    if not any(_is_good(sealed, owner) for sealed in (path / SCORES, *(path / CHECKPOINTS).glob("*.npz"))):
        raise CommandError(f"--resume: {str(path / CONFIG)!r} was changed, or all other files of the run are damaged")
    try:
        log = (path / LOG).open("a", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write to {str(path)!r}: {error.strerror or error}") from error
    try:
        _lock(log, path)
        sessions = _sessions(path)
        text = json.dumps([*sessions, environment(computed_by)], indent=2)
        checkpoint.write_whole(path / ENVIRONMENT, (text + "\n").encode())
    except OSError as error:
        log.close()
        raise CommandError(f"cannot write to {str(path)!r}: {error.strerror or error}") from error
    except BaseException:
        log.close()
        raise
    return RunFolder(path, config, owner, log)


def environment(computed_by: str) -> dict[str, Any]:
    """Return the time, machine, trainer and package versions."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "computed_by": computed_by,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "versions": versions,
    }


def _lock(log: TextIO, path: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CommandError(f"--resume: another process is computing {str(path)!r}") from error


# --- reading ---------------------------------------------------------------------------------------------------------


def _file(step: int) -> str:
    return f"{step:012d}.npz"


def _config(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / CONFIG
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CommandError(f"{str(folder)!r} is not a run folder: it has no {CONFIG}") from error
    except OSError as error:
        raise CommandError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    config = _parsed(path, content)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CommandError(f"{str(path)!r} is not the {CONFIG} of a run")
    if config.get("version") != VERSION:
        raise CommandError(f"{str(path)!r} has version {config.get('version')!r}; needs version {VERSION}")
    steps = config.get("steps")
    if not isinstance(steps, dict) or not all(
        type(steps.get(k)) is int and steps[k] > 0 for k in ("total", "per_epoch")
    ):
        raise CommandError(f"{str(path)!r} is damaged: it does not say how many steps there are")
    return config, checkpoint.digest(content)


def _sessions(folder: Path) -> list[Any]:
    """Return the entries of ``environment.json``."""
    path, mend = folder / ENVIRONMENT, "; a run needs no such file: delete it"
    sessions = _json(path, mend) if path.exists() else []
    if not isinstance(sessions, list):
        raise CommandError(f"{str(path)!r} is damaged: it is no list of starts{mend}")
    return sessions


def _json(path: Path, mend: str) -> Any:
    """Return the content of a file; an error that it is damaged ends with `mend`."""
    try:
        return _parsed(path, path.read_bytes(), mend)
    except OSError as error:
        raise CommandError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _parsed(path: Path, content: bytes, mend: str = "") -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{str(path)!r} is damaged: it is not JSON ({error}){mend}") from error


def _is_good(path: Path, owner: str) -> bool:
    try:
        checkpoint.read(path, owner)
    except CheckpointError:
        return False
    return True


def _history(
    folder: Path, owner: str, step: int, *, most: int | None = None, names: Sequence[str] | None = None
) -> dict[str, Array]:
    """Return the arrays in ``history/`` by name: those in `names`, or all; of the first `most` steps, or of all.

    Raises
    ------
    CheckpointError
        They are damaged, or end before `step`.
    """
    found: dict[str, list[Array]] = {name: [np.empty(0)] for name in LOSSES}
    rows = 0
    while (most is None or rows < most) and (path := folder / HISTORY / _file(rows)).exists():
        chunk = checkpoint.read(path, owner)
        for name in chunk if names is None else names:
            found.setdefault(name, []).append(chunk[name])
        rows += len(chunk[LOSSES[0]])
    if rows < step:
        raise CheckpointError(f"the history in {str(folder)!r} ends before step {step}")
    return {name: np.concatenate(parts)[:most] for name, parts in found.items()}


def _in_file(folder: Path, owner: str) -> FileRows | None:
    path = folder / ROWS
    return file_rows.from_arrays(checkpoint.read(path, owner)) if path.exists() else None


def discard(path: Path) -> None:
    """Delete the folder of a run without completed steps."""
    shutil.rmtree(path, ignore_errors=True)
