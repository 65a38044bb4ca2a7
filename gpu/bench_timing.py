"""The steps that the benchmark times, and the timing itself: in interleaved rounds."""

import math
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from adamshap.gpu.arrays import Arrays, BatchGradient, SlopeArrays, like
from adamshap.gpu.backend import Backend, pick_backend
from adamshap.gpu.bench_models import Convnet, Transformer
from adamshap.gpu.captures import Factors, multiply_by_sums, write_sums
from adamshap.gpu.carry import Carrier
from adamshap.gpu.context import EngineContext
from adamshap.gpu.counting import FIRST_STEP, NO_STEPS, completed_after, following, next_step
from adamshap.gpu.data import Data
from adamshap.gpu.kernels.plan import SPLIT_SLOPES, SlopePlan, slope_plan
from adamshap.gpu.layers import context_for
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.parameter_pass import FusedOut, fused_step, slope_plans, take_step
from adamshap.gpu.scores import contract
from adamshap.gpu.sketch import Sketch
from adamshap.gpu.state import State, StepBatch, StepInput
from adamshap.gpu.step import attribute_step, plain_step
from adamshap.reference.contract import (
    AUTO,
    Adam,
    Batch,
    Estimator,
    Gradient,
    Network,
    RunConfig,
    ScoreSlope,
    Sequential,
)

__all__ = [
    "STEPS_BEFORE",
    "BenchRun",
    "Case",
    "floor",
    "milliseconds",
    "quartiles",
    "timed_rounds",
]

STEPS_BEFORE = 16  # before the timed ones: a network just initialised is a different problem, and scored exactly


@dataclass(frozen=True)
class Case:
    """A perceptron's sizes, or another model, and the sizes of its batches; `rounds` timed steps of every variant."""

    sizes: tuple[int, ...]
    n: int
    n_val: int
    rounds: int
    other: Transformer | Convnet | None = None

    @property
    def title(self) -> str:
        """The model, for tables."""
        return "-".join(map(str, self.sizes)) if self.other is None else self.other.title


def floor(case: Case, rank: int | None, carry: bool = False) -> float:
    """Return the ratio that products alone allow: flops of the plain step over those of the attributed one.

    The plain step of a perceptron or a convnet has no product for the gradient in the input. With `carry`, each sample
    is scored twice, and the validation gradient is taken at two points.
    """
    if case.other is None:
        products = [(1, *pair) for pair in pairwise(case.sizes)]
        others = -math.prod(products[0])
    else:
        products, others = case.other.products, case.other.other_products
    of_a_sample = 3 * sum(map(math.prod, products)) + others
    plain, validation = case.n * of_a_sample, case.n_val * of_a_sample
    scoring = 0
    for positions, d_in, d_out in products:
        rows = case.n * positions
        dense, low = rows * d_in * d_out, (rank or 0) * (rows * (d_in + d_out) + 2 * d_in * d_out)
        scoring += dense if rank is None or not Sketch(rank).pays(rows, d_in, d_out) else low
    times = 2 if carry else 1
    return plain / (plain + times * (validation + scoring))


