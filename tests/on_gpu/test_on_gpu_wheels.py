"""The folder of wheels: all imports of the sources are on the machine or in the folder."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from bare_machine import name_of, with_needs

from adamshap.verify.on_gpu import suite, wheels
from adamshap.verify.on_gpu.plan import Setting

ROOT = Path(__file__).parents[2]
OURS = "adamshap"
EVERYWHERE = (ROOT / "gpu", ROOT / "verify" / "on_gpu")


def file_of(module: str) -> Path | None:
    """Return the source file of one of our modules; None if the name is not a module."""
    place = ROOT.joinpath(*module.split(".")[1:])
    found = [file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()]
    return found[0] if found else None


def imported_by(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports when it is imported; for `EVERYWHERE`, also those imported by functions.

    Other modules import extras in functions that a run does not call, as the rehearsal on a bare machine shows.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = anywhere(tree) if any(folder in file.parents for folder in EVERYWHERE) else at_import(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, file
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


def at_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported."""
    for node in body:
        yield node
        if isinstance(node, ast.Try | ast.If) and not for_types_alone(node):
            yield from at_import(node.body)


def anywhere(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a module, but for those that only a type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not for_types_alone(child):
            yield from anywhere(child)


def for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def packages_of_a_run() -> set[str]:
    """Return the packages that a run on a GPU may import, in its own modules and in the tests that it runs."""
    todo = [*(ROOT / "verify" / "on_gpu").glob("*.py"), *(ROOT / "tests").glob("engine_*.py")]
    todo += (ROOT / "tests" / "pytorch").glob("torch_loops.py")
    tests = suite.tests_in(Setting(rehearsal=False, scratch="", checkout=str(ROOT)))
    todo += [ROOT / "tests" / name for name in {"conftest.py", *(test.partition("::")[0] for test in tests)}]
    seen: set[Path] = set()
    others: set[str] = set()
    here = {file.stem for file in (ROOT / "tests").rglob("*.py")}
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for module in imported_by(file):
            top = module.split(".")[0]
            if top == OURS:
                parts = module.split(".")
                ours = (file_of(".".join(parts[:count])) for count in range(2, len(parts) + 1))
                todo += [found for found in ours if found is not None]
            elif top not in sys.stdlib_module_names and top not in here:
                others.add(top)
    by_top = packages_distributions()
    return {name_of(by_top[top][0]) for top in others}


def test_the_wheels_are_what_a_run_imports_and_the_machine_lacks() -> None:
    assert packages_of_a_run() - set(wheels.MACHINE) == set(wheels.WHEELS)


def test_the_wheels_need_nothing_that_is_not_there() -> None:
    there = with_needs(set(wheels.MACHINE)) | set(wheels.WHEELS)
    assert with_needs(set(wheels.WHEELS)) <= there


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace calls of pip, and record them with the content of the sources' folder."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command)
        if "wheel" in command:
            calls.append(sorted(file.name for file in Path(command[-1]).iterdir()))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return calls


def test_pip_is_asked_for_wheels_of_the_cards_python(called: list[list[str]], tmp_path: Path) -> None:
    assert wheels.main([str(tmp_path / "new")]) == 0
    build, sources, download = called
    assert sources == sorted(wheels.SOURCES)
    assert {"wheel", "--no-deps", str(tmp_path / "new")} <= set(build)
    assert {"download", "--no-deps", "3.12", "cp", "manylinux_2_28_x86_64", *wheels.WHEELS} <= set(download)


def test_a_folder_with_old_wheels_is_refused(
    called: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.whl").touch()
    with pytest.raises(SystemExit):
        wheels.main([str(tmp_path)])
    assert "which is not empty" in capsys.readouterr().err
    assert called == []


def test_a_failure_of_pip_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wheels.subprocess, "run", lambda command: subprocess.CompletedProcess(command, 5))
    assert wheels.main([str(tmp_path / "new")]) == 1
