"""The main job: files that agree with the run, flipped labels that are found, nothing half-written."""

import csv
import json
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command
from sklearn.metrics import roc_auc_score

from adamshap import gpu
from adamshap.reference import Adam, Batch, Network, Run, attribute, checkpoint
from adamshap.reference.command import folder, pictures, results, trainers
from adamshap.reference.command.datasets import load
from adamshap.reference.command.preparation import prepare
from adamshap.reference.contract import refuse
from adamshap.reference.models import mean_loss, outputs
from adamshap.verify.tolerance import assert_within, rounding

Refused = Callable[..., None]


def _files(place: Path) -> tuple[list[dict[str, str]], dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    with (place / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with np.load(place / "scores.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    config, results = (
        json.loads((place / name).read_text(encoding="utf-8")) for name in ("config.json", "results.json")
    )
    assert results["status"] == "finished"
    assert results["step"] == arrays.pop("step") == config["steps"]["total"]
    return rows, arrays, config | {"results": results}


def test_the_files_agree_with_each_other_and_with_the_run(here: Path, command: Command, blobs: Path) -> None:
    options = ("--flip-labels", "0.25", "--seed", "3", "--slope", "secant", "--gradient", "path", "--credit", "carry")
    result = command(
        "attribute",
        blobs,
        "--hidden",
        "5,4",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--lr",
        "0.01",
        *options,
        "--out",
        "o",
    )
    assert (result.exit_code, result.stderr) == (0, "")
    rows, arrays, config = _files(here / "o")
    dataset = load(str(blobs))
    prepared = prepare(dataset, flip=0.25, seed=3)
    network = Network((6, 5, 4, 2), "tanh", "cross_entropy")
    run = gpu.attribute(
        network,
        Adam(lr=0.01),
        prepared.train,
        prepared.valid,
        epochs=2,
        batch_size=8,
        seed=3,
        slope="secant",
        gradient="path",
        credit="carry",
    )
    assert list(rows[0]) == list(arrays) == [*("index", "label", "flipped", "score", "sgd_score", "seen", "total")]
    expected = (
        prepared.train_index,
        prepared.train.y,
        prepared.flipped,
        run.scores,
        run.sgd_scores,
        run.seen,
        run.scores,
    )
    for array, wanted in zip(arrays.values(), expected, strict=True):
        assert np.array_equal(array, wanted)
    assert [int(row["index"]) for row in rows] == arrays["index"].tolist()
    assert [dataset.classes.index(row["label"]) for row in rows] == arrays["label"].tolist()
    assert [row["flipped"] == "true" for row in rows] == arrays["flipped"].tolist()
    assert [float(row["score"]) for row in rows] == arrays["score"].tolist()
    assert [float(row["sgd_score"]) for row in rows] == arrays["sgd_score"].tolist()
    assert [int(row["seen"]) for row in rows] == arrays["seen"].tolist() == [2] * 32
    assert [(flip["index"], flip["from"], flip["to"]) for flip in config["flips"]] == [
        (int(row["index"]), dataset.classes[dataset.y[int(row["index"])]], row["label"])
        for row in rows
        if row["flipped"] == "true"
    ]
    assert config["options"] == {
        "data": str(blobs),
        "hidden": [5, 4],
        "epochs": 2,
        "steps": None,
        "batch_size": 8,
        "lr": 0.01,
        "slope": "secant",
        "gradient": "path",
        "flip_labels": 0.25,
        "seed": 3,
        "label": None,
        "task": "auto",
        "valid": None,
        "valid_fraction": None,
        "credit": "carry",
        "kind": "shapley",
        "sep": None,
        "decimal": None,
        "one_hot": [],
        "drop": [],
        "missing": None,
        "valid_limit": 500,
        "id": None,
        "activation": "tanh",
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0,
        "device": "auto",
        "model": "mlp",
        "width": 0,
        "depth": 0,
        "group": None,
        "weighting": "sum",
        "run_seed": None,
        "per_validation": False,
        "heads": 0,
        "context": 0,
        "more": [],
        "examples": "passage",
        "tokens": "characters",
    }
    assert config["dataset"]["classes"] == ["cat", "dog"]
    assert sorted(config["dataset"]["validation_index"] + arrays["index"].tolist()) == list(range(40))
    assert config["standardisation"]["mean"] == prepared.mean.tolist()
    valid = prepared.valid
    for when, params in (("before", run.initial_params), ("after", run.params)):
        right = outputs(network, params, valid.x).argmax(axis=1) == valid.y
        found = config["results"][when]
        assert found | {"roc_auc": 0} == {
            "loss": float(mean_loss(network, params, valid)),
            "accuracy": right.mean(),
            "roc_auc": 0,
        }
        probability = np.diff(outputs(network, params, valid.x), axis=1)[:, 0]
        assert_within(found["roc_auc"], roc_auc_score(valid.y, probability), rounding(1.0, valid.n), "ROC AUC")
        assert f"{right.mean():.1%}" in result.stdout
        assert f"{found['roc_auc']:.4f}" in result.stdout
    assert (here / "o" / "examples.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_scores(here: Path, command: Command) -> None:
    for seed, out in ((1, "a"), (1, "b"), (2, "c")):
        assert command("attribute", "wine", *TINY, "--seed", seed, "--out", out).exit_code == 0
    a, b, c = ((here / out / "scores.csv").read_bytes() for out in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(("hidden", "sizes"), [("", [13, 3]), ("7", [13, 7, 3]), (" 3, 4 ", [13, 3, 4, 3])])
def test_hidden_layers(here: Path, command: Command, hidden: str, sizes: list[int]) -> None:
    assert command("attribute", "wine", *TINY, "--hidden", hidden).exit_code == 0
    assert _files(here / "adamshap-wine")[2]["network"]["sizes"] == sizes


def test_flipped_labels_are_found(here: Path, command: Command) -> None:
    result = command("attribute", "digits", "--flip-labels", "0.1", "--hidden", "16", "--epochs", "2")
    assert result.exit_code == 0
    _, arrays, config = _files(here / "adamshap-digits")
    flipped = arrays["flipped"]
    assert flipped.sum() == round(0.1 * len(flipped))
    # A random score has an AUC of 1/2 with this standard deviation (Mann and Whitney).
    positives = int(flipped.sum())
    spread = np.sqrt((len(flipped) + 1) / (12 * positives * (len(flipped) - positives)))
    found = config["results"]["flip_detection_roc_auc"]
    for name, column in (("adam", "score"), ("sgd", "sgd_score")):
        assert found[name] > 0.5 + 10 * spread
        assert abs(found[name] - roc_auc_score(flipped, -arrays[column])) <= len(flipped) * np.finfo(np.float64).eps
        assert f"{found[name]:.4f}" in result.stdout


def test_without_flips_nothing_is_said_of_them(here: Path, command: Command) -> None:
    result = command("attribute", "wine", *TINY)
    assert "flipped" not in result.stdout
    assert "Low scores find" not in result.stdout
    rows, _, config = _files(here / "adamshap-wine")
    assert {row["flipped"] for row in rows} == {"false"}
    assert config["flips"] == []
    assert config["results"]["flip_detection_roc_auc"] is None


def test_the_tables_show_the_extremes(here: Path, command: Command) -> None:
    result = command("attribute", "wine", *TINY)
    _, arrays, _ = _files(here / "adamshap-wine")
    ranked = arrays["index"][np.argsort(arrays["score"])]
    helpful, harmful = result.stdout.split("Most helpful")[1].split("Validation")[0].split("Most harmful")
    shown = [
        [int(line.split()[0]) for line in part.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
        for part in (helpful, harmful)
    ]
    assert shown == [ranked[::-1][:10].tolist(), ranked[:10].tolist()]


@pytest.mark.parametrize("spam", ['spam, "and"\nmore', "spam\rx", "spam\r\nx"])
def test_csv_end_to_end(here: Path, command: Command, spam: str) -> None:
    with (here / "mail.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "kind"])
        writer.writerows([k % 2, k * k % 7, "ham" if k % 3 else spam] for k in range(20))
    assert command("attribute", "mail.csv", "--label", "kind", *TINY).exit_code == 0
    table, arrays, config = _files(here / "adamshap-mail")
    assert config["options"]["label"] == "kind"
    assert config["dataset"]["features"] == ["a", "b"]
    assert {row["label"] for row in table} == {"ham", spam}
    assert len(arrays["index"]) == 16
    assert not (here / "adamshap-mail" / "examples.png").exists()


def test_a_run_that_is_over_prints_its_object_once_more(here: Path, command: Command) -> None:
    first = json.loads(command("attribute", "wine", *TINY, "--out", "run", "--json").stdout)
    again = json.loads(command("attribute", "--resume", "run", "--json").stdout)
    assert again == first


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "credit"), [("sgd", "step"), ("random_order", "step"), ("random_order", "carry")])
def test_training_that_diverges(here: Path, command: Command, slope: str, credit: str) -> None:
    result = command("attribute", "wine", *TINY, "--slope", slope, "--credit", credit, "--lr", "3e38")
    assert result.exit_code == 3
    assert result.stderr.startswith("adamshap: training diverged: ")
    assert "needs finite numbers: a smaller --lr than 3e+38 may help; the scores" in result.stderr
    assert result.stderr.count("\n") == 1
    ended = json.loads((here / "adamshap-wine" / "results.json").read_text())
    assert (ended["status"], ended["step"]) == ("diverged", 0)
    assert ended["message"] in result.stderr


def test_scores_that_are_not_finite(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(network: Network, adam: Adam, train: Batch, valid: Batch, **options: Any) -> Run:
        run = attribute(network, adam, train, valid, **options)
        return Run(**{**vars(run), "scores": np.full_like(run.scores, np.nan)})

    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainers.Trainer("a test", engine))
    result = command("attribute", "wine", *TINY)
    assert result.exit_code == 3
    assert "training diverged: scores: got nan after the last of 18 steps" in result.stderr


def test_a_learning_rate_beyond_the_dtype_is_refused(refused: Refused) -> None:
    needs = "at most 3.4e+38, the largest number of float32"
    refused(("attribute", "wine", *TINY, "--lr", "1e308"), f"adamshap: Adam.lr: got 1e+308; needs {needs}\n")


def test_what_the_contract_refuses_is_one_line(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*arguments: Any, **options: Any) -> Run:
        refuse("seed", "a moon", "a number", TypeError)

    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainers.Trainer("a test", engine))
    refused(("attribute", "wine", *TINY), "adamshap: seed: got a moon; needs a number\n")


def test_the_engine_computes_and_the_oracle_where_there_is_none(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = command("attribute", "wine", *TINY, "--out", "with")
    assert f"computed by {gpu.describe()}" in " ".join(result.stdout.split())
    broken = EntryPoint("engine", "no.such.engine", trainers.GROUP)
    monkeypatch.setattr(trainers, "entry_points", lambda **_: [broken])
    result = command("attribute", "wine", *TINY, "--out", "without")
    assert "computed by the oracle on the CPU, float64" in " ".join(result.stdout.split())


# --- where the results go --------------------------------------------------------------------------------------------


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if the training starts."""

    def engine(*arguments: Any, **options: Any) -> Run:
        raise AssertionError("trained before the output was refused")

    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainers.Trainer("a test", engine))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("full", ["'full'", "exists"]),
        ("file", ["'file'", "exists"]),
        ("dangling", ["is not a folder"]),
        ("loop", ["'loop'", "exists"]),
        ("no/where", ["'no/where'", "not a folder"]),
        ("file/out", ["'file/out'", "not a folder"]),
        ("x" * 300, ["cannot write", "name too long"]),
    ],
)
def test_out_is_refused_before_training(here: Path, refused: Refused, out: str, words: list[str]) -> None:
    (here / "full").mkdir()
    (here / "full" / "mine.txt").write_text("mine")
    (here / "file").write_text("mine")
    (here / "loop").symlink_to(here / "loop")
    (here / "dangling").symlink_to(here / "not" / "there")
    refused(("attribute", "wine", *TINY, "--out", out), *words)


@pytest.mark.usefixtures("no_training")
def test_the_current_folder_is_refused(refused: Refused) -> None:
    refused(("attribute", "wine", *TINY, "--out", "."), "'.'", "inside")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("out", [(), ("--out", "o")])
def test_a_folder_that_cannot_be_written(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, out: tuple[str, ...]
) -> None:
    def mkdtemp(**_: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(results.tempfile, "mkdtemp", mkdtemp)
    refused(("attribute", "wine", *TINY, *out), "cannot write", "Permission denied")


def test_names_that_are_free(here: Path, command: Command) -> None:
    (here / "adamshap-wine-2").write_text("mine")
    for _ in range(3):
        assert command("attribute", "wine", *TINY).exit_code == 0
    assert sorted(path.name for path in here.iterdir()) == [
        "adamshap-wine",
        "adamshap-wine-2",
        "adamshap-wine-3",
        "adamshap-wine-4",
    ]
    assert (here / "adamshap-wine-2").read_text() == "mine"


def test_an_empty_folder_is_used_and_links_are_followed(here: Path, command: Command) -> None:
    (here / "real").mkdir()
    (here / "link").symlink_to(here / "real")
    assert command("attribute", "wine", *TINY, "--out", "link").exit_code == 0
    assert (here / "link").is_symlink()
    assert (here / "real" / "scores.csv").is_file()


def test_the_folder_has_the_rights_of_any_other(here: Path, command: Command) -> None:
    (here / "plain").mkdir()
    assert command("attribute", "wine", *TINY).exit_code == 0
    assert (here / "adamshap-wine").stat().st_mode == (here / "plain").stat().st_mode


def test_a_place_taken_meanwhile_costs_no_results(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = folder.create

    def slow(*arguments: Any) -> None:
        create(*arguments)
        (here / "o").mkdir()
        (here / "o" / "mine.txt").write_text("mine")

    monkeypatch.setattr(folder, "create", slow)
    result = command("attribute", "wine", *TINY, "--out", "o")
    assert result.exit_code == 0
    assert f"; files in {here / 'o-2'}\n" in result.stdout
    assert [path.name for path in (here / "o").iterdir()] == ["mine.txt"]
    assert (here / "o-2" / "scores.csv").is_file()


WRITERS = [(np, "savez"), (folder, "create"), (checkpoint, "write_whole"), (results, "_move")]


@pytest.mark.parametrize(("module", "name"), WRITERS, ids=[name for _, name in WRITERS])
@pytest.mark.parametrize("late", [False, True], ids=["instead", "afterwards"])
def test_a_failure_before_the_training_leaves_nothing(
    blobs: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, late: bool
) -> None:
    function = getattr(module, name)

    def fail(*arguments: Any, **options: Any) -> None:
        if late and name != "_move":
            function(*arguments, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, name, fail)
    refused(("attribute", blobs, *TINY, "--out", "o"), "cannot write", "No space left on device")


@pytest.mark.parametrize("out", [(), ("--out", "o")])
def test_an_interrupt_before_the_training_leaves_nothing(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch, out: tuple[str, ...]
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "_move", interrupt)
    result = command("attribute", "wine", *TINY, *out)
    assert (result.exit_code, result.stderr) == (130, "adamshap: interrupted\n")
    assert list(here.iterdir()) == []


def test_without_matplotlib_there_is_a_line_and_no_picture(
    here: Path, command: Command, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = command("attribute", blobs, *TINY)
    assert result.exit_code == 0
    assert 'pip install "adamshap[demo]"' in result.stdout
    assert not (here / "adamshap-blobs" / "examples.png").exists()


def test_pictures_of_names_that_no_font_has(here: Path, command: Command) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3, 2))
    np.savez(here / "a.npz", x=x, y=np.array(["$x_$\U000f0000", "long " * 20])[np.arange(20) % 2])
    result = command("attribute", "a.npz", *TINY, "--flip-labels", "0.3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert (here / "adamshap-a" / "examples.png").is_file()
    assert pictures.COLUMNS == 10


def test_scores_of_two_terms_are_made_for_the_kind_asked_for(here: Path, command: Command, blobs: Path) -> None:
    options = ("--epochs", "1", "--hidden", "3", "--slope", "two_term", "--kind", "last", "--out", "o")
    result = command("attribute", blobs, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    _, arrays, config = _files(here / "o")
    prepared = prepare(load(str(blobs)), flip=0.0, seed=0)
    network = Network((6, 3, 2), "tanh", "cross_entropy")
    asked: Any = {"epochs": 1, "batch_size": 32, "slope": "two_term", "kind": "last"}
    run = gpu.attribute(network, Adam(lr=0.001), prepared.train, prepared.valid, **asked)
    assert np.array_equal(arrays["total"], run.scores)
    assert config["options"]["kind"] == "last"
