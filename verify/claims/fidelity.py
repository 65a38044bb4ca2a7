"""Claim 1: how close each estimator is to the exact quantities of its step, over a map of (t, β2, n) and variations.

The claim (arXiv 2602.00329): the Linearized Ghost Approximation reaches Pearson R > 0.99 with the exact fixed-state
marginal utilities, and In-Run Data Shapley's formula for SGD about 0.11.

The oracle computes the exact quantities with the loss itself: `first` = U({i}) − U(∅), the paper's; `last` =
U(B) − U(B∖{i}); and the Shapley value of U, from all coalitions for up to `counted` samples and by antithetic
permutations beyond. A sampled Shapley value is noisy; a perfect estimator's R with it is about √(1 − noise).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from adamshap.reference.contract import Adam, Array, Step
from adamshap.reference.game import exact_game, sampled_shapley_values, shapley_values
from adamshap.verify.claims import data, plots
from adamshap.verify.claims.section import Section, Table
from adamshap.verify.claims.statistics import Record, distinct, pearson, select, spearman, spread
from adamshap.verify.claims.stepping import (
    ESTIMATORS,
    LINEARIZED,
    RANDOM_ORDER,
    SECANT,
    SGD,
    estimates_from,
    label,
    steps,
)

NAME = "fidelity"
TITLE = "Fidelity: estimators against the exact marginals of a step"
CLAIM = (
    "The linearised ghost approximation reaches Pearson R > 0.99 with the exact fixed-state marginals; SGD's formula"
    " reaches about 0.11."
)
TRUTHS = ("first", "last", "shapley")
BASE = "base run of the map"


@dataclass(frozen=True)
class Setting:
    """A training run whose steps are examined; `variant` names its difference from the map's runs."""

    variant: str = BASE
    task: str = "digits"
    hidden: tuple[int, ...] = (32,)
    n: int = 8
    adam: Adam = field(default_factory=Adam)


@dataclass(frozen=True)
class Settings:
    """The runs, the steps to examine, and the computation of the Shapley values."""

    seeds: int
    map_times: tuple[int, ...]
    map_sizes: tuple[int, ...]
    map_beta2: tuple[float, ...]
    scan_times: tuple[int, ...]
    scan: bool = True
    counted: int = 8
    evaluations: int = 1024
    train: int = 1200
    valid: int = 60


FULL = Settings(5, (1, 2, 3, 5, 10, 30, 100), (4, 8, 64), (0.0, 0.9, 0.99, 0.999), (1, 3, 10, 100))
QUICK = Settings(5, (1, 3, 10, 100), (4, 8, 32), (0.9, 0.999), (), scan=False, evaluations=256)


def settings_of_the_map(settings: Settings) -> list[Setting]:
    """Return the runs of the map: a digits network with each batch size and β2."""
    return [Setting(n=n, adam=Adam(betas=(0.9, beta2))) for n in settings.map_sizes for beta2 in settings.map_beta2]


def settings_of_the_scan() -> list[Setting]:
    """Return variations of the map's run with n = 8 and β2 = 0.999, each in one setting."""
    base = Setting()
    changed = [
        *(replace(base, variant=f"η = {lr:g}", adam=Adam(lr=lr)) for lr in (1e-4, 1e-2, 5e-2)),
        *(replace(base, variant=f"ε = {eps:g}", adam=Adam(eps=eps)) for eps in (1e-12, 1e-4, 1e-2)),
        *(replace(base, variant=f"β1 = {beta1:g}", adam=Adam(betas=(beta1, 0.999))) for beta1 in (0.0, 0.99)),
        replace(base, variant="linear", hidden=()),
        replace(base, variant="64-64-64", hidden=(64, 64, 64)),
        *(
            replace(base, variant=task.replace("_", " "), task=task)
            for task in ("breast_cancer", "wine", "diabetes", "topics", "characters")
        ),
    ]
    return [base, *changed]


def measure(settings: Settings, seed: int) -> list[Record]:
    """Return R of every estimator with every exact quantity, at the requested steps, for the runs with `seed`."""
    records: list[Record] = []
    for part, runs, times in (
        ("map", settings_of_the_map(settings), settings.map_times),
        ("scan", settings_of_the_scan() if settings.scan else [], settings.scan_times),
    ):
        for run in runs:
            records += [{"part": part, **record} for record in _along(run, times, settings, seed)]
    return records


