"""Print how close rank-r scores come to exact ones over a whole run, with and without exact first steps.

    python docs/low_rank.py

Two runs of "random_order": digits, a perceptron, and characters, a small transformer. R is Pearson's correlation with
the exact scores, of the run's totals under both weightings, and the lowest of single steps.
"""

import numpy as np
from auto_slope import Problem, characters
from sklearn.datasets import load_digits

from adamshap import gpu
from adamshap.gpu import sketch
from adamshap.reference import weighted
from adamshap.reference.contract import Adam, Array, Batch, Network, Run

N_VAL = 32
RANKS = (4, 8, 16, 32)
EXACT = sketch.EXACT_SQUARES  # as many steps, for the usual β2
PARTS = (slice(0, 4), slice(4, EXACT), slice(EXACT, None))


def digits() -> Problem:
    """Return a wide perceptron for the digits."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order] / 16, y[order]
    train, valid = Batch(x[N_VAL:], y[N_VAL:]), Batch(x[:N_VAL], y[:N_VAL])
    return Network((64, 512, 512, 10), "relu"), train, valid, 128, Adam()


def scored(problem: Problem, steps: int, rank: int | None) -> Run:
    """Return a run of so many steps."""
    model, train, valid, size, adam = problem
    options = {"epochs": steps, "steps": steps, "batch_size": size, "with_sgd": False, "keep_step_scores": True}
    return gpu.attribute(model, adam, train, valid, rank=rank, device="cpu", **options)


def within_steps(run: Run, exact: Run) -> Array:
    """Return R within each step."""
    pairs = zip(run.step_scores, exact.step_scores, strict=True)
    return np.array([np.corrcoef(a[np.isfinite(a)], b[np.isfinite(b)])[0, 1] for a, b in pairs])


def main() -> None:
    """Train with the same seed at each rank."""
    heads = ("run", "rank", "exact steps", "R, sum", "R, unit", "steps 1–4", f"5–{EXACT}", f"from {EXACT + 1} on")
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for name, problem, steps in (("digits", digits(), 70), ("characters", characters(), 300)):
        exact = scored(problem, steps, None)
        for rank in RANKS:
            for first in (0, EXACT):
                sketch.EXACT_SQUARES = first
                run = scored(problem, steps, rank)
                totals = [
                    np.corrcoef(*(weighted(one, weighting) for one in (run, exact)))[0, 1]
                    for weighting in ("sum", "unit")
                ]
                within = within_steps(run, exact)
                cells = [*totals, *(within[part].min() for part in PARTS)]
                print("| " + " | ".join([name, str(rank), str(first), *(f"{r:.6f}" for r in cells)]) + " |", flush=True)


if __name__ == "__main__":
    main()
