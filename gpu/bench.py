"""The cost of attribution: plain and attributed steps, timed in turn, and the time of each part of a step.

Every figure is a median over rounds. Each round times every variant once, starting with a different one, so that other
load on the machine affects all of them alike. Wall time is reported with the processor time of the whole process, which
other processes disturb less.
"""

import json
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from adamshap.gpu.backend import pick_backend
from adamshap.gpu.bench_models import Convnet, Transformer
from adamshap.gpu.bench_timing import (
    STEPS_BEFORE,
    BenchRun,
    Case,
    floor,
    milliseconds,
    quartiles,
    timed_rounds,
)
from adamshap.gpu.bench_torch import torch_rounds
from adamshap.gpu.sketch import Sketch
from adamshap.gpu.threads import cpu_threads
from adamshap.reference.contract import Gradient, ScoreSlope, Slope

__all__ = ["CASES", "Case", "bench_command", "floor", "machine", "measure"]

TRANSFORMER = Transformer(depth=4, width=256, heads=8, vocab=256, positions=128)
BenchSlope = Literal[Slope, "auto"]
"""Slopes whose fused pass is timed; "two_term" has another."""
CASES = (
    Case((784, 1024, 1024, 10), 1024, 16, 15),
    Case((784, 1024, 1024, 10), 256, 16, 25),
    Case((784, 2048, 2048, 2048, 10), 1024, 32, 5),
    Case((64, 256, 256, 10), 64, 16, 200),
    Case((), 16, 4, 9, TRANSFORMER),
    Case((), 16, 1, 9, TRANSFORMER),
    Case((), 64, 8, 25, Convnet(colours=3, side=32, channels=(16, 32, 64))),
)


def bench_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    model: Annotated[
        Literal["gpt"] | None, typer.Option(help="'gpt': adamshap.torch in a loop with a GPT, instead of the engine.")
    ] = None,
    against: Annotated[
        Literal["torch", "ghostsuite", "dattri-llm", "opacus"] | None,
        typer.Option(help="'torch': time PyTorch's plain step too; with --model gpt: another's attribution."),
    ] = None,
    checkout: Annotated[Path | None, typer.Option(help="GhostSuite's folder, for --against ghostsuite.")] = None,
    slope: Annotated[
        BenchSlope | None,
        typer.Option(help="Slope of the scores.", show_default="random_order; gpt: secant, auto, random_order"),
    ] = None,
    gradient: Annotated[Gradient, typer.Option(help="Where the validation gradient is taken.")] = "midpoint",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the low-rank variant.")] = 16,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of --model gpt.", show_default="one per processor")
    ] = None,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="With --model gpt: models of 0.1 to 3 million parameters, in one table.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Measure the cost of attribution relative to plain training, and the time of each part."""
    if out is not None and not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"got {str(out)!r}, whose folder does not exist", param_hint="--out")
    _refuse_combinations(model, against, checkout, device, threads)
    _refuse_with_sizes(sizes, model, against, slope)
    if model == "gpt":
        gpt = _bench_of_gpt()
        estimator = None if slope is None else {"slope": slope, "gradient": gradient}
        cases, some, show_rows = gpt.CASES, None, gpt.show_gpt
        if sizes:
            cases, some, show_rows = gpt.SMALLER, gpt.BY_SIZE, gpt.show_sizes
        rows = []
        for case in cases:
            rows += gpt.measure_gpt(case, rank, estimator, against, checkout, threads, some)
    else:
        used, peer = slope or "random_order", "torch" if against else None
        rows, show_rows = [row for case in CASES for row in measure(case, used, gradient, rank, device, peer)], show
    report = {"rows": rows, "machine": machine("cpu" if model else device)}
    text = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(text + "\n")
    if as_json:
        typer.echo(text)
        return
    show_rows(report)


def _refuse_combinations(
    model: str | None, against: str | None, checkout: Path | None, device: str, threads: int | None
) -> None:
    """Refuse options that do not go together."""
    if model is None:
        if against not in (None, "torch"):
            raise typer.BadParameter(
                f"got {against!r} without --model gpt, which it is timed with", param_hint="--against"
            )
        if threads is not None:
            raise typer.BadParameter("got a number without --model gpt, which alone has it", param_hint="--threads")
    else:
        if against == "torch":
            got = "got 'torch' with --model gpt, whose plain step is PyTorch's own; needs one of the others, or none"
            raise typer.BadParameter(got, param_hint="--against")
        if device == "cuda":
            raise typer.BadParameter("got 'cuda' with --model gpt, which runs on the CPU", param_hint="--device")
    if checkout is not None and against != "ghostsuite":
        raise typer.BadParameter("got a folder without --against ghostsuite", param_hint="--checkout")


def _refuse_with_sizes(sizes: bool, model: str | None, against: str | None, slope: str | None) -> None:
    """Refuse options that do not go together with --sizes."""
    if not sizes:
        return
    if model is None:
        raise typer.BadParameter("got the option without --model gpt, whose sizes they are", param_hint="--sizes")
    for option, value in (("--against", against), ("--slope", slope)):
        if value is not None:
            got = f"got {value!r} with --sizes, whose table has its own steps"
            raise typer.BadParameter(got, param_hint=option)


def _bench_of_gpt() -> Any:
    """Return the benchmark of PyTorch loops, which needs PyTorch."""
    try:
        from adamshap.torch.bench import gpt
    except ImportError as error:
        raise typer.BadParameter(f"PyTorch is not installed ({error})", param_hint="--model") from error
    return gpt


