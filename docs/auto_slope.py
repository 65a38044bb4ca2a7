"""Print how close the scores of `slope="auto"` and "secant" come to those of "random_order" over whole runs.

    python docs/auto_slope.py             # some minutes on one core
    python docs/auto_slope.py --quick     # twelve steps of each run, seconds
    python docs/auto_slope.py --cost      # the second table, of times, alone
    python docs/auto_slope.py --least 1/8 # the first table, for other thresholds: 1/8 and 1/32 more

The same run is scored with each slope: "midpoint", exact variance, float32, Adam(1e-3). R is Pearson's correlation with
the scores of "random_order", of the runs' totals under both weightings, and the lowest at any step from t = 1, and from
t = 20 on. The share is that of the coordinates, over all steps from 20 on, for which "auto" takes more than the secant.
Text comes with Python, NumPy and SciPy: help pages, docstrings, code and licences. Its passages of 40 words are bags of
the 2,000 most frequent words, classified by their source; a transformer learns its characters.

The cost is that of an attributed step, in multiples of one with "secant": medians over rounds of interleaved steps, in
processor time, exact variance and rank one, without SGD's scores. Batches are new in each round, at the state after
t − 1 steps; each variant starts a round in turn, as the first step on new data takes longer.
"""

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
from sklearn.datasets import load_digits

from adamshap import gpu
from adamshap.gpu.arrays import like
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.data import Data
from adamshap.gpu.kernels import kernels_for, plan
from adamshap.gpu.layers import context_for
from adamshap.gpu.state import State
from adamshap.gpu.step import attribute_step
from adamshap.reference import weighted
from adamshap.reference.contract import (
    Adam,
    Array,
    Batch,
    Estimator,
    Model,
    Network,
    Run,
    StepNumber,
    transformer,
)
from adamshap.verify.claims.language import corpora

SLOPES = ("random_order", "auto", "secant")
LATER, ROUNDS = 20, 25
N_VAL = 32
SOURCES, PASSAGES, WORDS = ("help", "docstrings", "code", "licences"), 500, 40
Problem = tuple[Model, Batch, Batch, int, Adam]


def split(x: Array, y: Array) -> tuple[Batch, Batch]:
    """Return training and validation samples, in random order."""
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return Batch(x[N_VAL:], y[N_VAL:]), Batch(x[:N_VAL], y[:N_VAL])


def digits(beta2: float) -> Problem:
    """Return digits for two hidden layers of 128 units."""
    x, y = load_digits(return_X_y=True)
    return Network((64, 128, 128, 10), "relu"), *split(x / 16, y), 64, Adam(betas=(0.9, beta2))


def heavy_tails(draw: str) -> Problem:
    """Return a table of 20 columns of heavy tails, labelled by a linear function of them, in small batches."""
    generator = np.random.default_rng(0)
    normal = generator.standard_normal((2000, 20))
    x = np.exp(2 * normal) if draw == "log-normal" else generator.standard_t(1.5, (2000, 20))
    y = np.argmax(x @ generator.standard_normal((20, 3)), axis=1)
    return Network((20, 32, 3), "relu" if draw == "log-normal" else "tanh"), *split(x, y), 16, Adam()


def bags_of_words() -> Problem:
    """Return passages of text as bags of words, of which each has few, and their sources."""
    passages, labels = [], []
    for label, name in enumerate(SOURCES):
        words = re.findall(r"[a-z]+", corpora.source(name)[: corpora.LONGEST].lower())
        starts = range(0, min(len(words), PASSAGES * WORDS) - WORDS + 1, WORDS)
        passages += [words[start : start + WORDS] for start in starts]
        labels += [label] * len(starts)
    common = [word for word, _ in Counter(word for words in passages for word in words).most_common(2000)]
    column = {word: number for number, word in enumerate(common)}
    x = np.zeros((len(passages), len(common)))
    for row, words in enumerate(passages):
        for word in words:
            if word in column:
                x[row, column[word]] += 1
    return Network((len(common), 64, len(SOURCES)), "relu"), *split(x, np.array(labels)), 32, Adam()


def characters() -> Problem:
    """Return a small transformer, and passages of 32 characters."""
    corpus = corpora.load(corpora.Mixture("characters", SOURCES, length=32, valid=N_VAL), seed=0)
    model = transformer(vocab=corpus.vocab, context=32, width=64, depth=2, heads=4)
    return model, corpus.train, corpus.valid, 8, Adam()


RUNS: dict[str, tuple[Any, int]] = {
    "digits": (lambda: digits(0.999), 250),
    "digits, β2 = 0.95": (lambda: digits(0.95), 250),
    "log-normal, ReLU": (lambda: heavy_tails("log-normal"), 250),
    "Student's t, tanh": (lambda: heavy_tails("Student"), 250),
    "bags of words": (bags_of_words, 250),
    "characters, transformer": (characters, 150),
}


