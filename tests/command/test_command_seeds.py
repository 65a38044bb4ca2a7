"""Several seeds: runs in processes, their folder, their resumption, and what is said of their scores."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command
from killing import outcome

from adamshap.reference.command import folder, seed_process, seed_runs, seeds, trainers
from adamshap.reference.command.distinction import fewest_marked
from adamshap.reference.command.overview import MEASURES, with_deviation
from adamshap.reference.command.trainers import Trainer

Refused = Callable[..., None]
ADAMSHAP = (sys.executable, "-P", "-m", "adamshap.reference.command")


class InThisProcess:
    """A stand-in for a process: the same run, computed when it is started."""

    def __init__(self, seed: int, code: int, complaints: list[str]) -> None:
        self.seed, self.code, self.step, self.complaints, self.popen = seed, code, 0, complaints, self

    @classmethod
    def started(cls, path: Path, seed: int, seconds: float, device: Any) -> "InThisProcess":
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = seed_process.run(seeds.folder_of(path, seed), seconds, device)
        return cls(seed, code, errors.getvalue().splitlines())

    def poll(self) -> int:
        return self.code

    def kill(self) -> None: ...

    @property
    def returncode(self) -> int:
        return self.code

    def failure(self) -> str | None:
        return self.complaints[-1] if self.code else None


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute all runs in this process."""
    monkeypatch.setattr(seed_runs, "_Process", InThisProcess)
    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainers.ORACLE)


def scores_of(path: Path) -> dict[str, Any]:
    with np.load(path / "scores.npz", allow_pickle=False) as archive:
        return dict(archive)


# --- in processes ----------------------------------------------------------------------------------------------------


def test_two_processes_end_to_end(command: Command, here: Path, blobs: Path) -> None:
    """Each folder is an ordinary run's; the first is the plain run, bit for bit; the others share its data."""
    result = command("attribute", blobs, *TINY, "--seeds", 2, "--seed", 3, "--flip-labels", 0.1, "--out", "both")
    assert result.exit_code == 0, result.output
    assert "2 runs, seeds 3, 4" in " ".join(result.output.split())
    plain = command("attribute", blobs, *TINY, "--seed", 3, "--flip-labels", 0.1, "--out", "plain")
    assert plain.exit_code == 0
    assert outcome(here / "both" / "seed-3") == outcome(here / "plain")
    first, second = (folder.read(here / "both" / f"seed-{seed}") for seed in (3, 4))
    for name in ("index", "label", "flipped"):
        np.testing.assert_array_equal(first.columns[name], second.columns[name])
    assert first.config["dataset"]["validation_index"] == second.config["dataset"]["validation_index"]
    assert not np.array_equal(first.columns["score"], second.columns["score"])
    found = scores_of(here / "both")
    values = np.stack([first.columns["score"], second.columns["score"]])
    np.testing.assert_allclose(found["score"], values.mean(axis=0))
    np.testing.assert_allclose(found["score_se"], np.abs(values[0] - values[1]) / 2)
    again = command("attribute", "--resume", "both")
    assert again.exit_code == 0
    assert "these runs have ended; nothing to resume" in again.output


