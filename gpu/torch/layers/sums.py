"""Sums over a sample's positions: x_i of a bias is Σ_t b_t."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from adamshap.gpu.captures import Dense
from adamshap.torch.checks.numbers import norm_of
from adamshap.torch.memory import array_of, memory_of

__all__ = ["PositionSums", "position_sums"]


@dataclass(frozen=True)
class PositionSums(Dense):
    """Σ_t b_t of each sample.

    The rounding of a sum is in proportion to its terms, and these may cancel: the bias of an attention's keys has a
    gradient of exactly 0. So the self-check takes its bound from b.

    Parameters
    ----------
    bound : number
        Of Σ_i Σ_t ‖b_it‖.
    """

    bound: Any


def position_sums(name: str, b: torch.Tensor) -> PositionSums:
    """Return the capture of a bias, from the gradients b (n, …, d) of the output, both passes while b is in the cache.

    By Cauchy and Schwarz, Σ ‖b_it‖ is at most ‖b‖ times the root of the number of positions of all samples.
    """
    terms = b.reshape(len(b), -1, b.shape[-1])
    bound = math.sqrt(max(math.prod(terms.shape[:2]), 1)) * norm_of(memory_of(b.device).library(), array_of(terms))
    return PositionSums(name, array_of(terms.sum(1)), bound)
