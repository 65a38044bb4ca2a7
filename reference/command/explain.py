"""Which training examples moved the loss of one validation example: ``adamshap show --explain K``.

A score belongs to one validation loss, and the training does not depend on the validation examples. So the scores for
the example K are those of the same run with K as the only validation example: it is trained once more, and scored
against the examples that are asked about. That costs less than the run did, where the run had many more of them. A run
with --per-validation has kept these scores, so nothing is trained.

The weighting of the steps is the run's. Under "unit" the scores for K are divided by their own root mean square in each
step, not by that of the mean over the validation examples: they do not depend on what else is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adamshap.reference.command import folder, running, training, weightings
from adamshap.reference.command.datasets import Dataset, label_names
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.examples import about_label, values_in_words
from adamshap.reference.command.file_rows import FileRows
from adamshap.reference.command.folder import FINISHED, SavedRun
from adamshap.reference.command.job import Options
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.seeds import SavedSeeds, folder_of
from adamshap.reference.command.spelling import in_one_line, some
from adamshap.reference.command.trainers import Trainer
from adamshap.reference.command.weightings import lines_of
from adamshap.reference.contract import Array, Batch, Run
from adamshap.reference.models import sample_losses
from adamshap.reference.weighting import Weighting, weighted_steps

MEANING = "A positive score means that the training example lowered this loss."


@dataclass(frozen=True, eq=False)
class Explanation:
    """The scores of all training examples for one validation example.

    Parameters
    ----------
    index : int
        Row of the validation example in its data.
    label : str
        Of a text, the file or folder that it comes from.
    in_file : FileRows of one row, or None
        The example as its file has it.
    loss_before, loss_after : float
        Its loss before the run and after it.
    saved : SavedRun
        The run, with the scores for this example in place of those for the mean loss; the losses of its `results` are
        those of this example.
    """

    index: int
    label: str
    in_file: FileRows | None
    loss_before: float
    loss_after: float
    saved: SavedRun

    def lines(self) -> list[str]:
        """Return what is known of the example itself, for people."""
        found = [f"Validation example in row {self.index}"]
        if self.in_file is not None and self.in_file.lines is not None:
            found.append(f"line {self.in_file.lines[0]}")
        if self.in_file is not None and self.in_file.ids is not None:
            found.append(in_one_line(f"{self.saved.config['options']['id']} {self.in_file.ids[0]}"))
        own = [] if self.in_file is None else [values_in_words(self.in_file, 0)]
        return [
            f"{', '.join(found)}: {about_label(self.saved)} {in_one_line(self.label)}",
            *own,
            f"Its loss was {self.loss_before:.4g} before the run and {self.loss_after:.4g} after it.",
        ]

    def meaning(self) -> list[str]:
        """Return what the scores mean, for people."""
        return [MEANING, *lines_of(self.saved, "this loss", "total")]

    def as_json(self) -> dict[str, Any]:
        """Return what is known of the example itself, with the keys of a training example."""
        found: dict[str, Any] = {"index": self.index}
        if self.in_file is not None and self.in_file.lines is not None:
            found["line"] = int(self.in_file.lines[0])
        if self.in_file is not None and self.in_file.ids is not None:
            found["id"] = self.in_file.ids[0]
        found |= {"label": self.label, "loss_before": self.loss_before, "loss_after": self.loss_after}
        return found if self.in_file is None else found | {"values": self.in_file.row(0)}


def explain(saved: SavedRun, asked: Sequence[int], trainer: Trainer) -> list[Explanation]:
    """Return the explanations of the validation examples in the rows `asked`, by training once more if need be.

    Raises
    ------
    CommandError
        A row is no validation example; the run has not finished; its data has changed, or the training is another.
    """
    if isinstance(saved, SavedSeeds):
        one = str(folder_of(saved.folder, next(iter(saved.runs), 0)))
        raise CommandError(f"--explain: {str(saved.folder)!r} has several runs; needs one of them, such as {one!r}")
    if saved.status != FINISHED:
        raise CommandError(f"--explain: the run {str(saved.folder)!r} is {saved.status}; needs a finished one")
    known = saved.config["dataset"]["validation_index"]
    unknown = [str(row) for row in asked if row not in known]
    if unknown:
        raise CommandError(
            f"--explain: got {', '.join(unknown)}; needs rows of validation examples: {some(list(map(str, known)), 10)}"
        )
    options = running.options_of(saved.folder, saved.config, "--explain")
    dataset, prepared = running.prepared_again(options, saved.config, "--explain")
    places = [known.index(row) for row in asked]
    valid = prepared.valid.take(np.array(places))
    found = _kept(saved, places) or _trained(saved, options, dataset, prepared, valid, trainer)
    labels = _labels(options, dataset, prepared, asked, valid.y)
    return [
        Explanation(
            row,
            label,
            None if prepared.valid_in_file is None else prepared.valid_in_file.take(np.array([place])),
            one.loss_before,
            one.loss_after,
            replace(
                saved,
                columns=saved.columns | one.columns,
                results={"before": {"loss": one.loss_before}, "after": {"loss": one.loss_after}},
            ),
        )
        for row, place, label, one in zip(asked, places, labels, found, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Scores:
    """Losses of a validation example, and the columns ``score``, ``sgd_score`` and ``total`` for it, (n,) each."""

    loss_before: float
    loss_after: float
    columns: dict[str, Array]


def _kept(saved: SavedRun, places: Sequence[int]) -> list[_Scores] | None:
    """Return the scores for the validation examples numbered `places` that the folder has, or None if it has none."""
    kept = folder.per_validation_of(saved)
    steps = None if kept is None else folder.step_scores(saved)
    if kept is None or steps is None:
        return None
    return [
        _Scores(
            float(kept["loss_before"][place]),
            float(kept["loss_after"][place]),
            weightings.of_example(saved, steps, place),
        )
        for place in places
    ]


def _trained(
    saved: SavedRun, options: Options, dataset: Dataset, prepared: Prepared, valid: Batch, trainer: Trainer
) -> list[_Scores]:
    """Return the scores for the examples `valid`, by training once more."""
    network, adam = training.plan(options, dataset, prepared.train.n)
    trainer = trainer.on(options.device)
    # With credit "carry" the engine keeps one window, that of a single loss: an example a run.
    together = options.credit != "carry"
    keep = saved.weighting != "sum"
    runs = [
        training.attributed(
            options, trainer, network, adam, prepared.train, part, per_validation=together, keep_step_scores=keep
        )
        for part in ([valid] if together else [valid.take(np.array([place])) for place in range(valid.n)])
    ]
    run = runs[0]
    _refuse_another_training(saved, run.history["train_loss"])
    before, after = (sample_losses(network, params, valid) for params in (run.initial_params, run.params))
    return [
        _Scores(
            float(before[place]),
            float(after[place]),
            _columns(run, place, saved.weighting) if together else _columns(runs[place], None, saved.weighting),
        )
        for place in range(valid.n)
    ]


def _columns(run: Run, place: int | None, weighting: Weighting) -> dict[str, Array]:
    """Return the scores of `run` for its validation example number `place`, or for its only one if that is None."""
    at = () if place is None else (..., place)
    totals = {"score": run.scores[at], "sgd_score": run.sgd_scores[at]}
    steps, index = {"score": run.step_scores, "sgd_score": run.step_sgd_scores}, run.step_index
    found = {
        name: total if of_steps is None or index is None else weighted_steps(index, of_steps[at], len(total), weighting)
        for (name, total), of_steps in zip(totals.items(), steps.values(), strict=True)
    }
    return found | {"total": totals["score"]}


def _labels(options: Options, dataset: Dataset, prepared: Prepared, asked: Sequence[int], y: Array) -> list[str]:
    """Return what the examples in the rows `asked` with the labels `y` are called."""
    if dataset.text is not None:
        if options.valid is not None:
            return [Path(options.valid).name] * len(asked)
        return [dataset.text.names[dataset.y[row]] for row in asked]
    return label_names(y if dataset.classes else _own_units(y, prepared), dataset.classes)


def _own_units(y: Array, prepared: Prepared) -> Array:
    """Return standardised targets in their own units."""
    if prepared.target_scale is None or prepared.target_mean is None:
        return y
    return np.asarray(y * prepared.target_scale + prepared.target_mean)


def _refuse_another_training(saved: SavedRun, losses: Array) -> None:
    """Refuse scores of a training that differs from the run's by more than the rounding of another machine."""
    kept = saved.history["train_loss"]
    if len(kept) != len(losses) or not np.allclose(kept, losses, rtol=0.01):
        raise CommandError(
            f"--explain: the training of {str(saved.folder)!r} came out otherwise than in the run; needs the versions"
            " of adamshap and the trainer that environment.json names"
        )
