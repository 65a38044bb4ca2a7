"""The models of the benchmark other than perceptrons: their products, which set the floor, and their data."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.gpu.backend import Backend
from adamshap.reference.contract import Sequential, convnet, transformer

__all__ = ["Convnet", "Product", "Transformer"]

Product = tuple[int, int, int]
"""Positions, d_in and d_out of a linear layer or a convolution."""


@dataclass(frozen=True)
class Transformer:
    """A transformer, tied and with LayerNorm, and the length of its sequences."""

    depth: int
    width: int
    heads: int
    vocab: int
    positions: int

    @property
    def model(self) -> Sequential:
        """The model."""
        return transformer(
            vocab=self.vocab, context=self.positions, width=self.width, depth=self.depth, heads=self.heads
        )

    @property
    def title(self) -> str:
        """Its name, for tables."""
        return f"transformer {self.depth}x{self.width}, T={self.positions}"

    @property
    def products(self) -> list[Product]:
        """Those of its linear layers, the output's included."""
        d = self.width
        pairs = self.depth * [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)] + [(d, self.vocab)]
        return [(self.positions, *pair) for pair in pairs]

    @property
    def other_products(self) -> int:
        """Multiplications of attention's own products, of one sample: forward, and twice as many backward."""
        return 3 * 2 * self.depth * self.width * self.positions**2

    def data(self, backend: Backend, count: int, generator: np.random.Generator) -> tuple[Any, Any]:
        """Return random walks over the tokens, and each position's next token."""
        walks = generator.integers(0, 3, (count, self.positions + 1)).cumsum(axis=1) % self.vocab
        return backend.labels(walks[:, :-1], True), backend.labels(walks[:, 1:], True)


@dataclass(frozen=True)
class Convnet:
    """A convolutional network with kernels of 3 × 3, each followed by pooling, for square images and 10 classes."""

    colours: int
    side: int
    channels: tuple[int, ...]

    @property
    def model(self) -> Sequential:
        """The model."""
        return convnet(image=(self.colours, self.side, self.side), channels=self.channels, outputs=10)

    @property
    def title(self) -> str:
        """Its name, for tables."""
        return f"convnet {'-'.join(map(str, self.channels))}, {self.side}x{self.side}"

    @property
    def products(self) -> list[Product]:
        """Those of its convolutions and its linear layer."""
        found, c, side = [], self.colours, self.side
        for count in self.channels:
            found.append((side * side, 9 * c, count))
            c, side = count, side // 2
        return [*found, (1, c * side * side, 10)]

    @property
    def other_products(self) -> int:
        """Those that a step does not need: the gradient in the images, less than none."""
        return -math.prod(self.products[0])

    def data(self, backend: Backend, count: int, generator: np.random.Generator) -> tuple[Any, Any]:
        """Return images of noise around one picture for each class, and their classes."""
        shape = (self.colours, self.side, self.side)
        pictures, y = generator.standard_normal((10, *shape), np.float32), generator.integers(0, 10, count)
        noise = generator.standard_normal((count, *shape), np.float32)
        return backend.real(pictures[y] + 4 * noise), backend.labels(y)
