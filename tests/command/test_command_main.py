"""The root command: finds subcommands, survives broken ones, and shows every user error as one line."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import EntryPoint, version
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import typer
from command_helpers import TINY, Command
from typer.testing import CliRunner

from adamshap.reference.command.errors import INTERNAL
from adamshap.reference.command.folder import read
from adamshap.reference.command.main import GROUP, build

SCRIPT = Path(sysconfig.get_path("scripts")) / "adamshap"
MODULE = (sys.executable, "-m", "adamshap.reference.command")


def _run(*command: object, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("start", [(SCRIPT,), MODULE], ids=["script", "module"])
def test_version(start: tuple[object, ...], here: Path) -> None:
    done = _run(*start, "--version", cwd=here)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"adamshap {version('adamshap')}\n", "")


def test_no_arguments_show_the_help(command: Command) -> None:
    result = command()
    assert result.exit_code == 0
    assert "attribute" in result.stdout
    assert result.stdout == command("--help").stdout


@pytest.mark.parametrize("width", ["80", "200"])
def test_help_is_wrapped_for_the_terminal(command: Command, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERMINAL_WIDTH", width)
    for name in ("attribute", "show"):
        lines = [line.rstrip() for line in command(name, "--help").stdout.split("╭")[0].splitlines()]
        prose = [line.strip() for line in lines[2:]]
        for line, following in pairwise(prose):
            # Wrapped only where the next word would not fit.
            if line and following:
                assert len(line) + 1 + len(following.split()[0]) > int(width) - 3


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o"), ("zsh", "#compdef adamshap"), ("fish", "complete")]
)
def test_completion_scripts_are_printed(shell: str, word: str, here: Path) -> None:
    done = _run(SCRIPT, "--show-completion", shell, cwd=here, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert word in done.stdout
    assert "_ADAMSHAP_COMPLETE" in done.stdout


def test_what_completion_offers(here: Path) -> None:
    offered = _run(SCRIPT, cwd=here, _ADAMSHAP_COMPLETE="complete_bash", COMP_WORDS="adamshap sh", COMP_CWORD="1")
    assert (offered.returncode, offered.stdout.split()) == (0, ["show"])


def test_exit_codes_are_told(command: Command) -> None:
    text = " ".join(command("--help").stdout.split())
    assert "Exit codes: 0 done; 1 " in text
    assert "2 wrong usage or bad input; 3 " in text
    assert "70 internal error (the message names the file with its traceback); 130 Ctrl-C; 143 SIGTERM." in text


def test_every_option_has_help_and_default(command: Command) -> None:
    text = " ".join(command("attribute", "--help").stdout.replace("│", " ").split())
    for option, default in {
        "--hidden": "(64,64)",
        "--epochs": "(5)",
        "--steps": "(of all epochs)",
        "--batch-size": "32",
        "--lr": "0.001",
        "--slope": "random_order",
        "--gradient": "midpoint",
        "--credit": "step",
        "--flip-labels": "0.0",
        "--seed": "0",
        "--out": "(adamshap-DATA, or the next free number)",
        "--label": "(label)",
        "--task": "auto",
        "--valid": "(held out from DATA)",
        "--valid-fraction": "(0.2)",
        "--valid-limit": "(500, or none where the share is given)",
        "--checkpoint-seconds": "60.0",
    }.items():
        described = text.split(f" {option} ")[1:]  # all but one may be mentions
        assert any(f"[default: {default}]" in part.split(" --")[0] for part in described), option


@pytest.mark.parametrize("command_line", [(), ("attribute",), ("show",), ("bench",), ("vectors", "export")])
def test_flags_have_no_type(command: Command, command_line: tuple[str, ...]) -> None:
    text = command(*command_line, "--help").stdout
    assert "--help" in text
    assert "bool" not in text


# --- subcommands of other folders ------------------------------------------------------------------------------------


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Return entry points of an invented module: a function, a Typer, and every kind of broken one."""
    module = ModuleType("plugins")

    def greet(name: str) -> None:
        """Say hello."""
        print("hello", name)

    def unreadable(thing: Annotated[str, typer.Argument(), typer.Option()]) -> None:
        """Have a signature that Typer cannot turn into a command."""

    def missing(name: str) -> None:
        raise AttributeError(f"{name}:\nnot here")

    group = typer.Typer()
    group.command("greet")(greet)
    group.command("other")(lambda: print("other"))
    for name, value in {
        "greet": greet,
        "group": group,
        "unreadable": unreadable,
        "number": 3,
        "__getattr__": missing,
    }.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "plugins", module)
    values = {
        "hello": "plugins:greet",
        "many": "plugins:group",
        "unreadable": "plugins:unreadable",
        "number": "plugins:number",
        "gone": "plugins:gone",
        "absent": "no_such_module:f",
    }
    return [EntryPoint(name, value, GROUP) for name, value in values.items()]


