"""Programs that misbehave, and files that are not programs: the kit continues and reports the cause."""

import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from adamshap.verify.checking import MOST_HANGS, Outcome
from adamshap.verify.implementation import LoadError
from adamshap.verify.process import CommandCandidate, check_command
from adamshap.verify.properties import PROPERTIES

BY_NAME = {one.name: one for one in PROPERTIES}

HEAD = """
import json, os, signal, subprocess, sys, time
cases, result = sys.argv[1:]
given = json.load(open(cases, encoding="utf-8"))

def write(text):
    open(result, "w", encoding="utf-8").write(text)

def answer(value):
    write("[" + ",".join(f'{{"values": {value}}}' for one in given) + "]")

def zeros():
    return json.dumps([{"values": [0.0] * len(one["train"]["x"])} for one in given])
"""


def program(folder: Path, body: str) -> str:
    file = folder / "mine.py"
    file.write_text(HEAD + body, encoding="utf-8")
    return f"{shlex.quote(sys.executable)} -S -E {shlex.quote(str(file))} {{case}} {{result}}"


def outcome_of(command: str, timeout: float = 60.0) -> Outcome:
    _, (outcome,) = check_command(command, [BY_NAME["influence"]], timeout=timeout, shrink_seconds=0)
    return outcome


def sentence_of(outcome: Outcome) -> str:
    assert outcome.status == "failed"
    assert outcome.finding is not None
    assert outcome.finding.sentence.isprintable()
    return outcome.finding.sentence


