"""Runs survive kills, Ctrl-C, full disks, and damaged and foreign files: nothing is lost, nothing wrong is accepted."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import RUN, outcome
from typer.testing import CliRunner

from adamshap.reference import Progress, checkpoint
from adamshap.reference.checkpoint import DIGEST, CheckpointError
from adamshap.reference.command import folder, trainers
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.main import GROUP, build
from adamshap.reference.command.trainers import Trainer
from adamshap.reference.contract import snapshot

STEPS = 24
Refused = Callable[..., None]


def test_killed_at_fifty_random_moments(tmp_path: Path) -> None:
    """Every run is resumed until it ends like the uninterrupted one: both trainers, dtypes and credits."""
    code = (
        "import sys; sys.modules['numba'] = None\n"  # the engine then uses NumPy's passes, which need no compiling
        "from pathlib import Path; import killing\n"
        f"killing.main(Path({str(tmp_path)!r}), kills=50, seed=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"(\d+) killed, (\d+) of (\d+) runs the same\n", done.stdout)
    assert found is not None, done.stdout
    killed, same, runs = map(int, found.groups())
    assert killed >= 50
    assert same == runs >= 5
    assert "adamshap:" not in (tmp_path / "log").read_text()  # no checkpoint was ever found damaged


# --- stopped by a signal ---------------------------------------------------------------------------------------------


class Interfering:
    """A trainer that calls a function after a given step."""

    def __init__(self, step: int, what: Callable[[], object], trainer: Trainer) -> None:
        self.step, self.what, self.trainer = step, what, trainer

    def attribute(self, *arguments: Any, on_step: Callable[[Progress], None], **options: Any) -> Any:
        def interfere(progress: Progress) -> None:
            on_step(progress)
            if progress.step == self.step:
                self.what()

        return self.trainer.attribute(*arguments, on_step=interfere, **options)


def interfere(
    monkeypatch: pytest.MonkeyPatch, step: int, what: Callable[[], object], trainer: Trainer = trainers.ORACLE
) -> None:
    trainer = Trainer("a test", Interfering(step, what, trainer).attribute)
    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainer)


@dataclass(frozen=True)
class Example:
    """The outcome of the uninterrupted run, and folders of stopped runs, with a checkpoint after every step."""

    whole: tuple[object, ...]
    after_step_20: Path
    before_the_last: Path


@pytest.fixture(scope="session")
def example(scratch: Path) -> Example:
    def invoke(*arguments: object) -> int:
        words = ["attribute", *RUN, "--out", *map(str, arguments), "--checkpoint-seconds", "0"]
        return CliRunner().invoke(build(entry_points(group=GROUP)), words).exit_code

    with pytest.MonkeyPatch.context() as context:
        interfere(context, 0, int)
        assert invoke(scratch / "whole") == 0
        for name, step in (("early", 20), ("late", STEPS - 1)):
            interfere(context, step, lambda: signal.raise_signal(signal.SIGINT))
            assert invoke(scratch / name) == 130
    return Example(outcome(scratch / "whole"), scratch / "early", scratch / "late")


@pytest.fixture
def whole(example: Example, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Return the outcome of the uninterrupted run, computed by the oracle."""
    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainers.ORACLE)
    return example.whole


