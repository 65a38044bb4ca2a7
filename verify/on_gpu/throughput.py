"""The card's speed, and the cost of attribution on it: perceptrons in the engine, a language model in PyTorch.

Planned rows that cannot be measured yet are in `NOT_BUILT`; a change that makes one measurable moves it to `tasks`.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from adamshap.gpu import bench
from adamshap.reference.contract import ScoreSlope
from adamshap.verify.on_gpu.child import Reporter
from adamshap.verify.on_gpu.plan import Setting, Task

__all__ = ["NOT_BUILT", "tasks"]

CASES = tuple(case for case in bench.CASES if case.n in (256, 1024))
SMALL_CASES = (bench.Case((20, 60, 60, 4), 64, 4, 3),)
SLOPES: tuple[ScoreSlope, ...] = ("random_order", "secant")
RANK, SMALL_RANK = 16, 4

GPT = "GPT-2 small, n = 16, T = 1024"
NOT_BUILT = {
    f"{GPT}, attributed {how}, {slope}, n_val = 1, {mode}, {dtype}": "not built yet: no row runs adamshap.torch"
    for how, slope, mode, dtype in product(
        ("exact", "rank 16"), ("secant", "auto"), ("eager", "compiled"), ("bf16 autocast", "float32")
    )
}


def tasks(setting: Setting) -> list[Task]:
    """Return the stage's tasks."""
    small = setting.rehearsal
    found = [Task("copies", partial(_copies, 1 << (12 if small else 28)))]
    found += [
        Task(f"products, {kind}", partial(_products, kind, 32 if small else 8192))
        for kind in ("float32", "TF32", "float64", "float16")
    ]
    found += [
        Task(_name_of(case, slope), partial(_perceptron, case, slope, SMALL_RANK if small else RANK))
        for case, slope in product(SMALL_CASES if small else CASES, SLOPES)
    ]
    found += [Task("products, bf16 in PyTorch", partial(_bf16_products, setting))]
    found += [Task("rows that are not built yet", _not_built)]
    # Last, since PyTorch's compiler is slow.
    found += [
        Task(
            f"{_model_name(setting)}, plain {mode}, {dtype}",
            partial(_language_model, setting, mode, dtype),
            fresh=not small,
        )
        for mode, dtype in product(("eager", "compiled"), ("bf16 autocast", "float32"))
    ]
    if setting.ghostsuite:
        found += [
            Task(
                f"{_model_name(setting)}, GhostSuite, {dtype}",
                partial(_ghostsuite, setting, dtype),
                required=False,
                fresh=not small,
            )
            for dtype in ("bfloat16", "float32")
        ]
    return found


def _model_name(setting: Setting) -> str:
    return "tiny language model" if setting.rehearsal else GPT


def _name_of(case: bench.Case, slope: ScoreSlope) -> str:
    return f"{'-'.join(map(str, case.sizes))}, n = {case.n}, {slope}"


def _seconds(run: Callable[[], Any], rounds: int = 10) -> float:
    """Return the median time of a call on the card, measured by events, after two warm-up calls."""
    import cupy

    taken = []
    for number in range(rounds + 2):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        if number >= 2:
            taken.append(cupy.cuda.get_elapsed_time(start, stop) / 1e3)
    return max(float(statistics.median(taken)), 1e-9)


def _copies(elements: int, report: Reporter) -> None:
    import cupy

    source, target = cupy.ones(elements, "float32"), cupy.empty(elements, "float32")
    seconds = _seconds(lambda: cupy.copyto(target, source))
    report.rate("copy within the card, bytes read and written, GB/s", 2 * source.nbytes / seconds / 1e9)
    host = cupy.asnumpy(source)
    began = time.perf_counter()
    target.set(host)
    cupy.cuda.get_current_stream().synchronize()
    report.rate("copy from the host, pageable, GB/s", source.nbytes / (time.perf_counter() - began) / 1e9)


