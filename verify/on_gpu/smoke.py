"""Every kernel, layer and slope once against the oracle, in both dtypes, with TF32 off and on.

TF32 keeps 11 significant bits of a product's inputs, so the float32 bound does not hold for it. Its errors are reported
as shares of that bound, but not checked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from adamshap import gpu, reference
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.captures import Captures, OuterProduct
from adamshap.gpu.layers import context_for
from adamshap.gpu.scores import contract
from adamshap.gpu.sketch import Sketch
from adamshap.reference.contract import (
    ACTIVATIONS,
    AUTO,
    GRADIENTS,
    LOSSES,
    MARGINAL_LOSSES,
    MARGINALS,
    SLOPES,
    TWO_TERM,
    Activation,
    Adam,
    AdamGroups,
    AdamState,
    Array,
    AvgPool2d,
    Batch,
    Clipped,
    Conv2d,
    Flatten,
    Linear,
    Network,
    Run,
    RunConfig,
    Schedule,
    Sequential,
    Step,
    convnet,
    transformer,
)
from adamshap.verify.candidates.engine import Engine
from adamshap.verify.implementation import Answer, Misbehaviour, Query, implementation
from adamshap.verify.on_gpu.child import Reporter
from adamshap.verify.on_gpu.plan import Setting, Task
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.properties import PROPERTIES, Case, Disagreement, asker, in_dtype
from adamshap.verify.run_tolerance import account_bound, run_conditioning
from adamshap.verify.tolerance import assert_within, parameter_count, rounding

__all__ = ["tasks", "tf32"]

DTYPES = ("float32", "float64")
SIZES = (5, 7, 6, 3)
N, N_VAL = 9, 3
VOCAB, POSITIONS, IMAGE, CLASSES = 7, 4, (2, 5, 6), 3
STACKS = {
    "transformer": transformer(vocab=VOCAB, context=POSITIONS, width=8, depth=1, heads=2),
    "convnet": convnet(image=IMAGE, channels=(4, 6), outputs=CLASSES),
    "convolutions in groups": Sequential(
        (
            Conv2d(2, 4, (3, 2), (2, 1), (1, 2), groups=2),
            Activation("gelu"),
            AvgPool2d((2, 3), (1, 2)),
            Flatten(),
            Linear(4 * 2 * 4, CLASSES),
        )
    ),
}
ENGINE = implementation(Engine("cuda"), "the engine on CUDA")
ask = asker(ENGINE)
agrees = next(one.check for one in PROPERTIES if one.kind == "agreement")


def tasks(setting: Setting) -> list[Task]:
    """Return the stage's tasks: the plain ones first."""
    found = []
    for name, queries in _queries().items():
        found += [_task(f"{name}, {dtype}", step(), queries, dtype) for dtype in DTYPES]
    for activation, loss in product(ACTIVATIONS, LOSSES):
        case = step(activation, loss)
        found += [_task(f"{activation}, {loss}, {dtype}", case, _layer_queries(), dtype) for dtype in DTYPES]
    found += [_task(f"clipped, with L2 decay, {dtype}", clipped_step(), _slope_queries(), dtype) for dtype in DTYPES]
    for name, model in STACKS.items():
        found += [_task(f"{name}, {dtype}", stack_step(model), _stack_queries(), dtype) for dtype in DTYPES]
    found += [
        Task(f"momentum's credit, {slope}, {dtype}", _carry_task(slope, dtype))
        for slope, dtype in product(("frozen", "linearized", "tangent", "secant", "random_order"), DTYPES)
    ]
    found += [Task(f"low-rank scores, {dtype}", _low_rank_task(dtype)) for dtype in DTYPES]
    found += [
        _task(f"TF32: {name}", step(), queries, "float32", with_tf32=True) for name, queries in _queries().items()
    ]
    found += [Task(f"contraction in {kind}", _less_precise_task(kind)) for kind in ("tf32", "float16")]
    return found


def step(activation: Any = "relu", loss: Any = "cross_entropy", sizes: tuple[int, ...] = SIZES, n: int = N) -> Step:
    """Return a realistic step of a run, with moments of ordinary size."""
    net = Network(sizes, activation, loss)
    params, generator = net.init(0), np.random.default_rng(1)
    m = {name: 0.02 * generator.standard_normal(p.shape) for name, p in params.items()}
    v = {name: 4e-4 * generator.chisquare(3, p.shape) for name, p in params.items()}
    return Step(
        net,
        params,
        Adam(lr=0.01, weight_decay=0.01),
        AdamState(7, m, v),
        batch(net, n, generator),
        batch(net, N_VAL, generator),
    )


