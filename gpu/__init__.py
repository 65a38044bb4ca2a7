"""The engine: the oracle's functions on CuPy arrays, or NumPy arrays with Numba, without per-sample gradients.

`problem` of `adamshap.reference` says what a step is, and is all that this package shares with the oracle.
"""

from adamshap.gpu.arrays import describe
from adamshap.gpu.single import influence, marginals, scores, update, utility
from adamshap.gpu.trainer import attribute

__all__ = ["attribute", "describe", "influence", "marginals", "scores", "update", "utility"]
