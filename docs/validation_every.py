"""Print how close the scores with a validation gradient kept for k steps come to those with each step's own.

    python docs/validation_every.py             # some minutes on one core
    python docs/validation_every.py --quick     # sixteen steps of each run, seconds

The same run is scored with every k: "random_order", "midpoint", float32. R is Pearson's correlation with the scores
for k = 1: of the run's totals under both weightings; and the lowest and the median over the steps with the oldest
gradient, of k − 1 steps before, early (up to step 40) and late (in the last half). The row "start" has gradient "start"
in every step, for comparison.

The second table has the time of a step with a kept gradient over that of a step with its own: medians over interleaved
rounds, in processor time, "secant", without SGD's scores.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from auto_slope import Problem, characters, digits, wide

from adamshap import gpu
from adamshap.gpu.arrays import like
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.data import Data
from adamshap.gpu.kept_gradients import KeptGradients
from adamshap.gpu.layers import context_for
from adamshap.gpu.state import State
from adamshap.gpu.step import attribute_step
from adamshap.reference import weighted
from adamshap.reference.contract import Adam, Array, Batch, Estimator, Run, StepNumber

INTERVALS = (2, 4, 8, 16, 32)
EARLY, ROUNDS = 40, 21


def with_lr(problem: Problem, lr: float) -> Problem:
    """Return the same problem with another learning rate."""
    return *problem[:4], Adam(lr)


RUNS: dict[str, tuple[Callable[[], Problem], int]] = {
    "digits, η = 1e-4": (lambda: with_lr(digits(0.999), 1e-4), 500),
    "digits, η = 1e-3": (lambda: digits(0.999), 500),
    "digits, η = 1e-2": (lambda: with_lr(digits(0.999), 1e-2), 500),
    "characters, transformer, η = 1e-4": (lambda: with_lr(characters(), 1e-4), 500),
    "characters, transformer, η = 3e-4": (lambda: with_lr(characters(), 3e-4), 500),
    "characters, transformer, η = 1e-3": (characters, 500),
}


def scored(problem: Problem, steps: int, **options: Any) -> Run:
    """Return the run of a problem with these options."""
    model, train, valid, size, adam = problem
    return gpu.attribute(
        *(model, adam, train, valid),
        epochs=steps,
        steps=steps,
        batch_size=size,
        with_sgd=False,
        keep_step_scores=True,
        device="cpu",
        **options,
    )


def correlations(run: Run, exact: Run) -> Array:
    """Return R within each step."""
    pairs = zip(run.step_scores, exact.step_scores, strict=True)
    return np.array([np.corrcoef(a[np.isfinite(a)], b[np.isfinite(b)])[0, 1] for a, b in pairs])


def rows(name: str, quick: bool) -> list[list[str]]:
    """Return the cells of a run, for each k."""
    make, steps = RUNS[name]
    problem, steps = make(), 16 if quick else steps
    exact = scored(problem, steps)
    found = []
    for k in (0, *INTERVALS):
        run = scored(problem, steps, gradient="start") if k == 0 else scored(problem, steps, validation_every=k)
        cells = [name, str(k) if k else "start"]
        for weighting in ("sum", "unit"):
            ours, theirs = (weighted(one, weighting) for one in (run, exact))
            cells.append(f"{np.corrcoef(ours, theirs)[0, 1]:.4f}")
        within, number = correlations(run, exact), np.arange(steps)
        oldest = number % max(k, 1) == max(k, 1) - 1
        for part in (number < min(EARLY, steps // 2), number >= steps // 2):
            some = within[part & oldest]
            cells += [f"{some.min():.4f}", f"{np.median(some):.4f}"] if some.size else ["", ""]
        found.append(cells)
    return found


def first_rows(batch: Batch, n: int) -> Batch:
    """Return the first samples of a batch."""
    return Batch(batch.x[:n], batch.y[:n])


def cost(name: str, make: Callable[[], Problem], n_val: int, rounds: int) -> list[str]:
    """Return the cells of the time that a kept gradient saves."""
    model, train, valid, size, adam = make()
    valid, t = first_rows(valid, n_val), 20
    run = gpu.attribute(model, adam, train, valid, slope="sgd", steps=t, batch_size=size, epochs=t, device="cpu")
    context = context_for(model, pick_backend("cpu", "float32"))
    backend, generator = context.backend, np.random.default_rng(1)
    moments = tuple(backend.reals(part) for part in (run.params, run.state.m, run.state.v))
    new = State(*(like(context, part) for part in ("new θ", "new m", "new v")), StepNumber(t + 2))
    data, kept = Data.of(context, train, valid, size), KeptGradients(t, 1, with_sgd=False)
    times: dict[int, list[float]] = {t + 1: [], t + 2: []}  # the first takes Γ anew, the second does not
    with context.at_work():
        for number in range(rounds + 1):
            index = generator.choice(train.n, size, replace=False)
            for step, taken in times.items():
                batch, state = data.batch(index, backend.labels(index)), State(*moments, StepNumber(step))
                start = time.process_time()
                attribute_step(context, adam, state, batch, 1 / size, Estimator("secant"), new, kept=kept)
                if number:  # the first ones compile
                    taken.append(time.process_time() - start)
    own, held = (np.array(taken) for taken in times.values())
    ratio = float(np.median(held / own))
    return [name, str(size), str(n_val), f"{ratio:.2f}", *(f"{(1 - 1 / k) * (1 - ratio):.2f}" for k in INTERVALS)]


COSTS: dict[str, Callable[[], Problem]] = {
    "784-1024-1024-10": wide,
    "characters, transformer": characters,
}


def table(head: list[str]) -> None:
    """Print the head of a table."""
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sixteen steps of each run")
    parser.add_argument("--cost", action="store_true", help="the table of times alone")
    given = parser.parse_args()
    if not given.cost:
        table(["run", "k", "sum", "unit", "early: lowest", "median", "late: lowest", "median"])
        for name in RUNS:
            for cells in rows(name, given.quick):
                print("| " + " | ".join(cells) + " |", flush=True)
    table(["run", "n", "n_val", "kept over own", *(f"saved, k = {k}" for k in INTERVALS)])
    for name, make in COSTS.items():
        for n_val in (1, 4, 16):
            print("| " + " | ".join(cost(name, make, n_val, 2 if given.quick else ROUNDS)) + " |", flush=True)


if __name__ == "__main__":
    main()
