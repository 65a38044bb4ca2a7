"""The cost of `adamshap.torch` for a GPT, relative to the plain step of the same loop: ``adamshap bench --model gpt``.

Steps are timed in turn, as in `gpu.bench`: each round takes every variant once. A step is forward and backward pass,
scores and Adam. The floor counts matrix products alone: of the 3 n + 3 n_val + n that exact scoring takes, 3 n are the
plain step's; scoring by low-rank factors is counted as nothing, products in bfloat16 by half. The optimiser is made
that of a late step, where "auto" has chosen.
"""

import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adamshap.gpu.bench_timing import milliseconds, quartiles, timed_rounds
from adamshap.gpu.threads import cpu_threads
from adamshap.torch.bench.against import QUANTITIES, refuse_absent, step_of_peer
from adamshap.torch.bench.loop import Loop
from adamshap.torch.bench.memory import peak_mib
from adamshap.torch.bench.model import Sizes, build

__all__ = ["BY_SIZE", "CASES", "SMALLER", "GptCase", "measure_gpt", "show_gpt", "show_sizes"]


@dataclass(frozen=True)
class GptCase:
    """A GPT and its batch, the number of validation samples, and the number of timed steps of every variant."""

    sizes: Sizes
    n_val: int
    rounds: int


SIZES = Sizes(layers=4, heads=8, width=256, vocabulary=256, context=128, n=16)
CASES = (GptCase(SIZES, 4, 9), GptCase(SIZES, 1, 9))
SMALLER = tuple(
    GptCase(Sizes(layers, heads, width, 256, context, 16), 4, 9)
    for layers, heads, width in ((2, 4, 64), (2, 4, 128), (3, 6, 192), (4, 8, 256))
    for context in (32, 128)
)
"""Models of 0.1 to 3 million parameters, of short and longer samples."""
STEPS_BEFORE = 4
"""Steps before those timed: the first two are checked in full, and the first has no second moment."""

ESTIMATORS: dict[str, dict[str, Any]] = {
    "secant": {"slope": "secant"},
    "auto": {"slope": "auto"},
    "random_order": {"slope": "random_order"},
    "random_order, σ² of rank one": {"slope": "random_order", "variance": "rank_one"},
}
BY_SIZE = ("secant", "auto", "random_order")
"""Those of the table by sizes."""
IN_BFLOAT16: dict[str, Any] = {"slope": "secant", "score_dtype": "bfloat16"}
SGD: dict[str, Any] = {"slope": "sgd", "gradient": "start"}


