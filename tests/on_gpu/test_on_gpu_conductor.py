"""The conductor's handling of processes that fail, hang or cannot start, and of its time limit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE, children_of, wait_for

from adamshap.gpu import backend
from adamshap.verify import cpu_device, receipt
from adamshap.verify.on_gpu import __main__ as command
from adamshap.verify.on_gpu.child import LONGEST_LINE, Reporter
from adamshap.verify.on_gpu.conductor import MOST_SAID, RUN, Conductor, Outcome
from adamshap.verify.on_gpu.plan import STAGES, Setting, Stage, limit_of

HERE = Path(__file__).parent
WEIGHT = 1.0


def conducted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, *, seconds: float, task_seconds: float
) -> tuple[Outcome, receipt.Receipt]:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setattr("signal.signal", lambda *_: None)  # keep pytest's handlers
    stage = Stage("broken", "a stage that is broken", WEIGHT, task_seconds, module=module)
    setting = Setting(rehearsal=True, scratch=str(folder))
    conductor = Conductor(folder / "out", seconds, setting, frozenset({"broken"}), stages=(stage,))
    found = conductor.run()
    written = json.loads((folder / "out" / RUN).read_text())["stages"]
    assert written == [vars(conductor.outcomes[0])]
    return conductor.outcomes[0], found


@pytest.mark.usefixtures("cupy_on_cpu")
def test_a_task_that_fails_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, found = conducted(tmp_path, monkeypatch, "broken_stage", seconds=45, task_seconds=4)
    failed = outcome.failed
    assert set(failed) == {"raises", "exits", "is_killed", "leaves", "hangs", "a check", "no error", "more"}
    assert failed["raises"].startswith("Traceback")
    assert failed["raises"].rstrip().endswith("the reason")
    assert "SystemExit" in failed["exits"]
    assert failed["is_killed"] == "its process was ended by SIGKILL"
    assert failed["leaves"] == "its process ended with exit status 7"
    assert failed["hangs"] == failed["more"] == "took longer than 4 s"
    assert failed["a check"] == "what was wrong"
    assert failed["no error"] == "not finite: nan"
    assert outcome.notes["a row"] == {"median": "inf", "all": [1.0, "nan"]}
    assert (outcome.status, outcome.required_done, outcome.required) == ("failed", 7, 7)
    assert outcome.passed == 1  # "is_well": a task that reports a failed check has not passed
    said = capsys.readouterr().out
    assert said.count("  failed: ") == MOST_SAID
    assert f"and {len(failed) - MOST_SAID} more: see {tmp_path / 'out' / RUN}" in said
    assert (found.largest_errors, found.throughput) == ({"an error": 0.25}, {"a speed, 1/s": 2.0})
    assert found.failed == [f"broken: {name}" for name in failed]
    assert not found.partial
    assert not found.verifies


@pytest.mark.usefixtures("cupy_on_cpu")
def test_the_time_limit_cuts_a_stage_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, found = conducted(tmp_path, monkeypatch, "broken_stage", seconds=7, task_seconds=600)
    assert outcome.status == "cut short"
    assert outcome.limit_seconds <= 2
    assert found.partial
    assert found.missing == ["broken"]


@pytest.mark.usefixtures("cupy_on_cpu")
def test_a_stage_that_cannot_start_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, found = conducted(tmp_path, monkeypatch, "no_such_stage", seconds=60, task_seconds=600)
    assert (outcome.status, outcome.why) == ("cut short", "no process could start; see run.log")
    assert found.partial
    assert "No module named 'no_such_stage'" in (tmp_path / "out" / "run.log").read_text()


@pytest.mark.usefixtures("cupy_on_cpu")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_task_that_hangs_ends_with_the_conductor(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(HERE / "hanging_stage.py"), str(out)]
    conductor = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(HERE)})

    def has_begun() -> bool:
        return bool((out / RUN).exists() and json.loads((out / RUN).read_text())["stages"][0]["tasks"])

    try:
        wait_for(has_begun, "the task has not begun")
        (child,) = children_of(conductor.pid)
        conductor.send_signal(number)
        assert conductor.wait(PATIENCE) == (0 if number == signal.SIGTERM else -number)
        wait_for(lambda: not children_of(conductor.pid), f"process {child} goes on")
    finally:
        for left in children_of(conductor.pid):
            os.kill(left, signal.SIGKILL)
    stage = json.loads((out / RUN).read_text())["stages"][0]
    assert stage["status"] == ("cut short" if number == signal.SIGTERM else "running")


def test_output_that_nobody_reads_ends_no_run(tmp_path: Path) -> None:
    """As when the connection to the GPU machine breaks, or the output goes to ``head``."""
    command_line = [sys.executable, "-m", "adamshap.verify.on_gpu", "--rehearse", "--out", str(tmp_path / "out")]
    running = subprocess.Popen([*command_line, "--stages", "machine"], stdout=subprocess.PIPE, cwd=tmp_path)
    assert running.stdout is not None
    running.stdout.close()
    assert running.wait(PATIENCE) == command.PARTIAL  # the other stages are missing
    (file,) = (tmp_path / "out").glob("rehearsal-*.json")
    assert json.loads(file.read_text())["stages"]["machine"] == "passed"


def test_with_nohup_a_lost_connection_ends_no_run(tmp_path: Path) -> None:
    command_line = [sys.executable, "-m", "adamshap.verify.on_gpu", "--rehearse", "--out", str(tmp_path / "out")]
    running = subprocess.Popen(["nohup", *command_line, "--stages", "machine"], stdout=subprocess.PIPE, cwd=tmp_path)
    wait_for(lambda: children_of(running.pid), "no process")
    running.send_signal(signal.SIGHUP)
    running.communicate(timeout=PATIENCE)
    assert running.returncode == command.PARTIAL  # the other stages are missing
    assert json.loads((tmp_path / "out" / RUN).read_text())["stopped_by"] == ""


@pytest.mark.usefixtures("cupy_on_cpu")
def test_a_disk_that_is_full_for_a_while_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text, lines, calls = receipt.write_text, list[str](), list[Path]()

    def write(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == 3:  # the first two precede the first stage
            raise OSError(28, "No space left on device")
        write_text(path, text)

    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(receipt, "write_text", write)
    stage = Stage("machine", "what there is", WEIGHT, 60)
    setting = Setting(rehearsal=True, scratch=str(tmp_path))
    conductor = Conductor(tmp_path / "out", 60, setting, frozenset({"machine"}), lines.append, (stage,))
    assert not conductor.run().partial
    assert any("cannot write to" in line and "No space left on device" in line for line in lines)
    assert json.loads((tmp_path / "out" / RUN).read_text())["stages"] == [vars(conductor.outcomes[0])]


def test_time_that_a_stage_leaves_goes_to_the_later_ones() -> None:
    stages = tuple(Stage(name, "", weight, 1) for name, weight in (("a", 1), ("b", 2), ("c", 1)))
    assert [limit_of(number, 100, stages) for number in range(3)] == [25, 100 * 2 / 3, 100]
    assert limit_of(0, -1, stages) == 0


def test_a_long_report_is_one_line_that_is_written_whole() -> None:
    there, here = os.pipe()
    try:
        Reporter(here).send(kind="failed", name="a check", text="beginning" + "é\n" * 5000 + "end")
        line = os.read(there, 1 << 16)
    finally:
        os.close(there)
        os.close(here)
    assert len(line) <= LONGEST_LINE
    assert line.count(b"\n") == 1
    event = json.loads(line)
    assert event["name"] == "a check"
    assert event["text"].startswith("beginning")
    assert event["text"].endswith("end")


def test_a_whole_receipt_needs_every_stage(tmp_path: Path) -> None:
    conductor = Conductor(tmp_path, 60, Setting(rehearsal=False, scratch=""), frozenset({"machine"}))
    for outcome in conductor.outcomes[:-1]:
        outcome.status = "passed"
    assert conductor.receipt().missing == [STAGES[-1].name]
    conductor.outcomes[-1].status, conductor.outcomes[0].passed = "passed", 1
    assert conductor.receipt().verifies


def test_cupy_on_the_cpu_has_one_name() -> None:
    assert receipt.EMULATED == cpu_device.DEVICE_NAME == backend.EMULATED


BAD_ARGUMENTS: list[tuple[list[str], str]] = [
    (["--minutes", "0"], "got '0'; needs a number above 0"),
    (["--minutes", "nan"], "got 'nan'; needs a number above 0"),
    (["--stages", "machine,speed"], "got 'speed'; needs some of machine,smoke"),
    (["--checkout", "nowhere"], "got 'nowhere', which is not a folder; needs a checkout"),
    (["--ghostsuite", "nowhere"], "got 'nowhere', which is not a folder; needs a checkout"),
    (["--out", str(HERE)], "which is not empty; needs a new folder for this run's results"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--out", str(tmp_path / "new"), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_a_card_the_run_says_so(tmp_path: Path) -> None:
    """Without a rehearsal and without a card, every stage that needs one fails, and no receipt verifies."""
    if cpu_device.real_devices():
        pytest.skip("there is a real GPU here")
    code = "import sys; from adamshap.verify.on_gpu.__main__ import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["--out", str(tmp_path / "out"), "--minutes", "1", "--stages", "machine"]
    ended: Any = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    (file,) = [file for file in (tmp_path / "out").glob("*.json") if file.name != RUN]
    written = receipt.read(file)
    assert written.machine.card == "not known"
    assert written.stages["machine"] == "failed"
    assert not written.verifies
