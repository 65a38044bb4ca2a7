"""Print accuracy and cost of `variance`: how close "exact" and "rank_one" come to exact Shapley values.

    python docs/variance.py             # a few minutes on one core
    python docs/variance.py --quick     # one seed and small networks, seconds

R is Pearson's correlation with the step's exact Shapley value at the steps t of a training run, mean over seeds. Cost
is a step's processor time on one core, without attribution and with each variance, interleaved; each figure is a ratio
of minimum times.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from sklearn.datasets import load_digits

from adamshap import gpu
from adamshap.gpu.arrays import like
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.layers import context_for
from adamshap.gpu.state import State, StepBatch
from adamshap.gpu.step import attribute_step, plain_step
from adamshap.reference.contract import ActivationName, Adam, AdamState, Array, Batch, Estimator, Network, Step

TIMES = (1, 2, 5, 20, 100)
N, N_VAL, SEEDS = 10, 100, 5
SLOPES = (("random_order", "exact"), ("random_order", "rank_one"), ("secant", "exact"))
SIZES = {"64-64-64-10": (64, 64, 64, 10), "784-1024-1024-10": (784, 1024, 1024, 10)}
ROUNDS = 15


def digits(seed: int) -> tuple[Network, Array, Array]:
    """Return digits in random order, their pixels over 16."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    return Network((64, 32, 32, 10), "tanh"), x[order] / 16, y[order]


def table(
    draw: Callable[[np.random.Generator], Array], activation: ActivationName, seed: int
) -> tuple[Network, Array, Array]:
    """Return a table of 20 columns with identically drawn entries, labelled by a linear function of them."""
    generator = np.random.default_rng(seed)
    x = draw(generator)
    return Network((20, 32, 3), activation), x, np.argmax(x @ generator.standard_normal((20, 3)), axis=1)


ROWS = (2000, 20)
MISSING = "normal, one entry −9999"  # in the scored batch: a placeholder for a missing value
INPUTS = {
    "digits": digits,
    "log-normal, ReLU": partial(table, lambda generator: np.exp(2 * generator.standard_normal(ROWS)), "relu"),
    "Student's t, tanh": partial(table, lambda generator: generator.standard_t(1.5, ROWS), "tanh"),
    MISSING: partial(table, lambda generator: generator.standard_normal(ROWS), "tanh"),
}


def correlations(name: str, seed: int) -> dict[tuple[str, str, int], float]:
    """Return R of each slope and variance at each t; with −9999, over the other samples."""
    net, x, y = INPUTS[name](seed)
    valid, params, found = Batch(x[:N_VAL], y[:N_VAL]), net.init(seed), {}
    state, generator = AdamState.zeros(params), np.random.default_rng(seed)
    for t in range(1, max(TIMES) + 1):
        where = generator.choice(np.arange(N_VAL, len(x)), N, replace=False)
        batch, counted = x[where], np.ones(N, bool)
        step = Step(net, params, Adam(), state, Batch(batch, y[where]), valid)
        if t in TIMES:
            if name == MISSING:
                batch, counted[0] = batch.copy(), False
                batch[0, 0] = -9999
            scored = Step(net, params, Adam(), state, Batch(batch, y[where]), valid)
            exact = gpu.marginals(scored, "shapley", device="cpu", dtype="float64").values[counted]
            for slope, variance in SLOPES:
                values = gpu.scores(scored, slope, variance=variance, device="cpu", dtype="float64")[counted]
                found[slope, variance, t] = float(np.corrcoef(values, exact)[0, 1])
        params, state = gpu.update(step, device="cpu", dtype="float64")
    return found


def cost(sizes: tuple[int, ...], n: int, rounds: int) -> dict[str, float]:
    """Return the minimum processor time of a step, plain and with each variance, interleaved."""
    generator, context = np.random.default_rng(0), context_for(Network(sizes, "relu"), pick_backend("cpu", "float32"))
    theta = context.backend.reals(context.model.init(0))
    m, v = ({key: context.backend.xp.zeros_like(p) for key, p in theta.items()} for _ in range(2))
    state = State(theta, m, v, 1)
    new = State(*(like(context, name) for name in ("new θ", "new m", "new v")), 2)
    x, valid_x = (context.backend.real(generator.standard_normal((rows, sizes[0]))) for rows in (n, 16))
    y, valid_y = (context.backend.labels(generator.integers(0, sizes[-1], rows)) for rows in (n, 16))
    batch = StepBatch(x, y, valid_x, valid_y)

    def plain() -> None:
        plain_step(context, Adam(), state, x, y, 1 / n, new)

    def take(variance: str) -> None:
        estimator = Estimator(variance=variance)
        attribute_step(context, Adam(), state, batch, 1 / n, estimator, new)

    takes: dict[str, Callable[[], None]] = {"plain": plain}
    takes |= {name: partial(take, name) for name in ("rank_one", "exact")}
    least = dict.fromkeys(takes, np.inf)
    with context.at_work():
        for number in range(rounds + 1):
            for name, once in takes.items():
                start = time.thread_time()
                once()
                if number:  # the first one compiles
                    least[name] = min(least[name], time.thread_time() - start)
    return least


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and small networks")
    quick = parser.parse_args().quick
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print("| inputs | slope, variance | " + " | ".join(f"t = {t}" for t in TIMES) + " |")
    print("|---" * (2 + len(TIMES)) + "|")
    for name in INPUTS:
        found = [correlations(name, seed) for seed in range(1 if quick else SEEDS)]
        for slope, variance in SLOPES:
            means = (np.mean([one[slope, variance, t] for one in found]) for t in TIMES)
            label = f"`{slope}`" if slope == "secant" else f"`{slope}`, `{variance}`"
            print(f"| {name} | {label} | " + " | ".join(f"{r:.4f}" for r in means) + " |")
    print()
    for title, sizes in SIZES.items():
        for n in (64, 1024):
            if quick and max(sizes) > 100:
                continue
            least = cost(sizes, n, 3 if quick else ROUNDS)
            speeds = (f"{least['plain'] / least[name]:.2f} with `{name}`" for name in ("exact", "rank_one"))
            ratio = least["exact"] / least["rank_one"]
            print(f"{title}, n = {n}: attributed over plain {', '.join(speeds)}; exact takes {ratio:.2f} times as long")


if __name__ == "__main__":
    main()
