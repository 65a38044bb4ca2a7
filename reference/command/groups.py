"""Scores of groups of examples (``--group``), with intervals, and what they say about each group.

Scores add up, so the sum over a group is its share of the fall of the validation loss. Groups of different sizes are
compared by their mean.

An interval needs to say what it varies. That of one run is over *examples*: the group's examples are taken as draws
from the many that its source could have given. It knows nothing of another seed, whose batches and initialisation give
every example another score. That of several runs is over *seeds*: the same examples in other runs.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from adamshap.reference.command.folder import SavedRun
from adamshap.reference.command.spelling import in_one_line
from adamshap.reference.command.spread import CONFIDENCE
from adamshap.reference.contract import Array

# Groups in a table for people: half of them the worst, half the best. JSON has all.
MOST_SHOWN = 20

FAR = 100.0
"""Spreads from here on, in the unit of the means, are shown as whole numbers."""

Over = Literal["examples", "seeds"]
UNCLEAR = "unclear"


@dataclass(frozen=True)
class GroupScore:
    """The scores of one group.

    Parameters
    ----------
    name : str
    examples, harmful : int
        Number of its training examples, and of those with a negative score.
    mean : float
        Mean score of its examples.
    total : float
        Sum of its examples' shares of the fall of the loss.
    low, high : float or None
        Interval of the mean; None where there are too few examples or runs for one.
    others : float or None
        Mean score of all other examples; None without any.
    others_low, others_high : float or None
        Interval of the mean minus that of the others.
    """

    name: str
    examples: int
    harmful: int
    mean: float
    total: float
    low: float | None
    high: float | None
    others: float | None
    others_low: float | None
    others_high: float | None

    @property
    def effect(self) -> str:
        """Whether the group "helps" or "hurts", or neither can be told: "unclear"."""
        return _sign(self.low, self.high, "helps", "hurts")

    @property
    def against_others(self) -> str:
        """Whether the group is "better" or "worse" than the others, or neither can be told: "unclear"."""
        return _sign(self.others_low, self.others_high, "better", "worse")


@dataclass(frozen=True)
class GroupScores:
    """The groups of one column, by their mean score, the lowest first.

    Parameters
    ----------
    column : str
    over : {"examples", "seeds"}
        What the intervals vary.
    runs : int
        Number of runs.
    groups : tuple of GroupScore
    """

    column: str
    over: Over
    runs: int
    groups: tuple[GroupScore, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the content as JSON has it."""
        groups = [
            asdict(group) | {"effect": group.effect, "against_others": group.against_others} for group in self.groups
        ]
        return {
            "column": self.column,
            "interval_over": self.over,
            "confidence": CONFIDENCE,
            "runs": self.runs,
            "groups": groups,
        }


def scores_of_groups(saved: SavedRun) -> GroupScores | None:
    """Return the groups of a run, or None if it has none, or no scores yet."""
    column = saved.config["options"].get("group")
    if column is None or "group" not in saved.columns or not saved.step:
        return None
    each = saved.columns_of_runs
    return over_examples(column, saved.columns) if len(each) < 2 else over_seeds(column, each)


def over_examples(column: str, columns: dict[str, Array]) -> GroupScores:
    """Return the groups of one run, with intervals over their examples.

    Parameters
    ----------
    column : str
        Name of the groups' column.
    columns : dict of arrays (n,)
        ``group`` and ``score``, and ``total`` if shares of the loss's fall differ from ``score``.
    """
    scores = columns["score"]
    members = _members(columns["group"])
    own = [_Sample.of(scores[mask]) for _, mask in members]
    others = [_Sample.of(scores[~mask]) for _, mask in members]
    gaps = [one.minus(other) for one, other in zip(own, others, strict=True)]
    groups = [
        _group(name, columns, mask, other.mean, interval, difference)
        for (name, mask), other, interval, difference in zip(
            members, others, _intervals(own), _intervals(gaps), strict=True
        )
    ]
    return GroupScores(column, "examples", 1, _by_mean(groups))


def over_seeds(column: str, runs: Sequence[dict[str, Array]]) -> GroupScores:
    """Return the groups of several runs on the same examples, with intervals over the runs.

    Parameters
    ----------
    column : str
    runs : sequence of at least two dicts of arrays (n,)
        As `columns` of `over_examples`, with the same ``group`` in each.
    """
    members = _members(runs[0]["group"])
    kept: list[str] = [name for name in ("score", "total") if name in runs[0]]
    average = {name: np.mean([run[name] for run in runs], axis=0) for name in kept}
    means = [np.array([run["score"][mask].mean() for run in runs]) for _, mask in members]
    others = [np.array([_Sample.of(run["score"][~mask]).mean for run in runs]) for _, mask in members]
    own = [_Sample.of(values) for values in means]
    gaps = [_Sample.of(values - rest) for values, rest in zip(means, others, strict=True)]
    groups = [
        _group(name, average, mask, float(rest.mean()), interval, difference)
        for (name, mask), rest, interval, difference in zip(
            members, others, _intervals(own), _intervals(gaps), strict=True
        )
    ]
    return GroupScores(column, "seeds", len(runs), _by_mean(groups))


