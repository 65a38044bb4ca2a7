"""Claim 2: scores depend on the optimiser, and SGD's formula fails for Adam.

The same samples in the same order train the same network under SGD, SGD with momentum, Adam and AdamW (SGD as Adam's
limit, see `stepping`). Each run is scored by its own optimiser's `random_order` and by SGD's formula. The rankings of
the samples' totals over the run are compared between optimisers; for reference, also between two initialisations and
orders of the samples under one optimiser.

Failures of SGD's formula are sought over tasks, networks, steps and badly scaled inputs, where every feature is
multiplied by its own 10^u, u uniform on ±`scale`. Adam's update is almost independent of a feature's scale; SGD's
score, a dot product of gradients, is dominated by the large features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adamshap.reference.contract import Adam, Array, Batch, Step
from adamshap.reference.game import exact_game
from adamshap.verify.claims import data, plots
from adamshap.verify.claims.section import Section, Table
from adamshap.verify.claims.statistics import Record, distinct, pearson, select, spearman, spread
from adamshap.verify.claims.stepping import (
    LINEARIZED,
    RANDOM_ORDER,
    SGD,
    Estimator,
    Trace,
    accuracy,
    estimates_from,
    label,
    sgd,
    steps,
    trace,
)

NAME = "optimisers"
TITLE = "Optimiser dependence: the same data under SGD, momentum, Adam and AdamW"
CLAIM = "Scores depend on the optimiser; SGD's formula has R of about 0.11 with the exact marginals under Adam."

OPTIMISERS: dict[str, Adam] = {
    "SGD": sgd(0.2),
    "momentum": sgd(0.2, momentum=0.9),
    "Adam": Adam(lr=2e-3),
    "AdamW": Adam(lr=2e-3, weight_decay=0.1),
}
SOUGHT: tuple[Estimator, ...] = (SGD, LINEARIZED, RANDOM_ORDER)


@dataclass(frozen=True)
class Regime:
    """A setting in which SGD's formula is tested; `scale` is the spread of the features' scales."""

    name: str
    task: str
    hidden: tuple[int, ...] = (32,)
    scale: float = 0.0
    n: int = 32


@dataclass(frozen=True)
class Settings:
    """The length of the runs, and the settings in which SGD's formula is tested."""

    seeds: int
    tasks: tuple[str, ...]
    regimes: tuple[Regime, ...]
    times: tuple[int, ...]
    train: int = 300
    valid: int = 100
    epochs: int = 4
    batch_size: int = 20
    hidden: tuple[int, ...] = (32,)


REGIMES = (
    Regime("digits", "digits"),
    Regime("breast cancer", "breast_cancer"),
    Regime("diabetes", "diabetes"),
    Regime("characters", "characters"),
    Regime("topics", "topics"),
    Regime("digits, 64-64-64", "digits", (64, 64, 64)),
    Regime("digits, scales 10^±1", "digits", scale=1.0),
    Regime("digits, scales 10^±2", "digits", scale=2.0),
    Regime("linear digits, scales 10^±2", "digits", (), 2.0),
    Regime("breast cancer, scales 10^±2", "breast_cancer", scale=2.0),
    Regime("linear topics, scales 10^±1", "topics", (), 1.0),
)
FULL = Settings(5, ("digits", "topics", "breast_cancer"), REGIMES, (1, 2, 5, 20, 100))
QUICK = Settings(5, ("digits",), (REGIMES[0], REGIMES[7]), (1, 5, 20), train=200, epochs=3)


def measure(settings: Settings, seed: int) -> list[Record]:
    """Return the correlations of rankings between optimisers, and R of SGD's formula in each regime."""
    records: list[Record] = []
    for task in settings.tasks:
        records += _rankings(task, settings, seed)
    for regime in settings.regimes:
        records += _regime(regime, settings, seed)
    return records


