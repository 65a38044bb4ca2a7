"""Sums over a sample's positions: x_i of a bias is Σ_t b_t."""

from dataclasses import dataclass

from adamshap.gpu.captures import Dense
from adamshap.reference.contract import Array

__all__ = ["PositionSums", "position_sums"]


@dataclass(frozen=True)
class PositionSums(Dense):
    """Σ_t b_t of each sample.

    The rounding of a sum is in proportion to its terms, and these may cancel: the bias of an attention's keys has a
    gradient of exactly 0. So the self-check takes its bound from b.

    Parameters
    ----------
    terms : array (n, …, d)
        b, which the capture of the weight keeps anyway.
    """

    terms: Array


def position_sums(name: str, terms: Array) -> PositionSums:
    """Return the capture of a bias, from the gradients b (n, …, d) of the output."""
    return PositionSums(name, terms.reshape(len(terms), -1, terms.shape[-1]).sum(axis=1), terms)