def measure(
    case: Case, slope: ScoreSlope, gradient: Gradient, rank: int, device: str, against: str | None = None
) -> list[dict[str, Any]]:
    """Return one row for exact scores and one for scores of `rank`, of the same rounds."""
    run = BenchRun.of(case, device, slope, gradient)
    variants: dict[str, Callable[[], Any]] = {
        "plain": run.plain,
        "exact": lambda: run.attributed(None),
        "sketched": lambda: run.attributed(sketch),
        "with SGD's scores": lambda: run.attributed(None, with_sgd=True),
    }
    sketch = Sketch(rank)
    with run.context.at_work():
        for _ in range(STEPS_BEFORE):
            run.attributed(sketch)
        for take in variants.values():
            take()
        pearson = run.agreement(sketch)
        wall, processor = timed_rounds(variants, case.rounds, run.context)
        parts = timed_rounds(run.parts(rank), case.rounds, run.context)
        carried = run.carried()
    # Timed last: PyTorch's threads spin for a while after their work, which would slow down other variants.
    peer = torch_rounds(case) if against == "torch" else None
    rows = []
    for name, used in (("exact", None), ("sketched", rank)):
        ratios = [p / a for p, a in zip(wall["plain"], wall[name], strict=True)]
        rows.append(
            {
                "network": case.title,
                "sizes": list(case.sizes),
                "n": case.n,
                "n_val": case.n_val,
                "slope": slope,
                "gradient": gradient,
                "rank": used,
                "throughput_ratio": statistics.median(ratios),
                "throughput_ratio_quartiles": quartiles(ratios),
                "processor_time_ratio": statistics.median(processor["plain"]) / statistics.median(processor[name]),
                "floor": floor(case, used),
                "plain_ms": milliseconds(wall["plain"]),
                "plain_ms_quartiles": [1e3 * q for q in quartiles(wall["plain"])],
                "attributed_ms": milliseconds(wall[name]),
                "attributed_ms_quartiles": [1e3 * q for q in quartiles(wall[name])],
                "attributed_with_sgd_ms": milliseconds(wall["with SGD's scores"]),
                "plain_processor_ms": milliseconds(processor["plain"]),
                "torch_plain_ms": None if peer is None else milliseconds(peer[0]),
                "torch_plain_processor_ms": None if peer is None else milliseconds(peer[1]),
                "pearson_with_exact": 1.0 if used is None else pearson,
                "parts_ms": {part: milliseconds(times) for part, times in parts[0].items()},
                "parts_processor_ms": {part: milliseconds(times) for part, times in parts[1].items()},
                "peak_mib": run.peak(None if used is None else sketch),
                "carry": carried,
            }
        )
    return rows


def machine(device: str) -> dict[str, Any]:
    """Return a description of the machine and the libraries."""
    versions: dict[str, str | None] = {}
    for package in ("numpy", "numba", "threadpoolctl", "cupy-cuda13x", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    backend = pick_backend(device, "float32")
    name = _processor()
    if backend.on_cuda:
        name = backend.xp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return {
        "device": "cuda" if backend.on_cuda else "cpu",
        "name": name,
        "threads": cpu_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }


def show(report: dict[str, Any]) -> None:
    """Print the report as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"Attribution relative to plain training ({report['machine']['name']})")
    for column in ("network", "n", "n_val", "rank", "plain ms", "attributed ms", "ratio", "cpu ratio", "floor", "R"):
        table.add_column(column, justify="right")
    for row in report["rows"]:
        table.add_row(
            row["network"],
            str(row["n"]),
            str(row["n_val"]),
            "exact" if row["rank"] is None else str(row["rank"]),
            f"{row['plain_ms']:.2f}",
            f"{row['attributed_ms']:.2f}",
            f"{row['throughput_ratio']:.3f}",
            f"{row['processor_time_ratio']:.3f}",
            f"{row['floor']:.3f}",
            f"{row['pearson_with_exact']:.5f}",
        )
    console.print(table)
    parts = Table(title="Where the time goes (wall ms / processor ms)")
    exact = [row for row in report["rows"] if row["rank"] is None]
    parts.add_column("part")
    for row in exact:
        parts.add_column(f"{row['network']}, n={row['n']}, n_val={row['n_val']}", justify="right")
    for part in exact[0]["parts_ms"]:
        cells = [f"{row['parts_ms'][part]:.2f} / {row['parts_processor_ms'][part]:.2f}" for row in exact]
        parts.add_row(part, *cells)
    if any(row["torch_plain_ms"] is not None for row in exact):
        pairs = [(row["torch_plain_ms"], row["torch_plain_processor_ms"]) for row in exact]
        cells = ["not timed" if ms is None else f"{ms:.2f} / {processor:.2f}" for ms, processor in pairs]
        parts.add_row("PyTorch's plain step", *cells)
    cells = [f"{row['plain_ms']:.2f} / {row['plain_processor_ms']:.2f}" for row in exact]
    parts.add_row("the engine's plain step", *cells)
    parts.add_row("peak MiB, attributed", *(f"{row['peak_mib']:.0f}" for row in exact))
    carried: dict[str, Callable[[dict[str, float]], str]] = {
        'credit "carry", a step': lambda c: f"{c['ms']:.2f} / {c['processor_ms']:.2f}",
        'credit "carry", ratio to the plain step': lambda c: (
            f"{c['throughput_ratio']:.3f} / {c['processor_time_ratio']:.3f}"
        ),
        'credit "carry", floor of the ratio': lambda c: f"{c['floor']:.3f}",
        'credit "carry", MiB kept for the window': lambda c: f"{c['kept_mib']:.0f}",
    }
    for part, cell in carried.items():
        parts.add_row(part, *("not timed" if row["carry"] is None else cell(row["carry"]) for row in exact))
    console.print(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
