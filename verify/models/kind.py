"""The interfaces of a kind of models, and of its Hypothesis strategies."""

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import numpy as np

from adamshap.reference.contract import Array, Batch, Model, Params, Step

__all__ = ["EDGES", "PRIMES", "Draw", "Draws", "ModelKind"]

Draw = Callable[..., Any]
"""Hypothesis's function that draws from a strategy: ``draw(strategy, label="...")``."""

EDGES = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
"""Usual sizes of tiles and blocks and limits of small integers, and their neighbours."""

PRIMES = (257, 263, 269, 271)
"""Sizes that are not a multiple of any tile of 2 to 256."""


class ModelKind(Protocol):
    """The properties of a kind of models that the kit needs beyond the protocol `Model`."""

    def to_json(self, model: Any) -> dict[str, Any]:
        """Return the model as plain types, without its kind."""

    def from_json(self, value: Any) -> Model:
        """Return the model from `value`, the result of `to_json`; refuse anything else."""

    def longest_sum(self, model: Any) -> int:
        """Return the number of terms in the longest sum within one sample."""

    def products(self, model: Any) -> int:
        """Return the number of matrix products in one gradient, forwards and backwards."""

    def loss_terms(self, step: Step) -> float:
        """Return the size of the terms of the largest validation loss, from the oracle's outputs."""

    def loss_limit(self, step: Step) -> float:
        """Return an upper limit on `loss_terms` up to a small factor, from the step alone, without the oracle."""

    def plain_model(self, draw: Random, seed: int) -> Any:
        """Return the model of the test vector `seed`, by ``draw.random()`` alone."""

    def plain_batch(self, draw: Random, model: Any, n: int) -> Batch:
        """Return a batch of the test vectors, by ``draw.random()`` alone."""

    @property
    def draws(self) -> "Draws":
        """The Hypothesis strategies of this kind."""


class Draws(Protocol):
    """The Hypothesis strategies for models of a kind and their batches."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Dimensions of a model that may be at an edge: a width, the number of layers."""

    def within(self, layers: frozenset[str]) -> "Draws":
        """Return the strategies for models of some kinds of layers only."""

    def models(self, **limits: int) -> Any:
        """Return a strategy for small models; `limits` are the kind's own."""

    def at_edge(self, draw: Draw, model: Any, dimension: str) -> Any:
        """Return the model with one of its `dimensions` at an edge, such as one of `EDGES`."""

    def special(self, draw: Draw, model: Any) -> Any:
        """Return a model that is not at an edge, sometimes with a special shape of this kind."""

    def parameters(self, model: Any, seed: int) -> Params:
        """Return random parameters, such that no factor of a gradient is usually 1 or 0."""

    def with_zeros(self, model: Any, params: Params, generator: np.random.Generator) -> Params:
        """Return the parameters with some at 0, so that some intermediate results are exactly 0."""

    def batch(self, draw: Draw, model: Any, n: int, label: str) -> Batch:
        """Return a batch of `n` samples; sometimes with equal and with zero samples."""

    def ordinary_batch(self, model: Any, n: int, generator: np.random.Generator) -> Batch:
        """Return a batch of `n` samples of ordinary size."""

    def wide_models(self) -> Any:
        """Return a strategy for models with as many widths as affordable from `PRIMES`."""

    def large_models(self) -> Any:
        """Return a strategy for models with a layer wider than 256."""

    def with_null_samples(self, draw: Draw, step: Step, null: Array, generator: np.random.Generator) -> Step:
        """Return the step changed so that the samples in the mask `null` have a gradient of exactly 0."""

    def null_samples(self, step: Step) -> Array:
        """Return a mask of the samples whose gradient is 0 for one of the reasons in `with_null_samples`."""

    def reach(self, step: Step) -> float:
        """Return a bound on the outputs before and after the step, for any coalition."""
