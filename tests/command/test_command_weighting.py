"""``--weighting``: how much each step counts, in a run, in its files, and in ``show`` without a new run."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command

from adamshap import gpu
from adamshap.reference import checkpoint, weighted
from adamshap.reference.command import folder, preparation, trainers, weightings
from adamshap.reference.command.datasets import load
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.roc import detection_of, roc_auc
from adamshap.reference.command.trainers import Trainer
from adamshap.reference.contract import Adam, Array, Network, Run, batch_order

Refused = Callable[..., None]
ENGINE = Trainer("the engine", partial(gpu.attribute, device="cpu"))
RUN = ("--hidden", "4", "--epochs", "3", "--batch-size", "8")


def run_of_wine(**options: Any) -> Run:
    """Return the run that ``adamshap attribute wine *RUN`` makes."""
    prepared = preparation.prepare(load("wine", None, "auto"), flip=0.0, seed=0)
    sizes = (prepared.train.x.shape[1], 4, 3)
    given = {"epochs": 3, "batch_size": 8, "seed": 0, "keep_step_scores": True, "device": "cpu"} | options
    return gpu.attribute(Network(sizes, "tanh"), Adam(), prepared.train, prepared.valid, **given)


def columns_in(path: Path) -> dict[str, Array]:
    with np.load(path / "scores.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(("arguments", "weighting"), [((), "unit"), (("--weighting", "sum"), "sum")])
def test_scores_are_those_of_the_run_under_the_weighting(
    here: Path, command: Command, arguments: tuple[str, ...], weighting: Any
) -> None:
    assert command("attribute", "wine", *RUN, *arguments, "--out", "o").exit_code == 0
    run, columns = run_of_wine(), columns_in(here / "o")
    np.testing.assert_array_equal(columns["score"], weighted(run, weighting))
    np.testing.assert_array_equal(columns["sgd_score"], weighted(run, weighting, sgd=True))
    np.testing.assert_array_equal(columns["total"], run.scores)
    with (here / "o" / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("score", "sgd_score", "total"):
        assert [float(row[name]) for row in rows] == columns[name].tolist()
    assert folder.read(here / "o").weighting == weighting


def test_show_has_the_scores_of_a_run_with_the_other_weighting(here: Path, command: Command) -> None:
    """One run of each weighting: what `show` makes of one, under the weighting of the other, is the other."""
    flips = ("--flip-labels", "0.1")
    for weighting in ("sum", "unit"):
        assert command("attribute", "wine", *RUN, *flips, "--weighting", weighting, "--out", weighting).exit_code == 0
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    for one, other in (("sum", "unit"), ("unit", "sum")):
        shown = weightings.reweighted(folder.read(here / one), other)  # type: ignore[arg-type]
        whole = folder.read(here / other)
        for name, column in whole.columns.items():
            np.testing.assert_array_equal(shown.columns[name], column, err_msg=name)
        assert shown.results is not None
        assert whole.results is not None
        assert shown.results["flip_detection_roc_auc"] == whole.results["flip_detection_roc_auc"]
        ours, theirs = (
            json.loads(command("show", name, *more, "--json").stdout)
            for name, more in ((one, ("--weighting", other)), (other, ()))
        )
        assert ours["weighting"] == theirs["weighting"] == other
        for name in ("helpful", "harmful", "histogram", "groups"):
            assert ours[name] == theirs[name]
        texts = [
            # Up to the advice at the end, which names the folder.
            command("show", name, *more).stdout.split("\n", 1)[1].partition("Validation examples with")[0]
            for name, more in ((one, ("--weighting", other)), (other, ()))
        ]
        assert texts[0] == texts[1]
        for name, more in ((one, ("--weighting", other)), (other, ())):
            assert command("show", name, *more, "--html", here.parent / f"{name}.html").exit_code == 0
        pages = [(here.parent / f"{name}.html").read_text(encoding="utf-8") for name in (one, other)]
        heads = [page.partition("<h1>")[2].partition("<svg")[0] for page in pages]
        assert heads[0] == heads[1]
        assert f"(weighting {other})" in heads[0]
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_an_interrupted_run_has_its_step_scores_and_goes_on(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops after its second checkpoint; until then its scores are weighted as well."""
    seen: list[int] = []

    def stopping(*data: Any, on_checkpoint: Any, **options: Any) -> Run:
        def then_stop(step: int, take: Any) -> None:
            on_checkpoint(step, take)
            seen.append(step)
            if step == 20:
                raise KeyboardInterrupt

        return gpu.attribute(*data, on_checkpoint=then_stop, **options, device="cpu")

    monkeypatch.setattr(trainers, "installed_trainer", lambda: Trainer("a test", stopping))
    every = ("--checkpoint-seconds", "0")
    command("attribute", "wine", *RUN, "--out", "o", *every)
    part, whole = folder.read(here / "o"), run_of_wine()
    assert part.status == "unfinished"
    assert part.step == 20
    np.testing.assert_array_equal(part.columns["score"], weighted(run_of_wine(steps=20), "unit"))
    steps = folder.step_scores(part)
    assert steps is not None
    assert whole.step_scores is not None
    np.testing.assert_array_equal(steps["step_scores"], np.nan_to_num(whole.step_scores[:20]))
    assert json.loads(command("show", "o", "--weighting", "sum", "--json").stdout)["weighting"] == "sum"
    monkeypatch.setattr(trainers, "installed_trainer", lambda: ENGINE)
    assert command("attribute", "--resume", "o").exit_code == 0
    np.testing.assert_array_equal(columns_in(here / "o")["score"], weighted(whole, "unit"))