@dataclass
class BenchRun:
    """A model in training: a perceptron on noise around one point for each class, other models on data of their own."""

    case: Case
    net: Network | Sequential
    context: EngineContext
    state: State
    batch: StepBatch
    estimator: Estimator

    @classmethod
    def of(cls, case: Case, device: str, slope: ScoreSlope, gradient: Gradient) -> "BenchRun":
        """Return a run before its first step."""
        net = Network(case.sizes, "relu") if case.other is None else case.other.model
        backend = pick_backend(device, "float32")
        context, generator = context_for(net, backend), np.random.default_rng(0)
        inputs, labels = _data(case, backend, generator)
        n_val = case.n_val
        moments = [
            {name: backend.xp.zeros(shape, backend.dtype) for name, shape in net.shapes.items()} for _ in range(2)
        ]
        return cls(
            case,
            net,
            context,
            State(backend.reals(net.init(0)), moments[0], moments[1], FIRST_STEP),
            StepBatch(inputs[n_val:], labels[n_val:], inputs[:n_val], labels[:n_val], inputs),
            Estimator(slope, gradient, nodes=(2, 4), variance="rank_one"),
        )

    def _advance(self) -> None:
        self.state = State(self.state.theta, self.state.m, self.state.v, following(self.state.t))

    def plain(self) -> None:
        """Take a plain step."""
        plain_step(self.context, Adam(), self.state, self.batch.x, self.batch.y, 1 / self.case.n, self.state)
        self._advance()

    def attributed(self, sketch: Sketch | None, with_sgd: bool = False, new: State | None = None) -> Any:
        """Take an attributed step and return its scores; with `new`, write the state there and stay at this step."""
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
            self._advance()
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
        """Return the parts of a step, each as a function to time."""
        context, batch, n, n_val = self.context, self.batch, self.case.n, self.case.n_val
        stack, plan = context.stack, slope_plan(self.estimator.slope, (2, 4), n)
        train, valid = stack.workspace(context, "train", batch.x), stack.workspace(context, "valid", batch.valid_x)
        captures, validation = train.captures, valid.captures
        g, point = BatchGradient(like(context, "gradient")), like(context, "point")
        slope = SlopeArrays(like(context, "slope"))
        matrix: Arrays = {name: a.copy() for name, a in slope.items()}
        out, sketch = context.backend.xp.zeros(n, context.backend.dtype), Sketch(rank)

        def factorised() -> dict[str, Factors]:
            return sketch.factors(context, matrix, n, 0, validation.products)

        factors = factorised()
        norms = Norms()
        add_norms(context, norms, captures, "rank_one")
        step = StepInput.of(context, Adam(), self.state, batch, 1 / n)
        scalars, used, written = step.hyperparameters.scalars, norms if plan.needs_spread else None, self.state
        chooses = self.estimator.slope == AUTO and plan.needs_spread
        stack.run(context, train, self.state.theta, batch.y, 1 / n)
        write_sums(context, captures, g)

        def choose() -> dict[str, SlopePlan]:
            return slope_plans(step, plan, g, chooses=chooses)

        plans = choose()

        def validation_product() -> None:
            for name, a in slope.items():
                matrix[name][...] = a
            multiply_by_sums(context, validation, matrix)

        found: dict[str, Callable[[], Any]] = {
            "forward and backward": lambda: stack.run(context, train, self.state.theta, batch.y, 1 / n),
            "gradient": lambda: write_sums(context, captures, g),
            "Adam alone": lambda: take_step(context, scalars, self.state, g, self.state),
            "norms for σ²": lambda: add_norms(context, Norms(), captures, "rank_one"),
            "fused pass, Adam included": lambda: fused_step(
                step, plans, g, used, None, 0.5, FusedOut(written, point, slope)
            ),
            "validation pass": lambda: stack.run(context, valid, point, batch.valid_y, 1 / n_val),
            "validation gradient times slope": validation_product,
            "contraction": lambda: contract(context, captures, matrix, out),
            "computing factors": factorised,
            "contraction with factors": lambda: contract(context, captures, matrix, out, factors),
        }
        return found | {"choice of 'auto'": choose} if chooses else found

    def carried(self) -> dict[str, float] | None:
        """Return the cost of a step with ``credit="carry"``, and the memory of the default window.

        None for other models than perceptrons, whose windows take gigabytes, and for slopes that "carry" lacks.

        A block of steps is timed as a whole, as its batches are paid together. The window is as short as it can be,
        one block: a longer one costs memory, and the addition of its blocks' sums once a block.
        """
        context, backend, case = self.context, self.context.backend, self.case
        if case.other is not None or self.estimator.slope not in SPLIT_SLOPES:
            return None
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
        completed, length = NO_STEPS, carrier.momenta[0].length

        def block() -> None:
            nonlocal completed, new
            for _ in range(length):
                carrier.take(completed, index, where, self.state, self.batch, self.estimator, new)
                self.state, new = State(new.theta, new.m, new.v, following(self.state.t)), self.state
                completed = completed_after(next_step(completed))

        block()
        block()  # from now on, each block pays another
        wall, processor = timed_rounds({"plain": self.plain, "carry": block}, max(2, case.rounds // length), context)
        step_ms, processor_ms = (milliseconds(times["carry"]) / length for times in (wall, processor))
        return {
            "ms": step_ms,
            "processor_ms": processor_ms,
            "throughput_ratio": milliseconds(wall["plain"]) / step_ms,
            "processor_time_ratio": milliseconds(processor["plain"]) / processor_ms,
            "floor": floor(case, None, carry=True),
            "kept_mib": default.kept_bytes(case.n) / 2**20,
        }

    def peak(self, sketch: Sketch | None) -> float:
        """Return the peak allocation of an attributed step in MiB, including its permanent buffers."""
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


def _data(case: Case, backend: Backend, generator: np.random.Generator) -> tuple[Any, Any]:
    """Return inputs and labels of validation samples and batch."""
    count = case.n_val + case.n
    if case.other is not None:
        return case.other.data(backend, count, generator)
    centres = generator.standard_normal((case.sizes[-1], case.sizes[0]), dtype=np.float32)
    y = generator.integers(0, case.sizes[-1], count)
    inputs = backend.real(centres[y] + 4 * generator.standard_normal((len(y), case.sizes[0]), dtype=np.float32))
    return inputs, backend.labels(y)


def timed_rounds(
    variants: dict[str, Callable[[], Any]], rounds: int, context: EngineContext
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return wall and processor times of each variant, one of each in every round."""
    wall: dict[str, list[float]] = {name: [] for name in variants}
    processor: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds):
        start = number % len(names)  # each variant starts a round in turn
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


def milliseconds(times: list[float]) -> float:
    """Return the median of times in seconds, in milliseconds."""
    return 1e3 * statistics.median(times)


def quartiles(values: list[float]) -> list[float]:
    """Return the first and the third quartile."""
    first, _, third = statistics.quantiles(values, n=4)
    return [first, third]