@pytest.mark.parametrize(
    ("arguments", "output"),
    [(["hello", "you"], "hello you\n"), (["many", "greet", "you"], "hello you\n"), (["many", "other"], "other\n")],
)
def test_subcommands_beside_broken_ones(plugins: list[EntryPoint], arguments: list[str], output: str) -> None:
    result = CliRunner().invoke(build(plugins), arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, output, "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["x", "--option", "3"]])
@pytest.mark.parametrize(
    ("name", "word", "code"),
    [
        ("unreadable", "thing", INTERNAL),
        ("number", "int", INTERNAL),
        ("gone", "AttributeError", INTERNAL),
        ("absent", "no_such_module", 2),
    ],
)
def test_a_broken_subcommand_tells_why_when_used(
    plugins: list[EntryPoint], temporary: Path, name: str, word: str, code: int, arguments: list[str]
) -> None:
    result = CliRunner().invoke(build(plugins), [name, *arguments])
    assert (result.exit_code, result.stdout) == (code, "")
    assert len(list(temporary.iterdir())) == (code == INTERNAL)
    assert result.stderr.startswith(f"adamshap: the command '{name}' cannot be loaded")
    assert word in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_help_names_broken_subcommands_too(plugins: list[EntryPoint]) -> None:
    text = CliRunner().invoke(build(plugins), ["--help"]).stdout
    assert text.count("Cannot be loaded") == 4


# --- the installed command -------------------------------------------------------------------------------------------


def test_a_whole_run(here: Path, blobs: Path) -> None:
    done = _run(SCRIPT, "attribute", blobs, *TINY, "--flip-labels", "0.2", cwd=here, COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    to_copy = (
        "Validation examples",
        "Training examples behind",
        "A page to look at",
    )  # with paths and rows, in one line
    lines = [line for line in done.stdout.splitlines() if "; files in " not in line and not line.startswith(to_copy)]
    assert max(map(len, lines)) <= 80
    files = sorted(path.name for path in (here / "adamshap-blobs").iterdir())
    written = ["environment.json", "examples.png", "history", "log.txt", "results.json", "scores.csv", "scores.npz"]
    assert files == ["checkpoints", "config.json", *written]


def test_a_refusal(here: Path) -> None:
    done = _run(SCRIPT, "attribute", "nothing.csv", cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "adamshap: cannot read 'nothing.csv': No such file or directory\n"


def test_class_names_that_the_terminal_cannot_show(here: Path) -> None:
    (here / "a.csv").write_text("a,label\n" + "1,Käse\n2,[red]\n" * 10, encoding="utf-8")
    done = _run(SCRIPT, "attribute", "a.csv", *TINY, cwd=here, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "K\\xe4se" in done.stdout
    assert "[red]" in done.stdout


def test_interrupt(here: Path) -> None:
    process = subprocess.Popen(
        [SCRIPT, "attribute", "digits", "--epochs", "10000"],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("digits: ")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    place = here / "adamshap-digits"
    assert errors.startswith("adamshap: interrupted")
    assert errors.endswith(f"; to resume: adamshap attribute --resume {place}\n")
    assert errors.count("\n") == 1
    found = read(place)
    assert found.status == "unfinished"
    assert f"interrupted after step {found.step} of {found.steps}" in errors
    assert len(list((place / "checkpoints").iterdir())) == 1
