"""The page's tables and sentences on whole runs: truth by retraining, pruning, and finding a passage."""

from collections.abc import Sequence

from adamshap.verify.claims.language.whole_runs import LEFT_OUT, NEW, RANDOM, SAME, SAME_SOURCE, TRUTHS
from adamshap.verify.claims.section import Table
from adamshap.verify.claims.statistics import Record, Spread, distinct, select, spread

SHOWN = (
    "random_order, unit",
    "sgd, unit",
    "carry (random_order)",
    "AdamW-influence",
    "TRAK-like",
    SAME_SOURCE,
    "metagradient",
)
"""Scores in the sentences."""


def tables(records: Sequence[Record]) -> list[Table]:
    """Return the tables of whole runs."""
    truth, noise = select(records, part="truth"), select(records, part="noise")
    found = [_truth_table(select(truth, case=case), select(noise, case=case), case) for case in distinct(truth, "case")]
    pruning, finding = select(records, part="pruning"), select(records, part="finding")
    if pruning:
        found += [_pruning_table(pruning, key, caption) for key, caption in PRUNED.items()]
    if finding:
        found += [_finding_table(finding, key, caption) for key, caption in FOUND.items()]
    return found


def sentences(records: Sequence[Record]) -> list[str]:
    """Return what the tables say."""
    found = []
    for case in distinct(select(records, part="truth"), "case"):
        for truth in TRUTHS:
            some = select(records, part="truth", case=case, truth=truth)
            values = ", ".join(f"`{name}` {_text_of(some, 'spearman', score=name)}" for name in SHOWN)
            found.append(f"{case}, {truth}: Spearman {values}.")
    pruning = select(records, part="pruning")
    for share in distinct(pruning, "share")[1:]:
        some = select(pruning, share=share)
        names = sorted(distinct(some, "score"), key=lambda name: _spread(some, "loss", score=name).mean)
        values = ", ".join(f"`{name}` {_text_of(some, 'loss', score=name)}" for name in names)
        found.append(f"Pruned by {share:.0%}, lowest loss first: {values}.")
    finding = select(records, part="finding")
    for query in distinct(finding, "query"):
        some = select(finding, query=query)
        names = sorted(distinct(some, "score"), key=lambda name: -_spread(some, "reciprocal", score=name).mean)
        values = ", ".join(f"`{name}` {_text_of(some, 'reciprocal', score=name)}" for name in names[:4])
        found.append(f"Query “{query}”, highest mean reciprocal rank first: {values}.")
    return found


def _text_of(records: Sequence[Record], key: str, **wanted: object) -> str:
    return _text(_spread(records, key, **wanted))


def _text(found: Spread) -> str:
    """Return a mean, with its deviation where several values gave it."""
    return str(found).split(" ± ")[0] if found.count == 1 else str(found)


def _spread(records: Sequence[Record], key: str, **wanted: object) -> Spread:
    """Return the spread over seeds, and over the sources of validation passages."""
    return spread(record[key] for record in select(records, **wanted))


BETTER, WORSE = "random_order, unit", "sgd, unit"
"""Two scores whose difference the tables show, with the same seed and source in each pair."""


def _less(truth: Sequence[Record], one: str) -> Spread:
    """Return the spread of the difference over the pairs."""
    pairs = zip(select(truth, truth=one, score=BETTER), select(truth, truth=one, score=WORSE), strict=True)
    return spread(a["spearman"] - b["spearman"] for a, b in pairs)


def _truth_table(truth: Sequence[Record], noise: Sequence[Record], case: str) -> Table:
    caption = (
        f"Whole run, {case}, {noise[0]['parameters']:,} parameters: Spearman of the scores with retraining, ± over"
        " seeds and sources of validation passages."
    )
    rows = [
        [f"`{name}`", *(_text(_spread(truth, "spearman", score=name, truth=one)) for one in TRUTHS)]
        for name in distinct(truth, "score")
    ]
    rows.append([f"`{BETTER}` less `{WORSE}`, pair by pair", *(_text(_less(truth, one)) for one in TRUTHS)])
    rows.append(["the same run on the half", "–", _text(_spread(noise, "same with new")), "–"])
    rows.append(["ceiling by reliability", "–", _text(_spread(noise, "ceiling")), "–"])
    return Table(caption, ["score", SAME, NEW, LEFT_OUT], rows)


PRUNED = {
    "loss": "Test loss of new models after the lowest-scored share is dropped.",
    "wanted kept": "Share of the wanted source in what is kept.",
}
FOUND = {
    "reciprocal": "Finding the passage of a query: mean reciprocal rank.",
    "first": "Finding the passage of a query: share of queries whose passage has the highest score.",
}


def _pruning_table(records: Sequence[Record], key: str, caption: str) -> Table:
    shares = distinct(records, "share")
    rows = [
        [
            name if name == RANDOM or name.startswith("the ") else f"`{name}`",
            *(_text(_spread(records, key, score=name, share=share)) for share in shares),
        ]
        for name in distinct(records, "score")
    ]
    return Table(caption, ["score", *(f"{share:.0%} dropped" for share in shares)], rows)


def _finding_table(records: Sequence[Record], key: str, caption: str) -> Table:
    kinds = distinct(records, "query")
    rows = [
        [f"`{name}`", *(_text(_spread(records, key, score=name, query=kind)) for kind in kinds)]
        for name in distinct(records, "score")
    ]
    return Table(caption, ["score", *kinds], rows)