def clipped_step() -> Step:
    """Return such a step of an optimiser with groups, L2 decay and clipping."""
    groups = AdamGroups(((("*.bias",), Adam(lr=0.02, betas=(0.8, 0.99), weight_decay=0.1)),), Adam(lr=0.01, l2=0.3))
    return replace(step(), adam=Clipped(Schedule(groups, warmup=10), 0.1))


def stack_step(model: Sequential) -> Step:
    """Return a step of a stack of layers, with moments of ordinary size; only the first layer takes tokens."""
    params, generator = model.init(0), np.random.default_rng(1)
    m = {name: 0.02 * generator.standard_normal(p.shape) for name, p in params.items()}
    v = {name: 4e-4 * generator.chisquare(3, p.shape) for name, p in params.items()}

    def samples(n: int) -> Batch:
        if model.layers[0].takes_tokens:
            return Batch(*generator.integers(0, VOCAB, (2, n, POSITIONS)))
        return Batch(generator.standard_normal((n, *IMAGE)), generator.integers(0, CLASSES, n))

    return Step(model, params, Adam(lr=0.01, weight_decay=0.01), AdamState(7, m, v), samples(N), samples(N_VAL))


def batch(net: Network, n: int, generator: np.random.Generator) -> Batch:
    """Return `n` random samples for `net`."""
    x = generator.standard_normal((n, net.sizes[0]))
    if net.loss == "cross_entropy":
        return Batch(x, generator.integers(0, net.sizes[-1], n))
    return Batch(x, generator.standard_normal((n, net.sizes[-1])))


def _queries() -> dict[str, list[Query]]:
    """Return queries for every estimator of the contract, by task name."""

    def scores(**options: Any) -> Query:
        return Query("scores", options)

    last = {"slope": "linearized", "gradient": "start", "denominator": "previous"}
    found = {
        "update": [Query("update")],
        "utility": [Query("utility", {"coalition": np.arange(N) % 2 == 0})],
        "influence": [Query("influence")],
    }
    found |= {
        f"slope {slope}": [scores(slope=slope, gradient=gradient) for gradient in GRADIENTS]
        for slope in (*SLOPES, AUTO)
    }
    found |= {
        "each validation sample": [scores(slope=slope, per_validation=True) for slope in ("sgd", "random_order")],
        "efficient scores": [scores(efficient=True)],
        "micro-batches": [scores(micro_batch=4)],
        "the previous denominator": [scores(**last)],
        f"slope {TWO_TERM}": [
            scores(slope=TWO_TERM, kind=kind, gradient=gradient)
            for kind, gradient in zip(MARGINALS, GRADIENTS, strict=True)
        ],
        "marginals": [
            Query("marginals", {"kind": kind, "loss": loss})
            for kind, loss in product(("first", "last"), MARGINAL_LOSSES)
        ],
    }
    return found


def _layer_queries() -> list[Query]:
    return [Query("update"), Query("scores", {"slope": "secant", "gradient": "midpoint"})]


def _slope_queries() -> list[Query]:
    options = [{"slope": slope, "gradient": "midpoint"} for slope in (*SLOPES, AUTO, TWO_TERM)]
    return [Query("update"), Query("influence"), *(Query("scores", each) for each in options)]


def _stack_queries() -> list[Query]:
    """Return queries that contract, compute σ, and pair samples with validation samples."""
    by_sample = {"slope": "sgd", "gradient": "start", "per_validation": True}
    return [*_layer_queries(), Query("scores", {"slope": "random_order"}), Query("scores", by_sample)]


def _task(name: str, problem: Step, queries: list[Query], dtype: str, with_tf32: bool = False) -> Task:
    def run(report: Reporter) -> None:
        given = in_dtype(problem, dtype)
        for query in queries:
            options = {key: value for key, value in query.options.items() if key != "micro_batch"}
            oracle_query = Query(query.function, options)
            if with_tf32:
                with tf32():
                    got = ask(given, query)
                error = share(given, oracle_query, got, dtype)
                report.error(f"TF32, {query.function}, share of float32's bound", error)
                continue
            try:
                found = agrees(partial(_answer, query), Case(given, oracle_query), dtype)
            except (Disagreement, Misbehaviour) as failure:
                report.failed(f"{name}: {query}", str(failure))
            else:
                report.passed(1)
                report.error(f"smoke {dtype}, {query.function}, share of the bound", found)

    return Task(name, run)


def _answer(query: Query, step: Step, _oracle_query: Query) -> Answer:
    """Return the engine's answer to `query`, which may have options that the oracle lacks."""
    return ask(step, query)


