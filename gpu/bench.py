"""How much attribution costs: the plain step and the attributed step, interleaved, and where the time goes.

Every figure is a median over rounds. In each round every variant is timed once, each time beginning with another, so
that what else the machine does falls on all of them alike. Beside wall time stands the processor time of the whole
process, which other processes disturb less.
"""

import json
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from adamshap.gpu.arrays import Arrays, BatchGradient, SlopeArrays, like
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.captures import multiply_by_sums, write_sums
from adamshap.gpu.carry import Carrier
from adamshap.gpu.context import EngineContext
from adamshap.gpu.counting import FIRST_STEP, completed_after, following, next_step
from adamshap.gpu.data import Data
from adamshap.gpu.kernels.plan import slope_plan
from adamshap.gpu.layers import context_for
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.parameter_pass import FusedOut, fused_step, take_step
from adamshap.gpu.scores import contract
from adamshap.gpu.sketch import Sketch
from adamshap.gpu.state import State, StepBatch, StepInput
from adamshap.gpu.step import attribute_step, plain_step
from adamshap.gpu.threads import cpu_threads
from adamshap.reference.contract import (
    Adam,
    Batch,
    CompletedSteps,
    Estimator,
    Gradient,
    Network,
    RunConfig,
    ScoreSlope,
    Slope,
)

__all__ = ["CASES", "Case", "bench_command", "measure"]

STEPS_BEFORE = 10  # real steps that each variant takes first, as the first ones are another problem


@dataclass(frozen=True)
class Case:
    """A network and the sizes of its batches; `rounds` timed steps of every variant."""

    sizes: tuple[int, ...]
    n: int
    n_val: int
    rounds: int


CASES = (
    Case((784, 1024, 1024, 10), 1024, 16, 15),
    Case((784, 1024, 1024, 10), 256, 16, 25),
    Case((784, 2048, 2048, 2048, 10), 1024, 32, 5),
    Case((64, 256, 256, 10), 64, 16, 200),
)


def bench_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    against: Annotated[Literal["torch"] | None, typer.Option(help="'torch': time PyTorch's plain step too.")] = None,
    slope: Annotated[Slope, typer.Option(help="Slope of the scores.")] = "random_order",
    gradient: Annotated[Gradient, typer.Option(help="Where the validation gradient is taken.")] = "midpoint",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the low-rank variant.")] = 16,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Measure what attribution costs beside plain training, and where the time goes."""
    if out is not None and not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"got {str(out)!r}, whose folder does not exist", param_hint="--out")
    rows = [row for case in CASES for row in measure(case, slope, gradient, rank, device, against)]
    report = {"rows": rows, "machine": machine(device)}
    text = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(text + "\n")
    if as_json:
        typer.echo(text)
        return
    show(report)


def measure(
    case: Case, slope: ScoreSlope, gradient: Gradient, rank: int, device: str, against: str | None = None
) -> list[dict[str, Any]]:
    """Return one row for exact scores and one for scores of `rank`, of the same rounds."""
    run = _Run.of(case, device, slope, gradient)
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
        wall, processor = _rounds(variants, case.rounds, run.context)
        parts = _rounds(run.parts(rank), case.rounds, run.context)
        carried = run.carried()
    # Apart from the others: PyTorch's threads go on spinning for a while, at the cost of whoever comes next.
    peer = _torch_rounds(case) if against == "torch" else None
    rows = []
    for name, used in (("exact", None), ("sketched", rank)):
        ratios = [p / a for p, a in zip(wall["plain"], wall[name], strict=True)]
        rows.append(
            {
                "sizes": list(case.sizes),
                "n": case.n,
                "n_val": case.n_val,
                "slope": slope,
                "gradient": gradient,
                "rank": used,
                "throughput_ratio": statistics.median(ratios),
                "throughput_ratio_quartiles": _quartiles(ratios),
                "processor_time_ratio": statistics.median(processor["plain"]) / statistics.median(processor[name]),
                "floor": floor(case, used),
                "plain_ms": _ms(wall["plain"]),
                "plain_ms_quartiles": [1e3 * q for q in _quartiles(wall["plain"])],
                "attributed_ms": _ms(wall[name]),
                "attributed_ms_quartiles": [1e3 * q for q in _quartiles(wall[name])],
                "attributed_with_sgd_ms": _ms(wall["with SGD's scores"]),
                "plain_processor_ms": _ms(processor["plain"]),
                "torch_plain_ms": None if peer is None else _ms(peer[0]),
                "torch_plain_processor_ms": None if peer is None else _ms(peer[1]),
                "pearson_with_exact": 1.0 if used is None else pearson,
                "parts_ms": {part: _ms(times) for part, times in parts[0].items()},
                "parts_processor_ms": {part: _ms(times) for part, times in parts[1].items()},
                "peak_mib": run.peak(None if used is None else sketch),
                "carry": carried,
            }
        )
    return rows


