"""Weightings of the steps: the scores of a run, or of its folder, under one, and what the output says of them."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from adamshap.reference.command import folder
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.examples import TOP, extremes_of
from adamshap.reference.command.folder import IN_HISTORY, STEP_SCORES, SavedRun
from adamshap.reference.command.per_validation import mean_over
from adamshap.reference.command.roc import detection_of
from adamshap.reference.contract import Array, Credit, Run, Snapshot, batch_order, step_index
from adamshap.reference.weighting import Weighting, weighted, weighted_steps

DEFAULT: Weighting = "unit"

MANY = 0.2
"""Share of the most helpful examples from the first batch above which the output says so."""


def chosen(weighting: Weighting | None, credit: Credit) -> Weighting:
    """Return the weighting of a new run for the option --weighting, None if it was not given.

    Raises
    ------
    CommandError
        Steps cannot be weighed, because later steps credit a step's examples as well.
    """
    if credit == "step":
        return weighting or DEFAULT
    if weighting not in (None, "sum"):
        raise CommandError(
            f"--weighting: got {weighting!r} with --credit {credit}; needs sum, as later steps credit an example too"
        )
    return "sum"


def scores_of(run: Run | Snapshot, config: dict[str, Any]) -> tuple[Array, Array]:
    """Return scores and SGD's scores, (n,) each, of a run or a checkpoint, under the weighting of `config`.

    With --per-validation they are (n, n_val).
    """
    weighting = folder.weighting_of(config)
    if isinstance(run, Run):
        return weighted(run, weighting), weighted(run, weighting, sgd=True)
    if weighting == "sum":
        return run["scores"], run["sgd_scores"]
    return _weighted(config, {name: run[IN_HISTORY + name] for name in STEP_SCORES}, weighting)


def reweighted(saved: SavedRun, weighting: Weighting | None) -> SavedRun:
    """Return `saved` with the scores under another weighting of its steps; None leaves it as it is.

    Raises
    ------
    CommandError
        The folder has no scores of the steps.
    """
    if weighting is None or weighting == saved.weighting:
        return saved
    steps = folder.step_scores(saved)
    if steps is None:
        raise CommandError(
            f"--weighting: got {weighting!r}, but {str(saved.folder)!r} has no scores of single steps, which runs with"
            " --credit carry and runs of earlier versions do not keep; needs sum, or a new run"
        )
    score, sgd_score = map(mean_over, _weighted(saved.config, steps, weighting))
    columns, results = saved.columns | {"score": score, "sgd_score": sgd_score}, saved.results
    if results is not None and results.get("flip_detection_roc_auc") is not None:
        found = detection_of(columns)
        results = results | {"flip_detection_roc_auc": None if found is None else asdict(found)}
    return replace(saved, columns=columns, results=results, weighting=weighting)


def of_example(saved: SavedRun, steps: dict[str, Array], place: int) -> dict[str, Array]:
    """Return the columns with the scores for the validation example number `place` alone, under saved's weighting.

    Parameters
    ----------
    saved : SavedRun
    steps : dict of arrays (steps, batch, n_val)
        `folder.step_scores` of a run with --per-validation.
    place : int
    """
    own = {name: scores[:, :, place] for name, scores in steps.items()}
    score, sgd_score = _weighted(saved.config, own, saved.weighting)
    return {"score": score, "sgd_score": sgd_score, "total": _weighted(saved.config, own, "sum")[0]}


def _weighted(config: dict[str, Any], steps: dict[str, Array], weighting: Weighting) -> tuple[Array, Array]:
    count, options = config["dataset"]["train_examples"], config["options"]
    index = step_index(
        count,
        batch_size=options["batch_size"],
        epochs=-(-config["steps"]["total"] // config["steps"]["per_epoch"]),
        seed=folder.seed_of_run(config),
        steps=config["steps"]["total"],
    )
    score, sgd_score = (weighted_steps(index[: len(steps[n])], steps[n], count, weighting) for n in STEP_SCORES)
    return score, sgd_score


# --- what the output says --------------------------------------------------------------------------------------------

MEANINGS: dict[Weighting, str] = {
    "sum": "A score is the sum of the example's shares of each step's fall of {loss} (weighting sum).",
    "unit": "Every step counts alike (weighting unit): a score is the mean, over the example's steps, of its share of"
    " the step's fall of {loss} divided by the typical share in its batch.",
}
SUMS: dict[Weighting, str] = {"sum": "Scores", "unit": "The plain sums ({total})"}


def lines_of(saved: SavedRun, loss: str = "the validation loss", total: str = "total in scores.csv") -> list[str]:
    """Return sentences on what the scores of `saved` are, what their totals add up to, and on the first batch.

    `loss` and `total` are what to call the loss that the scores belong to, and the column of the plain sums.
    """
    lines = [f"{MEANINGS[saved.weighting].format(loss=loss)} {_about_totals(saved, loss, total)}"]
    return lines + (_about_first_batch(saved) if len(saved.columns_of_runs) == 1 else [])


def _about_totals(saved: SavedRun, loss: str, total: str) -> str:
    added = f"{SUMS[saved.weighting].format(total=total)} add up to {saved.columns['total'].sum():.3g}"
    results = saved.results or {}
    if "before" not in results:
        return f"{added}."
    fall = results["before"]["loss"] - results["after"]["loss"]
    text = f"{added}; {loss} {'fell' if fall >= 0 else 'rose'} by {abs(fall):.3g}."
    if _credit(saved) == "step":
        text += " The rest is mostly momentum's, which --credit carry gives to examples, too."
    return text


def _about_first_batch(saved: SavedRun) -> list[str]:
    """Return a line on the most helpful examples of the first batch, if they are many more than chance would put there.

    The first steps are the largest, as Adam's moments are near 0.
    """
    options, count = saved.config["options"], saved.config["dataset"]["train_examples"]
    _, first = next(
        batch_order(count, batch_size=options["batch_size"], epochs=1, seed=folder.seed_of_run(saved.config))
    )
    helpful = extremes_of(saved.columns["score"], TOP)["helpful"]
    found, by_chance = int(np.isin(helpful, first).sum()), len(helpful) * len(first) / count
    if found <= max(MANY * len(helpful), 2 * by_chance):
        return []
    line = (
        f"{found} of the {len(helpful)} most helpful examples were in the first batch, where chance would put"
        f" {by_chance:.1f}: another order of the examples (--seed) gives another list; see docs/scores.md."
    )
    if saved.weighting == "sum" and _credit(saved) == "step":
        line += " --weighting unit depends less on the order."
    return [line]


def _credit(saved: SavedRun) -> str:
    return str(saved.config["options"].get("credit", "step"))
