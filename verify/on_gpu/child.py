"""One process of a stage: runs task after task until none are left, and reports to the conductor line by line.

Task numbers come from a pipe that all processes of a stage share, so each gets the next one. Reports go to another
shared pipe as lines of JSON, short enough to be written atomically.
"""

import ctypes
import importlib
import json
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.metadata import packages_distributions, version
from typing import Any

from adamshap.verify.on_gpu.plan import Setting, Task

__all__ = ["LONGEST_LINE", "NUMBER_BYTES", "RESTART", "Reporter", "main"]

LONGEST_LINE = 4000
"""In bytes. A write of up to 4096 bytes to a pipe is atomic."""

NUMBER_BYTES = 4
"""Size of a task number in the pipe."""

RESTART = 75
"""Exit status that asks the conductor to start a new process for the remaining tasks."""

PR_SET_PDEATHSIG = 1


class Reporter:
    """Sends the results of a process to the conductor.

    Parameters
    ----------
    events : int
        File descriptor of the pipe.
    """

    def __init__(self, events: int) -> None:
        self._events = events
        self._sent: set[str] = set()
        self._tops: set[str] = set()

    def send(self, **event: Any) -> None:
        """Send an event, shortening its texts to fit into a line."""
        event = {"process": os.getpid(), **event}
        limit = LONGEST_LINE
        while len(line := json.dumps(event, allow_nan=False).encode() + b"\n") > LONGEST_LINE:
            limit //= 2
            if limit < 16:
                raise ValueError(f"event: got one of {len(line)} bytes; needs at most {LONGEST_LINE}")
            event = {key: _shortened(value, limit) if isinstance(value, str) else value for key, value in event.items()}
        os.write(self._events, line)

    def note(self, name: str, value: Any) -> None:
        """Report a result that is neither an error nor a speed."""
        self.send(kind="note", name=name, value=_plain(value))

    def error(self, name: str, value: float) -> None:
        """Report a property's error; the receipt keeps the largest of each name."""
        self._number("error", name, value)

    def rate(self, name: str, value: float) -> None:
        """Report a measured value; its name ends with its unit."""
        self._number("rate", name, value)

    def _number(self, kind: str, name: str, value: float) -> None:
        if math.isfinite(value):
            self.send(kind=kind, name=name, value=float(value))
        else:
            self.failed(name, f"not finite: {value}")

    def machine(self, facts: Mapping[str, str]) -> None:
        """Report the machine's description for the receipt."""
        self.send(kind="machine", value=dict(facts))

    def passed(self, count: int) -> None:
        """Report a number of passed checks in addition to the task itself."""
        self.send(kind="passed", value=count)

    def failed(self, name: str, text: str) -> None:
        """Report a failed check; the task continues."""
        self.send(kind="failed", name=name, text=text)

    def imports(self) -> None:
        """Report the installed packages imported by this process, and their versions."""
        tops = {name.partition(".")[0] for name in list(sys.modules)}
        if tops == self._tops:
            return
        self._tops = tops
        found = {package for top in tops for package in _packages().get(top, ())}
        for package in sorted(found - self._sent):
            self.send(kind="imported", name=package, value=version(package))
        self._sent |= found


_packages = cache(packages_distributions)  # slow: it reads the files of every installed package


def main(arguments: str) -> int:
    """Run tasks of one stage; `arguments` is JSON from the conductor."""
    given = json.loads(arguments)
    _end_with(given["parent"])
    report, setting = Reporter(given["events"]), Setting(**given["setting"])
    with _rehearsal(report) if setting.rehearsal else nullcontext():
        return _work(given, setting, report)


@contextmanager
def _rehearsal(report: Reporter) -> Iterator[None]:
    """Run the block with CuPy on the CPU, and report the engine's kernels that it launched."""
    from adamshap.verify import cpu_device

    cpu_device.install(force=True)
    with cpu_device.count() as counts:
        yield
    report.note(
        f"kernels launched by process {os.getpid()}", sorted(filter(re.compile("adamshap_").match, counts.launches))
    )


def _work(given: Mapping[str, Any], setting: Setting, report: Reporter) -> int:
    stage = importlib.import_module(given["module"])
    tasks: list[Task] = stage.tasks(setting)
    report.send(kind="tasks", count=len(tasks), required=sum(task.required for task in tasks))
    while (number := _next(given["tasks"])) is not None and number < len(tasks):
        task = tasks[number]
        report.send(kind="begin", number=number, name=task.name, required=task.required)
        try:
            task.run(report)
        except BaseException as error:
            text = "".join(traceback.format_exception(error))
            print(f"{task.name}:\n{text}", file=sys.stderr, flush=True)
            report.send(kind="end", number=number, name=task.name, failure=text)
            report.imports()
            return RESTART  # after an error on the card, every later call of this process may fail as well
        report.send(kind="end", number=number, name=task.name, failure="")
        report.imports()
        if task.fresh:
            return RESTART
    return 0


def _plain(value: Any) -> Any:
    """Return a value with text in place of numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shortened(text: str, limit: int) -> str:
    """Return the beginning and end of a long text: in a traceback, the place and the error."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def _next(tasks: int) -> int | None:
    """Return the number of the next task; None if none are left."""
    number = os.read(tasks, NUMBER_BYTES)
    return int.from_bytes(number, "big") if len(number) == NUMBER_BYTES else None


def _end_with(parent: int) -> None:
    """Make the system end this process when the conductor ends for any reason (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it has already ended
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
