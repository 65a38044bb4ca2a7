"""Data larger than memory: the command reads .npy files as memory maps, with the same results as from other files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_helpers import TINY, Command

import adamshap.gpu as engine
from adamshap.reference import Batch, LazyRows
from adamshap.reference.command import trainers
from adamshap.reference.command.datasets import load, load_valid
from adamshap.reference.command.preparation import prepare
from adamshap.reference.command.trainers import ORACLE, Trainer
from adamshap.reference.contract import Array, rows, run_settings

GENERATOR = np.random.default_rng(13)
COUNT = 60
INPUTS = {
    "float64": GENERATOR.normal(3.0, 10.0, (COUNT, 5)),
    "float32, images": GENERATOR.normal(size=(COUNT, 2, 3)).astype(np.float32),
    "whole numbers of another byte order": GENERATOR.integers(-9, 9, (COUNT, 4)).astype(">i2"),
    "columns first": np.asfortranarray(GENERATOR.normal(size=(COUNT, 5))),
    "one column": GENERATOR.normal(size=(COUNT, 1)),
    "a column that never changes": np.hstack([GENERATOR.normal(size=(COUNT, 1)), np.full((COUNT, 1), 0.1)]),
}
CLASSES = np.array(["cat", "dog", "eel"])[np.arange(COUNT) % 3]
TARGETS = GENERATOR.normal(size=(COUNT, 2))
ENGINE = Trainer("the engine", engine.attribute)


def save(folder: Path, name: str, x: Array, y: Array) -> None:
    np.savez(folder / f"{name}.npz", x=np.ascontiguousarray(x), y=y)
    np.save(folder / f"{name}.x.npy", x)
    np.save(folder / f"{name}.y.npy", y)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read few numbers at a time, so that every table has several parts."""
    monkeypatch.setattr(rows, "NUMBERS_AT_A_TIME", 40)


@pytest.mark.parametrize(
    ("inputs", "labels", "trainer", "valid"),
    [
        ("float64", CLASSES, ORACLE, False),
        ("float64", TARGETS, ENGINE, True),
        ("float32, images", CLASSES, ENGINE, False),
        ("whole numbers of another byte order", TARGETS, ORACLE, True),
        ("columns first", CLASSES, ENGINE, True),
        ("one column", TARGETS, ENGINE, False),
        ("a column that never changes", CLASSES, ORACLE, True),
    ],
)
@pytest.mark.usefixtures("small_parts")
def test_a_memory_map_gives_the_same_run_bit_by_bit(
    here: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    inputs: str,
    labels: Array,
    trainer: Trainer,
    valid: bool,
) -> None:
    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainer)
    save(here, "d", INPUTS[inputs], labels)
    save(here, "v", INPUTS[inputs][:9], labels[:9])
    assert isinstance(load("d.x.npy,d.y.npy").x, LazyRows)
    found, configs = [], []
    for form, data, held_out in (("mapped", "d.x.npy,d.y.npy", "v.x.npy,v.y.npy"), ("whole", "d.npz", "v.npz")):
        done = command("attribute", data, *TINY, *(("--valid", held_out) if valid else ()), "--out", form)
        assert done.exit_code == 0, done.output
        with np.load(here / form / "scores.npz") as scores:
            found.append(dict(scores))
        configs.append(json.loads((here / form / "config.json").read_text()))
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name], err_msg=name)
    assert found[0]["score"].any()
    assert configs[0]["standardisation"] == configs[1]["standardisation"]


