"""Claim 4: uses of the scores: detecting flipped labels, pruning, and finding a source in mixed data.

The claim (arXiv 2602.00329): Adam-aware scores do better downstream than SGD's formula.

Two analyses explain why one score detects flipped labels better than another. The first takes totals over the steps
from k on, and up to k. The second factors a step's scores into a pattern over its samples and a size (root mean square
over the batch), which is the step's weight in the run, and combines the patterns of one score with the sizes of the
other. If the order of the AUCs follows the sizes, the scores differ in their weighting of the steps, not in their
ranking of the samples.

The classes may explain why pruning by totals costs accuracy. A sample moves the outputs towards its class, which helps
if the class is more common among the validation samples than the network predicts. So a class's mean total is
correlated with its share of the validation samples minus its share of the training labels; the share of the totals'
variance between classes shows how much this matters; and pruning within each class removes the effect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from adamshap.reference.contract import Adam, Array, Batch, Network
from adamshap.verify.claims import data, plots
from adamshap.verify.claims.section import Section, Table
from adamshap.verify.claims.statistics import Record, auc, distinct, pearson, select, spread
from adamshap.verify.claims.stepping import (
    FROZEN,
    LINEARIZED,
    RANDOM_ORDER,
    SECANT,
    SGD,
    Estimator,
    Trace,
    accuracy,
    final_params,
    label,
    summed,
    trace,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "downstream"
TITLE = "Downstream: flipped labels, pruning, sources"
CLAIM = "Adam-aware scores find harmful and helpful samples better than SGD's formula."
SCORES: tuple[Estimator, ...] = (SGD, FROZEN, LINEARIZED, SECANT, RANDOM_ORDER)
RANDOM = "random"
WITHIN = ", within classes"
STEP_CHOICES = ("all steps", "each step's size removed")


@dataclass(frozen=True)
class Settings:
    """Amount of data, length of the runs, and the steps and shares to test."""

    seeds: int
    flip_tasks: tuple[str, ...] = ("digits", "topics", "breast_cancer", "wine")
    prune_task: str = "digits"
    source_tasks: tuple[str, ...] = ("digits", "topics", "characters")
    train: int = 1000
    valid: int = 100
    epochs: int = 5
    batch_size: int = 32
    hidden: tuple[int, ...] = (32,)
    adam: Adam = field(default_factory=lambda: Adam(lr=3e-3))
    flipped: float = 0.1
    cuts: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    sources: int = 2  # number of sources used as validation data in turn
    source_epochs: int = 2
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    retrain_epochs: int = 15
    orders: int = 1  # number of retrainings of each pruned set, with different initialisations and orders


FULL = Settings(5)
QUICK = Settings(
    5,
    ("digits",),
    source_tasks=("digits",),
    train=400,
    epochs=3,
    sources=1,
    shares=(0.2, 0.5),
    retrain_epochs=5,
)


def measure(settings: Settings, seed: int) -> list[Record]:
    """Return AUCs, accuracies after pruning, and source AUCs of the runs with `seed`."""
    records: list[Record] = []
    for name in settings.flip_tasks:
        records += _flips(name, settings, seed)
    records += _pruning(settings, seed)
    for name in settings.source_tasks:
        records += _sources(name, settings, seed)
    return records


def flip(y: Array, classes: int, share: float, seed: int) -> tuple[Array, Array]:
    """Return the mask of flipped labels, and all labels; a flipped label is drawn uniformly from the other classes."""
    generator = np.random.default_rng(seed)
    flipped = np.zeros(len(y), bool)
    flipped[generator.permutation(len(y))[: round(share * len(y))]] = True
    labels = y.copy()
    labels[flipped] = (y[flipped] + generator.integers(1, classes, flipped.sum())) % classes
    return flipped, labels


def _trace(net: Network, train: Batch, valid: Batch, settings: Settings, seed: int, epochs: int) -> Trace:
    return trace(
        net,
        settings.adam,
        train,
        valid,
        SCORES,
        batch_size=settings.batch_size,
        epochs=epochs,
        seed=seed,
    )


# --- flipped labels --------------------------------------------------------------------------------------------------


def _flips(name: str, settings: Settings, seed: int) -> list[Record]:
    task = data.load(name, seed, train=settings.train, valid=settings.valid)
    net = task.network(settings.hidden)
    flipped, labels = flip(task.train.y, task.outputs, settings.flipped, seed)
    run = _trace(net, Batch(task.train.x, labels), task.valid, settings, seed, settings.epochs)
    common = {"part": "flips", "task": name, "seed": seed}
    records = [
        {**common, "estimator": estimator, "choice": choice, "cut": cut, "auc": auc(-total, flipped)}
        for estimator in run.scores
        for choice, cut, total in step_choices(run, estimator, settings.cuts)
    ]
    sgd, own = label(SGD), label(RANDOM_ORDER)
    for pattern, size in ((sgd, own), (own, sgd)):
        mixed = summed(run.index, with_sizes_of(run.scores[pattern], run.scores[size]), run.count)
        name_ = f"pattern of {pattern}, sizes of {size}"
        records.append({**common, "estimator": name_, "choice": "mixed", "cut": 0, "auc": auc(-mixed, flipped)})
    records += [
        {**common, "estimator": estimator, "choice": "weights", "cut": cut, "share": share}
        for estimator in (sgd, own)
        for cut, share in early_share(run.scores[estimator], settings.cuts).items()
    ]
    return records


def step_choices(run: Trace, estimator: str, cuts: Sequence[int]) -> list[tuple[str, int, Array]]:
    """Return (choice, k, totals) for all steps, steps from k on, steps up to k, and steps normalised to size 1."""
    choices = [("all steps", 0, run.total(estimator))]
    choices += [("without the first k", k, run.total(estimator, first=k)) for k in cuts if k < len(run.index)]
    choices += [("the first k only", k, run.total(estimator, last=k)) for k in cuts if k < len(run.index)]
    even = [score / size for score in run.scores[estimator] if (size := root_mean_square(score))]
    kept = [index for index, score in zip(run.index, run.scores[estimator], strict=True) if root_mean_square(score)]
    return [*choices, ("each step's size removed", 0, summed(kept, even, run.count))]


def root_mean_square(score: Array) -> float:
    """Return the root mean square of a step's scores, its size."""
    return float(np.sqrt(np.mean(score**2)))


