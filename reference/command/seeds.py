"""The folder of several runs that differ in their seed: initialisation and order of the batches, not data and split.

=============  =========================================================================================================
file           holds
=============  =========================================================================================================
config.json    as in the folder of a run, without its ``run_seed``; and ``seeds``. Never changes
seed-S/        the folder of the run with the seed S, which can be shown and resumed alone
scores.npz     at the end: the columns of the runs; ``score`` and other results are means over the runs that finished,
               ``score_se`` and others their standard errors; ``distinct`` is 1 for an example above the rest, -1 for
               one below, and 0 where that cannot be told; ``q`` is the false-discovery rate at which it could be
scores.csv     at the end: the same as a table
results.json   at the end: ``status``, seeds, means and deviations of the runs' results, and the `Agreement`
*.png          at the end, for images: ``examples.png`` and ``groups.png``, as in the folder of a run, of the means
=============  =========================================================================================================

`read` puts the runs together again from their own folders, so it shows those that have finished while others go on.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adamshap.reference import checkpoint
from adamshap.reference.command import folder, results
from adamshap.reference.command.agreement import agreement_of
from adamshap.reference.command.datasets import label_names
from adamshap.reference.command.distinction import FALSE_SHARE, fewest_marked, q_values
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.examples import TOP
from adamshap.reference.command.folder import CONFIG, DIVERGED, FINISHED, RESULTS, SCORES, SavedRun
from adamshap.reference.command.spread import spread_of
from adamshap.reference.contract import Array

FORMAT, VERSION = "adamshap-seeds", 1
ERROR = "_se"
"""Suffix of the column with the standard errors of another."""

MEASURED = ("score", "sgd_score", "total")
"""Columns that are results of a run even if all runs should agree on them."""


@dataclass(frozen=True, eq=False)
class SavedSeeds(SavedRun):
    """The runs of a folder as one: ``columns`` and ``results`` are those of the means over the runs that finished.

    With fewer than two finished runs there are no standard errors; without any, ``step`` is 0.

    Parameters
    ----------
    runs : dict of int to SavedRun
        The finished runs by seed.
    unfinished, diverged : tuples of int
        Seeds of the others.
    """

    runs: Mapping[int, SavedRun] = field(default_factory=dict)
    unfinished: tuple[int, ...] = ()
    diverged: tuple[int, ...] = ()

    @property
    def progress(self) -> str:
        """How many runs have finished."""
        count = len(self.runs) + len(self.unfinished) + len(self.diverged)
        done = "all" if len(self.runs) == count else f"{len(self.runs)} of"
        others = (("unfinished", self.unfinished), ("diverged", self.diverged))
        rest = "".join(f", {what}: {named(seeds)}" for what, seeds in others if seeds)
        return f"{done} {count} runs finished{rest}"

    @property
    def columns_of_runs(self) -> list[dict[str, Array]]:
        """The columns of each finished run."""
        return [run.columns for run in self.runs.values()]


def named(seeds: tuple[int, ...]) -> str:
    """Return "seed 2", or "seeds 2, 5"."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def folder_of(path: Path, seed: int) -> Path:
    """Return the folder of one of the runs in the folder `path`."""
    return path / f"seed-{seed}"


