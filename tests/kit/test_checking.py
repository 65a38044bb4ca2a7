"""The kit on right and on misbehaving candidates: no false alarm, and a message for every failure."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamshap import reference
from adamshap.reference import AdamState, Step
from adamshap.reference.contract import Array
from adamshap.verify.checking import Outcome, check
from adamshap.verify.implementation import Implementation, LoadError, Query, implementation, load
from adamshap.verify.isolation import isolated
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.models.sequential import LAYERS
from adamshap.verify.optimisers.properties import OPTIMISER_PROPERTIES
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES
from adamshap.verify.reproduction import snippet

SCORES = [p for p in PROPERTIES if p.name == "scores-secant-midpoint"]
UPDATE = [p for p in PROPERTIES if p.name == "update"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("prop", [prop for prop in PROPERTIES if not prop.extra], ids=lambda prop: prop.name)
def test_the_oracle_passes_its_own_kit(prop: Any, dtype: str) -> None:
    (outcome,) = check(ORACLE, [prop], dtype=dtype)
    assert outcome.status == "passed", outcome.finding
    assert outcome.examples > 0


def scores_by(function: Callable[[Step], Any]) -> Implementation:
    return Implementation("mine", frozenset({"scores"}), lambda step, query: function(step))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda step: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda step: np.zeros(step.n + 1), "returned values of shape"),
        (lambda step: np.zeros((step.n, 1)), "returned values of shape"),
        (lambda step: np.full(step.n, np.nan), "values NaN or infinite"),
        (lambda step: np.full(step.n, np.inf), "values NaN or infinite"),
        (lambda step: np.zeros(step.n, complex), "dtype complex128"),
        (lambda step: ["a"] * step.n, "dtype <U1"),
        (lambda step: None, "returned values as a NoneType, which is not an array of numbers"),
        (lambda step: step.train.x.fill(0.0), "raised ValueError: assignment destination is read-only"),
        (lambda step: step.train.x[:, 0], "as a view of its input"),
    ],
)
def test_misbehaviour_is_a_finding(function: Callable[[Step], Any], says: str) -> None:
    (outcome,) = check(scores_by(function), SCORES, shrink_seconds=1)
    assert outcome.status == "failed"
    assert outcome.finding is not None
    assert says in outcome.finding.sentence


def test_a_changed_input_is_a_finding() -> None:
    def spoil(step: Step) -> np.ndarray:
        step.params["0.weight"].base[...] += 1  # around the read-only view
        return np.zeros(step.n)

    (outcome,) = check(scores_by(spoil), SCORES, shrink_seconds=1)
    assert outcome.finding is not None
    assert "changed its input" in outcome.finding.sentence


def test_a_hang_is_a_finding() -> None:
    def hang(step: Step) -> None:
        while True:
            time.sleep(0.01)

    (outcome,) = check(scores_by(hang), SCORES, timeout=0.1, shrink_seconds=0)
    assert outcome.finding is not None
    assert "gave no answer within 0.1 s" in outcome.finding.sentence


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda step: step.params, "not (params, state)"),
        (lambda step: (step.params, 3), "not an AdamState"),
        (lambda step: ({}, AdamState.zeros(step.params)), "without exactly the names"),
    ],
)
def test_an_invalid_update_is_a_finding(result: Callable[[Step], Any], says: str) -> None:
    candidate = Implementation("mine", frozenset({"update"}), lambda step, query: result(step))
    (outcome,) = check(candidate, UPDATE, shrink_seconds=1)
    assert outcome.finding is not None
    assert says in outcome.finding.sentence


def test_missing_functions_and_unsupported_cases_are_reported() -> None:
    def not_relu(step: Step, query: Query) -> Any:
        if step.net.activation == "relu":
            raise NotImplementedError(f"activation {step.net.activation}")
        return ORACLE.ask(step, query)

    candidate = Implementation("mine", frozenset({"scores"}), not_relu)
    update, scores = check(candidate, UPDATE + SCORES)
    assert update.status == "not offered"
    assert scores.status == "passed"
    assert any(reason == "activation relu" for reason, _ in scores.unsupported)

    def nothing(step: Step, query: Query) -> Any:
        raise NotImplementedError

    (none,) = check(Implementation("mine", frozenset({"scores"}), nothing), SCORES)
    assert none.status == "not supported"


def test_a_failure_shrinks_to_a_small_case_and_its_snippet_reproduces_it(capsys: pytest.CaptureFixture[str]) -> None:
    class Wrong:
        @staticmethod
        def scores(step: Step, **options: Any) -> Any:
            return -reference.scores(step, **options)

    (outcome,) = check(implementation(Wrong, "wrong"), SCORES, shrink_seconds=60)
    assert isinstance(outcome, Outcome)
    assert outcome.finding is not None
    step = outcome.finding.case.step
    assert sum(p.size for p in step.params.values()) <= 4
    assert step.n <= 2
    code = snippet(outcome.finding.case, "adamshap.reference")
    exec(compile(code, "snippet", "exec"), {})
    printed = capsys.readouterr().out.split("\n")
    assert printed[0] == printed[1]
    assert f"{outcome.finding.wanted:.6g}"[:5] in printed[1]


@pytest.mark.parametrize(
    ("value", "call"), [("mine_of_ours", "candidate."), ("mine_of_ours:Mine.inner", ".Mine.inner.")]
)
def test_the_snippet_of_an_entry_point_imports_what_it_names(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
    call: str,
) -> None:
    (tmp_path / "mine_of_ours.py").write_text(
        "from adamshap.reference import scores\nclass Mine:\n    class inner:\n        scores = staticmethod(scores)\n"
    )
    metadata = tmp_path / "mine-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: mine\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[adamshap.implementations]\nmine-of-ours = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    (outcome,) = check(scores_by(lambda step: np.full(step.n, 0.5)), SCORES, shrink_seconds=0)
    assert outcome.finding is not None
    code = snippet(outcome.finding.case, "mine-of-ours")
    assert f"{call}scores(step, " in code
    exec(compile(code, "snippet", "exec"), {})
    printed = capsys.readouterr().out.split("\n")
    assert printed[0] == printed[1] != ""


def test_hypothesis_leaves_no_files(tmp_path: Path) -> None:
    code = "from adamshap.verify.oracle import ORACLE; from adamshap.verify.properties import PROPERTIES\n"
    code += "from adamshap.verify.checking import check; print(check(ORACLE, PROPERTIES[:1])[0].status)\n"
    code += "from adamshap.verify.implementation import implementation\n"
    code += "class Wrong: update = staticmethod(lambda step: None)\n"
    code += "print(check(implementation(Wrong, ''), PROPERTIES[:1], shrink_seconds=0.1)[0].status)"
    environment = {name: value for name, value in os.environ.items() if name != "HYPOTHESIS_STORAGE_DIRECTORY"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("passed\nfailed\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_entry_point_of_the_oracle_declares_everything() -> None:
    """Its module declares nothing: stacks of layers and other optimisers would not be tried."""
    names = ("scores-two_term-first", "sequential-captures-dot", "sequential-scores-secant", "together-update")
    known = {one.name: one for one in (*PROPERTIES, *LAYER_PROPERTIES, *OPTIMISER_PROPERTIES)}
    with isolated("reference") as candidate:
        assert candidate.layers == LAYERS.keys()
        outcomes = check(candidate, [known[name] for name in names], shrink_seconds=0, timeout=None)
    assert [one.status for one in outcomes] == ["passed"] * len(names)
    assert load("adamshap.reference").supports == frozenset()


def test_targets_are_found_by_module_object_and_entry_point() -> None:
    assert load("adamshap.reference").offers == {"update", "utility", "marginals", "scores", "influence"}
    assert load("adamshap.verify.oracle:ORACLE") is ORACLE
    assert load("reference") is ORACLE
    for target, says in (
        ("no.such.module", "ModuleNotFoundError"),
        ("adamshap.reference:nothing", "AttributeError"),
        ("json", "none of the functions"),
    ):
        with pytest.raises(LoadError, match=says):
            load(target)


PATHS = [
    ("./pkg/mine", "pkg.mine"),
    ("pkg/mine.py", "pkg.mine"),
    ("mine.py", "mine"),
    ("pkg/mine.py:scores", "pkg.mine"),
]


@pytest.mark.parametrize(("target", "name"), PATHS)
def test_the_error_for_a_path_has_the_name_of_the_module(
    target: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match=f"needs the name of a module, as in import: {name}, from the folder"):
        load(target)


@pytest.mark.parametrize("target", ["", ":scores", "pkg..mine", "my-module"])
def test_an_invalid_name_is_refused(target: str) -> None:
    with pytest.raises(LoadError, match=r"needs the name of a module, as in import$"):
        load(target)


class Plain:
    """A class whose methods need an instance."""

    def utility(self, step: Step, coalition: Array) -> float:
        """Return the oracle's answer."""
        return reference.utility(step, coalition)


class Static:
    """A class whose functions need no instance."""

    update = staticmethod(reference.update)

    @classmethod
    def utility(cls, step: Step, coalition: Array) -> float:
        """Return the oracle's answer."""
        return reference.utility(step, coalition)


def test_a_class_whose_methods_need_an_instance_is_refused() -> None:
    with pytest.raises(LoadError, match=r"'it' is a class, .* needs the name of one, such as mine, after mine = Plain"):
        implementation(Plain, "it")
    assert implementation(Plain(), "it").offers == {"utility"}
    assert implementation(Static, "it").offers == {"update", "utility"}
