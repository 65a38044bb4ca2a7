"""Kill runs at random moments and resume them: a separate program, which forks a child for each run.

The process has everything imported, so that a kill costs no start of Python, and no threads that a fork would lose.
"""

import os
import random
import signal
import time
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np

from adamshap import gpu
from adamshap.reference.command import datasets, trainers
from adamshap.reference.command.folder import SavedRun, read
from adamshap.reference.command.main import GROUP, build
from adamshap.reference.command.trainers import ORACLE, Trainer

FLOAT32 = Trainer("the engine, float32", partial(gpu.attribute, device="cpu", dtype="float32"))
FLOAT64 = Trainer("the engine, float64", partial(gpu.attribute, device="cpu", dtype="float64"))
# So short a run fits into the default window; with this one, batches leave the window.
SHORT = Trainer(
    "the engine, float32, a short window", partial(gpu.attribute, device="cpu", dtype="float32", carry_window=6)
)
CARRY = ("--credit", "carry")
RUNS = ((FLOAT32, ()), (FLOAT64, ()), (ORACLE, ()), (FLOAT64, CARRY), (SHORT, CARRY))
RUN = ("wine", "--hidden", "4", "--epochs", "1", "--batch-size", "6", "--flip-labels", "0.1")
OFTEN = ("--checkpoint-seconds", "0")


def start(trainer: Trainer, log: Path, *arguments: object) -> int:
    """Run the command in a child, and return its process number."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        trainers.installed_trainer = lambda: trainer
        build(entry_points(group=GROUP))(list(map(str, ("attribute", *arguments, *OFTEN))))
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        os._exit(code)


def outcome(folder: Path) -> tuple[object, ...]:
    """Return all results of a run, to the last bit."""
    run: SavedRun = read(folder)
    last = sorted((folder / "checkpoints").glob("*.npz"))[-1]
    with np.load(last, allow_pickle=False) as archive:
        state = dict(archive)
    arrays = {**run.columns, **run.history, **state}
    return run.status, run.step, {name: (array.dtype.str, array.tobytes()) for name, array in arrays.items()}


def main(place: Path, kills: int, seed: int) -> None:
    """Kill `kills` runs at random moments; print the number killed, and the number equal to an uninterrupted run."""
    build(entry_points(group=GROUP))  # imports, once for all children
    datasets.load(RUN[0])
    chance = random.Random(seed)
    expected, seconds = {}, {}
    for number, (trainer, options) in enumerate(RUNS):
        began = time.monotonic()
        folder = place / f"whole-{number}"
        assert os.waitpid(start(trainer, place / "log", *RUN, *options, "--out", folder), 0)[1] == 0
        seconds[number] = time.monotonic() - began
        expected[number] = outcome(folder)
    killed = same = begun = attempts = 0
    going: dict[int, Path] = {}
    while killed < kills or going:
        # In turn, so that each kind of run is killed equally often.
        number = attempts % len(RUNS)
        attempts += 1
        if number not in going:
            if killed >= kills:
                continue
            going[number] = place / f"run-{begun}"
            begun += 1
        folder, (trainer, options) = going[number], RUNS[number]
        arguments = ("--resume", folder) if folder.exists() else (*RUN, *options, "--out", folder)
        child = start(trainer, place / "log", *arguments)
        time.sleep(chance.uniform(0, seconds[number]))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            killed += 1
            continue
        assert os.waitstatus_to_exitcode(status) == 0, (place / "log").read_text()
        same += outcome(going.pop(number)) == expected[number]
    print(f"{killed} killed, {same} of {begun} runs the same")
