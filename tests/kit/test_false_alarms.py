"""docs/false_alarms.py: further seeds on a right implementation, its record of alarms, and its refusals."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamshap.verify.candidates.variants import VARIANTS
from adamshap.verify.implementation import answer, implementation
from adamshap.verify.properties import PROPERTIES, in_dtype
from adamshap.verify.random_cases import random_cases

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


def test_right_code_that_rounds_in_other_ways_gives_no_alarm(script: dict[str, Any]) -> None:
    """In one test, since the bounds of a case are computed once."""
    targets = script["expanded"]("variants")
    assert len(targets) >= 7
    record: dict[str, Any] = {"source": "", "only": [], "runs": {}}
    job = (5011, tuple((target, dtype) for dtype in script["DTYPES"] for target in targets))
    script["add"](record, job, script["try_seed"](job, script["CHEAP"]))
    assert len(record["runs"]) == 2 * len(targets)
    for run in record["runs"].values():
        assert run["alarms"] == []
        assert run["properties"].keys() == set(script["CHEAP"])


def test_variants_differ_in_their_last_digits() -> None:
    """Or trying several would prove no more than trying one."""
    (prop,) = (one for one in PROPERTIES if one.name == "scores-random_order-start")
    differing = dict.fromkeys(VARIANTS, False)
    for case in random_cases(prop, 15, 0):
        step = in_dtype(case.step, "float32")
        answers = {
            name: answer(implementation(one, name), step, case.query)["values"] for name, one in VARIANTS.items()
        }
        for name, values in answers.items():
            others = (other for key, other in answers.items() if key != name)
            differing[name] |= not any(np.array_equal(values, other) for other in others)
    assert all(differing.values()), differing


def test_fused_sums_are_fused() -> None:
    """1 + u − (1 + u) (1 − u) = u² in exact arithmetic, and 0 if the product is rounded first."""
    for dtype in ("float32", "float64"):
        u = np.finfo(dtype).eps
        a, b = np.array([[1, 1 + u]], dtype), np.array([[-1], [1 - u]], dtype)
        assert (VARIANTS["sequential"].how.multiply(a, b), VARIANTS["fused"].how.multiply(a, b)) == (0, -(u**2))


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