@pytest.fixture
def stopped(whole: object, example: Example, here: Path) -> Path:
    """Return the folder of a run stopped after step 20, with two checkpoints."""
    del whole
    return Path(shutil.copytree(example.after_step_20, here / "o"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch, whole: object, number: signal.Signals, code: int
) -> None:
    handler = signal.getsignal(number)
    interfere(monkeypatch, 7, lambda: signal.raise_signal(number))
    result = command("attribute", *RUN, "--out", "o")
    said = f"adamshap: interrupted after step 7 of {STEPS}; to resume: adamshap attribute --resume {here / 'o'}\n"
    assert (result.exit_code, result.stderr) == (code, said)
    assert signal.getsignal(number) is handler
    found = folder.read(here / "o")
    assert (found.status, found.step, found.steps, len(found.history["epoch"])) == ("unfinished", 7, STEPS, 7)
    assert found.columns["seen"].sum() == 7 * 6
    assert "7 of 24" in (here / "o" / "log.txt").read_text()
    result = command("attribute", "--resume", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Most helpful examples" in result.stdout
    assert outcome(here / "o") == whole
    assert len(json.loads((here / "o" / "environment.json").read_text())) == 2
    result = command("attribute", "--resume", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "this run has ended" in result.stdout


CARRY = (*RUN, "--credit", "carry")


@pytest.mark.parametrize("trainer", [trainers.ORACLE, trainers.installed_trainer()], ids=["oracle", "engine"])
def test_a_carrying_run_goes_on_too(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch, trainer: Trainer
) -> None:
    """Also from two checkpoints, each with the account of the steps since the previous one."""
    interfere(monkeypatch, 0, int, trainer)
    assert command("attribute", *CARRY, "--out", "whole").exit_code == 0
    began = ("attribute", *CARRY, "--out", "o")
    for step, arguments in ((5, began), (11, ("attribute", "--resume", "o")), (0, ("attribute", "--resume", "o"))):
        interfere(monkeypatch, step, lambda: signal.raise_signal(signal.SIGINT), trainer)
        assert command(*arguments).exit_code == (130 if step else 0)
    assert [path.name for path in sorted((here / "o" / "history").iterdir())] == [f"{n:012d}.npz" for n in (0, 5, 11)]
    assert outcome(here / "o") == outcome(here / "whole")
    assert "credit carry" in command("show", "o").stdout


def test_a_second_signal_stops_at_once(here: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    interfere(monkeypatch, 2, impatient)
    result = command("attribute", *RUN, "--out", "o", "--checkpoint-seconds", "0")
    assert (result.exit_code, result.stderr) == (
        130,
        f"adamshap: interrupted; to resume: adamshap attribute --resume {here / 'o'}\n",
    )
    assert folder.read(here / "o").step == 1


# --- damaged and foreign files ---------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_run(path: Path) -> None:
    checkpoint.write(path, {"step": np.array(24)}, checkpoint.digest(b"another config"))


def newer_schema(path: Path) -> None:
    """Seal the file as a future version would."""
    body, comment = path.read_bytes()[: -(len("adamshap 0001 ") + 2 * DIGEST + 1)], f"adamshap 0002 {'0' * DIGEST}"
    path.write_bytes(body + f"{comment} {checkpoint.digest(body + comment.encode())}".encode())


DAMAGE = [cut, flip, empty, other_run, newer_schema]
SAYS = {"other_run": "belongs to another run", "newer_schema": "was written in version 2; needs version 1"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_older_checkpoint_is_used(
    stopped: Path, whole: object, command: Command, damage: Callable[[Path], None]
) -> None:
    newest = stopped / "checkpoints" / "000000000020.npz"
    damage(newest)
    damaged = newest.read_bytes()
    result = command("attribute", "--resume", stopped)
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 1
    assert SAYS.get(damage.__name__, "is damaged") in result.stderr
    assert "using an older checkpoint" in result.stderr
    assert "resumed from step 19" in (stopped / "log.txt").read_text()
    assert newest.with_suffix(".damaged").read_bytes() == damaged  # renamed, not lost
    assert outcome(stopped) == whole


@pytest.mark.parametrize("damage", DAMAGE)
def test_without_a_good_checkpoint_there_is_one_line(
    stopped: Path, refused: Refused, damage: Callable[[Path], None]
) -> None:
    for path in (stopped / "checkpoints").iterdir():
        damage(path)
    refused(("attribute", "--resume", stopped), "no valid checkpoint", SAYS.get(damage.__name__, "is damaged"))


def test_a_gap_in_the_history_is_one_line(stopped: Path, refused: Refused) -> None:
    (stopped / "history" / "000000000004.npz").unlink()
    refused(("attribute", "--resume", stopped), "no valid checkpoint", "ends before step 20")


@pytest.mark.parametrize("name", ["scores.npz", "rows.npz"])
def test_a_damaged_file_of_a_finished_run_is_mended(
    here: Path, command: Command, refused: Refused, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As the error says: what it advises must help."""
    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainers.ORACLE)
    (here / "t.csv").write_text("a,label\n" + "\n".join(f"{n},{'yn'[n % 2]}" for n in range(40)))
    assert command("attribute", "t.csv", *TINY, "--out", "o").exit_code == 0
    before = (here / "o" / name).read_bytes(), (here / "o" / "scores.csv").read_bytes()
    cut(here / "o" / name)
    refused(("show", "o"), name, "is damaged", "can still be resumed: adamshap attribute --resume o")
    assert command("attribute", "--resume", "o").exit_code == 0
    assert ((here / "o" / name).read_bytes(), (here / "o" / "scores.csv").read_bytes()) == before
    assert "nothing to resume" in command("attribute", "--resume", "o").output


def test_no_scores_are_shown_of_a_part_of_the_steps(stopped: Path, command: Command, refused: Refused) -> None:
    assert command("attribute", "--resume", stopped).exit_code == 0
    assert command("show", stopped, "--weighting", "sum").exit_code == 0
    (stopped / "history" / "000000000004.npz").unlink()
    for options in ((), ("--weighting", "sum")):
        refused(("show", stopped, *options), "the history in", "ends before step 24")


def test_the_advice_can_be_pasted_into_a_shell(command: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interfere(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGINT))
    stderr = command("attribute", *RUN, "--out", "my run").stderr
    assert stderr.endswith(f"to resume: adamshap attribute --resume '{here / 'my run'}'\n")
    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainers.ORACLE)
    assert command(*shlex.split(stderr.partition("to resume: ")[2])[1:]).exit_code == 0


def test_what_is_no_folder_of_a_run(stopped: Path, here: Path, refused: Refused) -> None:
    (here / "mine").mkdir()
    refused(("attribute", "--resume", "mine"), "is not a run folder: it has no config.json")
    refused(("attribute", "--resume", "nowhere"), "is not a run folder")
    for content, says in (
        ("{}", "is not the config.json of a run"),
        ("{", "is damaged: it is not JSON"),
        ("[" * 100_000, "is damaged: it is not JSON"),
        ('{"format": "adamshap-run", "version": 2}', "has version 2; needs version 1"),
        ('{"format": "adamshap-run", "version": 1}', "is damaged: it does not say how many steps"),
    ):
        (here / "mine" / "config.json").write_text(content)
        refused(("attribute", "--resume", "mine"), says)
    config = stopped / "config.json"
    config.write_text(config.read_text().replace('"lr": 0.001', '"lr": 0.01'))
    refused(("attribute", "--resume", stopped), "config.json' was changed")


def test_results_that_do_not_say_how_it_ended(stopped: Path, refused: Refused) -> None:
    (stopped / "results.json").write_text("[]")
    says = "results.json' is damaged: it does not say how the run ended; without this file, the run can be resumed: "
    refused(("attribute", "--resume", stopped), f"{says}adamshap attribute --resume {stopped}")


@pytest.mark.parametrize("content", ["{", "3"])
def test_a_damaged_list_of_starts_says_what_to_do(stopped: Path, refused: Refused, content: str) -> None:
    (stopped / "environment.json").write_text(content)
    for arguments in (("show", stopped), ("attribute", "--resume", stopped)):
        refused(arguments, "environment.json' is damaged: it is no", "a run needs no such file: delete it")


def test_data_that_changed_are_refused(
    here: Path, blobs: Path, command: Command, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    interfere(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGINT))
    assert command("attribute", blobs, "--epochs", 1, "--batch-size", 8, "--out", "o").exit_code == 130
    with np.load(blobs) as archive:
        x, y = archive["x"], archive["y"]
    np.savez(blobs, x=x + 1, y=y)
    refused(("attribute", "--resume", "o"), "has changed since the run started (dataset, standardisation); needs")
    np.savez(blobs, x=np.where(x == x[3, 1, 1], x[4, 1, 1], np.where(x == x[4, 1, 1], x[3, 1, 1], x)), y=y)
    refused(("attribute", "--resume", "o"), "has changed since the run started (dataset); needs the same data")
    blobs.unlink()
    refused(("attribute", "--resume", "o"), "cannot read", str(blobs))


def test_options_are_refused_where_a_run_goes_on(stopped: Path, refused: Refused) -> None:
    refused(("attribute", "wine", "--resume", stopped), "DATA: got a value with --resume")
    refused(("attribute", "--batch-size", "6", "--resume", stopped), "--batch-size: got a value with --resume")
    refused(("attribute", "--resume", stopped, "--checkpoint-seconds", "nan"), "'--checkpoint-seconds'")


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks of this kind")
def test_one_process_at_a_time(stopped: Path, refused: Refused) -> None:
    place = folder.open_to_write(stopped, "a test")
    refused(("attribute", "--resume", stopped), "another process is computing")
    place.close()


# --- disks -----------------------------------------------------------------------------------------------------------


def full_from(monkeypatch: pytest.MonkeyPatch, file: int) -> None:
    """Simulate a disk that becomes full in the middle of that file."""
    real, count = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            return real(descriptor)
        count += 1
        if count >= file:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise OSError(28, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("file", [4, 5, 6, 30])
def test_a_full_disk_costs_nothing_that_was_there(
    here: Path, command: Command, whole: object, monkeypatch: pytest.MonkeyPatch, file: int
) -> None:
    with monkeypatch.context() as context:
        full_from(context, file)
        result = command("attribute", *RUN, "--out", "o", "--checkpoint-seconds", "0")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert re.match(r"adamshap: no checkpoint after step \d+: No space left on device; training continues", lines[0])
    assert lines[1].startswith(f"adamshap: cannot write to '{here / 'o'}': No space left on device; to resume: ")
    assert not list((here / "o").rglob("*.part"))
    result = command("attribute", "--resume", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert outcome(here / "o") == whole


def test_a_folder_that_cannot_be_written_to(stopped: Path, refused: Refused) -> None:
    (stopped / "log.txt").unlink()
    (stopped / "log.txt").mkdir()
    refused(("attribute", "--resume", stopped), "cannot write to", "Is a directory")


# --- arbitrary damage ------------------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return `content` with bits flipped, truncated, with bytes inserted, or replaced altogether."""
    place = draw(st.integers(0, len(content) - 1), label="place")
    kind = draw(st.sampled_from(["flip", "cut", "insert", "zero", "other"]), label="kind")
    if kind == "flip":
        changed = bytes([content[place] ^ (1 << draw(st.integers(0, 7), label="bit"))])
        return content[:place] + changed + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    if kind == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=20), label="bytes") + content[place:]
    if kind == "zero":  # as a file system may leave it after a crash
        return content[:place] + bytes(len(content) - place)
    return draw(st.binary(max_size=200), label="bytes")


OWNER = checkpoint.digest(b"somebody")


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_file_never_loads(scratch: Path, data: st.DataObject) -> None:
    path = scratch / "sealed.npz"
    arrays = {"step": np.array(3), "params/0.weight": np.linspace(0, 1, 12).reshape(3, 4), "settings": np.array("{}")}
    checkpoint.write(path, arrays, OWNER)
    whole = path.read_bytes()
    changed = data.draw(damaged(whole))
    path.write_bytes(changed)
    if changed == whole:
        assert checkpoint.read(path, OWNER).keys() == arrays.keys()
        return
    with pytest.raises(CheckpointError, match=r"is damaged|was written in version|belongs to another run"):
        checkpoint.read(path, OWNER)


def assert_one_line(call: Callable[[], Any]) -> Any:
    """Return the result of `call`, or None if it is refused, which must be in one line."""
    try:
        return call()
    except CommandError as error:
        line = str(error)
    assert len(line.splitlines()) == 1
    return None


@settings(max_examples=50)
@given(data=st.data())
def test_whatever_is_damaged_a_run_goes_on_rightly_or_says_why_not(
    example: Example, scratch: Path, data: st.DataObject
) -> None:
    place = scratch / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(example.before_the_last, place)
    path = data.draw(st.sampled_from(sorted(path for path in place.rglob("*.*"))), label="file")
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    assert_one_line(lambda: folder.read(place))
    opened = assert_one_line(lambda: folder.open_to_write(place, "a test"))
    if opened is None:
        return
    with closing(opened):
        went_on = assert_one_line(opened.newest)
    if went_on is not None:
        snapshot = went_on[0]
        assert snapshot is not None
        done = int(snapshot["step"])
        assert done in (STEPS - 1, STEPS - 2)
        assert len(snapshot["history/train_loss"]) == done


@pytest.mark.filterwarnings("default")
def test_a_run_that_other_versions_began_continues_and_says_so(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("attribute", "wine", *TINY, "--out", "o").exit_code == 0
    (here / "o" / "results.json").unlink()  # the last file written: as if killed just before it
    ours = snapshot.arithmetic()
    monkeypatch.setattr(snapshot, "arithmetic", lambda: ours | {"numpy": "1.0"})
    done = command("attribute", "--resume", "o")
    assert done.exit_code == 0, done.output
    said = "resume: the state was computed with another numpy; the run continues, and its last digits may differ"
    assert f"adamshap: {said}" in done.output
    assert said in (here / "o" / "log.txt").read_text()
