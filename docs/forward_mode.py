"""What forward mode costs beside contracted captures, and how exact it is; prints the tables of docs/engine.md.

taskset -c 0 python docs/forward_mode.py       # some minutes; one core, so that all variants have the same

A perceptron and a transformer after sixteen steps, in float32. Times are medians of interleaved rounds. "differences"
is the fallback for layers without a tangent, here forced upon models whose layers have one.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from adamshap.gpu import forward_mode
from adamshap.gpu.arrays import like
from adamshap.gpu.bench_timing import STEPS_BEFORE, BenchRun, Case, Transformer, milliseconds, timed_rounds
from adamshap.gpu.counting import FIRST_STEP
from adamshap.gpu.state import State

CASES = (
    Case((784, 1024, 1024, 10), 256, 16, 15),
    Case((64, 256, 256, 10), 64, 16, 100),
    Case((), 16, 4, 7, Transformer(depth=4, width=256, heads=8, vocab=256, positions=128)),
)
MOVES = (1e-6, 1e-4, forward_mode.best_move(np.float32), 1e-2, 1e-1)


def without_tangents(run: BenchRun) -> AbstractContextManager[Any]:
    """Return a context in which the model's layers have no tangents."""
    return patch.object(type(run.context.stack), "has_tangents", False)


def scores_of(run: BenchRun, contraction: Any, new: State, differences: bool = False) -> Any:
    """Return the scores of a step that is not taken."""
    kept, run.estimator = run.estimator, replace(run.estimator, contraction=contraction)
    try:
        with without_tangents(run) if differences else nullcontext():
            return run.attributed(None, new=new)
    finally:
        run.estimator = kept


def error(got: Any, wanted: Any) -> tuple[float, float]:
    """Return Pearson's R, and the largest error over the largest score."""
    got, wanted = (np.asarray(array, np.float64) for array in (got, wanted))
    return float(np.corrcoef(got, wanted)[0, 1]), float(np.abs(got - wanted).max() / np.abs(wanted).max())


def main() -> None:
    """Print times and errors."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, help="Rounds of each case, in place of its own.")
    rounds = parser.parse_args().rounds
    for case in CASES:
        run = BenchRun.of(case, "cpu", "random_order", "midpoint")
        with run.context.at_work():
            for _ in range(STEPS_BEFORE):
                run.attributed(None)
            theta, m, v = (like(run.context, f"other {group}") for group in ("theta", "m", "v"))
            new = State(theta, m, v, FIRST_STEP)
            variants: dict[str, Callable[[], Any]] = {
                "plain": run.plain,
                "ghost": lambda run=run, new=new: scores_of(run, "ghost", new),
                "forward": lambda run=run, new=new: scores_of(run, "forward", new),
                "differences": lambda run=run, new=new: scores_of(run, "forward", new, True),
            }
            for take in variants.values():
                take()
            times, _ = timed_rounds(variants, rounds or case.rounds, run.context)
            plain = milliseconds(times["plain"])
            print(f"{case.title}, n = {case.n}, n_val = {case.n_val}: plain step {plain:.1f} ms")
            for name in ("ghost", "forward", "differences"):
                took = milliseconds(times[name])
                print(f"  {name:12} {took:8.1f} ms, plain over attributed {plain / took:.2f}")
            wanted = np.array(variants["ghost"]())
            R, off = error(variants["forward"](), wanted)
            print(f"  forward: R {R:.7f}, largest error {off:.1e}")
            for move in MOVES:
                with patch.object(forward_mode, "best_move", lambda _, move=move: move):
                    R, off = error(variants["differences"](), wanted)
                print(f"  differences, losses move by {move:.0e}: R {R:.7f}, largest error {off:.1e}")


if __name__ == "__main__":
    main()
