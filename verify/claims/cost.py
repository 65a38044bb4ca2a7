"""Claim 5: the cost of attribution compared with plain training, by the engine's benchmark (`adamshap bench`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adamshap.gpu.bench import CASES, Case
from adamshap.gpu.bench import machine as machine_of
from adamshap.gpu.bench import measure as measure_case
from adamshap.verify.claims import plots
from adamshap.verify.claims.section import Section, Table
from adamshap.verify.claims.statistics import Record, distinct, select, spread

NAME = "cost"
TITLE = "Throughput and memory"
CLAIM = "Attribution keeps about 95% of the throughput of plain training (of large models, on GPUs)."
RANK = 16


@dataclass(frozen=True)
class Settings:
    """The cases to time, and the number of repetitions."""

    seeds: int
    cases: tuple[Case, ...]


FULL = Settings(5, (CASES[1], CASES[3]))
QUICK = Settings(5, (replace(CASES[3], rounds=20),))


def measure(settings: Settings, seed: int) -> list[Record]:
    """Return two rows for each case, for exact and for rank-`RANK` scores; `seed` numbers the repetition."""
    processor = machine_of("cpu")
    rows = [row for case in settings.cases for row in measure_case(case, "random_order", "midpoint", RANK, "cpu")]
    kept = ("n", "n_val", "rank", "throughput_ratio", "processor_time_ratio", "floor", "plain_ms", "attributed_ms")
    return [
        {
            "seed": seed,
            "network": "-".join(map(str, row["sizes"])),
            **{key: row[key] for key in kept},
            "pearson_with_exact": row["pearson_with_exact"],
            "peak_mib": row["peak_mib"],
            "machine": processor["name"],
            "threads": processor["threads"],
        }
        for row in rows
    ]


# --- presentation ----------------------------------------------------------------------------------------------------


def section(settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    keys = list(dict.fromkeys((r["network"], r["n"], r["rank"]) for r in records))
    columns = ("plain_ms", "attributed_ms", "throughput_ratio", "processor_time_ratio", "floor", "peak_mib")
    rows = []
    for network, n, rank in keys:
        chosen = select(records, network=network, n=n, rank=rank)
        cells = [str(spread(r[column] for r in chosen)) for column in columns]
        rows.append([network, str(n), "exact" if rank is None else str(rank), *cells])
    table = Table(
        f"The engine, float32, on {records[0]['machine']} with {records[0]['threads']} threads; `random_order +"
        " midpoint`. Ratio: time of the plain step over time of the attributed one. Ceiling: the ratio if matrix"
        " products alone took time.",
        ["network", "n", "rank", "plain ms", "attributed ms", "ratio", "processor-time ratio", "ceiling", "peak MiB"],
        rows,
    )
    figure, axes = plots.blank(6.5, 0.7 * len(keys) + 1)
    plots.bars(
        axes[0, 0],
        {
            f"{network}, n = {n}, {'exact' if rank is None else f'rank {rank}'}": {
                "throughput": spread(r["throughput_ratio"] for r in select(records, network=network, n=n, rank=rank)),
                "ceiling": spread(r["floor"] for r in select(records, network=network, n=n, rank=rank)),
            }
            for network, n, rank in keys
        },
    )
    axes[0, 0].set_xlabel("share of the plain step's throughput")
    plots.legend(figure, axes[0, 0])
    best = max(keys, key=lambda key: spread(r["throughput_ratio"] for r in _of(records, key)).mean)
    finding = (
        f"Best throughput relative to plain training: {spread(r['throughput_ratio'] for r in _of(records, best))}"
        f" ({best[0]}, n = {best[1]}, {'exact' if best[2] is None else f'rank {best[2]}'});"
        f" over {len(distinct(records, 'seed'))} repetitions. No GPU was used."
    )
    return Section(NAME, TITLE, CLAIM, [finding], [table], [("cost", "Throughput relative to plain training.", figure)])


def _of(records: Sequence[Record], key: tuple[str, int, int | None]) -> list[Record]:
    return select(records, network=key[0], n=key[1], rank=key[2])
