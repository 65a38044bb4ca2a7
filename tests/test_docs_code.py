"""Every block of code on a page is run, or listed here with the reason for not running it; its options must exist.

A page is read from top to bottom, in an empty folder. ``python`` is executed, and its names stay defined for the next
block; with a title it is written to the file of that name. ``diff`` changes such a file. ``pycon`` is a doctest. ``sh``
is run line by line; so is ``console``, whose output must match the page: words exactly, numbers to the digits shown,
and ``...`` matches any text. ``text`` is for text that no program prints.
"""

import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from adamshap.reference.command.main import GROUP, build
from adamshap.verify import cpu_device

ROOT = Path(__file__).parent.parent
PAGES = {
    str(page.relative_to(ROOT)): page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
FENCE = re.compile(r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.M | re.S)

# Beginnings of lines that are not run, and why. The options of our own commands are still checked.
NOT_RUN = {
    "python3 -m venv": "makes an environment and installs: CI runs the README's",
    ".venv/bin/": "the environment of the line before",
    "pip install": "installs",
    "python -m adamshap.verify.cpu_device": "a script of the reader's; tests/cpu_device runs it",
    "adamshap verify mypackage.mymodule": "the reader's own module; the tutorial runs one",
    'adamshap verify --command "./mine': "the reader's own program; tests/kit/test_javascript.py runs one",
    "pytest --pyargs adamshap.verify": "the reader's own module; tests/kit/test_conformance.py runs one",
    "python docs/false_alarms.py": "hours; tests/kit/test_false_alarms.py tries a few seeds",
    "git clone": "fetches what others wrote",
    "ADAMSHAP_LESS=": "needs what the line before fetched",
    "adamshap claims --quick": "minutes; tests/claims/test_claims_command.py runs a small one",
    "adamshap bench --json": "half a minute; tests/test_engine_bench.py runs a small one",
    "python -m adamshap.verify.on_gpu": "needs a card, or a network; tests/on_gpu rehearses it",
    "python3 -m pip install": "installs",
    "PYTHONPATH=site python3 -m adamshap.verify.on_gpu": "needs a card; tests/on_gpu rehearses it",
    "torchrun --standalone": "two processes; tests/pytorch/test_torch_processes.py runs its script in two",
    "adamshap vectors check DIR": "answers all vectors anew, half a minute: CI runs it",
}
# Run in this process: a new one would take a second or two for its imports. tests/command/test_command_main.py starts
# the command as a process.
HERE = ("adamshap attribute", "adamshap show", "adamshap vectors")
PROGRAMS = {
    "adamshap": [sys.executable, "-P", "-c", "from adamshap.reference.command.main import main; main()"],
    # Shrinking a failing case has no time limit, so that its result does not depend on the machine's speed.
    "adamshap verify": [
        sys.executable,
        "-P",
        "-c",
        "from adamshap.verify.checking import check; check.__kwdefaults__['shrink_seconds'] = 600.0\n"
        "from adamshap.reference.command.main import main; main()",
    ],
    "pytest": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        yield Block(fence["language"], fence["title"], fence["text"], text[: fence.start()].count("\n") + 1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*many workers")  # Lightning's
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if any(blocks(page))])
def test_the_code_of_a_page_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cpu_device.install()" in PAGES[name].read_text(encoding="utf-8") and not cpu_device.is_installed():
        pytest.skip("needs CuPy on the CPU")
    for package in ("torch", "transformers", "peft", "lightning"):
        if re.search(rf"^(from|import) (adamshap\.)?{package}\b", PAGES[name].read_text(encoding="utf-8"), re.M):
            import_module("torchvision_operators")
            pytest.importorskip(package, reason="extra `peers`")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for file in {block.title for block in blocks(PAGES[name]) if block.title is not None}:
        module = file.removesuffix(".py")
        monkeypatch.setitem(sys.modules, module, sys)  # so that it is removed when the test ends
        del sys.modules[module]
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(PAGES[name]):
        where = f"{PAGES[name]}, line {block.line}"
        if block.title is not None:
            write_or_change(Path(block.title), block)
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, PAGES[name], "exec"), names)
        elif block.language == "pycon":
            test = doctest.DocTestParser().get_doctest(block.text, names, name, str(PAGES[name]), block.line)
            runner = doctest.DocTestRunner()
            runner.run(test, clear_globs=False)
            names.update(test.globs)
            assert (runner.failures, runner.tries > 0) == (0, True), where
        elif block.language in ("sh", "console"):
            for command, shown in commands(block):
                run(command, shown, where)
        elif block.language == "json":
            json.loads(block.text)
        else:
            assert block.language == "text", f"{where}: say the language; text for what is no code"


def write_or_change(file: Path, block: Block) -> None:
    if block.language == "python":
        file.write_text(block.text, encoding="utf-8")
        return
    assert block.language == "diff"
    text = file.read_text(encoding="utf-8")
    old, new = ("".join(line[1:] for line in block.text.splitlines(True) if line[0] == sign) for sign in "-+")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