def measure_gpt(
    case: GptCase,
    rank: int,
    estimator: dict[str, Any] | None = None,
    peer: str | None = None,
    checkout: Path | None = None,
    threads: int | None = None,
    some: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """Return one row for each variant of the step, of the same rounds.

    Parameters
    ----------
    case : GptCase
    rank : int
        Rank of the low-rank variants.
    estimator : dict, optional
        Slope and gradient to time; None is those of `ESTIMATORS`.
    peer : str, optional
        One of `against.PEERS`, timed with our scores on a model without tied parameters.
    checkout : Path, optional
        GhostSuite's.
    threads : int, optional
        Of PyTorch and of the engine; None is one per processor. With one, processor times are comparable: waiting
        threads spin.
    some : collection of str, optional
        Those of `ESTIMATORS` to time; None is all, and "secant" in bfloat16.
    """
    if peer is not None:
        refuse_absent(peer, checkout)
        case = replace(case, sizes=replace(case.sizes, tied=False))
    variants = _variants(rank, estimator, peer, some)
    count, before = threads or cpu_threads(), torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        loops = {name: Loop.of(case.sizes, case.n_val, options, count) for name, options in variants.items()}
        steps: dict[str, Callable[[], Any]] = {name: loop.step for name, loop in loops.items()}
        if peer is not None:
            model, optimiser = build(case.sizes, "cpu")
            own = loops["plain"]
            steps[peer] = step_of_peer(peer, checkout, model, optimiser, own.train, own.valid)
        for step in steps.values():
            for _ in range(STEPS_BEFORE):
                step()
        for loop in loops.values():
            loop.ripen()
        early = {name: _scores(loop) for name, loop in loops.items()}
        context = next(loop.attribution for loop in loops.values() if loop.attribution)._scorer.context
        wall, processor = timed_rounds(steps, case.rounds, context)
        parts: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in loops}
        for _ in range(case.rounds):
            for name, loop in loops.items():
                parts[name].append(loop.timed_step())
        scores = {name: _scores(loop) - early[name] for name, loop in loops.items()}
    finally:
        torch.set_num_threads(before)
    plain_mib = peak_mib(case.sizes, case.n_val, None, count)
    rows = []
    for name in steps:
        ratios = [p / a for p, a in zip(wall["plain"], wall[name], strict=True)]
        of_processor = [p / a for p, a in zip(processor["plain"], processor[name], strict=True)]
        options = variants.get(name)
        own_mib = (
            None if name == peer else plain_mib if name == "plain" else peak_mib(case.sizes, case.n_val, options, count)
        )
        rows.append(
            {
                "network": f"GPT {case.sizes.layers}x{case.sizes.width}, T={case.sizes.context}",
                "tied": case.sizes.tied,
                "parameters": sum(p.numel() for p in loops["plain"].model.parameters()),
                "context": case.sizes.context,
                "n": case.sizes.n,
                "n_val": case.n_val,
                "threads": count,
                "variant": name,
                "options": options,
                "computes": QUANTITIES.get(name),
                "throughput_ratio": statistics.median(ratios),
                "throughput_ratio_quartiles": quartiles(ratios),
                "processor_time_ratio": statistics.median(of_processor),
                "floor": _floor(case, options, name),
                "pearson_with_exact": _pearson(name, variants, scores),
                "ms": milliseconds(wall[name]),
                "processor_ms": milliseconds(processor[name]),
                "parts_ms": _medians(parts.get(name, []), 0),
                "parts_processor_ms": _medians(parts.get(name, []), 1),
                "peak_mib": own_mib,
                "peak_ratio": None if not (own_mib and plain_mib) else own_mib / plain_mib,
            }
        )
    return rows


def _variants(
    rank: int, estimator: dict[str, Any] | None, peer: str | None, some: Collection[str] | None
) -> dict[str, dict[str, Any] | None]:
    """Return the options of each variant, by its name; those of the plain step are None."""
    chosen = dict(ESTIMATORS) if some is None else {name: ESTIMATORS[name] for name in some}
    if estimator is not None:
        chosen = {" + ".join(estimator.values()): estimator}
    if peer is not None and estimator is None:
        chosen = {"secant": ESTIMATORS["secant"]}
    found: dict[str, dict[str, Any] | None] = {"plain": None}
    for name, options in chosen.items():
        found |= {f"{name}, exact": options, f"{name}, rank {rank}": options | {"rank": rank}}
    if peer is not None:
        found["sgd at θ, exact"] = SGD
    elif estimator is None and some is None:
        found["secant, bfloat16"] = IN_BFLOAT16
    return found


def _floor(case: GptCase, options: dict[str, Any] | None, name: str) -> float | None:
    """Return the ratio that products alone allow, for `adamshap.torch`."""
    n, n_val = case.sizes.n, case.n_val
    if options is None:
        return 1.0 if name == "plain" else None
    scoring = 0.0 if options.get("rank") else 0.5 if options.get("score_dtype") else 1.0  # in a third of a plain pass
    return 3 * n / (3 * n + 3 * n_val + scoring * n)


def _scores(loop: Loop) -> Any:
    """Return the sums of a loop's scores so far; 0 without scores."""
    return 0.0 if loop.attribution is None else loop.attribution.result().scores


