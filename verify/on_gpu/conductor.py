"""Runs the stages in child processes, one stage after another, and writes their reports.

`run.json` is rewritten atomically after each stage and about once a second during one; the receipt after each stage.
So whatever ends the run, at most the current stage is lost. A process that ends early, hangs or is killed costs only
its current task: another process continues with the next one. A signal to the conductor ends the stage, and the receipt
is written as usual. If the conductor itself is killed, the system ends its children (`child`).
"""

import datetime
import importlib.util
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from adamshap.verify import receipt
from adamshap.verify.on_gpu.child import NUMBER_BYTES, RESTART
from adamshap.verify.on_gpu.plan import RECEIPT_SECONDS, STAGES, Setting, Stage, limit_of

__all__ = ["LOG", "MOST_SAID", "RUN", "SIGNALS", "Conductor", "Outcome", "folder_of"]

RUN, LOG = "run.json", "run.log"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end a run in an orderly way."""
SCHEMA = 1

NUMBERS = 10_000
"""Number of task numbers in the pipe: more than any stage has tasks, and they fit into the pipe's buffer."""

WRITE_SECONDS = 1.0
POLL_SECONDS = 0.1
MOST_FAILED_STARTS = 3
MOST_SAID = 5
"""Number of failures of a stage shown on the terminal; `run.json` has all."""

DEAD_SECONDS = 10.0
"""How long to wait for a killed process: one stuck in the driver may never end."""


@dataclass
class Outcome:
    """The outcome of a stage, as in `run.json`.

    Parameters
    ----------
    status : str
        One of `receipt.STATUSES`, or "running".
    why : str
        The reason for being cut short.
    tasks, required : int, optional
        Number of tasks and of required tasks; None until a process reports it.
    done : list of dict
        Name, seconds and failure of each finished task, in order of completion.
    """

    name: str
    status: str = "not run"
    why: str = ""
    limit_seconds: float = 0.0
    seconds: float = 0.0
    tasks: int | None = None
    required: int | None = None
    required_done: int = 0
    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    done: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)


@dataclass
class _Process:
    """A child process and its current task."""

    popen: "subprocess.Popen[bytes]"
    task: tuple[str, bool, float] | None = None  # name, required, and time of its start
    has_started: bool = False  # whether it has reported the number of tasks
    check_failed: bool = False  # whether a check of its current task failed
    why: str = ""  # why the conductor ended it