def group_rows(scores: GroupScores) -> tuple[str, list[str], list[list[str]], list[str]]:
    """Return title, header and cells of the table for people, and the lines below it that say how to read it."""
    groups = shown_groups(scores)
    mean, total = _Unit.of([group.mean for group in groups]), _Unit.of([group.total for group in groups])
    heads = ["group", "examples", f"mean{mean.name}", f"sum{total.name}", "harmful", "effect", "others"]
    rows = [
        [
            in_one_line(group.name),
            str(group.examples),
            _with_spread(group, mean),
            total.shown(group.total, "+"),
            f"{group.harmful / group.examples:.0%}",
            group.effect,
            group.against_others,
        ]
        for group in groups
    ]
    title = f"Groups by {in_one_line(scores.column)}, the worst first"
    if len(groups) < len(scores.groups):
        title += f" ({len(groups)} of {len(scores.groups)})"
    return title, heads, rows, reading_of(scores)


def reading_of(scores: GroupScores) -> list[str]:
    """Return the lines that say what the table's intervals and words mean."""
    many = f"a {CONFIDENCE:.0%} interval for all {len(scores.groups)} groups at once"
    if scores.over == "seeds":
        spread = f"± is {many}, over the {scores.runs} runs: the same examples, other seeds."
    else:
        spread = f"± is {many}, over examples, as if each group had given others. It says nothing of other seeds."
    return [
        f"mean: score of an example. {spread}",
        "sum: the group's share of the fall of the validation loss.",
        f"effect: helps or hurts; others: better or worse than all other examples. {UNCLEAR}: it cannot be told, as the"
        " interval includes 0.",
    ]


def shown_groups(scores: GroupScores) -> tuple[GroupScore, ...]:
    """Return the groups for a table or a picture: all, or of many the worst and the best."""
    if len(scores.groups) <= MOST_SHOWN:
        return scores.groups
    return scores.groups[: MOST_SHOWN // 2] + scores.groups[-MOST_SHOWN // 2 :]


def _members(names: Array) -> list[tuple[str, Array]]:
    """Return each group's name and its mask (n,)."""
    kinds, place = np.unique(names, return_inverse=True)
    return [(str(kind), place == number) for number, kind in enumerate(kinds)]


@dataclass(frozen=True)
class _Sample:
    """A mean with its standard error and degrees of freedom; NaN where there are too few values for them."""

    mean: float
    error: float
    freedom: float

    @classmethod
    def of(cls, values: Array) -> "_Sample":
        mean = float(values.mean()) if len(values) else math.nan
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(mean, error, len(values) - 1)

    def minus(self, other: "_Sample") -> "_Sample":
        """Return the difference of two independent means, with Welch's degrees of freedom."""
        own, rest = self.error**2, other.error**2
        freedom = (own + rest) ** 2 / (own**2 / self.freedom + rest**2 / other.freedom) if own + rest > 0 else 1.0
        return _Sample(self.mean - other.mean, math.sqrt(own + rest), freedom)


def _intervals(samples: Sequence[_Sample]) -> list[tuple[float, float] | tuple[None, None]]:
    """Return the intervals of all means, which hold together with `CONFIDENCE` (Bonferroni)."""
    from scipy.special import stdtrit  # slow to import

    confidence = 1 - (1 - CONFIDENCE) / len(samples)
    reach = stdtrit([max(sample.freedom, 1.0) for sample in samples], (1 + confidence) / 2)
    widths = [t * sample.error for t, sample in zip(reach.tolist(), samples, strict=True)]
    return [
        (None, None) if math.isnan(width) else (sample.mean - width, sample.mean + width)
        for width, sample in zip(widths, samples, strict=True)
    ]


def _group(
    name: str,
    columns: dict[str, Array],
    mask: Array,
    others: float,
    interval: tuple[float, float] | tuple[None, None],
    difference: tuple[float, float] | tuple[None, None],
) -> GroupScore:
    score, total = columns["score"][mask], columns.get("total", columns["score"])[mask]
    (low, high), (others_low, others_high) = interval, difference
    return GroupScore(
        name,
        examples=len(score),
        harmful=int((score < 0).sum()),
        mean=float(score.mean()),
        total=float(total.sum()),
        low=low,
        high=high,
        others=None if math.isnan(others) else others,
        others_low=others_low,
        others_high=others_high,
    )


def _by_mean(groups: list[GroupScore]) -> tuple[GroupScore, ...]:
    return tuple(sorted(groups, key=lambda group: group.mean))


def _sign(low: float | None, high: float | None, positive: str, negative: str) -> str:
    if low is None or high is None or low <= 0 <= high:
        return UNCLEAR
    return positive if low > 0 else negative


@dataclass(frozen=True)
class _Unit:
    """The unit of a column, 1 or a power of 1000, and the digits after its point."""

    size: float
    digits: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "_Unit":
        """Return 1 for `values` of up to 0.01 to 10; else a power of 1000, for one to three digits before the point."""
        most = max(map(abs, values))
        if most == 0 or 0.01 <= most < 10:
            return cls(1.0, 3)
        return cls(1000.0 ** math.floor(math.log10(most) / 3), 1)

    @property
    def name(self) -> str:
        """The unit in the head of the column."""
        return "" if self.size == 1 else f" ({self.size:.0e})"

    def shown(self, value: float, sign: str = "") -> str:
        """Return `value` as text."""
        return f"{value / self.size:{sign}.{self.digits}f}"


def _with_spread(group: GroupScore, unit: _Unit) -> str:
    """Return mean and half the interval as text; one far beyond the means, of two or three examples, is rounded."""
    spread = None if group.low is None or group.high is None else (group.high - group.low) / 2
    if spread is None:
        shown = "?"
    elif spread >= FAR * unit.size:
        shown = f"{spread / unit.size:.0f}"
    else:
        shown = unit.shown(spread)
    return f"{unit.shown(group.mean, '+')} ± {shown}"
