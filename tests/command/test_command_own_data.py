"""The user's own data: every file format gives the same results; regressions, validation files, output for scripts."""

import json
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score, root_mean_squared_error

from adamshap import gpu
from adamshap.reference import Adam, Batch, Run, attribute
from adamshap.reference.command import datasets, preparation
from adamshap.reference.command.datasets import Dataset, load, load_valid
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.training import measure
from adamshap.reference.contract import Network
from adamshap.reference.models import outputs
from adamshap.verify.tolerance import assert_within, rounding

pandas = pytest.importorskip("pandas", reason="extra `tables`: pandas")
pytest.importorskip("pyarrow", reason="extra `tables`: pyarrow")

Refused = Callable[..., None]
GENERATOR = np.random.default_rng(8)
X = GENERATOR.normal(size=(24, 3))
NAMES = np.array(["cat", "dog", "eel"])[np.arange(24) % 3]


def frame(**columns: Any) -> Any:
    return pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2], **columns})


def same(one: Dataset, other: Dataset) -> bool:
    return np.array_equal(one.x, other.x) and np.array_equal(one.y, other.y) and one.classes == other.classes


# --- every form of file ----------------------------------------------------------------------------------------------


def test_all_forms_of_file_hold_the_same_data(here: Path) -> None:
    table = frame(label=NAMES)
    table.to_csv("d.csv", index=False)
    table.to_parquet("d.parquet")
    np.savez("d.npz", x=X, y=NAMES)
    np.save("x.npy", X)
    np.save("y.npy", NAMES)
    first = load("d.csv")
    assert first.classes == ("cat", "dog", "eel")
    for data in ("d.parquet", "d.npz", "x.npy,y.npy"):
        assert same(load(data), first), data
    assert load("d.parquet").features == first.features == ("a", "b", "c")
    assert here.name == "here"


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (pandas.Series(["x", "y"] * 12, dtype="category"), ("x", "y")),
        (pandas.Series([0, 1] * 12, dtype="Int8"), ("0", "1")),
        (pandas.Series([0.0, 1.0] * 12), ("0", "1")),
        (pandas.Series([False, True] * 12), ("False", "True")),
        (pandas.Series([False, True] * 12, dtype="boolean"), ("False", "True")),
        (pandas.Series([2**53, 2**53 + 1] * 12), ("9007199254740992", "9007199254740993")),
        (pandas.Series(["007", "7"] * 12), ("007", "7")),
        (pandas.Series([Decimal("7"), Decimal("7.5")] * 12), ("7", "7.5")),
    ],
)
@pytest.mark.usefixtures("here")
def test_parquet_types(label: Any, classes: tuple[str, ...]) -> None:
    table = frame(label=label, flag=np.arange(24) % 2 == 0, small=np.arange(24, dtype=np.int8))
    table.to_parquet("d.parquet")
    dataset = load("d.parquet")
    assert dataset.classes == classes
    assert dataset.y.tolist() == [0, 1] * 12
    assert np.array_equal(dataset.x[:, 3:], np.stack([np.arange(24) % 2 == 0, np.arange(24)], axis=1))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (frame(), ["no column 'label'", "'a', 'b', 'c'"]),
        (frame(label=NAMES)[:0], ["no rows"]),
        (frame(label=[None, *NAMES[1:]]), ["row 0, column 'label'", "no label"]),
        (frame(label=[*NAMES[:-1], 3.5]).astype({"label": str}).assign(b="x"), ["column 'b'", "needs numbers"]),
        (frame(label=NAMES, when=pandas.Timestamp(0)), ["column 'when'", "datetime64", "needs numbers"]),
        (frame(label=pandas.Timestamp(0)), ["column 'label'", "needs numbers or text"]),
        (frame(label=[np.inf, *range(23)]), ["column 'label'", "NaN or infinity"]),
        (frame(label=NAMES, d=[*range(23), None]), ["row 23, column 'd'", "no value", "--missing mean"]),
        (frame(label=NAMES, d=[*range(23), np.inf]), ["row 23, column 'd'", "inf", "finite"]),
        (
            frame(label=NAMES, d=NAMES),
            ["column 'd'", "--one-hot d makes", "category of the column, --group d", "--drop d"],
        ),
        (frame(label=NAMES, d=[f"u{row}" for row in range(24)]), ["column 'd'", "--one-hot d", "--id d", "--drop d"]),
        (frame(label=NAMES, d=pandas.Categorical(NAMES)), ["dtype category", "--one-hot d", "--drop d"]),
        (frame(label=NAMES, d=[[1, 2]] * 24), ["column 'd'", "needs numbers", "--drop d"]),
        (frame(label=NAMES, when=pandas.Timestamp(0)), ["days since", "--drop when"]),
        (frame(label=["x", "", *["y"] * 22]), ["row 1, column 'label'", "no label"]),
    ],
)
def test_parquet_refusals(refused: Refused, here: Path, table: Any, words: list[str]) -> None:
    table.to_parquet(here / "d.parquet")
    refused(("attribute", "d.parquet"), "'d.parquet'", *words)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(50) + b"PAR1", b"a,label\n1,x\n"])