def _along(run: Setting, times: Sequence[int], settings: Settings, seed: int) -> Iterator[Record]:
    task = data.load(run.task, seed, train=settings.train, valid=settings.valid, test=1)
    epochs = -(-max(times) * run.n // task.train.n) + 1
    walk = steps(task.network(run.hidden), run.adam, task.train, task.valid, batch_size=run.n, epochs=epochs, seed=seed)
    for _, step, x, g in walk:
        t = step.state.step + 1
        if t in times:
            exact, noise = truths(step, settings, seed)
            estimates = estimates_from(step, x, g, ESTIMATORS)
            for estimator, values in estimates.items():
                for truth, wanted in exact.items():
                    yield {
                        "variant": run.variant,
                        "beta2": run.adam.betas[1],
                        "n": step.n,
                        "t": t,
                        "seed": seed,
                        "estimator": estimator,
                        "truth": truth,
                        "pearson": pearson(values, wanted),
                        "spearman": spearman(values, wanted),
                        "noise": noise if truth == "shapley" else 0.0,
                    }
        if t >= max(times):
            return


def truths(step: Step, settings: Settings, seed: int) -> tuple[dict[str, Array], float]:
    """Return the step's exact quantities, and the share of sampling noise in the Shapley values' variance."""
    game, n = exact_game(step), step.n
    everyone = np.ones(n, bool)
    empty, total = game(~everyone), game(everyone)
    first = np.array([game(alone) for alone in np.eye(n, dtype=bool)]) - empty
    last = total - np.array([game(~alone) for alone in np.eye(n, dtype=bool)])
    noise = 0.0
    if n <= settings.counted:
        shapley = shapley_values(game, n)
    else:
        permutations = 2 * max(2, settings.evaluations // (2 * n))
        shapley, error = sampled_shapley_values(game, n, permutations=permutations, seed=seed)
        noise = float(np.mean(error**2) / np.var(shapley))
    return {"first": first, "last": last, "shapley": shapley}, noise


# --- presentation ----------------------------------------------------------------------------------------------------


def section(settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    chart = select(records, part="map")
    figures = [
        (
            f"map-{truth}",
            f"Mean Pearson R with `{truth}` over {settings.seeds} seeds; rows are estimators, columns batch sizes.",
            plots.heat_maps(
                chart,
                truth,
                [label(estimator) for estimator in (SGD, LINEARIZED, SECANT, RANDOM_ORDER)],
            ),
        )
        for truth in ("first", "shapley")
    ]
    tables = [_along_the_run(chart, truth) for truth in TRUTHS]
    tables += [_worst(chart, truth) for truth in ("first", "shapley")]
    if settings.scan:
        tables += [_scan_table(select(records, part="scan"), truth) for truth in ("first", "shapley")]
    return Section(NAME, TITLE, CLAIM, _findings(records), tables, figures)


def _mean(records: Sequence[Record], key: str = "pearson") -> str:
    return str(spread(record[key] for record in records))


def _along_the_run(chart: Sequence[Record], truth: str) -> Table:
    n, beta2 = max(distinct(chart, "n")), max(distinct(chart, "beta2"))
    rows = select(chart, truth=truth, n=n, beta2=beta2)
    times = distinct(rows, "t")
    noise = spread(record["noise"] for record in rows)
    note = f" Sampling noise is {noise.mean:.0e} of the variance, {noise.greatest:.0e} at worst." if noise.mean else ""
    return Table(
        f"Pearson R with `{truth}` along a run (digits, 64-32-10, n = {n}, β2 = {beta2:g}).{note}",
        ["estimator", *(f"t = {t}" for t in times)],
        [
            [f"`{estimator}`", *(_mean(select(rows, estimator=estimator, t=t)) for t in times)]
            for estimator in distinct(rows, "estimator")
        ],
    )


def _worst(chart: Sequence[Record], truth: str) -> Table:
    """Return a table, by batch size and β2, of the step from which the mean R stays above 0.99."""
    keys = [(n, beta2) for n in distinct(chart, "n") for beta2 in distinct(chart, "beta2")]

    def reached(estimator: str, n: int, beta2: float) -> str:
        rows = select(chart, truth=truth, estimator=estimator, n=n, beta2=beta2)
        good = [(t, spread(r["pearson"] for r in select(rows, t=t)).mean > 0.99) for t in distinct(rows, "t")]
        since = [t for place, (t, _) in enumerate(good) if all(is_good for _, is_good in good[place:])]
        return f"t ≥ {since[0]}" if since else "–"

    return Table(
        f"First examined step from which the mean R with `{truth}` stays above 0.99 (– : none).",
        ["estimator", *(f"n = {n}, β2 = {beta2:g}" for n, beta2 in keys)],
        [
            [f"`{estimator}`", *(reached(estimator, n, beta2) for n, beta2 in keys)]
            for estimator in distinct(chart, "estimator")
        ],
    )


def _scan_table(scan: Sequence[Record], truth: str) -> Table:
    shown = [label(estimator) for estimator in (SGD, LINEARIZED, RANDOM_ORDER)]
    times = distinct(scan, "t")
    return Table(
        f"Pearson R with `{truth}` when one setting changes (n = 8, β2 = 0.999).",
        ["run", *(f"`{estimator}`, t = {t}" for estimator in shown for t in times)],
        [
            [
                variant,
                *(
                    _mean(select(scan, truth=truth, variant=variant, estimator=estimator, t=t))
                    for estimator in shown
                    for t in times
                ),
            ]
            for variant in distinct(scan, "variant")
        ],
    )


def _findings(records: Sequence[Record]) -> list[str]:
    lines = []
    for estimator, truth in ((LINEARIZED, "first"), (RANDOM_ORDER, "shapley"), (SGD, "first")):
        chart = select(records, part="map", estimator=label(estimator), truth=truth)
        cells = {
            (n, beta2, t): spread(r["pearson"] for r in select(chart, n=n, beta2=beta2, t=t)).mean
            for n in distinct(chart, "n")
            for beta2 in distinct(chart, "beta2")
            for t in distinct(chart, "t")
        }
        good = {cell: r for cell, r in cells.items() if cell[1] > 0}
        worst = min(good, key=lambda cell: good[cell])
        above = sum(r > 0.99 for r in good.values())
        lines.append(
            f"`{label(estimator)}` against `{truth}`: mean R above 0.99 in {above} of {len(good)} cells of the map with"
            f" β2 > 0; the lowest is {good[worst]:.2f}, at n = {worst[0]}, β2 = {worst[1]:g}, t = {worst[2]}."
        )
        without = [r for cell, r in cells.items() if cell[1] == 0 and cell[2] > 1]
        if without:
            lines[-1] += f" With β2 = 0 and t > 1 the mean R is from {min(without):.2f} to {max(without):.2f}."
    return lines