def config_of_run(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the config of the run with `seed` from that of all."""
    return _own(config) | {"options": config["options"] | {"run_seed": seed}}


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in ("format", "version", "seeds")}


def create(
    empty: Path, config: dict[str, Any], seeds: tuple[int, ...], create_run: Callable[[Path, int], None]
) -> None:
    """Fill an `empty` folder with the config of all runs, and the folders that `create_run` fills with each."""
    text = {"format": FORMAT, "version": VERSION, "seeds": list(seeds), **config}
    checkpoint.write_whole(empty / CONFIG, (results.as_json(text) + "\n").encode())
    for seed in seeds:
        folder_of(empty, seed).mkdir()
        create_run(folder_of(empty, seed), seed)


def are_in(path: Path) -> bool:
    """Return whether `path` is a folder of several runs."""
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def config_in(path: Path) -> dict[str, Any]:
    """Return the config of a folder of several runs.

    Raises
    ------
    CommandError
        It is of another version, or damaged.
    """
    config: dict[str, Any] = json.loads((path / CONFIG).read_bytes())
    if config.get("version") != VERSION:
        raise CommandError(f"{str(path / CONFIG)!r} has version {config.get('version')!r}; needs version {VERSION}")
    seeds = config.get("seeds")
    if not isinstance(seeds, list) or len(seeds) < 2 or not all(type(seed) is int for seed in seeds):
        raise CommandError(f"{str(path / CONFIG)!r} is damaged: it does not say which seeds there are")
    lacks = [name for name in ("options", "steps", "dataset") if not isinstance(config.get(name), dict)]
    if lacks or type(config["steps"].get("total")) is not int:
        raise CommandError(f"{str(path / CONFIG)!r} is damaged: it lacks {', '.join(lacks or ['the number of steps'])}")
    return config


def read(path: Path, change: Callable[[SavedRun], SavedRun] = lambda run: run) -> SavedSeeds:
    """Return the content of a folder of several runs, each after `change`.

    Raises
    ------
    CommandError
        A folder is damaged, or the runs are not of the same data.
    """
    config = config_in(path)
    runs: dict[int, SavedRun] = {}
    unfinished: list[int] = []
    diverged: list[int] = []
    steps = 0
    for seed in config["seeds"]:
        run = folder.read(folder_of(path, seed)) if folder_of(path, seed).exists() else None
        if run is not None and _own(run.config) != config_of_run(config, seed):
            raise CommandError(
                f"{str(run.folder)!r} is not the run with seed {seed} of {str(path / CONFIG)!r}; needs that one;"
                f" without this folder, the run starts anew: {folder.resume_hint(path)}"
            )
        if run is not None and run.status == FINISHED:
            runs[seed] = change(run)
        else:
            (diverged if run is not None and run.status == DIVERGED else unfinished).append(seed)
        steps += config["steps"]["total"]
    columns = _together(runs)
    found = None if unfinished or not runs else _results(runs, tuple(diverged), columns)
    status = "unfinished" if unfinished else DIVERGED if diverged else FINISHED
    return SavedSeeds(
        folder=path,
        config=config,
        environment=[entry for run in runs.values() for entry in run.environment],
        status=status,
        step=sum(run.step for run in runs.values()),
        steps=steps,
        columns=columns,
        history=_mean_history(runs),
        results=found,
        in_file=next((run.in_file for run in runs.values()), None),
        weighting=next((run.weighting for run in runs.values()), folder.weighting_of(config)),
        runs=runs,
        unfinished=tuple(unfinished),
        diverged=tuple(diverged),
    )


def write(saved: SavedSeeds) -> None:
    """Write the scores and results of all runs to their folder."""
    if saved.results is None:
        return
    names = label_names(saved.columns["label"], saved.config["dataset"]["classes"])
    owner = checkpoint.digest((saved.folder / CONFIG).read_bytes())
    checkpoint.write(saved.folder / SCORES, saved.columns, owner)
    checkpoint.write_whole(saved.folder / "scores.csv", results.csv_of(saved.columns, names, saved.in_file).encode())
    checkpoint.write_whole(saved.folder / RESULTS, (results.as_json(saved.results) + "\n").encode())


def spread_lines(saved: SavedRun) -> list[str]:
    """Return sentences on the spread of the scores: what the marks mean, and what more runs would agree on."""
    if not isinstance(saved, SavedSeeds):
        if saved.config["options"].get("run_seed") is not None:
            return [ONE_OF_SEVERAL.format(saved.folder.parent)]
        seconds = (saved.results or {}).get("seconds")
        each = "" if seconds is None else f", of {seconds:.1f} s each"
        return [ONE_SEED.format(each)]
    count = len(saved.runs)
    if count < 2:
        return [f"One run has finished ({named(tuple(saved.runs))}): nothing on the spread of the scores yet."]
    marked = int(np.count_nonzero(saved.columns["distinct"]))
    lines = [f"Mean over {count} runs ± its standard error; validation results ± the deviation of a run."]
    if marked:
        lines.append(
            "distinct: ranks higher or lower than the rest, beyond what another seed would change."
            f" {marked} of all {len(saved.columns['score'])} do; at most {FALSE_SHARE:.0%} of such marks are expected"
            " to be wrong."
        )
    else:
        least = fewest_marked(count)
        why = f" ({count} runs can only tell {least} examples or more from the rest)" if least > 1 else ""
        lines.append(
            f"Nothing can be said about single examples from these runs{why}. More seeds may; groups may, too."
        )
    agreement = agreement_of(np.stack([run.columns["score"] for run in saved.runs.values()]), _length(saved.columns))
    of = f"of the first {agreement.length}"
    lines.append(
        f"Another {count} seeds would agree on about {agreement.helpful:.0f} {of} helpful and"
        f" {agreement.harmful:.0f} {of} harmful examples; rank correlation of all scores: about"
        f" {agreement.spearman:.2f}."
    )
    return lines


ONE_OF_SEVERAL = "This is one of several seeds: adamshap show {} shows what they have in common."
ONE_SEED = (
    "This is one seed: another one orders the examples differently, and has only some of them in its lists. --seeds 3"
    " shows what stays, for the cost of three such runs{}."
)


def _length(columns: Mapping[str, Array]) -> int:
    return min(TOP, len(columns["score"]) // 2)


def _together(runs: Mapping[int, SavedRun]) -> dict[str, Array]:
    """Return the columns of all runs: what they share, and means with standard errors of the rest."""
    parts = [run.columns for run in runs.values()]
    if len(parts) < 2:
        return dict(parts[0]) if parts else {}
    if any(not np.array_equal(part["index"], parts[0]["index"]) for part in parts):
        raise CommandError("the runs are of different examples; needs the folders that adamshap attribute has written")
    found: dict[str, Array] = {}
    for name, column in parts[0].items():
        if name not in MEASURED and all(np.array_equal(part[name], column) for part in parts):
            found[name] = column
            continue
        spread = spread_of(np.stack([part[name] for part in parts]))
        found |= {name: spread.mean, name + ERROR: spread.standard_error}
        if name == "score":
            q = q_values(np.stack([part[name] for part in parts]))
            distinct = np.where(np.abs(q) <= FALSE_SHARE, np.sign(q), 0).astype(np.int8)
            found |= {"distinct": distinct, "q": np.abs(q)}
    return found


def _results(runs: Mapping[int, SavedRun], diverged: tuple[int, ...], columns: Mapping[str, Array]) -> dict[str, Any]:
    parts: list[Any] = [run.results for run in runs.values()]
    found: dict[str, Any] = {"status": DIVERGED if diverged else FINISHED, "seeds": list(runs)}
    found |= {"diverged": list(diverged), "seconds": sum(part["seconds"] for part in parts)}
    means: dict[str, Any] = {}
    deviations: dict[str, Any] = {}
    for name in ("before", "after", "flip_detection_roc_auc"):
        each = [part[name] for part in parts]
        means[name] = deviations[name] = None
        if each[0] is not None:
            values = {key: [part[key] for part in each] for key in each[0]}
            spreads = {
                key: None if None in part or len(part) < 2 else spread_of(np.array(part))
                for key, part in values.items()
            }
            means[name] = {key: part[0] if len(part) < 2 else None for key, part in values.items()}
            means[name] |= {key: float(spread.mean) for key, spread in spreads.items() if spread is not None}
            deviations[name] = {
                key: None if spread is None else float(spread.deviation) for key, spread in spreads.items()
            }
    found |= means | {"deviation": deviations, "distinct": None, "agreement": None}
    if len(runs) > 1:
        scores = np.stack([run.columns["score"] for run in runs.values()])
        found["distinct"] = {
            "examples": int(np.count_nonzero(columns["distinct"])),
            "false_discovery_rate": FALSE_SHARE,
        }
        found["agreement"] = asdict(agreement_of(scores, _length(columns)))
    return found


def _mean_history(runs: Mapping[int, SavedRun]) -> dict[str, Array]:
    histories = [run.history for run in runs.values()]
    if not histories:
        return {name: np.empty(0) for name in folder.LOSSES}
    shortest = min(len(history["train_loss"]) for history in histories)
    return {name: np.mean([history[name][:shortest] for history in histories], axis=0) for name in histories[0]}
