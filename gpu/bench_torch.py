"""PyTorch's plain step on the benchmark's models, timed for comparison."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import typer

from adamshap.gpu.bench_models import Transformer
from adamshap.gpu.bench_timing import STEPS_BEFORE, Case
from adamshap.gpu.threads import cpu_threads

__all__ = ["torch_rounds"]


def torch_rounds(case: Case) -> tuple[list[float], list[float]] | None:
    """Return times of PyTorch's plain step on the same problem, with its fastest Adam; None for a convnet.

    Wall times are with all threads, processor times with one: waiting threads spin, which processor time would count.
    """
    try:
        import torch
    except ImportError as error:
        raise typer.BadParameter(f"PyTorch is not installed ({error})", param_hint="--against") from error
    if case.other is None:
        optimiser, loss = _perceptron(case)
    elif isinstance(case.other, Transformer):
        optimiser, loss = _transformer(case.other, case.n)
    else:
        return None

    def times(clock: Callable[[], float], threads: int) -> list[float]:
        torch.set_num_threads(threads)
        durations = []
        for _ in range(STEPS_BEFORE + case.rounds):
            before = clock()
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
            durations.append(clock() - before)
        return durations[STEPS_BEFORE:]

    return times(time.perf_counter, cpu_threads()), times(time.process_time, 1)


def _perceptron(case: Case) -> tuple[Any, Callable[[], Any]]:
    """Return the model's optimiser and the function that computes its loss."""
    import torch

    layers: list[Any] = []
    for d_in, d_out in pairwise(case.sizes):
        layers += [torch.nn.Linear(d_in, d_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    x, y = torch.randn(case.n, case.sizes[0]), torch.randint(0, case.sizes[-1], (case.n,))
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    return optimiser, lambda: torch.nn.functional.cross_entropy(model(x), y)


def _transformer(sizes: Transformer, n: int) -> tuple[Any, Callable[[], Any]]:
    """Return the model's optimiser and the function that computes its loss."""
    from adamshap.torch.bench.model import Sizes, build, loss_of, tokens_of

    same = Sizes(sizes.depth, sizes.heads, sizes.width, sizes.vocab, sizes.positions, n, gelu="none")
    model, optimiser = build(same, "cpu")
    x, y = tokens_of(same, n, "cpu")
    loss = loss_of(model)
    return optimiser, lambda: loss(x, y)
