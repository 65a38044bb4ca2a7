"""Layers of sequences (T, width): embedding, positions, attention, the mean over positions."""

from dataclasses import dataclass, field

import numpy as np

from adamshap.reference.contract.arrays import Array
from adamshap.reference.contract.layer import Layer, Shape, flag_field, integer_fields, uniform
from adamshap.reference.contract.refusal import refuse

__all__ = ["Attention", "Embedding", "MeanOverPositions", "Positions"]

EMBEDDING_DEVIATION = 0.02
"""Of fresh embeddings and positions."""


@dataclass(frozen=True)
class Embedding(Layer):
    """A vector for each token, as ``nn.Embedding``; the first layer of a model of tokens.

    Parameters
    ----------
    vocab, width : int
        How many tokens there are, 0 to vocab − 1; the length of their vectors.
    """

    vocab: int
    width: int
    kind: str = field(default="embedding", init=False, repr=False)

    def __post_init__(self) -> None:
        integer_fields(self, "vocab", "width")

    @property
    def shapes(self) -> dict[str, Shape]:
        """``weight`` (vocab, width)."""
        return {"weight": (self.vocab, self.width)}

    @property
    def takes(self) -> str:
        """Tokens (T,)."""
        return "(T,)"

    @property
    def takes_tokens(self) -> bool:
        """True."""
        return True

    def _out(self, shape: Shape) -> Shape | None:
        return (*shape, self.width) if len(shape) == 1 else None

    def _fresh(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        return EMBEDDING_DEVIATION * generator.standard_normal(shape)


@dataclass(frozen=True)
class Positions(Layer):
    """Adds a learned vector to each position; sequences may be shorter than the context.

    Parameters
    ----------
    context, width : int
        The most positions; the length of their vectors.
    """

    context: int
    width: int
    kind: str = field(default="positions", init=False, repr=False)

    def __post_init__(self) -> None:
        integer_fields(self, "context", "width")

    @property
    def shapes(self) -> dict[str, Shape]:
        """``weight`` (context, width)."""
        return {"weight": (self.context, self.width)}

    @property
    def takes(self) -> str:
        """Sequences (T, width) with T up to the context."""
        return f"(T, {self.width}) with T of at most {self.context}"

    def _out(self, shape: Shape) -> Shape | None:
        return shape if len(shape) == 2 and shape[0] <= self.context and shape[1] == self.width else None

    def _fresh(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        return EMBEDDING_DEVIATION * generator.standard_normal(shape)


@dataclass(frozen=True)
class Attention(Layer):
    """Causal multi-head scaled dot-product attention of a sequence to itself, as ``nn.MultiheadAttention``.

    Parameters
    ----------
    width : int
        Of input and output; query, key and value are rows of one projection, in this order.
    heads : int
        A divisor of the width. Dot products are scaled by 1/√(width/heads).
    bias : bool
        Whether both projections have biases.
    """

    width: int
    heads: int = 1
    bias: bool = True
    kind: str = field(default="attention", init=False, repr=False)

    def __post_init__(self) -> None:
        integer_fields(self, "width", "heads")
        flag_field(self, "bias")
        if self.width % self.heads:
            refuse("Attention.heads", self.heads, f"a divisor of the width, {self.width}")

    @property
    def shapes(self) -> dict[str, Shape]:
        """``in_proj_weight`` (3 width, width), ``out_proj.weight`` (width, width), and biases if it has them."""
        shapes: dict[str, Shape] = {"in_proj_weight": (3 * self.width, self.width)}
        if self.bias:
            shapes["in_proj_bias"] = (3 * self.width,)
        shapes["out_proj.weight"] = (self.width, self.width)
        if self.bias:
            shapes["out_proj.bias"] = (self.width,)
        return shapes

    @property
    def takes(self) -> str:
        """Sequences (T, width)."""
        return f"(T, {self.width})"

    def _out(self, shape: Shape) -> Shape | None:
        return shape if len(shape) == 2 and shape[1] == self.width else None

    def _fresh(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        return uniform(shape, self.width, generator) if name.endswith("weight") else np.zeros(shape)


@dataclass(frozen=True)
class MeanOverPositions(Layer):
    """The mean over a sequence's positions."""

    kind: str = field(default="mean_over_positions", init=False, repr=False)

    @property
    def takes(self) -> str:
        """Sequences (T, d)."""
        return "(T, d)"

    def _out(self, shape: Shape) -> Shape | None:
        return shape[1:] if len(shape) == 2 else None
