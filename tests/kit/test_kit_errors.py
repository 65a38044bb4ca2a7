"""An error of the oracle is the kit's own, and no finding about the candidate."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adamshap import reference
from adamshap.reference import Step
from adamshap.verify import oracle
from adamshap.verify.checking import check
from adamshap.verify.implementation import Implementation, KitError
from adamshap.verify.properties import PROPERTIES

CHOSEN = [one for one in PROPERTIES if one.name == "scores-secant-start"]

BREAKS_THE_ORACLE = """
from adamshap import reference

right = reference.scores

def broken(step, *arguments, **options):
    raise ZeroDivisionError("planted")

class Mine:
    scores = staticmethod(right)

reference.scores = broken
"""


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_an_error_of_the_oracle_is_not_the_candidates(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Whether it is raised for the answer itself or for a draw of its bound."""
    right, done = reference.scores, iter(range(1000))

    def broken(step: Step, *arguments: Any, **options: Any) -> Any:
        if next(done) >= calls:
            raise ZeroDivisionError("planted")
        return right(step, *arguments, **options)

    monkeypatch.setattr(oracle, "_remembered", {})
    monkeypatch.setattr(reference, "scores", broken)
    # Off by a relative 1e-13, so that the bound needs draws.
    mine = Implementation("mine", frozenset({"scores"}), lambda step, query: right(step, **query.options) * (1 + 1e-13))
    with pytest.raises(KitError, match=r"the kit's own adamshap.reference raised ZeroDivisionError: planted: a defect"):
        check(mine, CHOSEN, shrink_seconds=0)


def test_the_command_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BREAKS_THE_ORACLE, encoding="utf-8")
    program = [sys.executable, "-c", "from adamshap.reference.command.main import main; main()", "verify", "mine:Mine"]
    options = ["--in-process", "--only", "scores-secant-start"]
    result = subprocess.run([*program, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "a defect of the kit, which says nothing about the candidate" in " ".join(result.stderr.split())
    assert "scores(step, slope='secant', gradient='start')" in " ".join(result.stderr.split())