def _products(kind: str, size: int, report: Reporter) -> None:
    import cupy
    import numpy as np

    from adamshap.verify.on_gpu.smoke import tf32

    dtype = "float32" if kind == "TF32" else kind
    generator = np.random.default_rng(0)
    a, b = (cupy.asarray(generator.standard_normal((size, size), dtype="float32")).astype(dtype) for _ in range(2))
    out = cupy.empty((size, size), dtype)

    def multiply() -> None:
        cupy.matmul(a, b, out=out)

    if kind == "TF32":
        with tf32():
            seconds = _seconds(multiply)
    else:
        seconds = _seconds(multiply)
    report.rate(f"matrix product, {kind}, TFLOP/s", 2 * size**3 / seconds / 1e12)


def _bf16_products(setting: Setting, report: Reporter) -> None:
    import torch

    from adamshap.verify.on_gpu.gpt import seconds_of

    device, size = ("cpu", 32) if setting.rehearsal else ("cuda", 8192)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = seconds_of(lambda: torch.matmul(a, b), device, 10)
    report.rate("matrix product, bf16, in PyTorch, TFLOP/s", 2 * size**3 / seconds / 1e12)


def _perceptron(case: bench.Case, slope: ScoreSlope, rank: int, report: Reporter) -> None:
    for row in bench.measure(case, slope, "midpoint", rank, "cuda"):
        name = f"{_name_of(case, slope)}, {'exact' if row['rank'] is None else f'rank {rank}'}"
        report.rate(f"{name}, attributed over plain throughput", row["throughput_ratio"])
        report.rate(f"{name}, plain step, ms", row["plain_ms"])
        report.rate(f"{name}, attributed step, ms", row["attributed_ms"])
        report.note(name, _short(row))


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with numbers rounded to four digits, so that it fits into a line."""
    return {key: _rounded(value) for key, value in row.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def _language_model(setting: Setting, mode: str, dtype: str, report: Reporter) -> None:
    import torch

    from adamshap.verify.on_gpu import gpt

    device, sizes, rounds = ("cpu", gpt.TINY, 3) if setting.rehearsal else ("cuda", gpt.SMALL, 10)
    torch.backends.cuda.matmul.allow_tf32 = False
    model, optimiser = gpt.build(sizes, device)
    x, y = gpt.tokens_of(sizes, sizes.n, device)
    # A rehearsal runs only the tracing of PyTorch's compiler, not its code generation.
    backend = "eager" if setting.rehearsal else "inductor"
    loss: Any = gpt.loss_of(model)
    if mode == "compiled":
        loss = torch.compile(loss, backend=backend)
    began = time.perf_counter()
    seconds = gpt.seconds_of(gpt.step_of(loss, optimiser, x, y, dtype != "float32"), device, rounds)
    name = f"{_model_name(setting)}, plain {mode}, {dtype}"
    report.rate(f"{name}, step, ms", 1e3 * seconds)
    report.rate(f"{name}, tokens/s", x.numel() / seconds)
    report.note(f"{name}, seconds in all, compilation included", round(time.perf_counter() - began, 1))
    if device == "cuda":
        report.rate(f"{name}, most memory, GiB", torch.cuda.max_memory_allocated() / 2**30)


def _ghostsuite(setting: Setting, dtype: str, report: Reporter) -> None:
    import torch

    from adamshap.verify.on_gpu import gpt

    device, sizes, rounds = ("cpu", gpt.TINY, 3) if setting.rehearsal else ("cuda", gpt.SMALL, 10)
    # GhostSuite does not support an output layer with a shared weight.
    untied, of_parameters = replace(sizes, tied=False), getattr(torch, dtype)
    model, optimiser = gpt.build(untied, device, of_parameters)
    plain = gpt.step_of(gpt.loss_of(model), optimiser, *gpt.tokens_of(untied, untied.n, device), bf16=False)
    name = f"{_model_name(setting)}, output layer not tied, {dtype} parameters"
    report.rate(f"{name}, plain step, ms", 1e3 * gpt.seconds_of(plain, device, rounds))
    try:
        ghost = gpt.attach_ghostsuite(setting.ghostsuite, untied, device, of_parameters)
        seconds = gpt.seconds_of(ghost, device, rounds)
    except Exception as error:  # third-party code: its failure does not fail the run
        report.note(f"{name}, GhostSuite", f"could not be timed: {type(error).__name__}: {error}")
        return
    report.rate(f"{name}, step with GhostSuite's dot products, n_val = 1, ms", 1e3 * seconds)


def _not_built(report: Reporter) -> None:
    for name, why in NOT_BUILT.items():
        report.note(name, why)
