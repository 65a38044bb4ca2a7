"""Runs on one core and on two, forking processes, and states computed on another machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu import threads
from adamshap.reference.contract import Adam, Array, Batch, Network, Snapshot

RUN = """
import os, sys
import numpy as np
from adamshap import gpu, reference
from adamshap.gpu import sketch, threads
from adamshap.reference import Adam, Batch, Network, checkpoint
from pathlib import Path

threads.FLOPS_WORTH_A_THREAD = 1 << 12  # so that small work is distributed too
sketch.EXACT_SQUARES = 0  # so that a short run has sketches
trainer, credit, rank, dtype, cores, stop, start, out = sys.argv[1:]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
if cores != "1":
    threads.cpu_threads = lambda: int(cores)  # even on a single core
generator, owner = np.random.default_rng(0), "0" * 64
x, y = generator.normal(size=(300, 70)), generator.integers(0, 3, 300)
options = dict(epochs=2, batch_size=130, credit=credit, dtype=dtype, rank=int(rank) or None)
resume = checkpoint.read(Path(start), owner) if start else None

def keep(step, take):
    if step == int(stop):
        checkpoint.write(Path(out), take(), owner)

attribute = {"gpu": gpu, "reference": reference}[trainer].attribute
run = attribute(
    Network((70, 129, 75, 3)), Adam(), Batch(x, y), Batch(x[:20], y[:20]), device="cpu",
    on_checkpoint=keep, resume=resume, **options
)
np.savez(out + ".end", scores=run.scores, sgd_scores=run.sgd_scores, **run.params, **run.history)
"""

on_linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no choice of processors")


def run(folder: Path, out: str, cores: int, case: tuple[str, ...], start: str = "") -> dict[str, Array]:
    """Return the result of a run on some cores, from a state or from the beginning; save the state after step 2."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    program = [sys.executable, "-c", RUN, *case, str(cores), "2", start, out]
    done = subprocess.run(program, capture_output=True, text=True, cwd=folder, env=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    with np.load(folder / f"{out}.end.npz") as arrays:
        return dict(arrays)


@on_linux
@pytest.mark.parametrize(
    "case",
    [
        ("gpu", "step", "0", "float32"),
        ("gpu", "step", "4", "float64"),
        ("gpu", "carry", "0", "float32"),
        ("reference", "step", "0", "float64"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(("first", "then"), [(1, 2), (3, 1)])
def test_a_run_continues_to_the_same_bits_on_another_number_of_cores(
    tmp_path: Path, case: tuple[str, ...], first: int, then: int
) -> None:
    whole = run(tmp_path, "whole.npz", first, case)
    resumed = run(tmp_path, "resumed.npz", then, case, "whole.npz")
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name], err_msg=name)
    if case[0] == "reference":
        afresh = run(tmp_path, "afresh.npz", then, case)
        for name, array in whole.items():
            np.testing.assert_array_equal(array, afresh[name], err_msg=name)


FORKS = """
import multiprocessing, sys, threading, warnings
import numpy as np
from adamshap import gpu
from adamshap.gpu import threads
from adamshap.reference import Adam, Batch, Network
from adamshap.reference.contract import blas

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
threads.FLOPS_WORTH_A_THREAD = 1 << 12
threads.cpu_threads = lambda: 3
generator = np.random.default_rng(0)
x, y = generator.normal(size=(300, 70)), generator.integers(0, 3, 300)
fork = multiprocessing.get_context("fork")

def threads():
    return [library["num_threads"] for library in blas.blas().info()]

def scores(epochs=1, **options):
    data = Batch(x, y), Batch(x[:20], y[:20])
    options |= dict(epochs=epochs, batch_size=150, device="cpu")
    return gpu.attribute(Network((70, 129, 3)), Adam(), *data, **options).scores

def child(expected, before):
    assert threads() == before, (threads(), before)
    np.testing.assert_array_equal(scores(), expected)
    assert threads() == before, (threads(), before)

def check(expected, before):
    process = fork.Process(target=child, args=(expected, before))
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
        sys.exit("the child hangs")
    assert process.exitcode == 0, process.exitcode
"""

AFTER_USE = """
before, expected = threads(), scores()
check(expected, before)
check(expected, before)
"""

WHILE_AT_WORK = """
before, expected = threads(), scores()
at_work, enough = threading.Event(), threading.Event()

def look(progress):
    at_work.set()
    if enough.is_set():
        raise KeyboardInterrupt

def work():
    try:
        scores(epochs=10**6, on_step=look)
    except KeyboardInterrupt:
        pass

worker = threading.Thread(target=work)
worker.start()
at_work.wait()
try:
    for _ in range(8):
        check(expected, before)
finally:
    enough.set()
    worker.join()
assert threads() == before
"""

FROM_WITHIN = """
before, expected = threads(), scores()
scores(on_step=lambda progress: check(expected, threads()))
assert threads() == before
"""

WHILE_COMPILING = """
from numba.core.compiler_lock import global_compiler_lock

before, expected, at_work = threads(), scores(), threading.Event()

def compiling():
    with global_compiler_lock:
        at_work.set()
        threading.Event().wait(2)

threading.Thread(target=compiling).start()
at_work.wait()
process = fork.Process(target=scores, kwargs={"dtype": "float64"})  # whose loops this process has not compiled
process.start()
process.join(300)
if process.is_alive():
    process.kill()
    sys.exit("the child hangs")
assert process.exitcode == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(
    "program",
    [AFTER_USE, WHILE_AT_WORK, FROM_WITHIN, WHILE_COMPILING],
    ids=["after", "meanwhile", "within", "compiling"],
)
def test_a_forked_child_computes_the_same(program: str) -> None:
    call = [sys.executable, "-c", FORKS + program]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


# --- states computed on another machine ------------------------------------------------------------------------------

NET, ADAM = Network((6, 8, 3)), Adam()
GENERATOR = np.random.default_rng(3)
DATA = [Batch(GENERATOR.normal(size=(n, 6)), GENERATOR.integers(0, 3, n)) for n in (22, 4)]


def state(attribute: Any) -> Snapshot:
    kept: list[Snapshot] = []
    attribute(NET, ADAM, *DATA, epochs=1, batch_size=5, device="cpu", on_checkpoint=lambda _, take: kept.append(take()))
    return kept[1]


def changed(snapshot: Snapshot, arithmetic: dict[str, Any] | None) -> Snapshot:
    settings = json.loads(str(snapshot["settings"]))
    if arithmetic is None:
        del settings["arithmetic"]
    else:
        settings["arithmetic"] |= arithmetic
    return snapshot | {"settings": np.array(json.dumps(settings))}


@pytest.mark.parametrize("attribute", [oracle.attribute, engine.attribute])
@pytest.mark.parametrize("arithmetic", [{"numpy": "1.0"}, {"blas": ["another"]}, None], ids=["numpy", "blas", "none"])
@pytest.mark.parametrize("credit", ["step", "carry"])
def test_a_state_of_other_arithmetic_continues_with_a_warning(attribute: Any, arithmetic: Any, credit: str) -> None:
    kept: list[Snapshot] = []
    options: dict[str, Any] = {"epochs": 1, "batch_size": 5, "device": "cpu", "credit": credit}
    whole = attribute(NET, ADAM, *DATA, on_checkpoint=lambda _, take: kept.append(take()), **options)
    name = "numpy" if arithmetic is None else next(iter(arithmetic))
    with pytest.warns(UserWarning, match=f"resume: the state was computed with another .*{name}.*last digits"):
        run = attribute(NET, ADAM, *DATA, resume=changed(kept[1], arithmetic), **options)
    np.testing.assert_array_equal(run.scores, whole.scores)


@pytest.mark.parametrize("parts", [0, -1, "2", 2.0, True, 10**9, None, [2]])
def test_a_damaged_number_of_parts_is_not_used(parts: Any) -> None:
    snapshot = changed(state(engine.attribute), {"parts": parts})
    assert threads.parts_of(snapshot) == threads.cpu_threads()
    assert threads.parts_of(changed(snapshot, {"parts": 5})) == 5