def _pearson(name: str, variants: Mapping[str, dict[str, Any] | None], scores: Mapping[str, Any]) -> float | None:
    """Return R of a variant's scores with those of its slope without `rank` and `score_dtype`."""
    options = variants.get(name)
    if options is None:
        return None
    own = {key: value for key, value in options.items() if key not in ("rank", "score_dtype")}
    exact = next(other for other, some in variants.items() if some == own)
    batch = scores[exact] != 0  # the loop has other samples, which are never in the batch
    return float(np.corrcoef(scores[name][batch], scores[exact][batch])[0, 1])


def _medians(parts: list[dict[str, tuple[float, float]]], clock: int) -> dict[str, float]:
    """Return the median of each part's times, in milliseconds."""
    names = dict.fromkeys(name for one in parts for name in one)
    return {name: 1e3 * statistics.median(one.get(name, (0.0, 0.0))[clock] for one in parts) for name in names}


def show_gpt(report: dict[str, Any]) -> None:
    """Print the report as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rows = report["rows"]
    for n_val in dict.fromkeys(row["n_val"] for row in rows):
        some = [row for row in rows if row["n_val"] == n_val]
        first = some[0]
        tied = "" if first["tied"] else ", not tied"
        title = f"{first['network']}{tied}, n = {first['n']}, n_val = {n_val}, {first['threads']} threads"
        table = Table(title=f"{title} ({report['machine']['name']})")
        columns = ("step", "ms", "processor ms", "ratio", "processor ratio", "floor", "R", "peak MiB", "of plain")
        for column in columns:
            table.add_column(column, justify="left" if column == "step" else "right")
        for row in some:
            numbers = (
                (row["ms"], row["processor_ms"]),
                (row["throughput_ratio"], row["processor_time_ratio"], row["floor"]),
            )
            table.add_row(
                row["variant"],
                *(f"{x:.1f}" for x in numbers[0]),
                *("" if x is None else f"{x:.3f}" for x in numbers[1]),
                "" if row["pearson_with_exact"] is None else f"{row['pearson_with_exact']:.6f}",
                "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
                "" if row["peak_ratio"] is None else f"{row['peak_ratio']:.2f}",
            )
        console.print(table)
        of_parts = Table(title="Where the time goes (wall ms / processor ms)")
        of_parts.add_column("part")
        timed = [row for row in some if row["parts_ms"]]
        for row in timed:
            of_parts.add_column(row["variant"], justify="right")
        for part in dict.fromkeys(part for row in timed for part in row["parts_ms"]):
            cells = (
                f"{row['parts_ms'][part]:.1f} / {row['parts_processor_ms'][part]:.1f}"
                if part in row["parts_ms"]
                else ""
                for row in timed
            )
            of_parts.add_row(part, *cells)
        console.print(of_parts)
    for name in dict.fromkeys(row["variant"] for row in rows if row["computes"]):
        console.print(f"{name} computes {QUANTITIES[name]}.", highlight=False)


def show_sizes(report: dict[str, Any]) -> None:
    """Print one line for each model and length of samples: shares of the plain step's throughput, and memory."""
    from rich.console import Console
    from rich.table import Table

    rows = report["rows"]
    names = [name for name in dict.fromkeys(row["variant"] for row in rows) if name != "plain"]
    first = rows[0]
    title = f"n = {first['n']}, n_val = {first['n_val']}, {first['threads']} threads ({report['machine']['name']})"
    table = Table(title=f"Share of the plain step's throughput, and peak memory over its own: {title}")
    for column in ("parameters", "T", "plain ms", "plain MiB", *names):
        table.add_column(column, justify="right")
    for plain in (row for row in rows if row["variant"] == "plain"):
        of_case = {row["variant"]: row for row in rows if _case_of(row) == _case_of(plain)}
        cells = (f"{of_case[name]['throughput_ratio']:.2f}, {of_case[name]['peak_ratio']:.2f}" for name in names)
        mib = f"{plain['peak_mib']:.0f}"
        table.add_row(f"{plain['parameters']:,}", str(plain["context"]), f"{plain['ms']:.1f}", mib, *cells)
    Console().print(table)


def _case_of(row: dict[str, Any]) -> tuple[int, int]:
    return row["parameters"], row["context"]
