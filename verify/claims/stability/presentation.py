"""The study's section of the page: every table has a column for each data set, unless it compares other things."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adamshap.verify.claims import plots
from adamshap.verify.claims.section import Section, Table
from adamshap.verify.claims.stability.experiment import AVERAGED, CARRY, GROUPS, TOP
from adamshap.verify.claims.stability.runs import SCORES
from adamshap.verify.claims.stability.settings import Settings
from adamshap.verify.claims.stability.weightings import SUM, UNIT
from adamshap.verify.claims.statistics import Record, Spread, distinct, select, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADAM, SGD = SCORES
MAIN = ((ADAM, SUM), (ADAM, UNIT), (SGD, SUM), (SGD, UNIT))


def section(settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    from adamshap.verify.claims import stability

    seeds, first, halves, left_out, flips, variants, noise = (
        select(records, part=part)
        for part in ("seeds", "first batch", "halves", "one left out", "flips", "variants", "noise")
    )
    tables = [*_weighting_tables(seeds, first, halves), *_agreement_tables(seeds)]
    tables.append(_ranked(halves, select(noise, truth="halves"), "spearman", _caption_of_halves(settings)))
    if left_out:
        tables.append(
            _ranked(left_out, select(noise, truth="one left out"), "spearman", _caption_of_left_out(settings))
        )
    if flips:
        caption = f"ROC AUC of a low value for a flipped label ({settings.flipped:.0%} flipped)."
        tables.append(_ranked(flips, [], "auc", caption))
    if variants:
        tables += [_variant_table(select(variants, task=task), task) for task in distinct(variants, "task")]
    figures = [
        ("truth", "Linear datamodeling score, one run and means of five, and the best baseline.", _truth_plot(halves)),
        ("runs", "Overlap of the lists of highest values by the number of runs averaged.", _runs_plot(seeds)),
    ]
    found = _findings(settings, seeds, first, halves, left_out, flips, noise)
    return Section(stability.NAME, stability.TITLE, stability.CLAIM, found, tables, figures)


def _name(score: str, weighting: str, runs: int | None = None) -> str:
    """Return the name of a score in tables."""
    name = "`carry`" if score == CARRY else f"{score} {weighting}".rstrip()
    return name if not runs or runs == 1 else f"{name} (mean of {runs})"


def _mean(records: Sequence[Record], key: str, **wanted: object) -> Spread:
    """Return the spread over splits of the mean over what else is in the records of a split."""
    chosen = select(records, **wanted)
    return spread(spread(r[key] for r in select(chosen, seed=seed)).mean for seed in distinct(chosen, "seed"))


Row = tuple[str, Sequence[Record], str]
"""A row's name, its records of all data sets, and the key of its values."""


def _by_task(caption: str, rows: Sequence[Row], tasks: Sequence[str], corner: str = "score") -> Table:
    """Return a table with a column for each data set."""
    cells = [[name, *(str(_mean(chosen, key, task=task)) for task in tasks)] for name, chosen, key in rows]
    return Table(caption, [corner, *tasks], cells)


# --- weightings ------------------------------------------------------------------------------------------------------


def _weighting_tables(seeds: Sequence[Record], first: Sequence[Record], halves: Sequence[Record]) -> list[Table]:
    """Return tables whose rows are weightings."""
    both = select(seeds, varies="both")
    five = f"means of {AVERAGED} runs"
    wanted = [
        ("Spearman of two runs that differ in initialisation and order.", both, "spearman", {"runs": 1}),
        (f"Overlap of the highest 50 (at most a tenth of the samples) of two {five}.", both, "top", {"runs": AVERAGED}),
        (f"How many of the highest {TOP} of a run are from its first batch.", first, "in_top", {}),
        ("Linear datamodeling score of one run.", halves, "spearman", {"runs": 1}),
        (f"Linear datamodeling score of {five}.", halves, "spearman", {"runs": AVERAGED}),
    ]
    return [_weighting_table(caption, rows, key, only) for caption, rows, key, only in wanted if select(rows, **only)]


def _weighting_table(caption: str, records: Sequence[Record], key: str, only: dict[str, int]) -> Table:
    records = [r for r in select(records, **only) if r["score"] in SCORES]
    rows = [
        (_name(score, weighting), select(records, score=score, weighting=weighting), key)
        for score in SCORES
        for weighting in distinct(select(records, score=score), "weighting")
    ]
    if key == "in_top":
        rows.append(("by chance", records, "chance"))
    return _by_task(caption, rows, distinct(records, "task"))