# --- folders without step scores -------------------------------------------------------------------------------------


def as_of_an_earlier_version(path: Path) -> None:
    """Rewrite a finished run with weighting "sum" as the versions before ``--weighting`` wrote it."""
    before = checkpoint.digest((path / "config.json").read_bytes())
    config = json.loads((path / "config.json").read_bytes())
    del config["options"]["weighting"]
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    owner = checkpoint.digest((path / "config.json").read_bytes())
    for sealed in (path / "scores.npz", *(path / "checkpoints").glob("*.npz"), *(path / "history").glob("*.npz")):
        arrays = checkpoint.read(sealed, before)
        for name in ("total", *folder.STEP_SCORES):
            arrays.pop(name, None)
        checkpoint.write(sealed, arrays, owner)


def test_a_folder_of_an_earlier_version_is_shown_and_goes_on_but_is_not_weighted(
    here: Path, command: Command, refused: Refused
) -> None:
    assert command("attribute", "wine", *RUN, "--weighting", "sum", "--out", "o").exit_code == 0
    wanted = columns_in(here / "o")
    as_of_an_earlier_version(here / "o")
    shown = json.loads(command("show", "o", "--json").stdout)
    assert shown["weighting"] == "sum"
    assert {row["total"] == row["score"] for row in shown["helpful"]} == {True}
    refused(("show", "o", "--weighting", "unit"), "--weighting: got 'unit', but 'o' has no scores of single steps")
    (here / "o" / "results.json").unlink()
    assert command("attribute", "--resume", "o").exit_code == 0
    np.testing.assert_array_equal(columns_in(here / "o")["score"], wanted["score"])


def test_momentums_credit_has_the_sum_only(here: Path, command: Command, refused: Refused) -> None:
    assert command("attribute", "wine", *TINY, "--credit", "carry", "--out", "o").exit_code == 0
    assert folder.read(here / "o").weighting == "sum"
    refused(("show", "o", "--weighting", "unit"), "--weighting: got 'unit', but", "--credit carry")
    shutil.rmtree(here / "o")
    refused(
        ("attribute", "wine", *TINY, "--credit", "carry", "--weighting", "unit"),
        "--weighting: got 'unit' with --credit carry; needs sum",
    )


def test_a_damaged_history_is_named(here: Path, command: Command, refused: Refused) -> None:
    assert command("attribute", "wine", *TINY, "--out", "o").exit_code == 0
    saved = folder.read(here / "o")
    (chunk,) = (here / "o" / "history").glob("*.npz")
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(CommandError, match=str(chunk.name)):
        weightings.reweighted(saved, "sum")


# --- what the output says --------------------------------------------------------------------------------------------


def test_totals_add_up_to_what_is_printed(here: Path, command: Command) -> None:
    for credit in ("step", "carry"):
        result = command("attribute", "wine", *RUN, "--credit", credit, "--out", credit)
        text, saved = " ".join(result.stdout.split()), folder.read(here / credit)
        assert saved.results is not None
        fall = saved.results["before"]["loss"] - saved.results["after"]["loss"]
        total = saved.columns["total"].sum()
        assert f"add up to {total:.3g}; the validation loss fell by {fall:.3g}." in text
        assert ("The rest is mostly momentum's" in text) == (credit == "step")
        if credit == "carry":
            assert f"{total:.3g}" == f"{fall:.3g}"


@pytest.mark.parametrize(("weighting", "many"), [("sum", True), ("unit", False)])
def test_examples_of_the_first_batch_are_counted(here: Path, command: Command, weighting: str, many: bool) -> None:
    result = command("attribute", "digits", "--hidden", "8", "--epochs", "2", "--weighting", weighting, "--out", "o")
    saved = folder.read(here / "o")
    _, first = next(batch_order(len(saved.columns["score"]), batch_size=32, epochs=1, seed=0))
    helpful = np.argsort(saved.columns["score"])[-10:]
    count = len(set(helpful.tolist()) & set(first.tolist()))
    line = f"{count} of the 10 most helpful examples were in the first batch"
    assert (count > 2) == many
    assert (line in " ".join(result.stdout.split())) == many
    page = here.parent / "page.html"
    command("show", "o", "--html", page)
    assert (line in page.read_text(encoding="utf-8")) == many


def test_where_chance_puts_many_into_the_first_batch_nothing_is_said(here: Path, command: Command) -> None:
    """All examples are in the one batch of a step."""
    result = command("attribute", "wine", "--hidden", "4", "--batch-size", "500", "--weighting", "sum")
    assert "first batch" not in result.stdout


def test_detection_is_that_of_both_columns() -> None:
    generator = np.random.default_rng(0)
    columns = {"score": generator.normal(size=9), "sgd_score": generator.normal(size=9), "flipped": np.arange(9) < 3}
    found = detection_of(columns)
    assert found is not None
    wanted = {n: roc_auc(-columns[c], columns["flipped"]) for n, c in (("adam", "score"), ("sgd", "sgd_score"))}
    assert asdict(found) == wanted
    assert detection_of(columns | {"flipped": np.zeros(9, bool)}) is None