def commands(block: Block) -> Iterator[tuple[str, str | None]]:
    """Yield each command of the block, with its output on the page."""
    if block.language == "sh":
        for line in block.text.splitlines():
            command = re.split(r"\s+#\s", line)[0].strip()
            if command and not command.startswith("#"):
                yield command, None
        return
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def run(command: str, shown: str | None, where: str) -> None:
    for part in command.split(" && "):
        check_options(part, where)
    if any(command.startswith(start) for start in NOT_RUN):
        return
    words = shlex.split(command)
    assert words[0] in PROGRAMS, f"{where}: {command!r} is neither run nor in NOT_RUN"
    status, printed, error = ran(words)
    if shown is None:
        assert status == 0, f"{where}: {command}\n{printed}\n{error}"
        return
    # A verdict may be negative, but the command itself must not fail.
    assert status in (0, 1), f"{where}: {command}\n{error}"
    assert is_shown(shown, printed), f"{where}: {command}\n{printed}"


def ran(words: list[str]) -> tuple[int, str, str]:
    """Run a program and return its exit status and what it printed."""
    if " ".join(words[:2]) in HERE:
        ended = CliRunner().invoke(build(entry_points(group=GROUP)), words[1:], catch_exceptions=False)
        return ended.exit_code, ended.stdout, ended.stderr
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    program = PROGRAMS.get(" ".join(words[:2]), PROGRAMS[words[0]])
    result = subprocess.run([*program, *words[1:]], capture_output=True, text=True, check=False, env=environment)
    return result.returncode, result.stdout, result.stderr


NUMBER = r"(?<![\w.-])[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?"


def is_shown(shown: str, printed: str) -> bool:
    """Return whether a program `printed` what a page shows, regardless of line breaks."""
    text = " ".join(shown.split())
    pattern = "".join(
        "(" + NUMBER + ")" if number else ".*".join(map(re.escape, part.split("...")))
        for part in re.split(f"({NUMBER})", text)
        for number in [re.fullmatch(NUMBER, part)]
    )
    found = re.fullmatch(pattern, " ".join(printed.split()), re.S)
    return found is not None and all(map(is_the_number, re.findall(NUMBER, text), found.groups()))


def is_the_number(shown: str, printed: str) -> bool:
    """Return whether both are the same number, to the digits of `shown`.

    Fractions may differ by one in the last digit: another order of a sum may take them over the edge of a rounding.
    """
    if shown.lstrip("+-").isdigit():
        return shown == printed
    last = Decimal(1).scaleb(Decimal(shown).as_tuple().exponent)
    return abs(Decimal(shown) - Decimal(printed)) <= last


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("17 of 20: 0.9671", "17 of  20:\n0.9671\n", True),
        ("17 of 20: 0.9671", "17 of 20: 0.9670", True),
        ("17 of 20: 0.9671", "17 of 20: 0.9632", False),
        ("17 of 20: 0.9671", "18 of 20: 0.9671", False),
        ("+2.83e-04, ... seconds", "+2.834e-04, 7.1 seconds", True),
        ("+2.83e-04, ... seconds", "+2.85e-04, 7.1 seconds", False),
        ("+2.83e-04, ... seconds", "-2.83e-04, 7.1 seconds", False),
        ("v1 float32", "v2 float32", False),
        ("a ... b", "a b", False),
    ],
)
def test_what_is_shown_is_what_is_printed(shown: str, printed: str, same: bool) -> None:
    assert is_shown(shown, printed) == same


def check_options(command: str, where: str) -> None:
    """Assert that our command has the options used on the page."""
    words = shlex.split(command.removeprefix(".venv/bin/"))
    if not words or words[0] not in ("adamshap", "pytest", "python") or (words[0] == "python" and "-m" not in words):
        return
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    if words[0] == "adamshap":
        known = options_of(tuple(words[1:]))
    elif words[0] == "pytest" or "pytest" in words:
        # The pages run pytest in this repository, whose configuration loads the plugin.
        known = options_in_help("-m", "pytest", "-p", "adamshap.verify.device_plugin")
        known |= options_in_help("-m", "adamshap.verify.cpu_device")
    else:
        known = options_in_help(*words[1:3])
    assert given <= known, f"{where}: {command!r} has no {', '.join(given - known)}"


@cache
def options_of(words: tuple[str, ...]) -> set[str]:
    """Return the options of the subcommand named at the beginning of `words`."""
    command: Any = typer.main.get_command(build(entry_points(group=GROUP)))
    for word in words:
        if not hasattr(command, "commands"):
            break
        if word.startswith("-"):
            continue
        assert word in command.commands, f"adamshap has no command {word!r}"
        command = command.commands[word]
    return {"--help"} | {option for parameter in command.params for option in parameter.opts}


@cache
def options_in_help(*words: str) -> set[str]:
    result = subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z][\w-]*", result.stdout))


# docs/refusals.md shows wrong commands; tests/test_refusals.py runs each of them.
@pytest.mark.parametrize("name", [name for name in PAGES if name != "docs/refusals.md"])
def test_commands_in_the_text_of_a_page_exist(name: str) -> None:
    text = FENCE.sub("", PAGES[name].read_text(encoding="utf-8"))
    for command in re.findall(r"`((?:adamshap |pytest |python -m )[^`]+)`", text.replace("\n", " ")):
        check_options(command.partition("…")[0], name)
    for script in re.findall(r"`python (docs/\w+\.py)", text):
        assert (ROOT / script).is_file(), f"{name}: {script}"


def test_what_is_not_run_stands_somewhere() -> None:
    lines = [
        command
        for page in PAGES.values()
        for b in blocks(page)
        if b.language in ("sh", "console")
        for command, _ in commands(b)
    ]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(name: str) -> None:
    """Those between the pages of docs/, and their anchors, are checked when the site is built."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