class Conductor:
    """One run.

    Parameters
    ----------
    out : Path
        Folder for the results.
    seconds : float
        Time limit of the whole run.
    setting : Setting
    chosen : collection of str
        Names of the stages to run.
    say : callable
        Called with each line for the terminal.
    stages : tuple of Stage
        All stages that a complete receipt needs.
    """

    def __init__(
        self,
        out: Path,
        seconds: float,
        setting: Setting,
        chosen: frozenset[str],
        say: Callable[[str], None] = print,
        stages: tuple[Stage, ...] = STAGES,
    ) -> None:
        self.out, self.setting, self.chosen, self.say, self.stages = out, setting, chosen, say, stages
        self.outcomes = [Outcome(stage.name) for stage in stages]
        self.deadline = time.monotonic() + seconds
        self.minutes = seconds / 60
        self.began = datetime.datetime.now(datetime.UTC)
        card = receipt.EMULATED if setting.rehearsal else "not known"
        self.machine = receipt.Machine(card, "not known", "not known", "not known")
        self.source = receipt.source_hash(folder_of("adamshap.gpu"))
        self.imported: dict[str, str] = {}
        self.receipt_file: Path | None = None
        self.stopped_by: str = ""
        self._written = 0.0

    def run(self) -> receipt.Receipt:
        """Run every chosen stage, and write and return the receipt."""
        for each in SIGNALS:
            if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN:  # `nohup` ignores SIGHUP
                signal.signal(each, self._stop)
        self.write()
        with (self.out / LOG).open("ab") as log:
            for number, stage in enumerate(self.stages):
                left = self.deadline - RECEIPT_SECONDS - time.monotonic()
                if stage.name not in self.chosen or self.stopped_by or left <= 0:
                    continue
                rest = tuple(later for later in self.stages[number:] if later.name in self.chosen)
                self._run_stage(stage, self.outcomes[number], limit_of(0, left, rest), log)
                self._try_to_write()
        self.write()  # an error at this point ends the run
        return self.receipt()

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.stopped_by = signal.Signals(number).name

    # --- one stage ----------------------------------------------------------------------------------------------------

    def _run_stage(self, stage: Stage, outcome: Outcome, limit: float, log: IO[bytes]) -> None:
        outcome.status, outcome.limit_seconds = "running", round(limit, 1)
        self.say(f"{stage.name}: {stage.purpose} (at most {limit:.0f} s)")
        began = time.monotonic()
        tasks, events = _pipe_of_numbers(), os.pipe()
        os.set_blocking(events[0], False)
        processes: list[_Process] = []
        try:
            self._conduct(stage, outcome, began + limit, processes, tasks, events, log)
        finally:
            for process in processes:
                _kill(process.popen)
            for descriptor in (tasks, *events):
                os.close(descriptor)
        outcome.seconds = round(time.monotonic() - began, 2)
        cut = self.stopped_by and f"stopped by {self.stopped_by}"
        if not cut and (outcome.required is None or outcome.required_done < outcome.required):
            known = "" if outcome.required is None else f" of {outcome.required}"
            cut = outcome.why or f"{outcome.required_done}{known} tasks done in {outcome.seconds:.0f} s"
        outcome.why = cut
        outcome.status = "cut short" if cut else "failed" if outcome.failed else "passed"
        self.say(f"{stage.name}: {outcome.status}{f' ({cut})' if cut else ''}, {outcome.passed} passed")
        for name, text in itertools.islice(outcome.failed.items(), MOST_SAID):
            self.say(f"  failed: {name}: {(text.strip().splitlines() or [''])[-1]}")
        if len(outcome.failed) > MOST_SAID:
            self.say(f"  and {len(outcome.failed) - MOST_SAID} more: see {self.out / RUN}")

    def _conduct(
        self,
        stage: Stage,
        outcome: Outcome,
        deadline: float,
        processes: list[_Process],
        tasks: int,
        events: tuple[int, int],
        log: IO[bytes],
    ) -> None:
        """Run the stage's processes until no task is left, the time is up or a signal arrives."""
        unread, failed_starts = b"", 0
        count = max(1, min(stage.processes, len(os.sched_getaffinity(0))))
        processes += [self._start(stage, tasks, events[1], log) for _ in range(count)]
        with selectors.DefaultSelector() as selector:
            selector.register(events[0], selectors.EVENT_READ)
            while processes and not self.stopped_by and time.monotonic() < deadline:
                selector.select(POLL_SECONDS)
                ended = [process for process in processes if process.popen.poll() is not None]
                unread = self._take(outcome, unread + _drain(events[0]), processes)  # after poll, so it is complete
                for process in ended:
                    processes.remove(process)
                    status = process.popen.returncode
                    if process.task is not None:
                        self._lost(outcome, process, process.why or f"its process {_ended(status)}")
                    elif status not in (0, RESTART):
                        outcome.failed[f"process {process.popen.pid}"] = f"it {_ended(status)}; see {LOG}"
                    failed_starts = 0 if process.has_started else failed_starts + 1
                    if status != 0 and failed_starts < MOST_FAILED_STARTS:
                        processes.append(self._start(stage, tasks, events[1], log))
                for process in processes:
                    if process.task is not None and time.monotonic() - process.task[2] > stage.task_seconds:
                        process.why = f"took longer than {stage.task_seconds:g} s"
                        _kill(process.popen)  # handled as ended in the next round
                if time.monotonic() - self._written > WRITE_SECONDS:
                    self._try_to_write(with_receipt=False)
        self._take(outcome, unread + _drain(events[0]), processes)
        if not processes and failed_starts:
            outcome.why = f"no process could start; see {LOG}"

    def _start(self, stage: Stage, tasks: int, events: int, log: IO[bytes]) -> _Process:
        given = {
            "parent": os.getpid(),
            "module": stage.module or f"adamshap.verify.on_gpu.{stage.name}",
            "setting": asdict(self.setting),
            "tasks": tasks,
            "events": events,
        }
        # One process per core: BLAS threads would only compete with each other.
        alone = stage.processes == 1 and not self.setting.rehearsal
        threads = {} if alone else {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        popen = subprocess.Popen(
            [sys.executable, "-m", "adamshap.verify.on_gpu.child", json.dumps(given)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(tasks, events),
            start_new_session=True,  # a process group of its own, which is killed as a whole
            env=os.environ | threads,
        )
        return _Process(popen)

    # --- reports of the processes -------------------------------------------------------------------------------------

    def _take(self, outcome: Outcome, received: bytes, processes: list[_Process]) -> bytes:
        """Process every complete line of `received`; return the rest."""
        *lines, rest = received.split(b"\n")
        by_number = {process.popen.pid: process for process in processes}
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):  # a killed process may leave anything
                self._note(outcome, json.loads(line), by_number)
        return rest

    def _note(self, outcome: Outcome, event: Mapping[str, Any], processes: Mapping[int, _Process]) -> None:
        kind, process = event["kind"], processes.get(event["process"])
        if kind == "tasks":
            outcome.tasks, outcome.required = event["count"], event["required"]
            if process is not None:
                process.has_started = True
        elif kind == "begin" and process is not None:
            process.task, process.check_failed = (event["name"], event["required"], time.monotonic()), False
        elif kind == "end" and process is not None and process.task is not None:
            _, required, began = process.task
            process.task = None
            self._done(outcome, event["name"], required, began, event["failure"], check_failed=process.check_failed)
        elif kind == "note":
            outcome.notes[event["name"]] = event["value"]
        elif kind == "error":
            outcome.errors[event["name"]] = max(outcome.errors.get(event["name"], 0.0), event["value"])
        elif kind == "rate":
            outcome.scalars[event["name"]] = event["value"]
        elif kind == "machine":
            self.machine = receipt.Machine(**event["value"])
        elif kind == "passed":
            outcome.passed += event["value"]
        elif kind == "failed":
            outcome.failed[event["name"]] = event["text"]
            if process is not None:
                process.check_failed = True
        elif kind == "imported":
            self.imported[event["name"]] = event["value"]

    def _lost(self, outcome: Outcome, process: _Process, how: str) -> None:
        if process.task is not None:
            name, required, began = process.task
            self._done(outcome, name, required, began, how)

    def _done(
        self, outcome: Outcome, name: str, required: bool, began: float, failure: str, *, check_failed: bool = False
    ) -> None:
        outcome.done.append(
            {"name": name, "seconds": round(time.monotonic() - began, 2), "failure": failure[-200:] if failure else ""}
        )
        outcome.required_done += required
        if failure:
            outcome.failed[name] = failure
        elif not check_failed:
            outcome.passed += 1

    # --- files --------------------------------------------------------------------------------------------------------

    def write(self, *, with_receipt: bool = True) -> None:
        """Write `run.json` and, by default, the receipt."""
        self.out.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": SCHEMA,
            "rehearsal": self.setting.rehearsal,
            "began": self.began.isoformat(timespec="seconds"),
            "minutes": self.minutes,
            "commit": self.setting.commit,
            "source": self.source,
            "machine": asdict(self.machine),
            "stopped_by": self.stopped_by,
            "stages": [asdict(outcome) for outcome in self.outcomes],
            "imported": dict(sorted(self.imported.items())),
        }
        receipt.write_text(self.out / RUN, json.dumps(content, indent=1, allow_nan=False) + "\n")
        self._written = time.monotonic()
        if with_receipt:
            file = receipt.write(self.out, self.receipt())
            if self.receipt_file not in (None, file):
                self.receipt_file.unlink(missing_ok=True)  # written before the card was known
            self.receipt_file = file

    def _try_to_write(self, *, with_receipt: bool = True) -> None:
        """Write the files; after an error, such as a full disk, the run continues and the next attempt may succeed."""
        try:
            self.write(with_receipt=with_receipt)
        except OSError as error:
            self._written = time.monotonic()
            self.say(f"cannot write to {self.out} for now: {error}")

    def receipt(self) -> receipt.Receipt:
        """Return the receipt of the run so far."""
        stages = {
            outcome.name: "cut short" if outcome.status == "running" else outcome.status for outcome in self.outcomes
        }
        return receipt.Receipt(
            date=self.began.date().isoformat(),
            machine=self.machine,
            source=self.source,
            passed=sum(outcome.passed for outcome in self.outcomes),
            largest_errors={name: error for outcome in self.outcomes for name, error in outcome.errors.items()},
            throughput={name: value for outcome in self.outcomes for name, value in outcome.scalars.items()},
            stages=stages,
            partial=any(status in ("cut short", "not run") for status in stages.values()),
            failed=[f"{outcome.name}: {name}" for outcome in self.outcomes for name in outcome.failed],
            rehearsal=self.setting.rehearsal,
        )


def _pipe_of_numbers() -> int:
    """Return the read end of a pipe that holds the numbers 0, 1, 2 … and then ends."""
    there, here = os.pipe()
    os.write(here, b"".join(number.to_bytes(NUMBER_BYTES, "big") for number in range(NUMBERS)))
    os.close(here)
    return there


def _drain(descriptor: int) -> bytes:
    received = b""
    with suppress(BlockingIOError):
        while part := os.read(descriptor, 1 << 16):
            received += part
    return received


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a child process and its own children."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(DEAD_SECONDS)


def _ended(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def folder_of(package: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))
