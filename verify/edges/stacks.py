"""The stacks of layers at edges: a small transformer, made of those of its layers that a candidate declares."""

from typing import Any

from hypothesis import strategies as st

from adamshap.reference.contract import (
    Attention,
    Conv2d,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    Positions,
    Residual,
    RMSNorm,
    Sequential,
    TiedLinear,
)
from adamshap.verify.edges.edge import Edge

__all__ = ["stack_at"]

EPS = 0.1
"""ε of norms: with a small one, a norm over two numbers passes their signs alone."""


def stack_at(draw: Any, edge: Edge, kinds: frozenset[str] | None = None) -> Sequential:
    """Return a stack of layers of some `kinds`, all by default, which must include the edge's and one to begin with.

    Every layer that is not at the edge has two or three units, tokens or positions. Without embeddings the inputs are
    sequences or rows of real numbers, or images if there is nothing but convolution.
    """

    def has(kind: str) -> bool:
        return kinds is None or kind in kinds

    size = {"vocab": 3, "width": 2, "positions": 3, "heads": 1, "depth": 1} | dict(edge.sizes)
    width, vocab = max(size["width"], size["heads"]), size["vocab"]
    layers: list[Layer] = [Embedding(vocab, width)] if has("embedding") else []
    if has("positions"):
        layers.append(Positions(size["positions"], width))
    # Attention to one token has a gradient of 0 for query and key, or rounding errors.
    if has("attention") and (size["positions"] > 1 or not layers):
        layers.append(Attention(width, size["heads"]))
    layers += _block(width, kinds) * size["depth"]
    if has("embedding") and has("tied_linear") and (not has("linear") or draw(st.booleans(), label="tied")):
        return Sequential((*layers, TiedLinear(width, vocab, "0.weight")))
    if has("linear"):
        return Sequential((*layers, Linear(width, edge.sizes.get("outputs", 3))))
    return Sequential(tuple(layers) or (Conv2d(width, width, (1, 1)),), loss="mse")


def _block(width: int, kinds: frozenset[str] | None) -> list[Layer]:
    """Return a norm and a linear layer, within a residual if there are residuals."""
    inner: list[Layer] = []
    if kinds is None or "rms_norm" in kinds:
        inner.append(RMSNorm(width, EPS))
    elif "layer_norm" in kinds and width > 1:  # over one number it is 0
        inner.append(LayerNorm(width, eps=EPS))
    if kinds is None or "linear" in kinds:
        inner.append(Linear(width, width))
    if inner and (kinds is None or "residual" in kinds):
        return [Residual(tuple(inner))]
    return inner
