"""Checks that the same call gives the same bits: twice in one process, and again in a new one.

docs/engine.md guarantees it for the same card, build and version of CuPy.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adamshap import gpu
from adamshap.reference.contract import Adam, AdamGroups, Array, Batch, Clipped, Network, Run, Schedule
from adamshap.verify.on_gpu.child import Reporter
from adamshap.verify.on_gpu.plan import Setting, Task

__all__ = ["tasks"]

CLIPPED = Clipped(Schedule(AdamGroups(((("*.bias",), Adam(betas=(0.8, 0.99))),), Adam(l2=0.1)), warmup=1), 0.1)
RUNS: dict[str, dict[str, Any]] = {
    "random_order": {},
    "exact variance": {"variance": "exact"},
    "secant along the path": {"slope": "secant", "gradient": "path"},
    "two_term": {"slope": "two_term"},
    "rank": {"rank": 16, "epochs": 9},  # more than the first steps, which are exact
    "each validation sample": {"per_validation": True},
    "each step's scores": {"keep_step_scores": True},
    "micro-batches": {"micro_batch": 50},
    "momentum's credit": {"credit": "carry"},
    "clipped groups with L2 decay": {"adam": CLIPPED},
    "momentum's credit of clipped groups with L2 decay": {"adam": CLIPPED, "credit": "carry"},
    "forward mode": {"contraction": "forward"},
}
DTYPES = ("float32", "float64")
FILE = "digests.json"


def tasks(setting: Setting) -> list[Task]:
    """Return the stage's tasks: all runs in one process, then all in another."""
    cases = [(name, dtype) for name in RUNS for dtype in DTYPES]
    first = [Task(f"{name}, {dtype}, twice", partial(_twice, setting, name, dtype)) for name, dtype in cases]
    again = [Task(f"{name}, {dtype}, in a new process", partial(_again, setting, name, dtype)) for name, dtype in cases]
    last = first.pop()
    return [*first, Task(last.name, last.run, fresh=True), *again]


def _twice(setting: Setting, name: str, dtype: str, report: Reporter) -> None:
    one, other = (_digests(_run(setting, name, dtype)) for _ in range(2))
    _compare(report, one, other, "the second run")
    file = Path(setting.scratch) / FILE
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {f"{name}, {dtype}": one}))


def _again(setting: Setting, name: str, dtype: str, report: Reporter) -> None:
    known = json.loads((Path(setting.scratch) / FILE).read_text())
    _compare(report, known[f"{name}, {dtype}"], _digests(_run(setting, name, dtype)), "the new process")


def _compare(report: Reporter, one: dict[str, str], other: dict[str, str], where: str) -> None:
    different = [array for array, digest in one.items() if other[array] != digest]
    if different:
        raise AssertionError(f"{where} gave different bits of {', '.join(different)}")
    report.passed(len(one))


def _run(setting: Setting, name: str, dtype: Any) -> Run:
    sizes, n, size = ((6, 24, 4), 24, 12) if setting.rehearsal else ((784, 1024, 1024, 10), 2048, 512)
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((n + 8, sizes[0])), generator.integers(0, sizes[-1], n + 8)
    train, valid = Batch(x[8:], y[8:]), Batch(x[:8], y[:8])
    options = dict(RUNS[name])
    if setting.rehearsal and "rank" in options:
        options["rank"] = 2
    return gpu.attribute(
        Network(sizes, "gelu"),
        options.pop("adam", Adam()),
        train,
        valid,
        epochs=options.pop("epochs", 1),
        batch_size=size,
        device="cuda",
        dtype=dtype,
        **options,
    )


def _digests(run: Run) -> dict[str, str]:
    """Return a hash of each array of a run."""
    arrays: dict[str, Array] = {"scores": run.scores, "SGD's scores": run.sgd_scores}
    arrays |= {} if run.step_scores is None else {"step scores": run.step_scores}
    arrays |= {f"params {name}": p for name, p in run.params.items()}
    return {name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for name, array in arrays.items()}