def _rankings(name: str, settings: Settings, seed: int) -> list[Record]:
    task = data.load(name, seed, train=settings.train, valid=settings.valid)
    net = task.network(settings.hidden)

    def run(adam: Adam, order: int) -> Trace:
        return trace(
            net,
            adam,
            task.train,
            task.valid,
            (SGD, RANDOM_ORDER),
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=order,
        )

    # Seeds from 1000 on occur in no other run: another initialisation and order of the same samples.
    runs = {optimiser: (run(adam, seed), run(adam, 1000 + seed)) for optimiser, adam in OPTIMISERS.items()}
    own = {optimiser: [run.total(label(RANDOM_ORDER)) for run in pair] for optimiser, pair in runs.items()}
    records: list[Record] = []
    for a in OPTIMISERS:
        for b in OPTIMISERS:
            other = own[b][1] if a == b else own[b][0]
            agreement = {"pearson": pearson(own[a][0], other), "spearman": spearman(own[a][0], other)}
            records.append({"part": "rankings", "task": name, "seed": seed, "a": a, "b": b, **agreement})
    for optimiser, (kept, _) in runs.items():
        proxy, own_score = kept.total(label(SGD)), own[optimiser][0]
        records.append(
            {
                "part": "proxy",
                "task": name,
                "seed": seed,
                "optimiser": optimiser,
                "pearson": pearson(proxy, own_score),
                "spearman": spearman(proxy, own_score),
                "pearson_of_sgd_run": pearson(own["SGD"][0], own_score),
                "spearman_of_sgd_run": spearman(own["SGD"][0], own_score),
                "valid_loss": float(kept.valid_loss[-1]),
                "test_accuracy": accuracy(net, kept.params, task.test),
            }
        )
    return records


def rescaled(batches: Sequence[Batch], scale: float, seed: int) -> list[Batch]:
    """Return the batches with feature j multiplied by 10^u_j, u_j uniform on ±`scale`."""
    factors = 10 ** np.random.default_rng(seed).uniform(-scale, scale, batches[0].x.shape[1])
    return [Batch(batch.x * factors, batch.y) for batch in batches]


