"""`adamshap verify`: exit codes, reports, refusals."""

import json
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

MINE = """
from adamshap import reference

class Right:
    scores = staticmethod(reference.scores)

class Wrong:
    @staticmethod
    def scores(step, **options):
        return -step.n * reference.scores(step, **options)

class Picky:
    @staticmethod
    def scores(step, slope, **options):
        if slope != "secant":
            raise NotImplementedError("one slope only")
        return reference.scores(step, slope, **options)
"""

PROGRAM = """
import json, sys
from adamshap.verify.cases import answer_to_json, case_from_json
from adamshap.verify.oracle import expected

with open(sys.argv[1], encoding="utf-8") as cases, open(sys.argv[2], "w", encoding="utf-8") as answers:
    json.dump([answer_to_json(expected(*case_from_json(case))) for case in json.load(cases)], answers)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    (tmp_path / "ends.py").write_text("import ctypes\nctypes.CDLL(None)._exit(0)\n", encoding="utf-8")
    return tmp_path


def verify(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -P: like the console script, Python does not search the working directory for modules.
    program = [sys.executable, "-P", "-c", "from adamshap.reference.command.main import main; main()", "verify"]
    return subprocess.run([*program, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_a_right_candidate_exits_with_0(folder: Path) -> None:
    result = verify(folder, "mine:Right", "--only", "scores-secant-start", "--only", "update", "--dtype", "float32")
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 passed, 1 not offered" in " ".join(result.stdout.split())


def test_skipped_cases_are_reported_once_for_each_reason(folder: Path) -> None:
    only = [f"--only={name}" for name in ("update", "scores-sgd-start", "scores-frozen-start", "scores-secant-start")]
    result = verify(folder, "mine:Picky", *only, "--html", "report.html")
    assert result.returncode == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<p>Not supported (one slope only): 30 cases of scores-sgd-start, scores-frozen-start</p>" in page
    assert "Not offered: update\n" in result.stdout
    output = " ".join(result.stdout.split())  # independent of the width
    assert "Not supported (one slope only): 30 cases of scores-sgd-start, scores-frozen-start mine:Picky" in output
    assert "1 passed, 1 not offered, 2 not supported" in result.stdout


def test_a_wrong_candidate_exits_with_1_and_a_diagnosis(folder: Path) -> None:
    result = verify(
        folder, "mine:Wrong", "--only", "scores-secant-start", "--json", "report.json", "--html", "report.html"
    )
    assert (result.returncode, result.stderr) == (1, "")
    assert "Diagnosis: your answers are right but for the factor −n" in result.stdout
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["schema"] == 1
    assert report["diagnosis"]["factor"].startswith("−n")
    (found,) = report["properties"]
    assert found["status"] == "failed"
    assert found["finding"]["got"] != found["finding"]["expected"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "factor −n" in page
    assert "print(candidate.Wrong.scores(step, slope=" in page
    assert "http" not in page.replace("http-equiv", "")  # the page loads nothing


RUDE = """
import ctypes, os, sys
from adamshap import reference

class Exits:
    influence = staticmethod(lambda step: sys.exit(0))

class Ends:
    influence = staticmethod(lambda step: ctypes.CDLL(None)._exit(0))

class Raises:
    influence = staticmethod(lambda step: exec("raise BaseException('\\\\ud800')"))

class Removes:
    influence = staticmethod(lambda step: step.params.popitem())

class Closes:
    @staticmethod
    def influence(step):
        sys.stdout.close()
        os.close(2)
        os.chdir("/")
        return reference.influence(step)