@contextmanager
def counting(found: list[tuple[int, bool]]) -> Iterator[None]:
    """Note the size of each parameter in each step, and whether "auto" takes more than the secant for it."""
    kernels = kernels_for(pick_backend("cpu", "float32"))
    choose = kernels.auto_plans

    def noted(scalars: Any, order: Any, g: Any, v: Any) -> Any:
        plans = choose(scalars, order, g, v)
        found.extend((g[name].size, own.needs_spread) for name, own in plans.items())
        return plans

    with patch.object(kernels, "auto_plans", noted):
        yield


def row(name: str, quick: bool) -> list[str]:
    """Return the cells of a run."""
    problem, steps = RUNS[name]
    model, train, valid, size, adam = problem()
    steps = 12 if quick else steps
    options: dict[str, Any] = {"epochs": steps, "steps": steps, "batch_size": size, "with_sgd": False}
    runs: dict[str, Run] = {}
    found: list[tuple[int, bool]] = []
    with counting(found):
        for slope in SLOPES:
            runs[slope] = gpu.attribute(
                model, adam, train, valid, slope=slope, keep_step_scores=True, device="cpu", **options
            )
    late = min(LATER, steps) - 1
    later = found[len(found) // steps * late :]
    share = sum(many for many, more in later if more) / sum(many for many, _ in later)
    cells = [name, str(steps)]
    for slope in SLOPES[1:]:
        for weighting in ("sum", "unit"):
            ours, theirs = (weighted(runs[one], weighting) for one in (slope, "random_order"))
            cells.append(f"{np.corrcoef(ours, theirs)[0, 1]:.5f}")
        pairs = zip(runs[slope].step_scores, runs["random_order"].step_scores, strict=True)
        each = [np.corrcoef(a[np.isfinite(a)], b[np.isfinite(b)])[0, 1] for a, b in pairs]
        cells += [f"{min(each):.5f}", f"{min(each[late:]):.5f}"]
    return [*cells, f"{share:.2f}"]


def cost(name: str, t: int, rounds: int) -> list[str]:
    """Return the cells of a run's costs at step t."""
    model, train, valid, size, adam = RUNS[name][0]() if name in RUNS else WIDE[name]()
    run = gpu.attribute(model, adam, train, valid, slope="sgd", steps=t - 1, batch_size=size, epochs=t, device="cpu")
    context = context_for(model, pick_backend("cpu", "float32"))
    backend, generator = context.backend, np.random.default_rng(1)
    state = State(*(backend.reals(part) for part in (run.params, run.state.m, run.state.v)), StepNumber(t))
    new = State(*(like(context, part) for part in ("new θ", "new m", "new v")), StepNumber(t + 1))
    data = Data.of(context, train, valid, size)
    variants = [("secant", "exact"), *product(("auto", "random_order"), ("exact", "rank_one"))]
    times: dict[tuple[str, str], list[float]] = {variant: [] for variant in variants}
    with context.at_work():
        for number in range(rounds + 1):
            index = generator.choice(train.n, size, replace=False)
            for slope, variance in variants[number % len(variants) :] + variants[: number % len(variants)]:
                estimator = Estimator(slope, nodes=(2, 4), variance=variance)
                batch = data.batch(index, backend.labels(index))
                start = time.process_time()
                attribute_step(context, adam, state, batch, 1 / size, estimator, new)
                if number:  # the first ones compile
                    times[slope, variance].append(time.process_time() - start)
    secant = np.median(times.pop(("secant", "exact")))
    return [name, str(t), *(f"{np.median(taken) / secant:.2f}" for taken in times.values())]


def wide() -> Problem:
    """Return normal inputs, labelled by a linear function of them, for a wide perceptron."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((4000, 784))
    y = np.argmax(x @ generator.standard_normal((784, 10)), axis=1)
    return Network((784, 1024, 1024, 10), "relu"), *split(x, y), 256, Adam()


WIDE: dict[str, Any] = {"784-1024-1024-10, n = 256": wide}


def table(head: list[str]) -> None:
    """Print the head of a table."""
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|", flush=True)


def accuracy(quick: bool) -> None:
    """Print the table of correlations."""
    columns = ("sum", "unit", "lowest step", f"t ≥ {LATER}")
    head = ["run", "steps", *(f"{slope}, {column}" for slope in SLOPES[1:] for column in columns), "share"]
    table(head)
    for name in RUNS:
        print("| " + " | ".join(row(name, quick)) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="twelve steps of each run")
    parser.add_argument("--cost", action="store_true", help="the table of times alone")
    parser.add_argument("--least", type=Fraction, help="the smaller of the two thresholds, for the first table alone")
    given = parser.parse_args()
    if given.least is not None:
        with patch.object(plan, "OWN_SHARES", (float(given.least), float(given.least) + 1 / 32)):
            accuracy(given.quick)
        return
    if not given.cost:
        accuracy(given.quick)
    columns = [f"{slope}, {variance}" for slope, variance in product(SLOPES[1::-1], ("exact", "rank one"))]
    table(["step over one with secant", "t", *columns])
    for name in ("digits", "characters, transformer", *WIDE):
        for t in (5,) if given.quick else (20, 50):
            rounds = 2 if given.quick else 8 * ROUNDS if name == "digits" else ROUNDS  # short steps vary more
            print("| " + " | ".join(cost(name, t, rounds)) + " |", flush=True)


if __name__ == "__main__":
    main()