def share(given: Step, query: Query, got: dict[str, Array], dtype: str) -> float:
    """Return the largest error as a share of its bound, however large."""
    wanted, bound = expected(given, query), bounds(given, query, dtype)
    return max(
        float(np.max(np.abs(got[name] - wanted[name]) / np.maximum(bound[name], np.finfo(float).tiny), initial=0.0))
        for name in wanted.keys() & got.keys()
    )


@contextmanager
def tf32() -> Iterator[None]:
    """Compute CuPy's float32 products in TF32, as CUPY_TF32=1 does for a whole process."""
    from cupy._core import _routines_linalg as linalg

    kind = np.dtype(np.float32)
    before = linalg.get_compute_type(kind)
    linalg.set_compute_type(kind, linalg.COMPUTE_TYPE_TF32)
    try:
        yield
    finally:
        linalg.set_compute_type(kind, before)


def _carry_task(slope: Any, dtype: Any) -> Any:
    """Return a task that checks a short run with credit="carry"."""
    net = Network((4, 5, 3), "tanh")
    generator = np.random.default_rng(2)
    # A large ε smooths Adam's map, near whose kinks float32 rounding could change the result.
    config = RunConfig(net, Adam(lr=0.01, eps=1e-3), batch(net, 8, generator), batch(net, 3, generator), 2, 3, 0)

    def options_of(given: RunConfig) -> dict[str, Any]:
        return vars(given) | {"credit": "carry", "slope": slope, "gradient": "path"}

    def oracles(given: RunConfig) -> list[Array]:
        return list(_shares(reference.attribute(**options_of(given))))

    def run(report: Reporter) -> None:
        got = gpu.attribute(**options_of(config), variance="exact", carry_window=100, device="cuda", dtype=dtype)
        moved = run_conditioning(oracles, config, dtype)
        account = account_bound(config, slope, "path", dtype=dtype)
        for name, ours, theirs, spread in zip(CREDITS, _shares(got), oracles(config), moved, strict=True):
            bound = spread + account + rounding(np.abs(theirs).max(), got.state.step, dtype)
            assert_within(ours, theirs, bound, name)
            report.error(f"smoke {dtype}, carry, share of the bound", float(np.max(np.abs(ours - theirs) / bound)))

    return run


CREDITS = ("scores", "sgd_scores", "decay", "closed")


def _shares(run: Run) -> list[Array]:
    return [np.asarray(getattr(run, name), np.float64) for name in CREDITS]


def _low_rank_task(dtype: Any) -> Any:
    """Return a task that checks the sketch of a low-rank product: it must equal the product, and give its scores."""

    def run(report: Reporter) -> None:
        rank, problem = 3, step(sizes=(40, 50, 30, 4), n=64)
        context = context_for(problem.net, pick_backend("cuda", dtype))
        backend, generator = context.backend, np.random.default_rng(3)
        x, y = backend.real(problem.train.x), backend.labels(problem.train.y)
        stack = context.stack
        captures = stack.run(
            context, stack.workspace(context, "train", x), backend.reals(problem.params), y, 1 / len(x)
        )
        low = {
            name: backend.real(
                generator.standard_normal((*p.shape[:-1], rank)) @ generator.standard_normal((rank, p.shape[-1]))
            )
            if p.ndim == 2
            else backend.real(generator.standard_normal(p.shape))
            for name, p in problem.params.items()
        }
        factors = Sketch(rank).factors(context, low, len(x))
        assert factors, "no layer is sketched"
        for name, (q, c) in factors.items():
            p = backend.host(low[name])
            bound = rounding(np.abs(p).max(), p.size, dtype)
            assert_within(backend.host(q @ c), p, bound, name)
            error = np.abs(backend.host(q @ c) - p).max() / bound
            report.error(f"smoke {dtype}, sketch, share of the bound", float(error))
        exact, sketched, size = (backend.xp.zeros(len(x), dtype) for _ in range(3))
        contract(context, captures, low, exact)
        contract(context, captures, low, sketched, factors)
        sizes = Captures(
            tuple(
                OuterProduct(one.weight, one.bias, abs(one.a), abs(one.b))
                for one in captures.uses
                if isinstance(one, OuterProduct)
            )
        )
        contract(context, sizes, {name: backend.xp.full_like(p, abs(p).max()) for name, p in low.items()}, size)
        bound = rounding(backend.host(size), parameter_count(problem), dtype)
        assert_within(backend.host(sketched), backend.host(exact), bound, "scores")

    return run


def _less_precise_task(kind: Any) -> Any:
    def run(report: Reporter) -> None:
        given, query = in_dtype(step(n=64), "float32"), Query("scores", {})
        got = {"values": gpu.scores(given, score_dtype=kind, device="cuda", dtype="float32").astype(np.float64)}
        report.error(f"contraction in {kind}, share of float32's bound", share(given, query, got, "float32"))

    return run