"""


FOUND = [
    ("Exits", 1, "raised SystemExit: 0"),
    ("Raises", 1, r"raised BaseException: \ud800"),
    ("Removes", 1, "changed its input: the names in step.params"),
    ("Closes", 0, "1 passed"),
]


@pytest.mark.parametrize(
    ("name", "code", "says", "where"),
    [
        ("Ends", 1, "ended with exit status 0", ()),  # it would end the kit's own process
        *((*found, where) for found in FOUND for where in ((), ("--in-process",))),
    ],
)
def test_any_misbehaviour_gives_a_report(folder: Path, name: str, code: int, says: str, where: tuple[str, ...]) -> None:
    (folder / "rude.py").write_text(RUDE, encoding="utf-8")
    files = ("--json", "r.json", "--html", "r.html", "--only", "influence")
    result = verify(folder, f"rude:{name}", *files, *where)
    assert (result.returncode, result.stderr) == (code, "")
    assert says in " ".join(result.stdout.split())
    report = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    assert report["verdict"] == ("1 failed" if code else "1 passed")
    if code:
        assert says in report["properties"][0]["finding"]["sentence"]
        assert says in unescape((folder / "r.html").read_text(encoding="utf-8"))
    assert not (folder / ".hypothesis").exists()


def test_a_command_with_undecodable_bytes_has_a_report(folder: Path) -> None:
    file = folder / "mine\udcff.py"
    body = """
import json, sys
json.dump([{"error": "\\ud800"} for _ in json.load(open(sys.argv[1]))], open(sys.argv[2], "w"))
"""
    file.write_text(body)
    command = f"{sys.executable} -S {file} {{case}} {{result}}"
    result = verify(folder, "--command", command, "--only", "influence", "--json", "r.json", "--html", "r.html")
    assert (result.returncode, result.stderr) == (1, "")
    assert r"reported an error: \ud800" in " ".join(result.stdout.split())
    assert json.loads((folder / "r.json").read_text(encoding="utf-8"))["target"] == command
    assert r"\udcff.py" in (folder / "r.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_still_shown(folder: Path) -> None:
    (folder / "taken").mkdir()
    result = verify(folder, "mine:Right", "--only", "scores-secant-start", "--json", "taken")
    assert result.returncode == 2
    assert "cannot write the report" in result.stderr
    assert "1 passed" in result.stdout


def test_a_failing_entry_point_is_reproduced_by_the_code_in_the_report(folder: Path) -> None:
    metadata = folder / "mine-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: mine\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[adamshap.implementations]\nwrong = mine:Wrong\n")
    result = verify(folder, "wrong", "--only", "scores-secant-start", "--json", "r.json")
    assert (result.returncode, result.stderr) == (1, "")
    code = json.loads((folder / "r.json").read_text(encoding="utf-8"))["properties"][0]["finding"]["reproduce"]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    got, wanted = done.stdout.splitlines()
    assert got != wanted


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["exits"], "cannot load 'exits': SystemExit: 0"),
        (["exits", "--in-process"], "cannot load 'exits': SystemExit: 0"),
        (["ends"], "cannot load 'ends': it ended with exit status 0"),
        (["--command", "./exits.py {case} {result}"], "the file has no execute bit"),
        (["--command", "./exits.py {case} {result}", "--in-process"], "--in-process is for a TARGET"),
        (["nothing.there"], "cannot load 'nothing.there'"),
        (["json"], "none of the functions"),
        (["mine:Right", "--only", "speed"], "--only: got 'speed'; needs one of update, utility"),
        (["mine:Right", "--only", "edge-n"], "--only: got 'edge-n'; needs --edges beside it"),
        (["mine:Right", "--only", "update"], "no property could be tried"),
        (["mine:Right", "--json", "no/such/folder/r.json"], "its folder does not exist"),
        (["mine:Right", "--dtype", "float16"], "float64"),
        ([], "needs a TARGET or --command, and not both"),
        (["mine:Right", "--command", "cat {case} {result}"], "needs a TARGET or --command, and not both"),
        (["--command", "cat {case}"], "the command 'cat {case}' has no {result}"),
        (["--command", "/no/such/program {case} {result}"], "no such program"),
    ],
)
def test_a_target_that_cannot_be_tried_exits_with_2_and_one_line(folder: Path, arguments: list[str], says: str) -> None:
    result = verify(folder, *arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_command_is_tried_with_the_extras_that_it_offers(folder: Path) -> None:
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = f"{shlex.quote(sys.executable)} program.py {{case}} {{result}}"
    arguments = ("--command", command, "--only", "scores-two_term-first", "--only", "micro-batch")
    assert "2 not offered" in " ".join(verify(folder, *arguments).stdout.split())
    result = verify(folder, *arguments, "--offers", "two_term")
    assert (result.returncode, result.stderr) == (0, "")
    assert "1 passed, 1 not offered" in " ".join(result.stdout.split())