def _agreement_tables(seeds: Sequence[Record]) -> list[Table]:
    """Return tables of what differs between runs, and of the number of runs averaged."""
    alone, both = select(seeds, runs=1), select(seeds, varies="both")
    varied = [
        (
            f"{_name(score, weighting)}; {varies}",
            select(alone, score=score, weighting=weighting, varies=varies),
            "spearman",
        )
        for score, weighting in MAIN
        for varies in distinct(alone, "varies")
    ]
    tasks = distinct(seeds, "task")
    averaged = [
        [
            _name(score, weighting),
            "one run" if runs == 1 else f"means of {runs}",
            *(_triple(select(both, task=task, score=score, weighting=weighting, runs=runs)) for task in tasks),
        ]
        for score, weighting in MAIN
        for runs in GROUPS
    ]
    return [
        _by_task("Spearman of two runs, by what differs between them.", varied, tasks, "score; what differs"),
        Table(
            "Agreement by the number of runs averaged: Spearman / overlap of the highest 50 / of the lowest 50 (means"
            " over the splits).",
            ["score", "runs", *tasks],
            averaged,
        ),
    ]


def _triple(records: Sequence[Record]) -> str:
    if not records:
        return "–"
    return " / ".join(str(_mean(records, key)).split(" ")[0] for key in ("spearman", "top", "bottom"))


# --- truths and baselines --------------------------------------------------------------------------------------------


def _caption_of_halves(settings: Settings) -> str:
    least = min(case.halves for case in settings.cases)
    return (
        "Linear datamodeling score: Spearman of the sum of the scores over a random half with minus the validation"
        f" loss after training on that half; {least} or more halves, each trained several times. The ceiling is the"
        " root of the reliability of the mean of those losses."
    )


def _caption_of_left_out(settings: Settings) -> str:
    most = max(case.left_out for case in settings.cases)
    return (
        f"Spearman with leaving one sample out, for at most {most} samples; each is the mean over several"
        " initialisations and orders, the same with and without the sample."
    )


def _ranked(records: Sequence[Record], noise: Sequence[Record], key: str, caption: str) -> Table:
    """Return the table of the main scores, `carry` and the baselines, and the ceiling."""
    rows: list[Row] = [
        (_name(*one), select(records, score=one[0], weighting=one[1], runs=one[2]), key) for one in _shown(records)
    ]
    if noise:
        rows.append(("ceiling", noise, "ceiling"))
    return _by_task(caption, rows, distinct(records, "task"))


def _shown(records: Sequence[Record]) -> list[tuple[str, str, int]]:
    """Return the main scores by one and by several runs, then all that are no weighting of a score."""
    every = list(dict.fromkeys((r["score"], r["weighting"], r["runs"]) for r in records))
    return [one for one in every if one[:2] in MAIN] + [one for one in every if one[0] not in SCORES]


def _baselines(records: Sequence[Record]) -> list[tuple[str, str, int]]:
    return [one for one in _shown(records) if one[0] not in (*SCORES, CARRY)]


def _wins(records: Sequence[Record]) -> str:
    """Return on how many splits of all data sets Adam's scores agree better with a truth than SGD's and baselines."""
    unit: list[bool] = []
    plain: list[bool] = []
    best: list[bool] = []
    for task in distinct(records, "task"):
        for seed in distinct(select(records, task=task), "seed"):
            here = select(records, task=task, seed=seed)
            own, sums, sgd, sgd_sums = (
                _mean(here, "spearman", score=score, weighting=weighting, runs=AVERAGED).mean
                for score, weighting in ((ADAM, UNIT), (ADAM, SUM), (SGD, UNIT), (SGD, SUM))
            )
            unit.append(own > sgd)
            plain.append(sums > sgd_sums)
            best.append(own > _best_baseline(here, "spearman", task)[1].mean)
    return (
        f"means of {AVERAGED} runs: with steps at unit size, Adam agrees better than SGD on {sum(unit)} of"
        f" {len(unit)} splits of the data sets, and better than the best baseline on {sum(best)}; with plain sums"
        f" better than SGD on {sum(plain)}"
    )


def _best_baseline(records: Sequence[Record], key: str, task: str) -> tuple[str, Spread]:
    """Return the name and the values of the baseline with the best mean on `task`."""
    of_task = select(records, task=task)
    found = {
        _name(*one): _mean(select(of_task, score=one[0], weighting=one[1], runs=one[2]), key)
        for one in _baselines(of_task)
    }
    return max(found.items(), key=lambda pair: pair[1].mean)


# --- other training --------------------------------------------------------------------------------------------------


def _variant_table(variants: Sequence[Record], task: str) -> Table:
    rows = []
    for variant in distinct(variants, "variant"):
        chosen = select(variants, variant=variant)
        for score, weighting in dict.fromkeys((r["score"], r["weighting"]) for r in chosen):
            cells = select(chosen, score=score, weighting=weighting)
            keys = ("spearman", "top", "bottom", "halves", "halves_of_mean", "ceiling")
            rows.append([variant, _name(score, weighting), *(str(_mean(cells, key)) for key in keys)])
    return Table(
        f"{task}: one setting changed, with halves trained alike. Agreement is that of two runs; the last columns are"
        " the datamodeling scores of one run and of the mean of all, and their ceiling.",
        ["change", "score", "Spearman", "highest 50", "lowest 50", "halves, one run", "halves, mean", "ceiling"],
        rows,
    )


