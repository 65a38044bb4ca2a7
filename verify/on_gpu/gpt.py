"""A language model of GPT-2 small's size, and its training step: the baseline for attribution."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adamshap.torch.bench.against import ghostsuite_step
from adamshap.torch.bench.model import Sizes, build, loss_of, tokens_of

__all__ = ["SMALL", "TINY", "Sizes", "attach_ghostsuite", "build", "loss_of", "seconds_of", "step_of", "tokens_of"]


SMALL = Sizes(layers=12, heads=12, width=768, vocabulary=50257, context=1024, n=16)
TINY = Sizes(layers=1, heads=2, width=8, vocabulary=17, context=6, n=3)


def step_of(
    loss_of_batch: Callable[[Tensor, Tensor], Any],
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    bf16: bool,
) -> Callable[[], None]:
    """Return a plain training step, under bf16 autocast or in float32."""

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of_batch(x, y)
        loss.backward()
        optimiser.step()

    return step


def attach_ghostsuite(checkout: str, sizes: Sizes, device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Return a training step with GhostSuite's gradient dot products against one validation sample.

    Its products of captured arrays need a single dtype, which autocast does not give, so the parameters have `dtype`.
    """
    model, optimiser = build(sizes, device, dtype)
    x, y = tokens_of(sizes, sizes.n + 1, device)
    return ghostsuite_step(checkout, model, optimiser, (x[:-1], y[:-1]), (x[-1:], y[-1:]))


def seconds_of(step: Callable[[], object], device: str, rounds: int) -> float:
    """Return the median time of a step, after three warm-up steps."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    taken = []
    for number in range(3 + rounds):
        wait()
        began = time.perf_counter()
        step()
        wait()
        if number >= 3:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)