def with_sizes_of(patterns: Sequence[Array], sizes: Sequence[Array]) -> list[Array]:
    """Return each step's scores in `patterns`, scaled to the size of the same step in `sizes`."""
    return [
        pattern * (root_mean_square(size) / root_mean_square(pattern)) if root_mean_square(pattern) else pattern
        for pattern, size in zip(patterns, sizes, strict=True)
    ]


def early_share(scores: Sequence[Array], cuts: Sequence[int]) -> Mapping[int, float]:
    """Return, by k, the share of the first k steps in Σ score² over all samples and steps."""
    squares = np.array([np.sum(score**2) for score in scores])
    return {k: float(squares[:k].sum() / squares.sum()) for k in cuts if k < len(scores)}


# --- pruning ---------------------------------------------------------------------------------------------------------


def _pruning(settings: Settings, seed: int) -> list[Record]:
    """Prune the lowest-scored share of a set with flipped labels, retrain, and test."""
    task = data.load(settings.prune_task, seed, train=settings.train, valid=settings.valid, test=600)
    net = task.network(settings.hidden)
    _, labels = flip(task.train.y, task.outputs, settings.flipped, seed)
    train = Batch(task.train.x, labels)
    run = _trace(net, train, task.valid, settings, seed, settings.epochs)
    totals = {name: run.total(name) for name in run.scores}
    totals[RANDOM] = np.random.default_rng(seed).random(train.n)
    orders = {name: np.argsort(total) for name, total in totals.items()}
    for name in (label(SGD), label(RANDOM_ORDER), RANDOM):
        orders[name + WITHIN] = np.argsort(rank_within(totals[name], labels))

    def retrained(kept: Array) -> float:
        """Return the mean test accuracy of new runs on the samples `kept`."""
        accuracies = []
        for k in range(settings.orders):
            params = final_params(
                net,
                settings.adam,
                train.take(np.sort(kept)),
                batch_size=settings.batch_size,
                epochs=settings.retrain_epochs,
                seed=1000 * (k + 1) + seed,
            )
            accuracies.append(accuracy(net, params, task.test))
        return float(np.mean(accuracies))

    common = {"part": "pruning", "task": settings.prune_task, "seed": seed}
    untouched = retrained(np.arange(train.n))
    records: list[Record] = [
        {**common, "estimator": name, "share": 0.0, "accuracy": untouched, "smallest": 1.0} for name in orders
    ]
    for share in settings.shares:
        for name, order in orders.items():
            kept = order[round(share * train.n) :]
            left = np.bincount(labels[kept], minlength=task.outputs) / np.bincount(labels, minlength=task.outputs)
            records.append(
                {
                    **common,
                    "estimator": name,
                    "share": share,
                    "accuracy": retrained(kept),
                    "smallest": float(left.min()),
                }
            )
    wanted = np.bincount(task.valid.y, minlength=task.outputs) / task.valid.n
    for name in run.scores:
        means, between = by_class(totals[name], labels, task.outputs)
        lacking = wanted - np.bincount(labels, minlength=task.outputs) / train.n
        records.append(
            common | {"part": "classes", "estimator": name, "pearson": pearson(means, lacking), "between": between}
        )
    return records


