"""Fixtures of the tests of the command: tiny data, the command called in this process, and a check of refusals."""

import tempfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from command_helpers import Command
from typer.testing import CliRunner, Result

from adamshap.reference.command.main import GROUP, build


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for files that a property test overwrites again and again."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, which is new and empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for this process's temporary files, which is new and empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def command(here: Path) -> Command:
    """Return ``adamshap`` as a function of its arguments, run in the folder `here` and in this process."""
    del here

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(build(entry_points(group=GROUP)), list(map(str, arguments)), catch_exceptions=False)

    return call


@pytest.fixture
def refused(here: Path, command: Command) -> Callable[..., None]:
    """Return a check that the command prints all `words` in one line, exits with 2, and does not change the folder."""

    def check(arguments: tuple[object, ...], *words: str) -> None:
        before = sorted(here.rglob("*"))
        result = command(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("adamshap: ")
        assert result.stderr.count("\n") == 1, result.stderr
        for word in words:
            assert word in result.stderr
        assert sorted(here.rglob("*")) == before

    return check


@pytest.fixture
def blobs(here: Path) -> Path:
    """Return a .npz file of two well-separated classes, 40 images of 2 by 3."""
    generator = np.random.default_rng(5)
    y = np.repeat([0, 1], 20)
    x = generator.normal(size=(40, 2, 3)) + 3 * y[:, None, None]
    path = here.parent / "blobs.npz"
    np.savez(path, x=x, y=np.array(["dog", "cat"])[y])
    return path
