"""Where the map shows weak estimators: "two_term", fitted to each truth, against the slopes that serve all three.

In square brackets, two references that need every x_i, which no implementation has: the best single slope in least
squares, fitted to the x_i themselves, and A(Y + x_i) − A(Y) itself. They show the loss from using a single slope, and
the loss from the linear Γ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from adamshap.reference.adam import divided_difference, step_coefficients, update_map
from adamshap.reference.contract import TWO_TERM, Adam, Array, MarginalKind, Params, Step
from adamshap.reference.scoring import scores
from adamshap.reference.two_term import part_of_the_way
from adamshap.reference.validation import validation_gradients
from adamshap.verify.claims import data, fidelity, plots
from adamshap.verify.claims.section import Section, Table
from adamshap.verify.claims.statistics import Record, distinct, pearson, select, spread
from adamshap.verify.claims.stepping import LINEARIZED, NODES, RANDOM_ORDER, TANGENT, estimates_from, label, steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "estimators"
TITLE = "Two ghost terms, fitted to one marginal"
CLAIM = "Not a claim of the paper: the gain from slopes fitted to one marginal and a second term in sign(x) √|x|."
OLD = (LINEARIZED, TANGENT, RANDOM_ORDER)
BEST, ITSELF = "[best single slope]", "[A(Y + x) − A(Y)]"


@dataclass(frozen=True)
class Settings:
    """The tasks, batch sizes, steps and learning rates to test."""

    seeds: int
    tasks: tuple[str, ...]
    sizes: tuple[int, ...]
    times: tuple[int, ...]
    rates: tuple[float, ...] = (1e-3, 1e-2)
    train: int = 400
    valid: int = 60


FULL = Settings(5, ("digits", "diabetes"), (4, 8), (1, 2, 3, 5, 20))
QUICK = Settings(5, ("digits",), (8,), (1, 3, 20))


def measure(settings: Settings, seed: int) -> list[Record]:
    """Return R of every candidate with its truth, at each of the requested steps, for the runs with `seed`."""
    records: list[Record] = []
    for name, n, lr in product(settings.tasks, settings.sizes, settings.rates):
        task = data.load(name, seed, train=settings.train, valid=settings.valid, test=1)
        net = task.network((32,))
        epochs = -(-max(settings.times) * n // task.train.n) + 1
        for _, step, x, g in steps(net, Adam(lr=lr), task.train, task.valid, batch_size=n, epochs=epochs, seed=seed):
            t = step.state.step + 1
            if t in settings.times:
                exact, _ = fidelity.truths(step, fidelity.FULL, seed)
                old = estimates_from(step, x, g, OLD)
                for truth, wanted in exact.items():
                    for estimator, values in {**old, **candidates(step, x, g, truth)}.items():  # type: ignore[arg-type]
                        where = {"task": name, "n": n, "lr": lr, "t": t, "seed": seed, "truth": truth}
                        records.append({**where, "estimator": estimator, "pearson": pearson(values, wanted)})
            if t >= max(settings.times):
                break
    return records


def candidates(step: Step, x: Params, g: Params, truth: MarginalKind) -> dict[str, Array]:
    """Return the scores of the candidates for `truth`."""
    found = {TWO_TERM: scores(step, TWO_TERM, kind=truth)}
    if truth != "shapley":
        found |= with_every_contribution(step, x, g, truth)
    return found


def with_every_contribution(step: Step, x: Params, g: Params, truth: MarginalKind) -> dict[str, Array]:
    """Return the scores of the best single slope, and of the exact change of the step, both with the candidates' Γ."""
    c, part = step_coefficients(step), part_of_the_way(truth, step.n)
    gamma = validation_gradients(step, "midpoint", g, NODES, each=False, part=part)
    best, itself = np.zeros(step.n), np.zeros(step.n)
    for name, x_i in x.items():
        Y = np.zeros_like(x_i) if truth == "first" else g[name] - x_i
        squares = (x_i**2).sum(axis=0)
        slope = (x_i**2 * divided_difference(c[name], Y + x_i, Y)).sum(axis=0) / np.where(squares > 0, squares, 1)
        change = update_map(c[name], Y + x_i) - update_map(c[name], Y)
        best += (gamma[name][0] * slope * x_i).reshape(step.n, -1).sum(axis=1)
        itself += (gamma[name][0] * change).reshape(step.n, -1).sum(axis=1)
    return {BEST: best, ITSELF: itself}


# --- presentation ----------------------------------------------------------------------------------------------------


def section(settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    tables = []
    for truth, n, task, lr in product(fidelity.TRUTHS, settings.sizes, settings.tasks, settings.rates):
        rows = select(records, truth=truth, n=n, task=task, lr=lr)
        tables.append(
            Table(
                f"Pearson R with `{truth}`: {task}, n = {n}, η = {lr:g}.",
                ["estimator", *(f"t = {t}" for t in settings.times)],
                [
                    [f"`{name}`", *(str(_mean(rows, estimator=name, t=t)) for t in settings.times)]
                    for name in distinct(rows, "estimator")
                ],
            )
        )
    return Section(NAME, TITLE, CLAIM, _findings(records), tables, [("lost", _CAPTION, _plot(settings, records))])


_CAPTION = "1 − R with the three truths, mean over seeds: digits, the largest batch, the smallest η. Lower is better."


def _mean(records: Sequence[Record], **wanted: object) -> object:
    return spread(record["pearson"] for record in select(records, **wanted))


def _plot(settings: Settings, records: Sequence[Record]) -> "Figure":
    figure, axes = plots.blank(8.0, 3.2, 1, 3, sharey=True)
    chart = select(records, task=settings.tasks[0], n=max(settings.sizes), lr=min(settings.rates))
    names = [*map(label, OLD), TWO_TERM]
    for axis, truth in zip(axes[0], fidelity.TRUTHS, strict=True):
        for name, colour in zip(names, plots.COLOURS, strict=False):
            lost = [
                1 - spread(r["pearson"] for r in select(chart, truth=truth, estimator=name, t=t)).mean
                for t in settings.times
            ]
            axis.plot(settings.times, lost, label=name, color=colour, marker="o", markersize=3, linewidth=1.3)
        axis.set(xscale="log", yscale="log", xlabel="t", title=truth)
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("1 − R")
    plots.legend(figure, axes[0, 0], 5)
    return figure


def _findings(records: Sequence[Record]) -> list[str]:
    lines = []
    for truth, lr in product(fidelity.TRUTHS, distinct(records, "lr")):
        rows = select(records, truth=truth, lr=lr)
        places = list(product(*(distinct(rows, key) for key in ("task", "n", "t"))))
        least = {}
        for name in (*map(label, OLD), TWO_TERM):
            of_name = select(rows, estimator=name)
            means = [spread(r["pearson"] for r in select(of_name, task=task, n=n, t=t)).mean for task, n, t in places]
            least[name] = f"`{name}` {np.mean(means):.3f}, {min(means):.3f}"
        lines.append(
            f"`{truth}`, η = {lr:g}: mean R over tasks, n and t, and the lowest: " + "; ".join(least.values()) + "."
        )
    return lines