def rank_within(totals: Array, classes: Array) -> Array:
    """Return each sample's rank within its class, from 0 to 1, so that pruning takes the same share of each class."""
    ranks = np.empty(len(totals))
    for one in np.unique(classes):
        own = np.flatnonzero(classes == one)
        ranks[own[np.argsort(totals[own])]] = (np.arange(len(own)) + 0.5) / len(own)
    return ranks


def by_class(totals: Array, classes: Array, count: int) -> tuple[Array, float]:
    """Return the mean total of each of `count` classes, and the share of the variance that lies between classes."""
    sizes = np.bincount(classes, minlength=count)
    means = np.bincount(classes, totals, minlength=count) / np.maximum(sizes, 1)
    between = (sizes * (means - totals.mean()) ** 2).sum() / len(totals)
    return means, float(between / totals.var())


# --- sources ---------------------------------------------------------------------------------------------------------


def _sources(name: str, settings: Settings, seed: int) -> list[Record]:
    """Validate on one source at a time, and measure whether its training samples rank first."""
    task = data.load(name, seed, train=settings.train, valid=4 * settings.valid)
    net = task.network(settings.hidden)
    records: list[Record] = []
    sources = [s for s in np.unique(task.source) if (task.valid_source == s).sum() >= 3 and (task.source == s).any()]
    for source in sources[: settings.sources]:
        valid = task.valid.take(task.valid_source == source)
        run = _trace(net, task.train, valid, settings, seed, settings.source_epochs)
        records += [
            {
                "part": "sources",
                "task": name,
                "seed": seed,
                "source": int(source),
                "estimator": estimator,
                "auc": auc(run.total(estimator), task.source == source),
            }
            for estimator in run.scores
        ]
    return records


# --- presentation ----------------------------------------------------------------------------------------------------


