"""A stage with tasks that fail in every possible way."""

import os
import signal
import time

from adamshap.verify.on_gpu.child import Reporter
from adamshap.verify.on_gpu.plan import Setting, Task


def raises(_report: Reporter) -> None:
    raise RuntimeError(f"beginning{'é' * 9000}the reason")


def exits(_report: Reporter) -> None:
    raise SystemExit(0)


def is_killed(_report: Reporter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out


def leaves(_report: Reporter) -> None:
    os._exit(7)


def hangs(_report: Reporter) -> None:
    time.sleep(3600)


def is_well(report: Reporter) -> None:
    report.error("an error", 0.25)
    report.error("an error", 0.125)
    report.rate("a speed, 1/s", 2.0)


def reports_failures(report: Reporter) -> None:
    report.failed("a check", "what was wrong")
    report.error("no error", float("nan"))
    report.note("a row", {"median": float("inf"), "all": [1.0, float("nan")]})


def tasks(setting: Setting) -> list[Task]:
    broken = [raises, exits, is_killed, leaves, hangs, reports_failures]
    return [*(Task(run.__name__, run) for run in broken), Task("is_well", is_well), Task("more", hangs, required=False)]