def test_a_broken_parquet(refused: Refused, here: Path, content: bytes) -> None:
    (here / "d.parquet").write_bytes(content)
    refused(("attribute", "d.parquet"), "'d.parquet'", "needs a .parquet file")


@pytest.mark.parametrize("package", ["pandas", "pyarrow"])
def test_parquet_without_its_extra(refused: Refused, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refused(("attribute", "d.parquet"), 'pip install "adamshap[tables]"')


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("x.npy", ["'x.npy'", "x.npy,y.npy"]),
        ("x.npy,y.npy,y.npy", ["needs two files"]),
        ("x.csv,y.npy", ["needs two files"]),
        ("x.npy,z.npy", ["cannot read 'z.npy'", "No such file"]),
        ("x.npy,broken.npy", ["'broken.npy'", "needs a .npy file"]),
        ("x.npy,archive.npy", ["'archive.npy'", "archive of arrays"]),
        ("x.npy,object.npy", ["'object.npy'", "got Python objects"]),
        ("whole.npy,whole.npy", ["'whole.npy'", "(24, 3) of whole numbers", "--task regression"]),
        ("x.npy,short.npy", ["y: got shape (3,)", "(24,)"]),
    ],
)
def test_npy_refusals(here: Path, refused: Refused, data: str, words: list[str]) -> None:
    np.save(here / "x.npy", X)
    np.save(here / "whole.npy", np.ones((24, 3), int))
    np.save(here / "short.npy", np.arange(3))
    np.save(here / "object.npy", X.astype(object))
    (here / "broken.npy").write_bytes((here / "x.npy").read_bytes()[:-3])
    with (here / "archive.npy").open("wb") as file:
        np.savez(file, x=X)
    refused(("attribute", data), *words)


# --- classes or quantities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "task", "found"),
    [
        (NAMES, "auto", "classification"),
        (np.arange(24) % 3, "auto", "classification"),
        (np.arange(24) % 3, "regression", "regression"),
        (np.arange(24) % 12, "classification", "classification"),
        (X[:, :2], "auto", "regression"),
        (X[:, 0], "regression", "regression"),
        (np.arange(24)[:, None], "regression", "regression"),
        (np.array(["1.5", "2"] * 12), "regression", "regression"),
    ],
)
@pytest.mark.usefixtures("here")
def test_the_task_is_said_or_follows_the_rule(y: Any, task: Any, found: str) -> None:
    np.savez("d.npz", x=X, y=y)
    dataset = load("d.npz", task=task)
    assert dataset.task == found
    assert dataset.why
    if found == "regression":
        assert np.array_equal(dataset.y, y.reshape(24, -1).astype(float))


@pytest.mark.parametrize(
    ("y", "task", "words"),
    [
        (X[:, 0], "auto", ["24 different numbers", "--task regression", "--task classification"]),
        (np.arange(24)[:, None], "auto", ["whole numbers", "--task regression"]),
        (X[:, :2], "classification", ["(24, 2)", "one label"]),
        (NAMES, "regression", ["row 0", "'cat'", "finite number"]),
        (np.full(24, 2.5), "regression", ["'target' is the same"]),
    ],
)
def test_tasks_that_are_refused(here: Path, refused: Refused, y: Any, task: str, words: list[str]) -> None:
    np.savez(here / "d.npz", x=X, y=y)
    refused(("attribute", "d.npz", "--task", task, *TINY), *words)


def test_a_regression_from_end_to_end(here: Path, command: Command) -> None:
    result = command("attribute", "diabetes", *TINY, "--lr", "0.01", "--out", "o", "--valid-fraction", "0.25")
    assert (result.exit_code, result.stderr) == (0, "")
    config, found = (json.loads((here / "o" / f"{name}.json").read_text()) for name in ("config", "results"))
    with np.load(here / "o" / "scores.npz") as archive:
        scores = dict(archive)
    x, y = load_diabetes(return_X_y=True)
    train, valid = scores["index"], np.array(config["dataset"]["validation_index"])
    assert np.array_equal(scores["label"], y[train])
    assert np.array_equal(np.sort([*train, *valid]), np.arange(len(y)))
    assert len(valid) == round(0.25 * len(y))
    kept = config["standardisation"]
    assert kept["target_mean"] == [y[train].mean()]
    assert kept["target_scale"] == [y[train].std()]
    assert (config["dataset"]["task"], config["network"]["loss"]) == ("regression", "mse")
    assert "regression (as the data set is meant)" in " ".join(result.stdout.split())
    assert f"{found['after']['rmse']:.4g}" in result.stdout
    assert "accuracy" not in result.stdout
    # Even a tiny network learns something from a single epoch.
    assert found["after"]["rmse"] < found["before"]["rmse"]
    assert np.array_equal(np.array(kept["mean"]), x[train].mean(axis=0))