@pytest.mark.parametrize(
    ("body", "says"),
    [
        # exit status
        ("sys.exit(0)", "wrote no result file for 1 case"),
        ("os._exit(0)", "wrote no result file for 1 case"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL on 1 case"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "was ended by SIGTERM on 1 case"),
        ("os.kill(os.getpid(), 40)", "was ended by signal 40 on 1 case"),
        ("os.abort()", "was ended by SIGABRT on 1 case"),
        ("raise BaseException('mine')", "ended with exit status 1 on 1 case; it printed: Traceback"),
        ("write(zeros()); sys.exit(3)", "ended with exit status 3 on 1 case"),
        # output
        ("sys.stdout.write('a' * 10**7 + ' the end'); sys.exit(1)", " the end"),
        ("sys.stdout.buffer.write(b'\\xff\\x1b[2J'); sys.exit(1)", r"it printed: �\x1b[2J"),
        ("os.close(1); os.close(2); sys.exit(1)", "on 1 case"),
        # content of the result file
        ("write(zeros()[:-3])", "that is not JSON"),
        ("write('')", "that is not JSON: Expecting value"),
        ("write('\\ufeff' + zeros())", "that is not JSON: it begins with a byte order mark (BOM)"),
        ("open(result, 'wb').write(zeros().encode('utf-16'))", "that is not JSON, which is UTF-8"),
        ("open(result, 'wb').write(b'[\"\\xe9\"]')", "that is not JSON, which is UTF-8"),
        ("write('[' * 100_000)", "that is not JSON: maximum recursion depth"),
        ("write('[' + ','.join('{\"values\": [0], \"values\": [0]}' for _ in given) + ']')", "got a name twice among"),
        ("write(zeros() + zeros())", "that is not JSON: Extra data"),
        ("answer('NaN')", "returned values of shape ()"),
        ("write(zeros().replace('0.0', 'NaN'))", "NaN or infinite"),
        ("write(zeros().replace('0.0', '1e999'))", "NaN or infinite"),
        ("write(zeros().replace('0.0', '-Infinity'))", "NaN or infinite"),
        ("write(zeros().replace('0.0', '\"0\"'))", "returned an invalid answer: values: got"),
        ("write(zeros().replace('0.0', 'true'))", "returned an invalid answer: values: got"),
        ("answer('[[0], [0, 0]]')", "lists of uneven length"),
        ("answer('{}')", "returned an invalid answer: values: got {}"),
        ("write(json.dumps([{'error': '\\ud800'} for one in given]))", r"reported an error: \ud800"),
        ("write(json.dumps([{'error': '\\x00\\x1b[2J'} for one in given]))", r"reported an error: \x00\x1b[2J"),
        ("write(json.dumps([{'error': 'a' * 10**6} for one in given]))", "aaa…"),
        ("write(json.dumps([{'error': {'a': [1]}} for one in given]))", "reported an error: {'a': [1]}"),
        ("write(json.dumps([{'\\ud800': 1} for one in given]))", r"returned the names \ud800, not values"),
        # kind of the result file
        ("os.mkfifo(result)", "wrote a result for 1 case that is not a regular file"),
        ("os.mkdir(result)", "wrote a result for 1 case that is not a regular file"),
        ("os.symlink('/dev/zero', result)", "wrote a result for 1 case that is not a regular file"),
        ("os.symlink(result, result)", "wrote a result for 1 case that cannot be read: "),
        ("write(''); os.truncate(result, 10**12)", "wrote a result of 1000000000000 bytes"),
        ("import shutil; shutil.rmtree(os.path.dirname(result))", "wrote no result file"),
    ],
)
def test_misbehaviour_is_a_finding(tmp_path: Path, body: str, says: str) -> None:
    assert says in sentence_of(outcome_of(program(tmp_path, body)))


def test_a_reason_that_is_not_text_is_reported(tmp_path: Path) -> None:
    body = "write(json.dumps([{'unsupported': '\\ud800'} for one in given]))"
    assert outcome_of(program(tmp_path, body)).unsupported[0][0] == r"\ud800"


def test_output_without_end_takes_no_memory_and_ends_with_the_limit(tmp_path: Path) -> None:
    body = "while True: sys.stdout.write('a' * 65536)"
    sentence = sentence_of(outcome_of(program(tmp_path, body), timeout=2.0))
    assert "gave no answer to 1 case within 2 s; it printed: aaa" in sentence
    assert len(sentence) < 1000


def test_output_that_nobody_reads_keeps_no_program_waiting(tmp_path: Path) -> None:
    body = "sys.stdout.write('a' * 10**7); sys.stdout.flush(); write(zeros())"
    assert "where rounding and conditioning explain" in sentence_of(outcome_of(program(tmp_path, body), timeout=30.0))


@pytest.mark.parametrize("how", ["write(zeros())", "sys.exit(1)", "time.sleep(600)"])
def test_what_a_program_started_ends_with_it(tmp_path: Path, how: str) -> None:
    body = f"""
child = subprocess.Popen(["sleep", "600"])
open({str(tmp_path / "children")!r}, "a").write(f"{{child.pid}}\\n")
{how}
"""
    assert outcome_of(program(tmp_path, body), timeout=3.0).status == "failed"
    children = (tmp_path / "children").read_text().split()
    assert children
    until = time.monotonic() + 20
    while any(map(runs, children)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(runs, children))


def runs(process: str) -> bool:
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


def test_a_run_ends_after_a_few_hangs(tmp_path: Path) -> None:
    body = f"open({str(tmp_path / 'runs')!r}, 'a').write('x'); time.sleep(600)"
    properties = [one for one in PROPERTIES if one.function == "scores"][:6]
    _, outcomes = check_command(program(tmp_path, body), properties, timeout=0.3)
    assert {outcome.status for outcome in outcomes} == {"failed", "not tried"}
    assert len((tmp_path / "runs").read_text()) <= MOST_HANGS + 1  # the last property runs it twice


# --- files that are not programs --------------------------------------------------------------------------------------


def script(folder: Path, text: bytes, mode: int = 0o755) -> Path:
    file = folder / "mine"
    file.write_bytes(text)
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (b"#!/bin/sh\n", 0o644, r"the file has no execute bit: chmod \+x .*/mine, or name its interpreter before it"),
        (b"", 0o755, "the file is empty"),
        (b"#!/no/such/python\n", 0o755, "its first line names the interpreter '/no/such/python', which does not exist"),
        (b"#! /no/such/env python\n", 0o755, "names the interpreter '/no/such/env', which does not exist"),
        (b"#!/etc/passwd\n", 0o755, "names the interpreter '/etc/passwd', which cannot be executed"),
        (b"#!/usr\n", 0o755, "names the interpreter '/usr', which cannot be executed"),
        (b"#!\n", 0o755, "its first line names no interpreter after #!"),
        (b"#!/bin/sh\r\n", 0o755, "its first line ends in a carriage return: save the file with Unix line endings"),
        (b"\x00\x01", 0o755, "it is not a program for this machine, nor a script: a script begins with a line such as"),
        (b"echo no first line\n", 0o755, "it is not a program for this machine, nor a script"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused(tmp_path: Path, text: bytes, mode: int, says: str) -> None:
    with pytest.raises(LoadError, match=says):
        outcome_of(f"{script(tmp_path, text, mode)} {{case}} {{result}}")


def test_a_program_of_another_machine_is_refused(tmp_path: Path) -> None:
    elf = bytearray(Path(sys.executable).resolve().read_bytes()[:4096])
    elf[18:20] = b"\xff\x00"  # a machine that does not exist
    with pytest.raises(LoadError, match="it is not a program for this machine"):
        outcome_of(f"{script(tmp_path, bytes(elf))} {{case}} {{result}}")


def test_a_program_without_its_loader_is_refused(tmp_path: Path) -> None:
    whole = Path(sys.executable).resolve().read_bytes()
    assert b"/lib64/ld-linux" in whole or b"/lib/ld-" in whole
    file = script(tmp_path, whole.replace(b"/lib64/ld-", b"/lib64/no-").replace(b"/lib/ld-", b"/lib/no-"))
    with pytest.raises(LoadError, match="the file exists, but not the loader that it names"):
        outcome_of(f"{file} {{case}} {{result}}")


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("./folder", "it is a folder, not a program"),
        ("./folder/", "it is a folder, not a program"),
        ("./nothing", "no such program$"),
        ("nothing", "no such program$"),
        ("~/nothing", "no such program; a command is run without a shell, so write it out"),
        ("$HOME/nothing", "no such program; a command is run without a shell, so write it out"),
        ("SEED=1", "no such program; a command is run without a shell: put shell syntax into a script"),
        ("here", "no such program on PATH; for the file in this folder write ./here"),
        ("unmarked", r"bin/unmarked has no execute bit: chmod \+x"),
    ],
)
def test_a_name_without_a_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "here").touch(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "unmarked").touch(0o644)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(LoadError, match=says):
        CommandCandidate(f"{program} {{case}} {{result}}", 1.0)


def test_a_program_that_deletes_itself_is_a_finding(tmp_path: Path) -> None:
    file = script(tmp_path, b'#!/bin/sh\nrm "$0"\n')
    assert "could not be started again: no such program" in sentence_of(outcome_of(f"{file} {{case}} {{result}}"))
