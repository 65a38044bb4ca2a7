"""A language model of GPT-2 small's size in plain PyTorch, and its training step: the baseline for attribution.

Its parameters are random, since their values do not affect the time of a step.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SMALL", "TINY", "Sizes", "attach_ghostsuite", "build", "loss_of", "seconds_of", "step_of", "tokens_of"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and its batch."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    context: int
    n: int
    tied: bool = True


SMALL = Sizes(layers=12, heads=12, width=768, vocabulary=50257, context=1024, n=16)
TINY = Sizes(layers=1, heads=2, width=8, vocabulary=17, context=6, n=3)


class Block(nn.Module):
    """Causal self-attention and a perceptron, each after a LayerNorm and with a residual connection."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.attend, self.project = nn.Linear(sizes.width, 3 * sizes.width), nn.Linear(sizes.width, sizes.width)
        self.up, self.down = nn.Linear(sizes.width, 4 * sizes.width), nn.Linear(4 * sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (n, T, width)."""
        n, length, width = x.shape
        parts = self.attend(self.norm_1(x)).split(width, dim=2)
        q, k, v = (part.view(n, length, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(found.transpose(1, 2).reshape(n, length, width))
        after: Tensor = x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))
        return after


class Model(nn.Module):
    """Embeddings, blocks, a LayerNorm and the output layer, which shares its weight with the embedding if tied."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.places = nn.Embedding(sizes.context, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm, self.out = nn.LayerNorm(sizes.width), nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        if sizes.tied:
            self.out.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (n, T, vocabulary)."""
        # One row of positions for each sample, since GhostSuite's hooks need the samples in the first axis.
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x = self.tokens(ids) + self.places(places)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.out(self.norm(x))
        return logits


def build(sizes: Sizes, device: str, dtype: torch.dtype = torch.float32) -> tuple[Model, torch.optim.Optimizer]:
    """Return a model with parameters of `dtype`, and its Adam optimiser."""
    torch.manual_seed(0)
    model = Model(sizes).to(device, dtype)
    return model, torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)


def tokens_of(sizes: Sizes, n: int, device: str) -> tuple[Tensor, Tensor]:
    """Return random inputs and targets (n, T)."""
    ids = torch.randint(sizes.vocabulary, (n, sizes.context + 1), device=device)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def loss_of(model: Model) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of inputs and targets (n, T) that computes the mean loss."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x).flatten(0, 1), y.flatten())

    return loss


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


def attach_ghostsuite(checkout: str, sizes: Sizes, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """Return a training step with GhostSuite's gradient dot products against one validation sample.

    Its products of captured arrays need a single dtype, which autocast does not give, so the parameters have `dtype`.
    """
    sys.path.insert(0, checkout)
    ghost_engines: Any = importlib.import_module("ghostEngines")
    model, optimiser = build(sizes, device, dtype)
    engine = ghost_engines.GradDotProdEngine(module=model, val_batch_size=1, loss_reduction="mean")
    engine.attach(optimiser)
    loss_of_batch, (x, y) = loss_of(model), tokens_of(sizes, sizes.n + 1, device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        engine.attach_train_batch(X_train=x[:-1], Y_train=y[:-1], iter_num=0, batch_idx=0)
        loss: Any = loss_of_batch(x, y)
        loss.backward()
        engine.aggregate_and_log()
        engine.dot_product_log.clear()
        engine.prepare_gradients()
        optimiser.step()
        engine.clear_gradients()

    return step


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