def _regime(regime: Regime, settings: Settings, seed: int) -> list[Record]:
    task = data.load(regime.task, seed, train=1200, valid=60, test=1)
    train, valid = rescaled((task.train, task.valid), regime.scale, seed)
    net = task.network(regime.hidden)
    epochs = -(-max(settings.times) * regime.n // train.n) + 1
    records: list[Record] = []
    for _, step, x, g in steps(net, Adam(), train, valid, batch_size=regime.n, epochs=epochs, seed=seed):
        t = step.state.step + 1
        if t in settings.times:
            exact = first_marginals(step)
            for estimator, values in estimates_from(step, x, g, SOUGHT).items():
                agreement = {"pearson": pearson(values, exact), "spearman": spearman(values, exact)}
                where = {"part": "regimes", "regime": regime.name, "t": t, "seed": seed}
                records.append({**where, "estimator": estimator, **agreement})
        if t >= max(settings.times):
            break
    return records


def first_marginals(step: Step) -> Array:
    """Return U({i}) − U(∅) of each sample, computed exactly by the oracle."""
    game = exact_game(step)
    empty = game(np.zeros(step.n, bool))
    return np.array([game(alone) for alone in np.eye(step.n, dtype=bool)]) - empty


# --- presentation ----------------------------------------------------------------------------------------------------


def section(settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    rankings, proxy, regimes = (select(records, part=part) for part in ("rankings", "proxy", "regimes"))
    tables = [_ranking_table(select(rankings, task=task), task) for task in distinct(rankings, "task")]
    tables += [_proxy_table(proxy), _regime_table(regimes)]
    figure, axes = plots.blank(6.5, 0.5 * len(settings.regimes) + 1.2)
    t = max(settings.times)
    plots.bars(
        axes[0, 0],
        {
            regime: {
                estimator: spread(r["pearson"] for r in select(regimes, regime=regime, estimator=estimator, t=t))
                for estimator in distinct(regimes, "estimator")
            }
            for regime in distinct(regimes, "regime")
        },
    )
    axes[0, 0].set_xlabel(f"Pearson R with U({{i}}) − U(∅) at t = {t}, mean ± sd over seeds")
    plots.legend(figure, axes[0, 0])
    caption = f"SGD's formula under Adam in each regime, at t = {t}."
    return Section(NAME, TITLE, CLAIM, _findings(rankings, proxy, regimes), tables, [("regimes", caption, figure)])


def _ranking_table(rows: Sequence[Record], task: str) -> Table:
    return Table(
        f"{task.replace('_', ' ')}: Spearman of the samples' totals under two optimisers, each with its own"
        " `random_order`; on the diagonal, the same optimiser with another initialisation and order.",
        ["", *OPTIMISERS],
        [[a, *(str(spread(r["spearman"] for r in select(rows, a=a, b=b))) for b in OPTIMISERS)] for a in OPTIMISERS],
    )


def _proxy_table(rows: Sequence[Record]) -> Table:
    columns = ("pearson", "spearman", "pearson_of_sgd_run", "spearman_of_sgd_run", "valid_loss", "test_accuracy")
    return Table(
        "SGD's formula in each optimiser's run, and the scores of the SGD run, against the run's own `random_order`"
        " (totals over the run).",
        [
            "task",
            "optimiser",
            "SGD's formula, Pearson",
            "Spearman",
            "SGD's run, Pearson",
            "Spearman",
            "validation loss",
            "test accuracy",
        ],
        [
            [task.replace("_", " "), optimiser, *(str(spread(r[c] for r in chosen)) for c in columns)]
            for task in distinct(rows, "task")
            for optimiser in OPTIMISERS
            for chosen in [select(rows, task=task, optimiser=optimiser)]
        ],
    )


def _regime_table(rows: Sequence[Record]) -> Table:
    times = distinct(rows, "t")
    return Table(
        "Pearson R of `sgd + start` with U({i}) − U(∅) under Adam (β = (0.9, 0.999), η = 1e-3), and of"
        " `random_order + midpoint` at the last step.",
        ["regime", *(f"t = {t}" for t in times), f"`random_order`, t = {times[-1]}"],
        [
            [
                regime,
                *(str(spread(r["pearson"] for r in select(chosen, estimator=label(SGD), t=t))) for t in times),
                str(spread(r["pearson"] for r in select(chosen, estimator=label(RANDOM_ORDER), t=times[-1]))),
            ]
            for regime in distinct(rows, "regime")
            for chosen in [select(rows, regime=regime)]
        ],
    )


def _findings(rankings: Sequence[Record], proxy: Sequence[Record], regimes: Sequence[Record]) -> list[str]:
    of_sgd = select(regimes, estimator=label(SGD))
    cells = {
        (regime, t): spread(r["pearson"] for r in select(of_sgd, regime=regime, t=t)).mean
        for regime in distinct(of_sgd, "regime")
        for t in distinct(of_sgd, "t")
    }
    plain = {cell: r for cell, r in cells.items() if "scales" not in cell[0]}
    worst, worst_plain = min(cells, key=lambda cell: cells[cell]), min(plain, key=lambda cell: plain[cell])
    between = spread(r["spearman"] for r in select(rankings, a="SGD", b="Adam"))
    within = spread(r["spearman"] for r in select(rankings, a="Adam", b="Adam"))
    whole = spread(r["spearman"] for r in select(proxy, optimiser="Adam"))
    return [
        f"Rankings under SGD and under Adam: Spearman {between}; under Adam with another initialisation and order:"
        f" {within} (all tasks).",
        f"SGD's formula in an Adam run, against `random_order`, totals over the run: Spearman {whole}.",
        f"SGD's formula against the exact marginals of a step: lowest mean R {cells[worst]:.2f} ({worst[0]},"
        f" t = {worst[1]}); without rescaled features {plain[worst_plain]:.2f} ({worst_plain[0]},"
        f" t = {worst_plain[1]}).",
    ]
