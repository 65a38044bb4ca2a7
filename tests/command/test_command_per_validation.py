"""``attribute --per-validation``: the scores for every validation example, kept, resumed, shown, and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command
from killing import outcome

from adamshap.reference import checkpoint
from adamshap.reference.command import folder, per_validation, running, trainers, training
from adamshap.reference.command.explain import explain
from adamshap.reference.command.job import Options
from adamshap.reference.command.trainers import ORACLE, Trainer, installed_trainer
from adamshap.reference.command.weightings import reweighted
from adamshap.reference.contract import Array

Refused = Callable[..., None]
MANY = ("--hidden", "4", "--epochs", "3", "--batch-size", "6")


def kept(path: Path) -> dict[str, Array]:
    with np.load(path / per_validation.FILE, allow_pickle=False) as archive:
        return dict(archive)


def close(one: Array, other: Array, tolerance: float = 1e-5) -> None:
    size = np.abs(other).max()
    assert size > 0
    np.testing.assert_allclose(one / size, other / size, atol=tolerance)


@pytest.mark.parametrize("trainer", [ORACLE, installed_trainer()], ids=["oracle", "installed"])
@pytest.mark.parametrize("weighting", ["unit", "sum"])
def test_the_mean_over_the_columns_is_the_score_of_a_run(
    command: Command, here: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch, trainer: Trainer, weighting: str
) -> None:
    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainer)
    options = (*MANY, "--weighting", weighting)
    for name, more in (("each", ["--per-validation"]), ("plain", [])):
        result = command("attribute", blobs, *options, *more, "--out", name)
        assert result.exit_code == 0, result.stderr
    each, plain, found = folder.read(here / "each"), folder.read(here / "plain"), kept(here / "each")
    assert not (here / "plain" / per_validation.FILE).exists()
    for name in ("score", "sgd_score", "total"):
        assert found[name].shape == (32, 8)
        np.testing.assert_allclose(found[name].mean(axis=1), each.columns[name], rtol=1e-12)
        close(each.columns[name], plain.columns[name])
    np.testing.assert_array_equal(found["index"], each.columns["index"])
    assert found["validation_index"].tolist() == each.config["dataset"]["validation_index"]
    results: Any = each.results
    for when in ("before", "after"):
        assert found[f"loss_{when}"].mean() == pytest.approx(results[when]["loss"])
    other: Any = "sum" if weighting == "unit" else "unit"
    close(reweighted(each, other).columns["score"], reweighted(plain, other).columns["score"])


def test_totals_are_the_columns_of_a_run_for_all_validation_examples(command: Command, here: Path, blobs: Path) -> None:
    command("attribute", blobs, *MANY, "--per-validation", "--out", "run")
    saved = folder.read(here / "run")
    options = Options.from_config(saved.config["options"])
    dataset, prepared = running.prepared_again(options, saved.config, "--resume")
    network, adam = training.plan(options, dataset, prepared.train.n)
    for place in (0, 5):
        alone = prepared.valid.take(np.array([place]))
        run = training.attributed(options, ORACLE, network, adam, prepared.train, alone)
        close(kept(here / "run")["total"][:, place], run.scores)


@pytest.mark.parametrize("weighting", ["unit", "sum"])
def test_an_explanation_needs_no_training_and_is_that_of_a_run_without(
    command: Command, here: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch, weighting: Any
) -> None:
    for name, more in (("each", ["--per-validation"]), ("plain", [])):
        command("attribute", blobs, *MANY, *more, "--out", name)
    each, plain = (reweighted(folder.read(here / name), weighting) for name in ("each", "plain"))
    rows = [plain.config["dataset"]["validation_index"][place] for place in (3, 1)]
    expected = explain(plain, rows, installed_trainer())

    def nothing(*_: Any, **__: Any) -> Any:
        raise AssertionError("it trained")

    found = explain(each, rows, Trainer("nothing", nothing))
    for one, other in zip(found, expected, strict=True):
        assert (one.index, one.label) == (other.index, other.label)
        assert one.loss_before == pytest.approx(other.loss_before, rel=1e-5)
        assert one.loss_after == pytest.approx(other.loss_after, rel=1e-5)
        for name in ("score", "sgd_score", "total"):
            close(one.saved.columns[name], other.saved.columns[name])
    monkeypatch.setattr(trainers, "installed_trainer", lambda: Trainer("nothing", nothing))
    arguments = ("show", "each", "--explain", rows[0], "--weighting", weighting, "--json")
    shown = json.loads(command(*arguments).stdout)["explanations"][0]
    assert shown["helpful"][0]["score"] == found[0].saved.columns["score"].max()


def test_a_resumed_run_has_the_same_bits(command: Command, here: Path, blobs: Path) -> None:
    arguments = ("attribute", blobs, *MANY, "--per-validation", "--checkpoint-seconds", 0)
    command(*arguments, "--out", "whole")
    command(*arguments, "--out", "part")
    for name in ("results.json", "scores.csv", per_validation.FILE):
        (here / "part" / name).unlink()
    newest = max((here / "part" / "checkpoints").iterdir())
    newest.unlink()
    assert command("attribute", "--resume", "part").exit_code == 0
    assert "resumed from step 17" in (here / "part" / "log.txt").read_text()
    assert outcome(here / "part") == outcome(here / "whole")
    one, other = kept(here / "part"), kept(here / "whole")
    assert all(np.array_equal(one[name], other[name]) for name in other)


def test_what_is_refused(refused: Refused, command: Command, here: Path, blobs: Path, monkeypatch: Any) -> None:
    refused(("attribute", blobs, *TINY, "--per-validation", "--credit", "carry"), "--per-validation", "--explain K")
    command("attribute", blobs, *MANY, "--per-validation", "--out", "run")
    row = folder.read(here / "run").config["dataset"]["validation_index"][0]
    file = here / "run" / per_validation.FILE
    file.write_bytes(file.read_bytes()[:-300])
    refused(("show", "run", "--explain", row), "per_validation.npz' is damaged", "trains once more")
    needed = 16 * 8 * (18 * 6 + 32)
    monkeypatch.setattr(per_validation, "MOST_BYTES", needed)
    assert command("attribute", blobs, *MANY, "--per-validation").exit_code == 0
    monkeypatch.setattr(per_validation, "MOST_BYTES", needed - 1)
    words = ("--per-validation", f"take {needed} bytes", "--valid-limit 7", "--explain K")
    refused(("attribute", blobs, *MANY, "--per-validation"), *words)
    refused(("attribute", blobs, "--valid", blobs, *MANY, "--per-validation"), "a smaller --valid")


def test_seeds_keep_their_own(command: Command, here: Path, blobs: Path) -> None:
    assert command("attribute", blobs, *TINY, "--per-validation", "--seeds", 2, "--out", "all").exit_code == 0
    for seed in (0, 1):
        path = here / "all" / f"seed-{seed}"
        np.testing.assert_allclose(kept(path)["score"].mean(axis=1), folder.read(path).columns["score"], rtol=1e-12)
    checkpoint.read(path / per_validation.FILE, checkpoint.digest((path / "config.json").read_bytes()))
