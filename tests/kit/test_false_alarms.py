"""docs/false_alarms.py: further seeds on a right implementation, its record of alarms, and its refusals."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "docs" / "false_alarms.py"
WRONG = """
from adamshap import reference

def scores(step, **options):
    return -reference.scores(step, **options)
"""


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT), run_name="false_alarms")


def test_further_seeds_give_no_alarm(script: dict[str, Any]) -> None:
    record: dict[str, Any] = {"source": "", "only": [], "runs": {}}
    for seed in (1, 2):
        job = (seed, (("engine", "float64"), ("engine", "float32")))
        script["add"](record, job, script["try_seed"](job, ("scores-tangent-start", "update", "sgd-limit")))
    assert list(record["runs"]) == ["engine float64", "engine float32"]
    for run in record["runs"].values():
        assert run["alarms"] == []
        assert run["seeds"] == [1, 2]
        assert {name: entry["cases"] for name, entry in run["properties"].items()} == {
            "scores-tangent-start": 30,
            "update": 30,
            "sgd-limit": 30,
        }
        assert all(0 < entry["largest_share"] < 1 for entry in run["properties"].values())
    first, second = record["runs"].values()
    assert first["properties"] != second["properties"]


def test_an_alarm_is_kept_and_seeds_are_not_tried_twice(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    command = [sys.executable, str(SCRIPT), "wrong", "--only", "scores-sgd-start", "--dtype", "float64"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    first = run("--seeds", "1")
    assert (first.returncode, first.stderr) == (1, "")
    record = json.loads((tmp_path / "false-alarms.json").read_text(encoding="utf-8"))
    (alarm,) = record["runs"]["wrong float64"]["alarms"]
    assert alarm["property"] == "scores-sgd-start"
    assert "print(candidate.scores(step, slope='sgd'" in alarm["reproduce"]
    again = run("--seeds", "1")
    assert (again.returncode, again.stdout) == (1, first.stdout)
    run("--first", "2", "--seeds", "2")
    record = json.loads((tmp_path / "false-alarms.json").read_text(encoding="utf-8"))
    assert sorted(record["runs"]["wrong float64"]["seeds"]) == [0, 2, 3]
    record["source"] = "other code"
    (tmp_path / "false-alarms.json").write_text(json.dumps(record), encoding="utf-8")
    assert "of other code" in run("--seeds", "2").stderr
