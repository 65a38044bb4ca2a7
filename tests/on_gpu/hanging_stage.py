"""A stage whose only task hangs, and a run of it: ``python hanging_stage.py DIR``."""

import sys
import time
from pathlib import Path

from adamshap.verify.on_gpu.child import Reporter
from adamshap.verify.on_gpu.conductor import Conductor
from adamshap.verify.on_gpu.plan import Setting, Stage, Task


def hangs(_report: Reporter) -> None:
    time.sleep(3600)


def tasks(_setting: Setting) -> list[Task]:
    return [Task("hangs", hangs)]


if __name__ == "__main__":
    stage = Stage("hanging", "a task that hangs", weight=1, task_seconds=3600, module="hanging_stage")
    Conductor(Path(sys.argv[1]), 3600, Setting(True, ""), frozenset({"hanging"}), stages=(stage,)).run()
