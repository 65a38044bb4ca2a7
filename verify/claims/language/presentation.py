"""The study's section of the page: the protocols side by side, where estimators break, and the slopes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adamshap.reference.contract import SLOPES
from adamshap.verify.claims import plots
from adamshap.verify.claims.language import tables_of_runs
from adamshap.verify.claims.language.exact import (
    FIRST,
    FIRST_1,
    LAST,
    OWN,
    OWN_DATA,
    PAPER,
    PAPER_1,
    SHAPLEY,
    SHAPLEY_HISTORY,
)
from adamshap.verify.claims.language.experiment import (
    BLIND,
    CHANGE,
    EXACT_DATA,
    HISTORY,
    LATER,
    ONE_TERM,
    SEEN,
    SHOWN,
    STEP_MEAN,
    TWO_TERM,
    with_history,
)
from adamshap.verify.claims.language.models import KINDS
from adamshap.verify.claims.language.protocols import POOLED, TOTALS, WITHIN
from adamshap.verify.claims.language.settings import Settings
from adamshap.verify.claims.section import Section, Table
from adamshap.verify.claims.statistics import Record, Spread, distinct, select, spread
from adamshap.verify.claims.stepping import LINEARIZED, RANDOM_ORDER, SGD, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Language models: where the contrast comes from"
CLAIM = (
    "The linearised ghost approximation reaches Pearson R > 0.99 with the exact fixed-state marginals, SGD's formula"
    " about 0.11: by which protocol?"
)
SGD_, LINEAR, ORDER = label(SGD), label(LINEARIZED), label(RANDOM_ORDER)
TRUTHS = (FIRST, LAST, SHAPLEY)
SINCE, ALL = f"t ≥ {LATER}", "t ≥ 1"
KEY = {
    (WITHIN, FIRST, "within steps with `first`"): (SGD_, LINEAR, ORDER),
    (POOLED, PAPER, "pooled over steps with the paper's marginal U({i})"): (
        SGD_,
        LINEAR,
        EXACT_DATA,
        HISTORY,
        with_history(SGD_),
        with_history(LINEAR),
    ),
    (POOLED, FIRST, "pooled over steps with `first`"): (SGD_, LINEAR, ORDER),
}
"""Estimators by protocol, target and caption: the tables that explain the contrast."""
TARGETS = (FIRST, PAPER, PAPER_1, OWN_DATA, OWN, LAST, SHAPLEY, SHAPLEY_HISTORY)
"""The columns of the tables of protocols."""
TARGETS_WITHIN = (FIRST, FIRST_1, OWN_DATA, LAST, SHAPLEY)
"""Their columns within steps, where history is a constant."""
SHOWN_PROTOCOLS = (
    (POOLED, SINCE, "pearson"),
    (POOLED, SINCE, "spearman"),
    (POOLED, ALL, "pearson"),
    (WITHIN, SINCE, "pearson"),
    (TOTALS, SINCE, "pearson"),
    (TOTALS, ALL, "pearson"),
)
"""Protocol, steps and correlation of these tables."""
FEWEST = 5
"""Number of steps below which pooling them or adding them up is not shown."""


def section(name: str, settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    del settings  # the tables show what was measured
    rows = [r for r in select(records, part="protocols") if r["protocol"] == WITHIN or r["steps"] >= FEWEST]
    core = select(rows, change="")
    tables = [_models(records), *_key(rows)]
    tables += [_protocols(core, *shown) for shown in SHOWN_PROTOCOLS]
    tables += [_steps(core, truth) for truth in TRUTHS]
    tables += [*_steps_of_runs(rows), *_kinds(records), *_seen(records), *_slopes(records)]
    tables += tables_of_runs.tables(records)
    figures = [("protocols", _CAPTION, _plot(core))] if core else []
    findings = [*(_findings(rows, core) if core else []), *tables_of_runs.sentences(records)]
    return Section(name, TITLE, CLAIM, findings, [table for table in tables if table.rows], figures)


def _mean(records: Sequence[Record], key: str = "pearson", **wanted: object) -> Spread:
    return spread(record[key] for record in select(records, **wanted))


def _models(records: Sequence[Record]) -> Table:
    rows = []
    for run in distinct(select(records, part="model"), "run"):
        model, losses = select(records, part="model", run=run), select(records, part="loss", run=run)
        first, last = min(r["t"] for r in losses), max(r["t"] for r in losses)
        rows.append(
            [
                run,
                f"{model[0]['parameters']:,}",
                str(model[0]["n"]),
                str(model[0]["T"]),
                str(len(model)),
                str(len(distinct(losses, "t"))),
                f"{_mean(losses, 'loss', t=first).mean:.2f} at t = {first}",
                f"{_mean(losses, 'loss', t=last).mean:.2f} at t = {last}",
            ]
        )
    header = ["corpus, depth × width", "parameters", "n", "T", "seeds", "steps examined", "validation loss", "later"]
    return Table("The runs.", header, rows)


def _key(rows: Sequence[Record]) -> list[Table]:
    def cell(run: str, protocol: str, target: str, estimator: str) -> str:
        return _short(_mean(rows, run=run, protocol=protocol, target=target, estimator=estimator, place=SINCE))

    return [
        Table(
            f"Pearson R from t = {LATER} on by run, {caption}. History is ⟨Γ, A(0)⟩, a constant in each step. – : fewer"
            f" than {FEWEST} steps to pool.",
            ["run", *(f"`{estimator}`" for estimator in estimators)],
            [
                [run, *(cell(run, protocol, target, estimator) for estimator in estimators)]
                for run in distinct(rows, "run")
            ],
        )
        for (protocol, target, caption), estimators in KEY.items()
    ]


def _short(found: Spread) -> str:
    """Return a mean, with its deviation only where several seeds gave it."""
    return str(found).split(" ± ")[0] if found.count == 1 else str(found)


def _shown(rows: Sequence[Record]) -> list[str]:
    """Return the estimators of the tables: blind ones first, and few of those whose Γ is at another place."""
    hidden = ("sgd + midpoint", "random_order + start", "linearized + midpoint, ", "linearized + midpoint + ")
    front = (*BLIND, EXACT_DATA)
    names = [name for name in distinct(rows, "estimator") if name not in front and not name.startswith(hidden)]
    return [*(name for name in front if select(rows, estimator=name)), *names]


def _protocols(core: Sequence[Record], protocol: str, place: str, key: str) -> Table:
    chosen = select(core, place=place, protocol=protocol)
    wanted = TARGETS_WITHIN if protocol == WITHIN else TARGETS
    columns = [target for target in wanted if select(chosen, target=target)]

    def cell(estimator: str, target: str) -> str:
        mean = _mean(chosen, key, target=target, estimator=estimator)
        return f"{mean} ({mean.least:.2f} to {mean.greatest:.2f})" if mean.count else "–"

    name = {"pearson": "Pearson's R", "spearman": "Spearman's correlation"}[key]
    how = {WITHIN: "within steps", POOLED: "pooled over steps", TOTALS: "of each sample's total over the steps"}
    return Table(
        f"{name} {how[protocol]} from t = {place.removeprefix('t ≥ ')} on, by target: mean ± sd over models, corpora"
        " and seeds (least to greatest). In square brackets: computed from exact utilities.",
        ["estimator", *columns],
        [[f"`{estimator}`", *(cell(estimator, target) for target in columns)] for estimator in _shown(chosen)],
    )


def _ranges(rows: Sequence[Record]) -> list[str]:
    return [place for place in distinct(rows, "place") if place != ALL and place != SINCE]


def _steps(core: Sequence[Record], truth: str) -> Table:
    chosen = select(core, protocol=WITHIN, target=truth)
    places = _ranges(chosen)

    def cell(estimator: str, place: str) -> str:
        rows = select(chosen, estimator=estimator, place=place)
        return f"{_mean(rows)} ({_mean(rows, 'lowest').least:.2f})"

    return Table(
        f"Pearson R with `{truth}` within steps, by step: mean ± sd over models, corpora and seeds (lowest step).",
        ["estimator", *places],
        [[f"`{name}`", *(cell(name, place) for place in places)] for name in distinct(chosen, "estimator")],
    )


def _steps_of_runs(rows: Sequence[Record]) -> list[Table]:
    chosen = select(rows, protocol=WITHIN, target=FIRST)
    places = _ranges(chosen)
    return [
        Table(
            f"Pearson R of `{name}` with `first` within steps, by run.",
            ["run", *places],
            [
                [run, *(_short(_mean(chosen, run=run, estimator=name, place=place)) for place in places)]
                for run in distinct(chosen, "run")
            ],
        )
        for name in (SGD_, LINEAR, ORDER)
    ]


def _kinds(records: Sequence[Record]) -> list[Table]:
    chosen = select(records, part="kinds", change="")
    names = ["exact", *map(label, SHOWN)]
    tables = []
    for t in distinct(chosen, "t"):
        rows = select(chosen, t=t)
        tables.append(
            Table(
                f"Kinds of layers at t = {t}: share of the variance of `first` and of scores, and R of a kind's scores"
                " with `first` of the step that this kind alone takes.",
                ["kind", *(f"share of {name}" for name in names), *(f"R of {name}" for name in names[1:])],
                [
                    [
                        kind,
                        *(str(_mean(rows, "share", kind=kind, estimator=name)) for name in names),
                        *(str(_mean(rows, kind=kind, estimator=name)) for name in names[1:]),
                    ]
                    for kind in KINDS
                    if select(rows, kind=kind)
                ],
            )
        )
    return tables


def _seen(records: Sequence[Record]) -> list[Table]:
    chosen = [r for r in select(records, part="seen") if "untied" in r["model"]]
    names = (*map(label, SHOWN), CHANGE)
    tables = []
    for run in distinct(chosen, "run"):
        rows = []
        for t in distinct(select(chosen, run=run), "t"):
            for group in SEEN:
                here = select(chosen, run=run, t=t, group=group)
                rows.append(
                    [
                        str(t),
                        group,
                        f"{100 * _mean(here, 'coordinates').mean:.1f} %",
                        f"{100 * _mean(here, 'touched').mean:.1f} %",
                        *(_short(_mean(here, "share", estimator=name)) for name in names),
                        *(_short(_mean(here, "without", estimator=name)) for name in names[1:2]),
                    ]
                )
        tables.append(
            Table(
                f"{run}: coordinates by how often they have had a gradient, their share of all, those of them with a"
                " gradient in this step, their share of the variance of scores, and R with `first` without them.",
                ["t", "gradient before", "coordinates", "with one now", *names, f"R of {names[1]} without"],
                rows,
            )
        )
    return tables


def _slopes(records: Sequence[Record]) -> list[Table]:
    chosen = select(records, part="slopes", change="")
    tables = []
    for t in distinct(chosen, "t"):
        rows = select(chosen, t=t)
        names = [*(f"{slope} + {place}" for slope in SLOPES for place in ("start", "midpoint", "path")), ONE_TERM]
        names += [name for name in distinct(rows, "estimator") if name not in names]
        tables.append(
            Table(
                f"Slopes and places of Γ at t = {t}: Pearson R, mean ± sd over models, corpora and seeds (lowest). In"
                f" brackets: they need every contribution. `{ONE_TERM}` is {TWO_TERM} without its second term.",
                ["estimator", *TRUTHS],
                [
                    [
                        f"`{name}`",
                        *(_with_lowest(rows, target=truth, estimator=name) for truth in TRUTHS),
                    ]
                    for name in names
                ],
            )
        )
    return tables


def _with_lowest(rows: Sequence[Record], target: str, estimator: str) -> str:
    found = _mean(rows, target=target, estimator=estimator)
    return f"{found} ({found.least:.2f})" if found.count else "–"


# --- figure and sentences --------------------------------------------------------------------------------------------

_CAPTION = f"Pearson R by protocol from t = {LATER} on; mean ± sd over models, corpora and seeds."


def _plot(core: Sequence[Record]) -> "Figure":
    figure, axes = plots.blank(6.5, 3.2)
    groups: dict[str, Mapping[str, Spread]] = {}
    for name, protocol, target, history in (
        ("within steps, `first`", WITHIN, FIRST, False),
        ("pooled, `first`", POOLED, FIRST, False),
        ("pooled, U({i})", POOLED, PAPER, True),
        ("pooled, own step", POOLED, OWN, True),
        ("totals, `first`", TOTALS, FIRST, False),
    ):
        rows = select(core, protocol=protocol, target=target, place=SINCE)
        groups[name.replace("`", "")] = {
            "SGD": _mean(rows, estimator=SGD_),
            "linearized": _mean(rows, estimator=with_history(LINEAR) if history else LINEAR),
            "history alone": _mean(rows, estimator=HISTORY),
        }
    plots.bars(axes[0, 0], groups)
    axes[0, 0].set_xlabel("Pearson R (linearized: plus history where the target has it)")
    plots.legend(figure, axes[0, 0], 3)
    return figure


def _findings(rows: Sequence[Record], core: Sequence[Record]) -> list[str]:
    def over(protocol: str, target: str, estimator: str, place: str = SINCE) -> str:
        found = _mean(core, protocol=protocol, target=target, estimator=estimator, place=place)
        return f"{found.mean:.3f} ({found.least:.3f} to {found.greatest:.3f})"

    runs = distinct(core, "run")
    models, corpora = distinct(core, "model"), distinct(core, "corpus")
    lines = [
        f"{len(models)} models on {len(corpora)} corpora ({len(runs)} runs), Pearson R from t = {LATER} on, mean (least"
        " to greatest):",
        f"within steps with `first`: `{SGD_}` {over(WITHIN, FIRST, SGD_)}, `{LINEAR}` {over(WITHIN, FIRST, LINEAR)},"
        f" `{ORDER}` {over(WITHIN, FIRST, ORDER)};",
        f"pooled with U({{i}}), history inside: `{SGD_}` {over(POOLED, PAPER, SGD_)}, `{LINEAR}`"
        f" {over(POOLED, PAPER, LINEAR)}, the exact `{FIRST}` {over(POOLED, PAPER, EXACT_DATA)}, `{HISTORY}`"
        f" {over(POOLED, PAPER, HISTORY)}, `{with_history(SGD_)}`"
        f" {over(POOLED, PAPER, with_history(SGD_))}, `{with_history(LINEAR)}`"
        f" {over(POOLED, PAPER, with_history(LINEAR))};",
        f"pooled with `first`, no history: `{SGD_}` {over(POOLED, FIRST, SGD_)}, `{LINEAR}`"
        f" {over(POOLED, FIRST, LINEAR)}, `{STEP_MEAN}` {over(POOLED, FIRST, STEP_MEAN)};",
        f"pooled with each sample's own step, history inside: `{SGD_}` {over(POOLED, OWN, SGD_)}, `{HISTORY}`"
        f" {over(POOLED, OWN, HISTORY)};",
    ]
    if select(core, protocol=TOTALS):
        lines.append(
            f"totals with those of `first` from t = 1 on: `{SGD_}` {over(TOTALS, FIRST, SGD_, ALL)}, `{LINEAR}`"
            f" {over(TOTALS, FIRST, LINEAR, ALL)}, `{ORDER}` {over(TOTALS, FIRST, ORDER, ALL)}."
        )
    pooled = select(rows, place=SINCE, protocol=POOLED, target=PAPER)
    pairs = [
        tuple(
            _mean(pooled, run=run, estimator=name).mean for name in (HISTORY, with_history(SGD_), with_history(LINEAR))
        )
        for run in distinct(pooled, "run")
    ]
    lines.append(
        f"Of all {len(pairs)} runs, pooled with U({{i}}) R is above 0.95 in"
        f" {sum(r[0] > 0.95 for r in pairs)} for `{HISTORY}`, in {sum(r[1] > 0.95 for r in pairs)} for"
        f" `{with_history(SGD_)}` and in {sum(r[2] > 0.95 for r in pairs)} for `{with_history(LINEAR)}`."
    )
    return lines
