"""Test vectors are run on a candidate: failures, accepted variants, refusals, and a list of expected failures."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from adamshap.reference.contract import Step
from adamshap.verify.faults import AUTO_FAULTS, BY_NAME, Fault
from adamshap.verify.implementation import Implementation, Query, implementation
from adamshap.verify.models import PERCEPTRON
from adamshap.verify.oracle import ORACLE
from adamshap.verify.vectors.edition import LATEST
from adamshap.verify.vectors.expected_failures import Expectations, ExpectationsError, read_expectations
from adamshap.verify.vectors.folder import Folder, read, write
from adamshap.verify.vectors.results import Results
from adamshap.verify.vectors.running import asked, likely_faults, run_refusals, run_refusals_of_command, run_vectors
from adamshap.verify.vectors.vector import Variant

CONTENT = read(LATEST.folder)
AUTOS = [one for one in CONTENT.vectors if "auto" in one.needs]
SOME = [one for one in CONTENT.vectors if one.query.function in ("scores", "update")][::25]


def results(candidate: Implementation, vectors: Any = SOME, entries: tuple[str, ...] = ()) -> Results:
    run = [*run_vectors(candidate, vectors), *run_refusals(candidate, CONTENT.refusals)]
    return Results("mine", CONTENT, run, Expectations(entries))


def candidate_of(answer: Any) -> Implementation:
    return replace(ORACLE, ask=answer)


def test_the_oracle_passes() -> None:
    done = results(ORACLE)
    assert not done.of("failed", "not supported")
    assert len(done.of("passed")) > len(SOME)  # one refusal reaches a Python candidate
    assert done.unexpected == []
    assert done.to_json()["verdict"].startswith(f"{len(done.of('passed'))} passed, 0 failed")


@pytest.mark.parametrize("name", ["engine", "torch_ghost"])
def test_other_implementations_pass(name: str) -> None:
    candidate = implementation(import_module(f"adamshap.verify.candidates.{name}"), name)
    done = list(run_vectors(candidate, CONTENT.vectors))
    assert [one for one in done if one.status == "failed"] == []
    assert sum(one.status == "passed" for one in done) > 700


def test_a_vector_whose_needs_are_not_declared_is_not_asked() -> None:
    def ask(step: Step, query: Query) -> Any:
        raise AssertionError(query)

    lacking = replace(
        candidate_of(ask), supports=frozenset({"linear"}), extras=frozenset(), offers=frozenset({"update"})
    )
    needing = [one for one in CONTENT.vectors if one.needs not in ((PERCEPTRON,), ("linear",))]
    assert {one.status for one in run_vectors(lacking, needing)} == {"not supported"}
    assert asked(lacking, needing) == []


def test_a_mistake_is_named() -> None:
    done = results(BY_NAME["betas-swapped"].implementation())
    assert done.unexpected
    assert likely_faults(done.results) == ["betas-swapped"]
    (line,) = [line for line in done.lines() if line.startswith("Likely mistake: your answers equal")]
    assert line.endswith("(betas-swapped)")


@pytest.mark.parametrize("fault", AUTO_FAULTS, ids=lambda fault: fault.name)
def test_a_mistake_in_auto_is_named(fault: Fault) -> None:
    of_its_slopes = [one for one in CONTENT.vectors if one.query.options.get("slope") in ("secant", "random_order")]
    done = results(fault.implementation(), [*AUTOS, *of_its_slopes[::10]])
    assert {one.name for one in done.unexpected} <= {one.name for one in AUTOS}
    assert likely_faults(done.results) == [fault.name]


def test_vectors_of_auto_are_left_out_unless_it_is_declared() -> None:
    plain = replace(ORACLE, supports=ORACLE.supports - {"auto"})
    assert {one.status for one in run_vectors(ORACLE, AUTOS)} == {"passed"}
    assert asked(plain, AUTOS) == []
    (line,) = [line for line in results(plain, AUTOS).lines() if line.startswith("Not supported")]
    assert line == f"Not supported (auto is not declared): {len(AUTOS)}"


def test_an_unsupported_case_is_no_failure() -> None:
    def ask(step: Step, query: Query) -> Any:
        raise NotImplementedError("stacks of layers")

    done = results(candidate_of(ask))
    assert {one.status for one in done.results} == {"not supported", "not asked"}
    assert any("Not supported (stacks of layers)" in line for line in done.lines())


def test_an_error_names_no_mistake() -> None:
    def ask(step: Step, query: Query) -> Any:
        raise TypeError("an unexpected keyword argument")

    done = results(candidate_of(ask))
    assert done.of("failed")
    assert likely_faults(done.results) == []


def test_a_refused_case_must_not_be_answered() -> None:
    previous = [one for one in CONTENT.refusals if one.name == "must_refuse-previous-at-1"]

    def ask(step: Step, query: Query) -> Any:
        return ORACLE.ask(step, Query("scores", {**query.options, "denominator": "exact"}))

    (done,) = run_refusals(candidate_of(ask), previous)
    assert (done.status, done.sentence) == (
        "failed",
        "options.denominator: answered, although before the first step there is no previous second moment",
    )
    for reply, status in (({"error": "β = 1"}, "passed"), ({"unsupported": "β"}, "not supported"), ({}, "failed")):
        (done,) = run_refusals_of_command(lambda texts, reply=reply: [reply] * len(texts), previous)
        assert done.status == status


def test_an_accepted_variant_is_reported() -> None:
    vector = next(one for one in SOME if one.query.function == "scores")
    other = {"values": vector.expected["values"] + 1}
    both = replace(vector, variants=(Variant("shifted", other, vector.bound),))
    assert both.flag == "acceptable"
    (done,) = run_vectors(candidate_of(lambda step, query: other["values"]), [both])
    assert (done.status, done.variant) == ("passed", "shifted")
    (done,) = run_vectors(candidate_of(lambda step, query: other["values"] + 1), [both])
    assert done.status == "failed"
    (done,) = run_vectors(ORACLE, [both])
    assert (done.status, done.variant) == ("passed", "")


def test_a_variant_is_written_and_read_again(tmp_path: Path) -> None:
    vector = replace(SOME[0], variants=(Variant("shifted", SOME[0].expected, SOME[0].bound),))
    write(tmp_path / "v", Folder(LATEST, [vector], [], CONTENT.faults, {"shifted": {"sentence": "a shift"}}))
    (again,) = read(tmp_path / "v").vectors
    assert (again.flag, [one.name for one in again.variants]) == ("acceptable", ["shifted"])


def test_expected_failures() -> None:
    wrong = BY_NAME["betas-swapped"].implementation()
    names = tuple(one.name for one in results(wrong).unexpected)
    done = results(wrong, entries=(*names[1:], "captures-*"))
    assert [one.name for one in done.unexpected] == [names[0]]
    assert done.stale == ["captures-*"]
    assert "captures-*: expected to fail, but nothing of this name does; take it off the list" in list(done.lines())


def test_the_list_of_expected_failures(tmp_path: Path) -> None:
    file = tmp_path / "known.txt"
    file.write_text("# my list\n\nscores-000  # ε\nupdate-layers-*\n", encoding="utf-8")
    names = [one.name for one in CONTENT.vectors]
    assert read_expectations(file, names).entries == ("scores-000", "update-layers-*")
    file.write_text("scores-000\nscore-*\n", encoding="utf-8")
    with pytest.raises(ExpectationsError, match=r"line 2: no vector has the name 'score-\*'"):
        read_expectations(file, names)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ExpectationsError, match="UTF-8"):
        read_expectations(file, names)
    with pytest.raises(ExpectationsError, match="cannot read"):
        read_expectations(tmp_path / "none.txt", names)


PROGRAM = """
import json, sys
from adamshap.verify.cases import answer_to_json, case_from_json
from adamshap.verify.implementation import answer
from adamshap.verify.oracle import ORACLE
replies = []
for case in json.load(open(sys.argv[1])):
    try:
        replies.append(answer_to_json(answer(ORACLE, *case_from_json(case))))
    except Exception as error:
        replies.append({"error": str(error)})