def test_several_targets_are_measured_as_scikit_learn_does() -> None:
    dataset = Dataset("d", X, GENERATOR.normal((3, -50), (1, 40), (24, 2)), (), ("a", "b", "c"), None, ("t", "u"), "")
    prepared = preparation.prepare(dataset, flip=0, seed=1)
    network = Network((3, 5, 2), loss="mse")
    params = network.init(2)
    fit = measure(network, params, prepared)
    answers, truth = outputs(network, params, prepared.valid.x), prepared.valid.y
    units = [values * prepared.target_scale + prepared.target_mean for values in (truth, answers)]
    size = truth.size
    expected = r2_score(truth, answers, multioutput="variance_weighted")
    assert_within(fit.r_squared, expected, rounding(1 + abs(expected), size), "R²")
    error = np.sqrt(np.mean(root_mean_squared_error(*units, multioutput="raw_values") ** 2))
    assert_within(fit.rmse, error, rounding(error + np.abs(units).max(), size), "RMSE")


@pytest.mark.usefixtures("here")
def test_targets_of_several_columns_are_written(command: Command) -> None:
    np.savez("d.npz", x=X, y=X[:, :2])
    assert command("attribute", "d.npz", *TINY, "--out", "o").exit_code == 0
    with np.load("o/scores.npz") as archive:
        assert np.array_equal(archive["label"], X[archive["index"], :2])
    rows = pandas.read_csv("o/scores.csv")
    assert rows["label"][0] == ", ".join(map(repr, X[rows["index"][0], :2].tolist()))


def test_a_regression_has_no_labels_to_flip(refused: Refused) -> None:
    refused(("attribute", "diabetes", "--flip-labels", "0.1"), "--flip-labels", "regression", "needs classes")


# --- validation ------------------------------------------------------------------------------------------------------


def test_a_validation_file_is_for_validation_and_everything_else_is_trained_on(here: Path, command: Command) -> None:
    frame(label=NAMES).to_csv("d.csv", index=False)
    frame(label=NAMES[::-1])[["label", "c", "a", "b"]][:10].to_parquet("v.parquet")
    dataset = load("d.csv")
    held_out = load_valid("v.parquet", None, dataset)
    assert np.array_equal(held_out.x, X[:10])
    assert [dataset.classes[label] for label in held_out.y] == NAMES[::-1][:10].tolist()
    prepared = preparation.prepare(dataset, flip=0, seed=0, valid=held_out)
    mean, scale = X.mean(axis=0), X.std(axis=0)
    assert np.array_equal(prepared.train_index, np.arange(24))
    assert np.array_equal(prepared.valid.x, (X[:10] - mean) / scale)
    assert command("attribute", "d.csv", *TINY, "--valid", "v.parquet", "--out", "o").exit_code == 0
    config = json.loads((here / "o" / "config.json").read_text())["dataset"]
    assert (config["train_examples"], config["validation_examples"]) == (24, 10)
    assert (config["validation_file"], config["validation_share"]) == (str(here / "v.parquet"), None)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": NAMES, "d": 1.0}, ["4 features", "'d'"]),
        ({"label": "fox"}, ["'fox'", "classes of the training data", "'cat', 'dog', 'eel'"]),
        ({"label": NAMES, "a": 1e308 * (-1.0) ** np.arange(24)}, ["'a' ranges from -1e+308"]),
        ({"label": NAMES, "a": [np.nan] * 24}, ["'v.parquet', row 0, column 'a'", "no value"]),
        ({"label": np.array(["Cat", "dog", "eel"])[np.arange(24) % 3]}, ["'Cat' may be 'cat'", "one spelling"]),
    ],
)
def test_validation_files_that_are_refused(
    here: Path, refused: Refused, columns: dict[str, Any], words: list[str]
) -> None:
    frame(label=NAMES).assign(a=X[:, 0] * 1e-3).to_csv(here / "d.csv", index=False)
    frame(**columns).to_parquet(here / "v.parquet")
    refused(("attribute", "d.csv", "--valid", "v.parquet", *TINY), *words)


