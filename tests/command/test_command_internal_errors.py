"""An internal error is not bad input: exit code 70, one line, and the traceback in the file that the line names."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_helpers import TINY, Command
from typer.testing import CliRunner, Result

from adamshap.reference import Adam, Run
from adamshap.reference.command import (
    datasets,
    folder,
    overview,
    pictures,
    report,
    results,
    running,
    trainers,
    training,
)
from adamshap.reference.command.errors import INTERNAL, TRACEBACKS
from adamshap.reference.command.main import GROUP, build
from adamshap.reference.contract import refuse, refused_field

ERRORS = [ValueError("a bug"), TypeError("a bug"), KeyError("a bug"), OSError(5, "a bug"), EOFError("a bug")]


def internal(result: Result) -> Path:
    """Return the traceback file named in the one line of `result`."""
    assert result.exit_code == INTERNAL, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    found = re.fullmatch(r"adamshap: internal error: (\w+): .*a bug.*; the traceback is in (.+)\n", result.stderr)
    assert found is not None, result.stderr
    text = Path(found[2]).read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text
    assert f"{found[1]}: " in text
    return Path(found[2])


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("module", "name"),
    [(datasets, "read"), (running, "prepared_run"), (training, "plan"), (trainers, "installed_trainer")],
    ids=["reading", "preparation", "plan", "trainer"],
)
def test_before_the_run_has_a_folder(
    here: Path,
    temporary: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    error: Exception,
) -> None:
    monkeypatch.setattr(module, name, failing(error))
    file = internal(command("attribute", "wine", *TINY))
    assert file.parent == temporary
    assert list(here.iterdir()) == []


PLACES = [(report, "announce"), (training, "train"), (training, "measure"), (results, "label_names"), (report, "show")]


@pytest.mark.parametrize(
    ("module", "name", "error"),
    # An OSError while writing results is a problem of the disk.
    [(*place, error) for place in PLACES for error in ERRORS if place[0] is not results or type(error) is not OSError],
)
def test_in_the_folder_of_the_run(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, error: Exception
) -> None:
    monkeypatch.setattr(module, name, failing(error))
    file = internal(command("attribute", "wine", *TINY, "--out", "o"))
    assert file == here / "o" / TRACEBACKS
    assert ("results.json" in {path.name for path in (here / "o").iterdir()}) == (name == "show")


def test_in_the_engine_with_every_checkpoint_kept(
    here: Path, command: Command, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainers.installed_trainer()

    def engine(*arguments: Any, on_step: Callable[[Any], None], **options: Any) -> Run:
        def fail(progress: Any) -> None:
            on_step(progress)
            if progress.step == 3:
                raise KeyError("a bug")

        return trainer.attribute(*arguments, on_step=fail, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainers, "installed_trainer", lambda: trainers.Trainer("a test", engine))
        first = internal(command("attribute", blobs, *TINY, "--checkpoint-seconds", "0", "--out", "o"))
        again = internal(command("attribute", "--resume", "o"))
    assert first == again
    assert first.read_text(encoding="utf-8").count("KeyError: 'a bug'") == 2  # the second is appended
    result = command("attribute", "--resume", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert folder.read(here / "o").status == "finished"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_where_a_run_goes_on(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, blobs: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", failing(error))
        internal(command("attribute", blobs, *TINY, "--out", "o"))
    monkeypatch.setattr(running, "prepared_run", failing(error))
    assert internal(command("attribute", "--resume", "o")) == here / "o" / TRACEBACKS


@pytest.mark.parametrize("options", [(), ("--json",), ("--html", "p.html")], ids=["text", "json", "html"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_while_a_run_is_shown(
    here: Path,
    temporary: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    blobs: Path,
    error: Exception,
    options: tuple[str, ...],
) -> None:
    assert command("attribute", blobs, *TINY, "--out", "o").exit_code == 0
    before = sorted(here.rglob("*"))
    monkeypatch.setattr(overview, "groups_of", failing(error))
    result = command("show", "o", *options)
    assert internal(result).parent == temporary
    assert result.stdout.startswith("{") is False
    assert sorted(here.rglob("*")) == before


def test_a_picture_that_fails_keeps_its_traceback_too(
    here: Path, command: Command, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_drawn", failing(ValueError("a bug")))
    result = command("attribute", blobs, *TINY, "--out", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"No examples.png: matplotlib failed (ValueError: a bug); the traceback is in {here / 'o'}" in result.stdout
    assert "ValueError: a bug" in (here / "o" / TRACEBACKS).read_text(encoding="utf-8")


def test_other_commands(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("plugins")
    vars(module)["fail"] = failing(ValueError("a bug"))
    monkeypatch.setitem(sys.modules, "plugins", module)
    vars(module)["command"] = lambda: module.fail()
    app = build([EntryPoint("fail", "plugins:command", GROUP), EntryPoint("gone", "plugins:gone", GROUP)])
    assert internal(CliRunner().invoke(app, ["fail"], catch_exceptions=False)).parent == temporary


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_mistake_of_the_program(
    here: Path, blobs: Path, command: Command, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert command("attribute", blobs, *TINY, "--out", "run").exit_code == 0
    monkeypatch.setattr(overview, "groups_of", failing(OSError(number, "no room")))
    result = command("show", "run")
    assert (result.exit_code, result.stderr) == (2, "adamshap: cannot write the output: no room\n")


def test_without_a_place_for_the_traceback_it_is_printed(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setattr(datasets, "read", failing(ValueError("a bug")))
    result = command("attribute", "wine")
    assert result.exit_code == INTERNAL
    assert "Traceback (most recent call last)" in result.stderr
    last = "adamshap: internal error: ValueError: a bug; no file could be written: the traceback is above\n"
    assert result.stderr.endswith(last)


# --- the user's errors stay the user's -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"), [(("--lr", "nan"), "Adam.lr: got nan; needs"), (("--lr", "-1"), "Adam.lr: got -1.0; needs")]
)
def test_options_that_the_contract_refuses(
    refused: Callable[..., None], temporary: Path, options: tuple[str, ...], words: str
) -> None:
    refused(("attribute", "wine", *TINY, *options), words)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_a_refusal_knows_its_field(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="lr: got 1; needs 2") as caught:
        refuse("lr", 1, 2, kind)
    assert type(caught.value) is kind
    assert refused_field(caught.value) == "lr"
    assert refused_field(kind("lr: got 1; needs 2")) is None
    with pytest.raises(ValueError, match="Adam") as refusal:
        Adam(lr=-1.0)
    assert refused_field(refusal.value) == "Adam.lr"


def test_a_reader_that_wants_no_more_output_is_no_error(here: Path, blobs: Path, command: Command) -> None:
    assert command("attribute", blobs, *TINY, "--out", "o").exit_code == 0
    reading, writing = os.pipe()
    os.close(reading)
    try:
        shown = subprocess.run(
            [sys.executable, "-m", "adamshap.reference.command", "show", "o", "--json"],
            cwd=here,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (shown.returncode, shown.stderr) == (1, "")
