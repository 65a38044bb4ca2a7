"""Candidates that are commands: right ones pass, with one process per property; any misbehaviour is a finding."""

import json
import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from adamshap.verify.checking import Outcome
from adamshap.verify.diagnosis import diagnose
from adamshap.verify.implementation import EXTRAS, LoadError
from adamshap.verify.process import CommandCandidate, check_command
from adamshap.verify.properties import PROPERTIES

BY_NAME = {one.name: one for one in PROPERTIES}

RIGHT = """
import json, sys
from adamshap import reference
from adamshap.verify.cases import answer_to_json, case_from_json
from adamshap.verify.oracle import expected

def reply(given):
    return answer_to_json(expected(*case_from_json(given)))

cases, answers = sys.argv[1:]
given = json.load(open(cases, encoding="utf-8"))
with open(__file__ + ".log", "a") as log:
    print(len(given), file=log)
"""

# A program without libraries, with wrong answers in the right format.
PLAIN = """
import json, os, signal, sys, time
given = json.load(open(sys.argv[1], encoding="utf-8"))

def reply(one):
    return {"values": [1.0] * len(one["train"]["x"])}

def write(text):
    open(sys.argv[2], "w", encoding="utf-8").write(text)
"""


def program(folder: Path, head: str, body: str) -> str:
    file = folder / "mine.py"
    file.write_text(head + body, encoding="utf-8")
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(file))} {{case}} {{result}}"


def try_one(command: str, name: str = "influence", timeout: float = 60.0) -> Outcome:
    _, (outcome,) = check_command(command, [BY_NAME[name]], timeout=timeout, shrink_seconds=0)
    return outcome


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_right_program_passes_in_one_process_a_property(tmp_path: Path, dtype: str) -> None:
    body = "json.dump([reply(one) for one in given], open(answers, 'w'))"
    names = ("update", "utility", "marginals-first-exact", "scores-secant-path", "influence", "repeatability")
    _, outcomes = check_command(program(tmp_path, RIGHT, body), [BY_NAME[name] for name in names], dtype=dtype)
    assert [outcome.status for outcome in outcomes] == ["passed"] * len(names), [o.finding for o in outcomes]
    assert all(outcome.examples > 10 for outcome in outcomes)
    counts = [int(line) for line in (tmp_path / "mine.py.log").read_text().split()]
    assert len(counts) == len(names)
    assert counts[-1] == 2 * outcomes[-1].examples


WITH_EXTRAS = """
import numpy as np
from adamshap.verify.implementation import Query

def reply(given):
    step, query = case_from_json(given)
    options = {name: value for name, value in query.options.items() if name != "micro_batch"}
    answer = expected(step, Query(query.function, options))
    if "micro_batch" in query.options and step.n % query.options["micro_batch"] == 1:
        answer["values"] = answer["values"] * np.array(REST)
    return answer_to_json(answer)

json.dump([reply(one) for one in given], open(answers, 'w'))
"""


@pytest.mark.parametrize(("rest", "status"), [("1.0", "passed"), ("2.0", "failed")])
def test_a_program_may_have_two_terms_and_micro_batches(tmp_path: Path, rest: str, status: str) -> None:
    command = program(tmp_path, RIGHT, WITH_EXTRAS.replace("REST", rest))
    names = ("scores-two_term-first", "scores-two_term-shapley", "micro-batch")
    properties = [BY_NAME[name] for name in names]
    _, outcomes = check_command(command, properties, shrink_seconds=0, extras=frozenset(EXTRAS))
    assert [outcome.status for outcome in outcomes] == ["passed", "passed", status]
    _, outcomes = check_command(command, properties, shrink_seconds=0)
    assert {outcome.status for outcome in outcomes} == {"not offered"}


def test_a_wrong_program_is_diagnosed(tmp_path: Path) -> None:
    body = """
def negative(one):
    return {name: [-x for x in values] for name, values in reply(one).items()}

json.dump([negative(one) for one in given], open(answers, 'w'))
"""
    properties = [BY_NAME["scores-secant-start"]]
    candidate, outcomes = check_command(program(tmp_path, RIGHT, body), properties, shrink_seconds=0)
    diagnosis = diagnose(candidate, outcomes)
    assert diagnosis is not None
    assert "sign" in diagnosis.faults