def section(settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    flips, pruning, classes, sources = (
        select(records, part=part) for part in ("flips", "pruning", "classes", "sources")
    )
    tables = [_flip_table(flips)]
    tables += [_cut_table(select(flips, task=task), task) for task in distinct(flips, "task")]
    tables += [_weight_table(flips), _prune_table(pruning), _kept_table(pruning), _class_table(classes)]
    tables += [_source_table(sources)]
    figures = [
        ("flips", "AUC for flipped labels from the steps from k on (left), and up to k (right).", _flip_plot(flips)),
        ("pruning", "Test accuracy after retraining without the lowest-scored samples.", _prune_plot(pruning)),
    ]
    return Section(NAME, TITLE, CLAIM, _findings(flips, pruning, classes, sources), tables, figures)


def _title(task: str) -> str:
    return task.replace("_", " ")


def _flip_table(flips: Sequence[Record]) -> Table:
    tasks = distinct(flips, "task")
    rows = []
    for choice in (*STEP_CHOICES, "mixed"):
        chosen = select(flips, choice=choice)
        for estimator in distinct(chosen, "estimator"):
            cells = [
                str(spread(r["auc"] for r in select(chosen, estimator=estimator, task=task, cut=0))) for task in tasks
            ]
            rows.append([choice, estimator, *cells])
    return Table(
        "AUC of a low total for a flipped label (10% flipped). 'Mixed' combines one score's pattern in each step with"
        " the other's size.",
        ["steps", "score", *map(_title, tasks)],
        rows,
    )


def _cut_table(flips: Sequence[Record], task: str) -> Table:
    choices = ("without the first k", "the first k only")
    cuts = [k for k in distinct(flips, "cut") if k]
    rows = []
    for choice in choices:
        for estimator in map(label, SCORES):
            chosen = select(flips, choice=choice, estimator=estimator)
            rows.append(
                [choice, f"`{estimator}`", *(str(spread(r["auc"] for r in select(chosen, cut=k))) for k in cuts)]
            )
    return Table(f"{_title(task)}: AUC by steps.", ["steps", "score", *(f"k = {k}" for k in cuts)], rows)


def _weight_table(flips: Sequence[Record]) -> Table:
    weights = select(flips, choice="weights")
    cuts = distinct(weights, "cut")
    return Table(
        "Share of Σ score² over all samples and steps that the first k steps hold.",
        ["task", "score", *(f"k = {k}" for k in cuts)],
        [
            [
                _title(task),
                f"`{estimator}`",
                *(
                    str(spread(r["share"] for r in select(weights, task=task, estimator=estimator, cut=k)))
                    for k in cuts
                ),
            ]
            for task in distinct(weights, "task")
            for estimator in distinct(weights, "estimator")
        ],
    )


def _prune_table(pruning: Sequence[Record]) -> Table:
    return _by_share(
        pruning,
        "accuracy",
        "Test accuracy after retraining without the lowest-scored share, of all samples or within each class (10%"
        " of the labels are flipped).",
    )


def _kept_table(pruning: Sequence[Record]) -> Table:
    return _by_share(pruning, "smallest", "Remaining share of the class with the smallest remaining share.")


def _by_share(pruning: Sequence[Record], what: str, title: str) -> Table:
    shares = distinct(pruning, "share")
    return Table(
        title,
        ["score", *(f"{share:.0%} pruned" for share in shares)],
        [
            [_quoted(name), *(str(spread(r[what] for r in select(pruning, estimator=name, share=s))) for s in shares)]
            for name in distinct(pruning, "estimator")
        ],
    )


def _quoted(name: str) -> str:
    score, comma, where = name.partition(",")
    return f"`{score}`{comma}{where}"


def _class_table(classes: Sequence[Record]) -> Table:
    return Table(
        "Totals by class: Pearson R of a class's mean total with its share of the validation samples minus that of the"
        " training labels, and the share of the totals' variance that lies between classes.",
        ["score", "R", "between classes"],
        [
            [
                f"`{name}`",
                *(str(spread(r[key] for r in select(classes, estimator=name))) for key in ("pearson", "between")),
            ]
            for name in distinct(classes, "estimator")
        ],
    )


def _source_table(sources: Sequence[Record]) -> Table:
    tasks = distinct(sources, "task")
    return Table(
        "Validation on one class or text at a time: AUC of a high total for the training samples from it.",
        ["score", *map(_title, tasks)],
        [
            [
                f"`{estimator}`",
                *(str(spread(r["auc"] for r in select(sources, estimator=estimator, task=task))) for task in tasks),
            ]
            for estimator in distinct(sources, "estimator")
        ],
    )


def _flip_plot(flips: Sequence[Record]) -> "Figure":
    figure, axes = plots.blank(7.5, 3.2, 1, 2, sharey=True)
    chosen = select(flips, task=distinct(flips, "task")[0])
    for axis, choice in zip(axes[0], ("without the first k", "the first k only"), strict=True):
        rows = select(chosen, choice=choice)
        plots.lines(
            axis,
            {
                estimator: {
                    k: spread(r["auc"] for r in select(rows, estimator=estimator, cut=k)) for k in distinct(rows, "cut")
                }
                for estimator in distinct(rows, "estimator")
            },
            log=True,
        )
        axis.set_title(f"{_title(distinct(flips, 'task')[0])}: {choice}", fontsize=9)
        axis.set_xlabel("k")
    axes[0, 0].set_ylabel("AUC")
    plots.legend(figure, axes[0, 0], 3)
    return figure


def _prune_plot(pruning: Sequence[Record]) -> "Figure":
    figure, axes = plots.blank(6.0, 3.4)
    plots.lines(
        axes[0, 0],
        {
            name: {
                share: spread(r["accuracy"] for r in select(pruning, estimator=name, share=share))
                for share in distinct(pruning, "share")
            }
            for name in distinct(pruning, "estimator")
        },
    )
    axes[0, 0].set_xlabel("share pruned")
    axes[0, 0].set_ylabel("test accuracy")
    plots.legend(figure, axes[0, 0], 3)
    return figure


def _findings(
    flips: Sequence[Record], pruning: Sequence[Record], classes: Sequence[Record], sources: Sequence[Record]
) -> list[str]:
    sgd, own = label(SGD), label(RANDOM_ORDER)
    lines = []
    for task in distinct(flips, "task"):
        chosen = select(flips, task=task)

        def of(choice: str, estimator: str, rows: Sequence[Record] = chosen) -> str:
            return str(spread(r["auc"] for r in select(rows, choice=choice, estimator=estimator, cut=0)))

        lines.append(
            f"Flipped labels, {_title(task)}: AUC {of('all steps', sgd)} by SGD's formula, {of('all steps', own)} by"
            f" `{own}`; with every step's size removed {of(STEP_CHOICES[1], sgd)} and {of(STEP_CHOICES[1], own)};"
            f" SGD's pattern with the sizes of `{own}` {of('mixed', f'pattern of {sgd}, sizes of {own}')}, the reverse"
            f" {of('mixed', f'pattern of {own}, sizes of {sgd}')}."
        )
    half = max(distinct(pruning, "share"))
    best = {
        name: spread(r["accuracy"] for r in select(pruning, estimator=name, share=half))
        for name in distinct(pruning, "estimator")
    }
    lines.append(
        f"Test accuracy with {half:.0%} pruned: "
        + ", ".join(f"{_quoted(name)} {value}" for name, value in best.items())
        + f"; nothing pruned: {spread(r['accuracy'] for r in select(pruning, share=0.0))}."
    )
    for name in (sgd, own):
        chosen = select(classes, estimator=name)
        lines.append(
            f"`{name}`: {spread(r['between'] for r in chosen)} of the variance of totals lies between classes; a"
            " class's mean total and its excess frequency among the validation samples over the training labels have"
            f" R {spread(r['pearson'] for r in chosen)}."
        )
    for task in distinct(sources, "task"):
        pair = [str(spread(r["auc"] for r in select(sources, task=task, estimator=name))) for name in (sgd, own)]
        lines.append(f"Source, {_title(task)}: AUC {pair[0]} by SGD's formula, {pair[1]} by `{own}`.")
    return lines