json.dump(replies, open(sys.argv[2], "w"))
"""


def test_the_command(tmp_path: Path) -> None:
    """A small folder, on the oracle as a program and as a target; with a mistake; with a list of expected failures."""
    write(tmp_path / "v", replace(CONTENT, vectors=SOME[:4], refusals=CONTENT.refusals[:2]))
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "known.txt").write_text(f"{SOME[0].name}\n", encoding="utf-8")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        code = "from adamshap.reference.command.main import main; main()"
        command = [sys.executable, "-c", code, "vectors", "run", "--vectors", "v", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    program = ("--command", f"'{sys.executable}' program.py {{case}} {{result}}")
    done = run(*program, "--supports", "sequential", "--json", "report.json")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith("vectors of version 2: 6 passed, 0 failed\n")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [one["status"] for one in report["results"]] == ["passed"] * 6

    done = run(*program)
    assert "Not supported (activation is not declared): 2" in done.stdout

    done = run("engine", "--expected-failures", "known.txt")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{SOME[0].name}: expected to fail" in done.stdout
    assert "4 passed, 0 failed, 2 not asked" in done.stdout

    for arguments, says in (
        ((), "needs a TARGET or --command"),
        (("reference", "--supports", "linear"), "are for --command"),
        (("--command", "mine {case} {result}", "--offers", "speed"), "--offers: got 'speed'"),
        (("reference", "--expected-failures", "none.txt"), "cannot read 'none.txt'"),
        (("nothing.here",), "cannot load 'nothing.here'"),
        (("reference", "--json", "no/where.json"), "its folder does not exist"),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr
