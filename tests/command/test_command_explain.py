"""``adamshap show --explain K``: the scores of the run for one validation example, and no other."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command
from matplotlib.image import imread

from adamshap.reference import weighted
from adamshap.reference.command import folder, overview, running, training
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.explain import explain
from adamshap.reference.command.job import Options
from adamshap.reference.command.trainers import ORACLE, installed_trainer
from adamshap.reference.command.weightings import reweighted

Refused = Callable[..., None]


def duplicates(path: Path) -> None:
    """Write two blobs, and far away from both a validation example with five copies in the training data."""
    generator = np.random.default_rng(7)
    y = np.repeat([0, 1], 30)
    x = generator.normal(size=(60, 2)) + 2 * y[:, None]
    x, y = np.concatenate([x, np.tile([9.0, -9.0], (5, 1))]), np.concatenate([y, np.ones(5, int)])
    np.savez(path, x=x, y=np.array(["dog", "cat"])[y])
    valid = np.concatenate([generator.normal(size=(8, 2)), [[9.0, -9.0]], generator.normal(size=(8, 2)) + 2])
    np.savez(path.with_name("valid.npz"), x=valid, y=np.array(["dog", "cat"])[np.repeat([0, 1], [8, 9])])


def explained(command: Command, *arguments: object) -> Any:
    return json.loads(command("show", *arguments, "--json").stdout)["explanations"]


def test_an_example_is_explained_by_its_duplicates(command: Command, here: Path) -> None:
    duplicates(here / "t.npz")
    command("attribute", "t.npz", "--valid", "valid.npz", "--epochs", 3, "--hidden", "8", "--out", "run")
    (found,) = explained(command, "run", "--explain", 8, "--top", 5)
    assert {row["index"] for row in found["helpful"]} == {60, 61, 62, 63, 64}
    assert (found["index"], found["label"]) == (8, "cat")
    assert found["loss_after"] < found["loss_before"]
    (other,) = explained(command, "run", "--explain", 0, "--top", 5)
    assert not {row["index"] for row in other["helpful"]} >= {60, 61, 62, 63, 64}
    text = command("show", "run", "--explain", 8).stdout
    assert "Validation example in row 8: label cat\nIts loss was" in text
    assert "Most helpful examples" in text


def test_the_examples_to_ask_for_are_those_with_the_highest_loss(command: Command, here: Path, blobs: Path) -> None:
    output = command("attribute", blobs, *TINY, "--per-validation", "--out", "run").stdout
    results = json.loads((here / "run" / "results.json").read_text(encoding="utf-8"))
    kept = folder.per_validation_of(folder.read(here / "run"))
    assert kept is not None
    highest = np.argsort(-kept["loss_after"])[:5]
    assert [one["index"] for one in results["hardest"]] == kept["validation_index"][highest].tolist()
    assert [one["loss"] for one in results["hardest"]] == kept["loss_after"][highest].tolist()
    row, loss = results["hardest"][0].values()
    assert command("show", "run", "--html", "p.html").exit_code == 0
    for said in (output, command("show", "run").stdout, (here / "p.html").read_text(encoding="utf-8")):
        assert f"by row (from 0): {row} ({loss:.4g}), " in said
        assert f"adamshap show {here / 'run'} --explain {row}" in said or "show run --explain" in said
    assert explained(command, "run", "--explain", row)[0]["loss_after"] == loss


@pytest.mark.parametrize(
    ("trainer", "credit"),
    [(ORACLE, "step"), (installed_trainer(), "step"), (ORACLE, "carry")],
    ids=["oracle", "installed", "carry"],
)
def test_scores_are_the_columns_of_the_run_for_all_validation_examples(
    command: Command, here: Path, blobs: Path, trainer: Any, credit: str
) -> None:
    command("attribute", blobs, *TINY, "--credit", credit, "--out", "run")
    saved = folder.read(here / "run")
    options = Options.from_config(saved.config["options"])
    dataset, prepared = running.prepared_again(options, saved.config, "--resume")
    network, adam = training.plan(options, dataset, prepared.train.n)
    whole = training.attributed(options, trainer, network, adam, prepared.train, prepared.valid, per_validation=True)
    rows = [int(row) for row in prepared.valid_index]
    asked = [rows[3], rows[1]]
    found = explain(reweighted(saved, "sum"), asked, trainer)
    assert [one.index for one in found] == asked
    for one, place in zip(found, (3, 1), strict=True):
        for name, columns in (("score", whole.scores), ("sgd_score", whole.sgd_scores), ("total", whole.scores)):
            size = np.abs(columns).max()
            np.testing.assert_allclose(one.saved.columns[name] / size, columns[:, place] / size, atol=1e-5)


@pytest.mark.parametrize("trainer", [ORACLE, installed_trainer()], ids=["oracle", "installed"])
def test_scores_have_the_weighting_of_a_run_for_this_example_alone(
    command: Command, here: Path, blobs: Path, trainer: Any
) -> None:
    command("attribute", blobs, *TINY, "--out", "run")
    saved = folder.read(here / "run")
    assert saved.weighting == "unit"
    options = Options.from_config(saved.config["options"])
    dataset, prepared = running.prepared_again(options, saved.config, "--resume")
    network, adam = training.plan(options, dataset, prepared.train.n)
    found = explain(saved, [int(prepared.valid_index[place]) for place in (3, 1)], trainer)
    for one, place in zip(found, (3, 1), strict=True):
        alone = prepared.valid.take(np.array([place]))
        run = training.attributed(options, trainer, network, adam, prepared.train, alone, keep_step_scores=True)
        for name, expected in (
            ("score", weighted(run, "unit")),
            ("sgd_score", weighted(run, "unit", sgd=True)),
            ("total", run.scores),
        ):
            size = np.abs(expected).max()
            np.testing.assert_allclose(one.saved.columns[name] / size, expected / size, atol=1e-5)


def test_the_example_is_shown_as_its_file_has_it(command: Command, here: Path) -> None:
    generator = np.random.default_rng(3)
    rows = [f"u{row},{generator.normal():.3f},{'ab'[row % 2]},{'yes' if row % 3 else 'no'}" for row in range(40)]
    (here / "t.csv").write_text("\n".join(["user,age,plan,left", *rows]) + "\n", encoding="utf-8")
    command("attribute", "t.csv", "--label", "left", "--id", "user", "--one-hot", "plan", *TINY, "--out", "run")
    row = folder.read(here / "run").config["dataset"]["validation_index"][2]
    user, age, plan, left = rows[row].split(",")
    (found,) = explained(command, "run", "--explain", row)
    assert (found["index"], found["line"], found["id"], found["label"]) == (row, row + 2, user, left)
    assert found["values"] == {"age": age, "plan": plan}
    assert found["weighting"] == "unit"
    text = command("show", "run", "--explain", row).stdout
    assert (
        f"Validation example in row {row}, line {row + 2}, user {user}: label {left}\nage = {age}, plan = {plan}"
        in text
    )
    assert f"Its loss was {found['loss_before']:.4g} before the run and {found['loss_after']:.4g} after it" in text
    fall = found["loss_before"] - found["loss_after"]
    assert f"this loss {'fell' if fall > 0 else 'rose'} by {abs(fall):.3g}" in " ".join(text.split())
    assert "total" in text[text.index("Most helpful") :]


def test_lines_and_ids_are_those_of_the_validation_file(command: Command, here: Path) -> None:
    rows = [f"u{row},{row * 7 % 11},{'yes' if row % 3 else 'no'}" for row in range(40)]
    head = "user,age,left"
    (here / "t.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    (here / "v.csv").write_text("\n".join([head, "v0,,yes", "", "v1,3,yes", "v2,9,no"]) + "\n", encoding="utf-8")
    options = ("--label", "left", "--id", "user", "--missing", "drop", *TINY)
    command("attribute", "t.csv", "--valid", "v.csv", *options, "--out", "run")
    (found,) = explained(command, "run", "--explain", 2)
    assert (found["index"], found["line"], found["id"], found["label"]) == (2, 5, "v2", "no")
    assert found["values"] == {"age": "9"}
    assert {row["id"][0] for row in found["helpful"]} == {"u"}


def test_of_a_text_the_passage_and_its_file_are_shown(command: Command, here: Path) -> None:
    for name, word in (("one", "tick tack "), ("two", "ding dong ")):
        (here / f"{name}.txt").write_text(word * 40, encoding="utf-8")
    command("attribute", "one.txt", "two.txt", "--context", 16, "--epochs", 1, "--width", 8, "--out", "run")
    row = folder.read(here / "run").config["dataset"]["validation_index"][-1]
    (found,) = explained(command, "run", "--explain", row)
    assert found["label"] == "two.txt"
    assert set(found["values"]["text"].split()) & {"ding", "dong"}
    head = f"Validation example in row {row}, line 1: file two.txt"
    assert f"{head}\ntext = {found['values']['text'].strip()}\n" in command("show", "run", "--explain", row).stdout


def test_the_page_has_the_example_and_its_pictures(command: Command, here: Path) -> None:
    command("attribute", "digits", *TINY, "--out", "run")
    row, other = folder.read(here / "run").config["dataset"]["validation_index"][:2]
    arguments = ("show", "run", "--explain", row, "--explain", other, "--top", 3, "--html", "page.html")
    assert "Written: page.html" in command(*arguments).stdout
    text = (here / "page.html").read_text(encoding="utf-8")
    (found,) = explained(command, "run", "--explain", row, "--top", 3)
    assert f"<h2>Validation example in row {row}: label {found['label']}</h2>" in text
    for index in (row, other, *(example["index"] for kind in ("helpful", "harmful") for example in found[kind])):
        assert f'<img alt="row {index}, ' in text
    assert text.count("<img ") == 2 * (1 + 2 * 3)
    assert f"Its loss was {found['loss_before']:.4g}" in text
    assert text.count("<h2>Validation example") == 2


def test_an_image_of_the_validation_file_is_its_own(command: Command, here: Path) -> None:
    generator = np.random.default_rng(3)
    y = np.arange(40) % 2
    x = generator.uniform(0, 255, (40, 3, 3))
    np.savez("t.npz", x=x, y=y)
    np.savez("v.npz", x=x[::-1], y=y[::-1])
    command("attribute", "t.npz", "--valid", "v.npz", *TINY, "--out", "run")
    assert command("show", "run", "--explain", 2, "--html", "page.html").exit_code == 0
    link = (
        (here / "page.html").read_text(encoding="utf-8").split('<img alt="row 2, ')[1].split('src="')[1].split('"')[0]
    )
    drawn = imread(io.BytesIO(base64.b64decode(link.split(",")[1])), format="png")[:, :, 0]
    assert np.array_equal(np.argsort(drawn, axis=None), np.argsort(x[37], axis=None))
    Path("v.npz").unlink()
    assert overview.pictures_of_validation(folder.read(here / "run")).missing.startswith("No pictures of validation")


def test_what_cannot_be_explained(command: Command, here: Path, blobs: Path, refused: Refused) -> None:
    command("attribute", blobs, *TINY, "--seeds", 2, "--out", "several")
    refused(("show", "several", "--explain", 0), "--explain", "several runs", "seed-")
    command("attribute", blobs, *TINY, "--out", "run")
    train = int(folder.read(here / "run").columns["index"][0])
    refused(("show", "run", "--explain", train), f"--explain: got {train}; needs rows of validation examples")
    refused(("show", "run", "--explain", 10**6), "--explain: got 1000000")
    with np.load(blobs) as archive:
        changed = dict(archive)
    np.savez(blobs, x=changed["x"] + 1, y=changed["y"])
    valid = folder.read(here / "run").config["dataset"]["validation_index"][0]
    refused(("show", "run", "--explain", valid), "--explain", "has changed since the run started")
    (here / "run" / "results.json").unlink()
    refused(("show", "run", "--explain", valid), "is unfinished; needs a finished one")


def test_a_run_of_a_later_version_is_refused(command: Command, here: Path, blobs: Path) -> None:
    command("attribute", blobs, *TINY, "--out", "run")
    saved = folder.read(here / "run")
    config = saved.config | {"options": saved.config["options"] | {"later": 1}}
    with pytest.raises(CommandError, match=r"--explain: .* has other options than this version; needs the version of"):
        explain(replace(saved, config=config), saved.config["dataset"]["validation_index"][:1], ORACLE)