def test_a_killed_process_is_named_and_the_others_go_on(here: Path, blobs: Path) -> None:
    """Then Ctrl-C stops a resumption, and another one goes on to the same results as without any of this."""
    long = ("--hidden", "4", "--batch-size", "1", "--steps", "4000", "--checkpoint-seconds", "0.2")
    options = [*ADAMSHAP, "attribute", str(blobs), *long, "--seeds", "2"]

    def launch(*arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(arguments, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=here)

    def wait_for_checkpoint(path: Path) -> None:
        end = time.monotonic() + 120
        while not list(path.glob("checkpoints/*.npz")):
            assert time.monotonic() < end
            time.sleep(0.02)

    run = launch(*options, "--out", "killed")
    wait_for_checkpoint(here / "killed" / "seed-1")
    mine = f"/proc/{run.pid}/task/{run.pid}/children"
    for child in map(int, Path(mine).read_text().split()):
        if str(here / "killed" / "seed-1").encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
            os.kill(child, signal.SIGKILL)
    _, errors = run.communicate(timeout=200)
    assert run.returncode == 2
    assert errors.count("\n") == 1
    for words in ("seed 1: its process was ended by SIGKILL", f"adamshap attribute --resume {here / 'killed'}"):
        assert words in errors
    assert folder.read(here / "killed" / "seed-0").status == "finished"
    assert not (here / "killed" / "results.json").exists()
    again = launch(*ADAMSHAP, "attribute", "--resume", "killed")
    log = here / "killed" / "seed-1" / "log.txt"
    while "resumed from step" not in log.read_text():
        time.sleep(0.02)
    again.send_signal(signal.SIGINT)
    _, errors = again.communicate(timeout=200)
    assert again.returncode in (0, 130)  # 0: it was over before the signal
    assert again.returncode == 0 or "1 of 2 runs have ended; to resume: adamshap attribute --resume" in errors
    subprocess.run([*ADAMSHAP, "attribute", "--resume", "killed"], check=True, cwd=here, capture_output=True)
    subprocess.run([*options, "--out", "whole"], check=True, cwd=here, capture_output=True)
    for name in ("seed-0", "seed-1"):
        assert outcome(here / "killed" / name) == outcome(here / "whole" / name)
    assert (here / "killed" / "scores.csv").read_bytes() == (here / "whole" / "scores.csv").read_bytes()


# --- in this process -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_missing_runs_start_and_finished_ones_stay(command: Command, here: Path, blobs: Path) -> None:
    assert command("attribute", blobs, *TINY, "--seeds", 3, "--out", "all").exit_code == 0
    before = scores_of(here / "all")
    kept = (here / "all" / "seed-0" / "environment.json").read_bytes()
    shutil.rmtree(here / "all" / "seed-1")
    shown = command("show", "all")
    assert "2 of 3 runs finished, unfinished: seed 1" in " ".join(shown.output.split())
    assert command("attribute", "--resume", "all").exit_code == 0
    after = scores_of(here / "all")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (here / "all" / "seed-0" / "environment.json").read_bytes() == kept


@pytest.mark.usefixtures("in_process")
def test_the_table_means_and_deviations(command: Command, here: Path, blobs: Path) -> None:
    shown = command("attribute", blobs, *TINY, "--seeds", 3, "--flip-labels", 0.1, "--out", "all", "--json")
    assert shown.exit_code == 0, shown.output
    summary = json.loads(shown.stdout)
    runs = [folder.read(here / "all" / f"seed-{seed}") for seed in range(3)]
    results: Any = [run.results for run in runs]
    losses = [result["after"]["loss"] for result in results]
    assert summary["results"]["after"]["loss"] == pytest.approx(np.mean(losses))
    assert summary["results"]["deviation"]["after"]["loss"] == pytest.approx(np.std(losses, ddof=1))
    with (here / "all" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = scores_of(here / "all")
    assert [float(row["score_se"]) for row in rows] == columns["score_se"].tolist()
    sgd = np.stack([run.columns["sgd_score"] for run in runs])
    np.testing.assert_allclose(columns["sgd_score_se"], sgd.std(axis=0, ddof=1) / np.sqrt(3))
    assert {row["distinct"] for row in rows} <= {"-1", "0", "1"}
    found = summary["helpful"][0]
    assert found["score"] == max(columns["score"])
    assert found["score_se"] == columns["score_se"][np.argmax(columns["score"])]
    text = command("show", "all").output
    assert " ± " in text
    json_of_classes = json.loads(command("show", "all", "--json").stdout)["groups"]
    members = runs[0].columns["label"] == 0
    sums = [run.columns["score"][members].sum() for run in runs]
    assert json_of_classes[0]["total_se"] == pytest.approx(np.std(sums, ddof=1) / np.sqrt(3))
    assert command("show", "all", "--html", "all.html").exit_code == 0
    assert "Another 3 seeds would agree on about" in (here / "all.html").read_text()


@pytest.mark.usefixtures("in_process")
def test_a_run_that_diverges_is_named_and_the_others_count(
    command: Command, here: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attribute(*arguments: Any, seed: int, **options: Any) -> Any:
        run = trainers.ORACLE.attribute(*arguments, seed=seed, **options)
        return replace(run, scores=np.full_like(run.scores, np.nan)) if seed == 1 else run

    monkeypatch.setattr(trainers, "installed_trainer", lambda: Trainer("a test", attribute))
    result = command("attribute", blobs, *TINY, "--seeds", 3, "--out", "all")
    assert result.exit_code == 3, result.stderr
    assert result.stderr.startswith("adamshap: seed 1: training diverged:")
    assert result.stderr.count("\n") == 1
    saved = seeds.read(here / "all")
    assert (saved.status, tuple(saved.runs), saved.diverged) == ("diverged", (0, 2), (1,))
    assert json.loads((here / "all" / "results.json").read_text())["seeds"] == [0, 2]
    assert "diverged: seed 1" in " ".join(command("show", "all").output.split())


def test_a_process_that_starts_as_a_signal_comes_is_stopped_too(
    command: Command, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the start of a process and its place in the list of those to stop."""
    sent: list[int] = []

    class Starting(InThisProcess):
        polls = 0

        @classmethod
        def started(cls, path: Path, seed: int, seconds: float, device: Any) -> "Starting":
            del path, seconds, device
            signal.raise_signal(signal.SIGINT)
            return cls(seed, -signal.SIGTERM, ["ended"])

        def send_signal(self, number: int) -> None:
            sent.append(number)

        def poll(self) -> Any:
            self.polls += 1
            return self.code if sent or self.polls > 20 else None

    monkeypatch.setattr(seed_runs, "_Process", Starting)
    result = command("attribute", blobs, *TINY, "--seeds", 2, "--out", "all")
    assert (result.exit_code, sent) == (130, [signal.SIGTERM])
    assert "interrupted; 0 of 2 runs have ended" in result.stderr


@pytest.mark.parametrize(("more", "expected"), [((), 8), (("--per-validation",), 3)])
def test_no_more_processes_than_memory_holds(
    command: Command, blobs: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], expected: int
) -> None:
    """The scores for every validation example take more than the inputs."""
    per_run = 3.5 * 2 * 8 * 8 * (32 + 32)  # 8 validation examples, one epoch of 32 training examples, and their totals
    pages = {"SC_AVPHYS_PAGES": int(3.9 * (per_run + 4 * 32 * 6 * 8)), "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    found: list[int] = []

    def stop(console: Any, path: Path, most: int, *_: Any) -> None:
        del console, path
        found.append(most)

    monkeypatch.setattr(seed_runs, "_run", stop)
    assert command("attribute", blobs, *TINY, *more, "--seeds", 8, "--out", "all").exit_code == 0
    assert found == [expected]


@pytest.mark.usefixtures("in_process")
def test_json_of_runs_of_which_none_has_finished(command: Command, blobs: Path) -> None:
    result = command("attribute", blobs, *TINY, "--seeds", 2, "--lr", "1e308", "--out", "all", "--json")
    assert result.exit_code == 3, result.stderr
    for text in (result.stdout, command("show", "all", "--json").stdout):
        said = json.loads(text)
        assert (said["status"], said["results"], said["helpful"], said["harmful"]) == ("diverged", None, [], [])
    assert said["histogram"] == said["groups"] == []


@pytest.mark.usefixtures("in_process")
def test_one_seed_says_so(command: Command, blobs: Path) -> None:
    plain = command("attribute", blobs, *TINY, "--out", "plain").output
    seconds = json.loads(Path("plain/results.json").read_text())["seconds"]
    for said in (plain, command("show", "plain").output):
        assert "This is one seed" in said
        assert f"--seeds 3 shows what stays, for the cost of three such runs, of {seconds:.1f} s each." in " ".join(
            said.split()
        )
    several = command("attribute", blobs, *TINY, "--seeds", 2, "--out", "all").output
    assert "This is one seed" not in several
    assert "adamshap show" in command("show", "all/seed-0").output


def test_a_deviation_has_two_digits() -> None:
    assert with_deviation(MEASURES["loss"][1], 3.33519, 0.0023054) == "3.335 ± 0.0023"
    assert with_deviation(MEASURES["accuracy"][1], 0.43333, 0.18856) == "43.3% ± 18.9%"


@pytest.mark.usefixtures("in_process")
def test_nothing_is_said_of_single_examples_where_nothing_can_be(
    command: Command, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer whose scores are noise."""

    def noise(*arguments: Any, seed: int, **options: Any) -> Any:
        run = trainers.ORACLE.attribute(*arguments, seed=seed, **options)
        run.scores[:] = np.random.default_rng(seed).normal(size=len(run.scores))
        return run

    monkeypatch.setattr(trainers, "installed_trainer", lambda: Trainer("noise", noise))
    output = " ".join(command("attribute", blobs, *TINY, "--seeds", 3, "--weighting", "sum").output.split())
    assert "Nothing can be said about single examples from these runs" in output
    assert f"3 runs can only tell {fewest_marked(3)} examples or more from the rest" in output
    assert "higher" not in output


@pytest.mark.usefixtures("in_process")
def test_refusals(refused: Refused, command: Command, here: Path, blobs: Path) -> None:
    for count in (0, 20261128):
        refused(("attribute", blobs, "--seeds", count), "--seeds")
    assert command("attribute", blobs, *TINY, "--seeds", 2, "--out", "all").exit_code == 0
    refused(("attribute", "--resume", "all", "--seeds", 3), "--seeds: got a value with --resume")
    shutil.rmtree(here / "all" / "seed-1")
    with np.load(blobs) as arrays:
        changed = {"x": arrays["x"] + np.arange(40)[:, None, None], "y": arrays["y"]}
    np.savez(blobs, **changed)
    refused(("attribute", "--resume", "all"), "has changed since the run started")
    config = json.loads((here / "all" / "config.json").read_text())
    (here / "all" / "config.json").write_text(json.dumps(config | {"version": 9}))
    refused(("show", "all"), "has version 9")
    (here / "all" / "config.json").write_text(json.dumps(config | {"seeds": "many"}))
    refused(("show", "all"), "does not say which seeds there are")
    for part in ("options", "steps", "dataset"):
        (here / "all" / "config.json").write_text(json.dumps(config | {part: None}))
        refused(("show", "all"), f"config.json' is damaged: it lacks {part}")


@pytest.mark.usefixtures("in_process")
def test_a_run_counts_once(refused: Refused, command: Command, here: Path, blobs: Path) -> None:
    """A copy under the name of another seed would make the standard errors too small."""
    assert command("attribute", blobs, *TINY, "--seeds", 2, "--out", "all").exit_code == 0
    before = (here / "all" / "scores.csv").read_bytes()
    shutil.rmtree(here / "all" / "seed-1")
    shutil.copytree(here / "all" / "seed-0", here / "all" / "seed-1")
    for arguments in (("show", "all"), ("attribute", "--resume", "all")):
        refused(arguments, "seed-1' is not the run with seed 1 of", "needs that one; without this folder")
    shutil.rmtree(here / "all" / "seed-1")
    assert command("attribute", "--resume", "all").exit_code == 0
    assert (here / "all" / "scores.csv").read_bytes() == before


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("changed", ["train", "valid", "groups"])
def test_all_seeds_have_the_same_data(command: Command, here: Path, refused: Refused, changed: str) -> None:
    """A run that starts later must not have other values, even those with the same mean and deviation."""
    generator = np.random.default_rng(3)
    data = {
        "x": generator.permutation(np.arange(40.0))[:, None],
        "y": np.arange(40) % 2,
        "source": np.repeat(["u", "v"], 20),
    }
    np.savez("train.npz", **data)
    np.savez("valid.npz", x=np.arange(8.0)[:, None], y=data["y"][:8])
    options = ("--group", "source", "--valid", "valid.npz", "--seeds", 2, "--out", "all")
    assert command("attribute", "train.npz", *TINY, *options).exit_code == 0
    shutil.rmtree(here / "all" / "seed-1")
    if changed == "train":
        np.savez("train.npz", **data | {"x": data["x"][::-1]})
    elif changed == "groups":
        np.savez("train.npz", **data | {"source": data["source"][::-1]})
    else:
        np.savez("valid.npz", x=np.arange(8.0)[:, None] / 2, y=data["y"][:8])
    says = f"{str(here / 'train.npz')!r} or {str(here / 'valid.npz')!r} has changed since the run started (dataset)"
    refused(("attribute", "--resume", "all"), says)


@pytest.mark.usefixtures("in_process")
def test_another_weighting_of_each_seeds_steps(command: Command, here: Path, blobs: Path) -> None:
    """The order of a run's batches is that of its own seed."""
    for weighting in ("unit", "sum"):
        assert (
            command("attribute", blobs, *TINY, "--seeds", 2, "--weighting", weighting, "--out", weighting).exit_code
            == 0
        )
    shown = json.loads(command("show", "unit", "--weighting", "sum", "--json").stdout)
    expected = json.loads(command("show", "sum", "--json").stdout)
    assert [row["index"] for row in shown["helpful"]] == [row["index"] for row in expected["helpful"]]
    for row, other in zip(shown["helpful"], expected["helpful"], strict=True):
        assert row["score"] == pytest.approx(other["score"])
        assert row["score_se"] == pytest.approx(other["score_se"])
