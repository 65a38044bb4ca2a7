"""Claim 3: scores summed over a run, against retraining without a sample.

The oracle computes the truths: leave-one-out retraining (same batches, divisor and seed), and the metagradient, the
derivative of the final validation loss with respect to a sample's weight through the whole run. Their agreement with
each other is the ceiling for every score that is linear in a sample's weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap import reference
from adamshap.reference.contract import Adam, Array, Batch
from adamshap.verify.claims import data, plots
from adamshap.verify.claims.downstream import flip
from adamshap.verify.claims.section import Section, Table
from adamshap.verify.claims.statistics import Record, distinct, pearson, select, spearman, spread
from adamshap.verify.claims.stepping import (
    FROZEN,
    LINEARIZED,
    RANDOM_ORDER,
    SECANT,
    SGD,
    TANGENT,
    Estimator,
    label,
    sgd,
    trace,
)

NAME = "retraining"
TITLE = "Truth by retraining: leave-one-out and metagradients against summed scores"
CLAIM = "Scores summed over a run under Adam predict the effect of retraining without a sample; SGD's do not."
SCORES: tuple[Estimator, ...] = (SGD, FROZEN, LINEARIZED, TANGENT, SECANT, RANDOM_ORDER)
TRUTHS = ("leave-one-out", "metagradient")


@dataclass(frozen=True)
class Case:
    """A run to retrain."""

    name: str
    task: str
    adam: Adam
    flipped: float = 0.0


@dataclass(frozen=True)
class Settings:
    """The runs, their length, and the number of samples."""

    seeds: int
    cases: tuple[Case, ...]
    train: int = 60
    valid: int = 60
    epochs: int = 4
    batch_size: int = 10
    hidden: tuple[int, ...] = (16,)


CASES = (
    Case("digits, 10% flipped, Adam η = 1e-3", "digits", Adam(), 0.1),
    Case("digits, 10% flipped, Adam η = 1e-2", "digits", Adam(lr=1e-2), 0.1),
    Case("breast cancer, Adam η = 1e-3", "breast_cancer", Adam()),
    Case("diabetes, Adam η = 1e-2", "diabetes", Adam(lr=1e-2)),
    Case("digits, 10% flipped, SGD η = 0.2", "digits", sgd(0.2), 0.1),
)
FULL = Settings(5, CASES)
QUICK = Settings(5, CASES[:1], train=40, epochs=3)


def measure(settings: Settings, seed: int) -> list[Record]:
    """Return the correlations of every score's totals with both truths."""
    return [record for case in settings.cases for record in _case(case, settings, seed)]


def _case(case: Case, settings: Settings, seed: int) -> list[Record]:
    task = data.load(case.task, seed, train=settings.train, valid=settings.valid)
    train = task.train
    if case.flipped:
        train = Batch(train.x, flip(train.y, task.outputs, case.flipped, seed)[1])
    net = task.network(settings.hidden)
    length: Any = {"batch_size": settings.batch_size, "epochs": settings.epochs, "seed": seed}
    kept = trace(net, case.adam, train, task.valid, SCORES, **length)
    scores: dict[str, Array] = {label(estimator): kept.total(label(estimator)) for estimator in SCORES}
    carried = reference.attribute(net, case.adam, train, task.valid, slope="secant", credit="carry", **length)
    scores["carry (secant)"] = carried.scores
    run = reference.attribute(net, case.adam, train, task.valid, credit="carry", **length)
    scores["carry (random_order)"] = run.scores
    truths = {
        "leave-one-out": reference.retrained(run, np.arange(train.n)),
        "metagradient": reference.metagradient(run),
    }
    scores["metagradient"] = truths["metagradient"]
    return [
        {
            "case": case.name,
            "seed": seed,
            "score": name,
            "truth": truth,
            "pearson": pearson(values, wanted),
            "spearman": spearman(values, wanted),
        }
        for name, values in scores.items()
        for truth, wanted in truths.items()
        if name != truth
    ]


# --- presentation ----------------------------------------------------------------------------------------------------


def section(settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    cases = distinct(records, "case")
    tables = [
        Table(
            f"{key.capitalize()} of the samples' totals with {truth}.",
            ["score", *cases],
            [
                [f"`{name}`", *(_cell(records, key, score=name, truth=truth, case=case) for case in cases)]
                for name in distinct(records, "score")
                if name != truth
            ],
        )
        for truth in TRUTHS
        for key in ("pearson", "spearman")
    ]
    figure, axes = plots.blank(6.5, 1.9 * len(cases) + 1)
    loo = select(records, truth="leave-one-out")
    plots.bars(
        axes[0, 0],
        {
            case: {
                name: spread(r["pearson"] for r in select(loo, case=case, score=name))
                for name in distinct(loo, "score")
            }
            for case in cases
        },
    )
    axes[0, 0].set_xlabel("Pearson R with leave-one-out retraining, mean ± sd over seeds")
    plots.legend(figure, axes[0, 0], 3)
    findings = [
        f"{case}: Pearson with leave-one-out retraining "
        + ", ".join(
            f"`{name}` {_cell(loo, 'pearson', case=case, score=name)}"
            for name in (label(SGD), label(LINEARIZED), label(RANDOM_ORDER), "carry (random_order)", "metagradient")
        )
        + "."
        for case in cases
    ]
    caption = "Agreement of summed scores with leave-one-out retraining."
    return Section(NAME, TITLE, CLAIM, findings, tables, [("loo", caption, figure)])


def _cell(records: Sequence[Record], key: str, **wanted: str) -> str:
    return str(spread(record[key] for record in select(records, **wanted)))