# --- figures and sentences -------------------------------------------------------------------------------------------


def _truth_plot(halves: Sequence[Record]) -> "Figure":
    tasks = distinct(halves, "task")
    figure, axes = plots.blank(6.5, 0.9 * len(tasks) + 1)
    shown = [(ADAM, SUM, 1), (ADAM, UNIT, 1), (ADAM, UNIT, AVERAGED), (SGD, UNIT, AVERAGED)]
    groups = {
        task: {
            _name(*one): _mean(halves, "spearman", task=task, score=one[0], weighting=one[1], runs=one[2])
            for one in shown
        }
        | {"best baseline": _best_baseline(halves, "spearman", task)[1]}
        for task in tasks
    }
    plots.bars(axes[0, 0], groups)
    axes[0, 0].set_xlabel("linear datamodeling score, mean ± sd over splits")
    plots.legend(figure, axes[0, 0], 3)
    return figure


def _runs_plot(seeds: Sequence[Record]) -> "Figure":
    tasks = distinct(seeds, "task")[:4]
    figure, axes = plots.blank(2.1 * len(tasks) + 0.6, 2.9, 1, len(tasks), sharey=True)
    both = select(seeds, varies="both")
    for axis, task in zip(axes[0], tasks, strict=True):
        series = {}
        for score, weighting in MAIN:
            chosen = select(both, task=task, score=score, weighting=weighting)
            series[_name(score, weighting)] = {k: _mean(chosen, "top", runs=k) for k in distinct(chosen, "runs")}
        plots.lines(axis, series)
        axis.set_title(task, fontsize=9)
        axis.set_xticks(GROUPS)
        axis.set_xlabel("runs averaged")
    axes[0, 0].set_ylabel("overlap of the highest 50")
    plots.legend(figure, axes[0, 0])
    return figure


def _findings(
    settings: Settings,
    seeds: Sequence[Record],
    first: Sequence[Record],
    halves: Sequence[Record],
    left_out: Sequence[Record],
    flips: Sequence[Record],
    noise: Sequence[Record],
) -> list[str]:
    lines = []
    both = select(seeds, varies="both", score=ADAM)
    for task in distinct(both, "task"):
        chosen = select(both, task=task)
        parts = [
            f"{'one run' if runs == 1 else f'means of {runs}'} {_triple(select(chosen, weighting=UNIT, runs=runs))}"
            f" ({_triple(select(chosen, weighting=SUM, runs=runs))})"
            for runs in (1, 3, AVERAGED)
            if select(chosen, runs=runs)
        ]
        in_top, of_sum = (_mean(first, "in_top", task=task, score=ADAM, weighting=w).mean for w in (UNIT, SUM))
        chance = _mean(first, "chance", task=task, score=ADAM, weighting=UNIT).mean
        lines.append(
            f"{task}: Spearman / overlap of the highest / of the lowest {settings.top} with steps at unit size (in"
            f" brackets with plain sums): {', '.join(parts)}. Of the highest {TOP}, {in_top:.1f} ({of_sum:.1f}) are"
            f" from the first batch; chance would put {chance:.1f}."
        )
    for task in distinct(halves, "task"):
        chosen = select(halves, task=task, runs=AVERAGED)
        cells = [f"{_name(*pair)} {_mean(chosen, 'spearman', score=pair[0], weighting=pair[1])}" for pair in MAIN]
        best = _best_baseline(halves, "spearman", task)
        top = _mean(noise, "ceiling", truth="halves", task=task)
        lines.append(
            f"{task}, linear datamodeling score of means of {AVERAGED} runs: {', '.join(cells)}; best baseline:"
            f" {best[0]} {best[1]}; ceiling {top}."
        )
    lines.append(f"Linear datamodeling score, {_wins(halves)}.")
    if left_out:
        lines.append(f"Leaving one sample out, {_wins(left_out)}.")
    for task in distinct(flips, "task"):
        chosen = select(flips, task=task)
        own = [str(_mean(chosen, "auc", score=ADAM, weighting=w, runs=AVERAGED)) for w in (UNIT, SUM)]
        best = _best_baseline(flips, "auc", task)
        lines.append(
            f"{task}, flipped labels: AUC {own[0]} with steps at unit size ({own[1]} with plain sums), means of"
            f" {AVERAGED} runs; best baseline: {best[0]} {best[1]}."
        )
    return lines