def test_an_answer_that_changes_is_found(tmp_path: Path) -> None:
    body = (
        "import random; write(json.dumps([{'values': [random.random() for _ in one['train']['x']]} for one in given]))"
    )
    outcome = try_one(program(tmp_path, PLAIN, body), "repeatability")
    assert outcome.status == "failed"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("write(json.dumps([reply(one) for one in given]))", "where rounding and conditioning explain"),
        ("write(json.dumps([{'values': [10**25] * len(one['train']['x'])} for one in given]))", "is 1e+25, should be"),
        ("sys.exit('no licence')", "the candidate ended with exit status 1 on 1 case; it printed: no licence"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the candidate was ended by SIGSEGV on 1 case"),
        ("pass", "wrote no result file for 1 case"),
        ("print('done')", "wrote no result file for 1 case; it printed: done"),
        ("write('[{')", "wrote a result for 1 case that is not JSON"),
        ("open(sys.argv[2], 'wb').write(b'\\xff\\xfe')", "that is not JSON"),
        ("write('{}')", "wrote a dict for 1 case, not a list of as many answers"),
        ("write('[]')", "wrote a list of 0 for 1 case, not a list of as many answers"),
        ("write(json.dumps([3 for one in given]))", "returned an invalid answer: answer: got 3; needs an object"),
        ("write(json.dumps([{} for one in given]))", "returned an invalid answer: answer: got {}"),
        ("write(json.dumps([{'values': None} for one in given]))", "values: got null; needs a number"),
        ("write(json.dumps([{'values': ['a']} for one in given]))", "values: got"),
        ("write(json.dumps([{'scores': [1.0]} for one in given]))", "returned the names scores, not values"),
        ("write(json.dumps([{'values': [[1.0]]} for one in given]))", "returned values of shape (1, 1)"),
        (
            "write(json.dumps([{'values': [float('nan')] * len(one['train']['x'])} for one in given]))",
            "NaN or infinite",
        ),
        ("write(json.dumps([{'error': 'out of luck'} for one in given]))", "reported an error: out of luck"),
    ],
)
def test_misbehaviour_is_a_finding(tmp_path: Path, body: str, says: str) -> None:
    outcome = try_one(program(tmp_path, PLAIN, body))
    assert outcome.status == "failed"
    assert outcome.finding is not None
    assert says in outcome.finding.sentence


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("reply = lambda one: {'step': 1}", "returned the names step, not step, params.0.weight"),
        (
            "reply = lambda one: {'step': 0.5} | {f'{k}.{n}': a for k in ('params', 'm', 'v')"
            " for n, a in one['params'].items()}",
            "returned an invalid state of Adam: AdamState.",
        ),
    ],
)
def test_an_invalid_update_is_a_finding(tmp_path: Path, body: str, says: str) -> None:
    outcome = try_one(program(tmp_path, PLAIN, f"{body}\nwrite(json.dumps([reply(one) for one in given]))"), "update")
    assert outcome.finding is not None
    assert says in outcome.finding.sentence


def test_half_of_the_marginals_is_a_finding(tmp_path: Path) -> None:
    body = "write(json.dumps([reply(one) | {'empty': 0.0} for one in given]))"
    outcome = try_one(program(tmp_path, PLAIN, body), "marginals-last-exact")
    assert outcome.finding is not None
    assert "returned the names values, empty, not empty, total, values" in outcome.finding.sentence


def test_unsupported_cases_are_reported(tmp_path: Path) -> None:
    body = "write(json.dumps([{'unsupported': one['function']} for one in given]))"
    outcome = try_one(program(tmp_path, PLAIN, body))
    assert (outcome.status, outcome.unsupported) == ("not supported", (("influence", outcome.examples),))


def test_a_hang_is_a_finding_and_leaves_nothing_running(tmp_path: Path) -> None:
    body = f"""
if os.fork() == 0:
    open({str(tmp_path / "child")!r}, "a").write(str(os.getpid()) + "\\n")
time.sleep(600)
"""
    outcome = try_one(program(tmp_path, PLAIN, body), timeout=0.5)
    assert outcome.finding is not None
    assert "gave no answer to 1 case within 0.5 s" in outcome.finding.sentence
    for process in (tmp_path / "child").read_text().split():
        assert ended(int(process))


def ended(process: int, patience: float = 10.0) -> bool:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{process}/stat").exists() and Path(f"/proc/{process}/stat").read_text().split()[2] == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_program_that_can_only_do_one_case_at_a_time_is_a_finding(tmp_path: Path) -> None:
    body = "assert len(given) == 1, 'too much'\njson.dump([reply(one) for one in given], open(answers, 'w'))"
    outcome = try_one(program(tmp_path, RIGHT, body), "update")
    assert outcome.status == "failed"
    assert outcome.finding is not None
    assert f"{outcome.examples} cases in one file" in outcome.finding.sentence
    assert "AssertionError: too much" in outcome.finding.sentence


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("./mine", r"has no \{case\}; it needs \{case\} and \{result\}"),
        ("./mine {case}", r"has no \{result\}"),
        ("", r"has no \{case\}"),
        ("./mine '{case} {result}", "cannot read the command"),
        ("/no/such/program {case} {result}", "no such program"),
    ],
)
def test_what_cannot_be_run_is_refused(command: str, says: str) -> None:
    with pytest.raises(LoadError, match=says):
        CommandCandidate(command, 1.0)


def test_the_cases_are_as_documented(tmp_path: Path) -> None:
    body = "json.dump(given, open(__file__ + '.seen', 'w')); write(json.dumps([{'unsupported': ''} for _ in given]))"
    try_one(program(tmp_path, PLAIN, body), "scores-per-validation")
    seen = json.loads((tmp_path / "mine.py.seen").read_text())
    assert len(seen) > 10
    assert {one["function"] for one in seen} == {"scores"}
    assert all(one["options"]["per_validation"] is True for one in seen)
    assert {one["dtype"] for one in seen} == {"float64"}