def test_a_validation_file_of_other_targets(here: Path, refused: Refused) -> None:
    np.savez(here / "d.npz", x=X, y=X[:, :2])
    np.savez(here / "v.npz", x=X, y=X)
    refused(("attribute", "d.npz", "--valid", "v.npz"), "3 targets", "2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--valid-fraction", "0"), ["--valid-fraction", "0.0"]),
        (("--valid-fraction", "1"), ["--valid-fraction", "1.0"]),
        (("--valid-fraction", "nan"), ["--valid-fraction", "nan"]),
        (("--valid-fraction", "0.5", "--valid", "v.csv"), ["--valid-fraction", "--valid"]),
        (("--valid-limit", "50", "--valid", "v.csv"), ["--valid-limit", "--valid"]),
        (("--valid-limit", "0"), ["--valid-limit", "1"]),
        (("--steps", "3", "--epochs", "1"), ["--steps", "--epochs"]),
        (("--steps", "0"), ["--steps", "1"]),
        (("--valid", "v.txt"), ["--valid", "'v.txt'"]),
        (("--task", "guess"), ["--task", "guess", "regression"]),
    ],
)
def test_options_that_are_refused(refused: Refused, options: tuple[str, ...], words: list[str]) -> None:
    refused(("attribute", "wine", *options), *words)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_share_leaves_some_of_each_class_on_both_sides(share: float) -> None:
    y = np.repeat([0, 1, 2], [2, 9, 31])
    held_out = preparation.hold_out(y, np.random.default_rng(0), share)
    for label, size in enumerate((2, 9, 31)):
        assert held_out[y == label].sum() == min(max(round(share * size), 1), size - 1)
    assert preparation.hold_out(X, np.random.default_rng(0), share).sum() == min(max(round(share * 24), 1), 23)


# --- length ----------------------------------------------------------------------------------------------------------


def test_a_number_of_steps(here: Path, command: Command, blobs: Path) -> None:
    # 32 examples, so 4 steps an epoch.
    result = command("attribute", blobs, "--hidden", "4", "--batch-size", "8", "--steps", "6", "--out", "o")
    assert result.exit_code == 0
    assert json.loads((here / "o" / "config.json").read_text())["steps"] == {"per_epoch": 4, "total": 6}
    with np.load(here / "o" / "scores.npz") as archive:
        assert np.bincount(archive["seen"]).tolist() == [0, 16, 16]


@pytest.mark.parametrize("trainer", [attribute, gpu.attribute], ids=["oracle", "engine"])
def test_steps_are_the_first_of_a_run(trainer: Callable[..., Run]) -> None:
    train, valid = (Batch(X[rows], np.arange(24)[rows] % 3) for rows in (slice(20), slice(20, 24)))
    whole, part = (
        trainer(Network((3, 4, 3)), Adam(lr=0.1), train, valid, epochs=2, batch_size=8, steps=steps, seed=3)
        for steps in (None, 4)
    )
    assert len(whole.history["epoch"]) == 6
    assert part.state.step == 4
    for name, values in part.history.items():
        assert np.array_equal(values, whole.history[name][:4])


# --- for scripts -----------------------------------------------------------------------------------------------------


def test_json_is_all_that_is_printed(here: Path, command: Command, blobs: Path) -> None:
    result = command("attribute", blobs, *TINY, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    folder = here / "adamshap-blobs"
    assert found["folder"] == str(folder)
    for name in ("config", "results"):
        assert found[name] == json.loads((folder / f"{name}.json").read_text())
    assert (found["status"], found["step"]) == ("finished", found["steps"])
    rows = pandas.read_csv(folder / "scores.csv").sort_values("score", kind="stable").to_dict("records")
    assert found["harmful"] == rows[:10]
    assert found["helpful"] == rows[::-1][:10]


def test_the_classes_are_told(here: Path, command: Command, blobs: Path) -> None:
    assert "Classes: 0 = cat, 1 = dog" in command("attribute", blobs, *TINY, "--out", "o").stdout
    assert "Classes:" not in command("attribute", "digits", *TINY, "--batch-size", "500", "--out", "p").stdout
    assert here.is_dir()


def test_a_table_of_one_row(here: Path) -> None:
    np.savez(here / "d.npz", x=X[:2], y=X[:2])
    with pytest.raises(CommandError, match="2 examples; needs three"):
        datasets.load("d.npz")


def test_constant_features_are_named_before_the_training(here: Path, command: Command) -> None:
    rows = [f"0.3,{0.1 + 0.2 if number % 3 else 0.3!r},{number},{number % 2}" for number in range(40)]
    (here / "a.csv").write_text("one,[two],three,label\n" + "\n".join(rows) + "\n")
    told = " ".join(command("attribute", "a.csv", *TINY, "--out", "o").stdout.split())
    assert "Constant in the training examples, so of no use: 'one', '[two]'." in told
    config = json.loads((here / "o" / "config.json").read_text())
    assert config["standardisation"]["constant_features"] == ["one", "[two]"]
    assert "Constant" not in command("attribute", "wine", *TINY).stdout