def floor(case: Case, rank: int | None, carry: bool = False) -> float:
    """Return the ratio that products alone allow: flops of the plain step over those of the attributed one.

    The plain step has no product for the gradient in the network's input. With `carry`, each sample is scored twice,
    and the validation gradient is taken at two points.
    """
    pairs = list(zip(case.sizes, case.sizes[1:], strict=False))
    weights = sum(d_in * d_out for d_in, d_out in pairs)
    plain = case.n * (3 * weights - pairs[0][0] * pairs[0][1])
    judged = case.n_val * (3 * weights - pairs[0][0] * pairs[0][1])
    scoring = 0
    for d_in, d_out in pairs:
        dense, low = case.n * d_in * d_out, (rank or 0) * (case.n * (d_in + d_out) + 2 * d_in * d_out)
        scoring += dense if rank is None or not Sketch(rank).pays(case.n, d_in, d_out) else low
    times = 2 if carry else 1
    return plain / (plain + times * (judged + scoring))


def machine(device: str) -> dict[str, Any]:
    """Return what the figures were measured on."""
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
    table = Table(title=f"Attribution beside plain training ({report['machine']['name']})")
    for column in ("network", "n", "n_val", "rank", "plain ms", "attributed ms", "ratio", "cpu ratio", "floor", "R"):
        table.add_column(column, justify="right")
    for row in report["rows"]:
        table.add_row(
            "-".join(map(str, row["sizes"])),
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
        parts.add_column(f"{'-'.join(map(str, row['sizes']))}, n={row['n']}", justify="right")
    for part in exact[0]["parts_ms"]:
        cells = [f"{row['parts_ms'][part]:.2f} / {row['parts_processor_ms'][part]:.2f}" for row in exact]
        parts.add_row(part, *cells)
    if all(row["torch_plain_ms"] is not None for row in exact):
        cells = [f"{row['torch_plain_ms']:.2f} / {row['torch_plain_processor_ms']:.2f}" for row in exact]
        parts.add_row("PyTorch's plain step", *cells)
    cells = [f"{row['plain_ms']:.2f} / {row['plain_processor_ms']:.2f}" for row in exact]
    parts.add_row("the engine's plain step", *cells)
    parts.add_row("peak MiB, attributed", *(f"{row['peak_mib']:.0f}" for row in exact))
    carried = [row["carry"] for row in exact]
    cells = [f"{c['ms']:.2f} / {c['processor_ms']:.2f}" for c in carried]
    parts.add_row('credit "carry", a step', *cells)
    cells = [f"{c['throughput_ratio']:.3f} / {c['processor_time_ratio']:.3f}" for c in carried]
    parts.add_row('credit "carry", ratio to the plain step', *cells)
    parts.add_row('credit "carry", floor of the ratio', *(f"{c['floor']:.3f}" for c in carried))
    parts.add_row('credit "carry", MiB kept for the window', *(f"{c['kept_mib']:.0f}" for c in carried))
    console.print(parts)


# --- what is timed ---------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """One network in training, on batches of noise around one point for each class."""

    case: Case
    net: Network
    context: EngineContext
    state: State
    batch: StepBatch
    estimator: Estimator

    @classmethod
    def of(cls, case: Case, device: str, slope: ScoreSlope, gradient: Gradient) -> "_Run":
        net = Network(case.sizes, "relu")
        backend = pick_backend(device, "float32")
        context, generator = context_for(net, backend), np.random.default_rng(0)
        centres = generator.standard_normal((case.sizes[-1], case.sizes[0]), dtype=np.float32)
        y = generator.integers(0, case.sizes[-1], case.n_val + case.n)
        both = backend.real(centres[y] + 4 * generator.standard_normal((len(y), case.sizes[0]), dtype=np.float32))
        labels = backend.labels(y)
        n_val = case.n_val
        moments = [
            {name: backend.xp.zeros(shape, backend.dtype) for name, shape in net.shapes.items()} for _ in range(2)
        ]
        return cls(
            case,
            net,
            context,
            State(backend.reals(net.init(0)), moments[0], moments[1], FIRST_STEP),
            StepBatch(both[n_val:], labels[n_val:], both[:n_val], labels[:n_val], both),
            Estimator(slope, gradient, nodes=(2, 4), variance="rank_one"),
        )

    def _next(self) -> None:
        self.state = State(self.state.theta, self.state.m, self.state.v, following(self.state.t))

    def plain(self) -> None:
        plain_step(self.context, Adam(), self.state, self.batch.x, self.batch.y, 1 / self.case.n, self.state)
        self._next()

    def attributed(self, sketch: Sketch | None, with_sgd: bool = False, new: State | None = None) -> Any:
        result = attribute_step(
            self.context,
            Adam(),
            self.state,
            self.batch,
            1 / self.case.n,
            self.estimator,
            self.state if new is None else new,
            sketch=sketch,
            with_sgd=with_sgd,
        )
        if new is None:
            self._next()
        return result.scores

    def agreement(self, sketch: Sketch, count: int = 5) -> float:
        """Return Pearson's R between exact and sketched scores, added up over `count` steps."""
        totals = [np.zeros(self.case.n) for _ in range(2)]
        backend = self.context.backend
        for _ in range(count):
            theta, m, v = (like(self.context, f"other {group}") for group in ("theta", "m", "v"))
            new = State(theta, m, v, FIRST_STEP)
            totals[0] += backend.host(self.attributed(None, new=new))
            totals[1] += backend.host(self.attributed(sketch))
        return float(np.corrcoef(totals[0], totals[1])[0, 1])

    def parts(self, rank: int) -> dict[str, Callable[[], Any]]:
        """Return the parts of a step, each as something to call."""
        context, batch, n, n_val = self.context, self.batch, self.case.n, self.case.n_val
        stack, plan = context.stack, slope_plan(self.estimator.slope, (2, 4), n)
        train, valid = stack.workspace(context, "train", batch.x), stack.workspace(context, "valid", batch.valid_x)
        captures, validation = train.captures, valid.captures
        g, point = BatchGradient(like(context, "gradient")), like(context, "point")
        slope = SlopeArrays(like(context, "slope"))
        matrix: Arrays = {name: a.copy() for name, a in slope.items()}
        out, sketch = context.backend.xp.zeros(n, context.backend.dtype), Sketch(rank)
        factors = sketch.factors(context, matrix, n)
        norms = Norms()
        add_norms(context, norms, captures, "rank_one")
        step = StepInput.of(context, Adam(), self.state, batch, 1 / n)
        scalars, used, written = step.hyperparameters.scalars, norms if plan.needs_spread else None, self.state

        def validation_product() -> None:
            for name, a in slope.items():
                matrix[name][...] = a
            multiply_by_sums(context, validation, matrix)

        return {
            "forward and backward": lambda: stack.run(context, train, self.state.theta, batch.y, 1 / n),
            "gradient": lambda: write_sums(context, captures, g),
            "Adam alone": lambda: take_step(context, scalars, self.state, g, self.state),
            "norms for σ²": lambda: add_norms(context, Norms(), captures, "rank_one"),
            "fused pass, Adam included": lambda: fused_step(
                step, plan, g, used, None, 0.5, FusedOut(written, point, slope)
            ),
            "validation pass": lambda: stack.run(context, valid, point, batch.valid_y, 1 / n_val),
            "validation gradient times slope": validation_product,
            "contraction": lambda: contract(context, captures, matrix, out),
            "making factors": lambda: sketch.factors(context, matrix, n),
            "contraction with factors": lambda: contract(context, captures, matrix, out, factors),
        }

    def carried(self) -> dict[str, float]:
        """Return what a step costs with ``credit="carry"``, and what the default window keeps.

        A block of steps is timed as a whole, as its batches are paid together. The window is as short as it can be,
        one block: a longer one costs memory, and the addition of its blocks' sums once a block.
        """
        context, backend, case = self.context, self.context.backend, self.case
        train = Batch(backend.host(self.batch.x), backend.host(self.batch.y))
        valid = Batch(backend.host(self.batch.valid_x), backend.host(self.batch.valid_y))
        config = RunConfig(self.net, Adam(), train, valid, epochs=1, batch_size=case.n, seed=0)
        longest = 10**6  # steps: more than are taken, so that the window ends
        data = Data.of(context, train, valid, case.n)
        default, carrier = (Carrier.of(context, config, data, longest, window) for window in (None, 1))
        index = np.arange(case.n)
        where = backend.labels(index)
        new = State(
            like(context, "other theta"),
            like(context, "other m"),
            like(context, "other v"),
            FIRST_STEP,
        )
        taken = CompletedSteps(0)

        def block() -> None:
            nonlocal taken, new
            for _ in range(carrier.length):
                carrier.take(taken, index, where, self.state, self.batch, self.estimator, new)
                self.state, new = State(new.theta, new.m, new.v, following(self.state.t)), self.state
                taken = completed_after(next_step(taken))

        block()
        block()  # from now on, each block pays another
        wall, processor = _rounds({"plain": self.plain, "carry": block}, max(2, case.rounds // carrier.length), context)
        each, used = (_ms(times["carry"]) / carrier.length for times in (wall, processor))
        return {
            "ms": each,
            "processor_ms": used,
            "throughput_ratio": _ms(wall["plain"]) / each,
            "processor_time_ratio": _ms(processor["plain"]) / used,
            "floor": floor(case, None, carry=True),
            "kept_mib": default.kept_bytes(case.n) / 2**20,
        }

    def peak(self, sketch: Sketch | None) -> float:
        """Return what an attributed step allocates at most, in MiB, its kept buffers included."""
        context = self.context
        context.buffers.kept.clear()
        context.buffers.views.clear()
        if context.backend.on_cuda:
            pool = context.backend.xp.get_default_memory_pool()
            pool.free_all_blocks()
            before = pool.used_bytes()
            self.attributed(sketch)
            return float(pool.total_bytes() - before) / 2**20
        tracemalloc.start()
        self.attributed(sketch)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / 2**20


def _rounds(
    variants: dict[str, Callable[[], Any]], rounds: int, context: EngineContext
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return wall and processor times of each variant, one of each in every round."""
    wall: dict[str, list[float]] = {name: [] for name in variants}
    processor: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds):
        start = number % len(names)  # each follows each other's neighbour in turn
        for name in names[start:] + names[:start]:
            take = variants[name]
            _wait(context)
            clock, used = time.perf_counter(), time.process_time()
            take()
            _wait(context)
            wall[name].append(time.perf_counter() - clock)
            processor[name].append(time.process_time() - used)
    return wall, processor


def _wait(context: EngineContext) -> None:
    if context.backend.on_cuda:
        context.backend.xp.cuda.get_current_stream().synchronize()


def _torch_rounds(case: Case) -> tuple[list[float], list[float]]:
    """Return times of PyTorch's plain step on the same problem, with its fastest Adam.

    Wall times are with all threads, processor times with one: waiting threads spin, which processor time would count.
    """
    try:
        import torch
    except ImportError as error:
        raise typer.BadParameter(f"PyTorch is not installed ({error})", param_hint="--against") from error
    layers: list[Any] = []
    for d_in, d_out in zip(case.sizes, case.sizes[1:], strict=False):
        layers += [torch.nn.Linear(d_in, d_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    x, y = torch.randn(case.n, case.sizes[0]), torch.randint(0, case.sizes[-1], (case.n,))

    def times(clock: Callable[[], float], threads: int) -> list[float]:
        torch.set_num_threads(threads)
        taken = []
        for _ in range(STEPS_BEFORE + case.rounds):
            before = clock()
            optimiser.zero_grad()
            loss: Any = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
            taken.append(clock() - before)
        return taken[STEPS_BEFORE:]

    return times(time.perf_counter, cpu_threads()), times(time.process_time, 1)


def _ms(times: list[float]) -> float:
    return 1e3 * statistics.median(times)


def _quartiles(values: list[float]) -> list[float]:
    first, _, third = statistics.quantiles(values, n=4)
    return [first, third]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
