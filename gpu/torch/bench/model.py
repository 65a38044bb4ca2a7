"""A GPT in plain PyTorch, the model of the benchmark, with random data.

Its parameters are random, since their values do not affect the time of a step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Model", "Sizes", "build", "loss_of", "tokens_of"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and its batch; `gelu` is PyTorch's argument `approximate`, "none" or "tanh"."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    context: int
    n: int
    tied: bool = True
    gelu: str = "tanh"


class Block(nn.Module):
    """Causal self-attention and a perceptron, each after a LayerNorm and with a residual connection."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.gelu = sizes.heads, sizes.gelu
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
        after: Tensor = x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate=self.gelu))
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