def test_standardised_parts_are_those_of_numpy(here: Path) -> None:
    """The mean of a table in one part equals NumPy's to the last bit, and so do the results."""
    x = INPUTS["float64"]
    save(here, "d", x, CLASSES)
    dataset = load(f"{here}/d.x.npy,{here}/d.y.npy")
    prepared = prepare(dataset, flip=0.0, seed=0)
    part = x[prepared.train_index]
    np.testing.assert_array_equal(prepared.mean, part.mean(axis=0))
    np.testing.assert_array_equal(prepared.scale, part.std(axis=0))
    np.testing.assert_array_equal(prepared.train.x, (part - part.mean(axis=0)) / part.std(axis=0))
    held = (x[prepared.valid_index] - part.mean(axis=0)) / part.std(axis=0)
    np.testing.assert_array_equal(prepared.valid.x, held)
    whole = Batch(np.asarray(prepared.train.x), prepared.train.y)
    assert run_settings(prepared.train, prepared.valid) == run_settings(whole, prepared.valid)


def test_rows_are_laid_out_alike_whatever_they_come_from() -> None:
    found = LazyRows(INPUTS["columns first"])
    np.testing.assert_array_equal(found[2:30], INPUTS["columns first"][2:30])
    np.testing.assert_array_equal(found[3], INPUTS["columns first"][3])
    assert found[2:30].flags.c_contiguous
    with pytest.raises(ValueError, match="always a copy"):
        np.asarray(found, copy=False)


def test_validation_examples_are_in_memory(here: Path) -> None:
    save(here, "d", INPUTS["float64"], CLASSES)
    data = f"{here}/d.x.npy,{here}/d.y.npy"
    assert isinstance(load_valid(data, None, load(data)).x, np.ndarray)


@pytest.mark.parametrize("row", [0, 31, COUNT - 1])
@pytest.mark.usefixtures("small_parts")
def test_a_bad_number_of_a_memory_map_is_named_by_its_row(here: Path, refused: Callable[..., None], row: int) -> None:
    x = INPUTS["float64"].copy()
    x[row, 2] = np.nan
    save(here, "d", x, CLASSES)
    refused(("attribute", "d.x.npy,d.y.npy"), f"x, row {row}, x[2]: got nan")


@pytest.mark.parametrize(("low", "high"), [(-1e308, 1e308), (0.0, 1e-320)])
@pytest.mark.usefixtures("small_parts")
def test_a_spread_that_a_memory_map_cannot_have(
    here: Path, refused: Callable[..., None], low: float, high: float
) -> None:
    x = INPUTS["float64"].copy()
    x[:, 1] = np.where(np.arange(COUNT) % 2, low, high)
    save(here, "d", x, CLASSES)
    refused(("attribute", "d.x.npy,d.y.npy"), f"feature 'x[1]' ranges from {low} to {high}")


LIMITED = """
import resource, sys
sys.modules["numba"] = None  # nothing to compile
from adamshap.reference.command.main import main
import adamshap.gpu

data = next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]
resource.setrlimit(resource.RLIMIT_DATA, 2 * (int(data) * 1024 + int(sys.argv.pop(1)) * 2**20,))
main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts what is read from files elsewhere")
def test_the_command_on_more_data_than_memory(tmp_path: Path) -> None:
    """120 MB of inputs, 240 MB in float64, with 80 MB of memory, from the start and after an interruption.

    The file is sparse, and read all the same.
    """
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (12_000, 2500)).flush()
    np.save(tmp_path / "y.npy", np.arange(12_000) % 3)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", LIMITED, "80", "attribute", *words]
        return subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)

    options = ("--valid-fraction", "0.01", "--hidden", "", "--steps", "20", "--batch-size", "100", "--out", "run")
    done = call("x.npy,y.npy", *options)
    assert done.returncode == 0, done.stderr
    assert "11880 training examples" in done.stdout
    with np.load(tmp_path / "run" / "scores.npz") as scores:
        whole = dict(scores)
    (tmp_path / "run" / "results.json").unlink()  # the last file of all: as if killed just before it
    done = call("--resume", "run")
    assert done.returncode == 0, done.stderr
    assert "resumed from step 20" in (tmp_path / "run" / "log.txt").read_text()
    with np.load(tmp_path / "run" / "scores.npz") as scores:
        np.testing.assert_array_equal(scores["score"], whole["score"])
    assert whole["seen"].sum() == 20 * 100
