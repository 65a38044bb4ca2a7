"""The engine: the oracle's functions on CuPy arrays, or NumPy arrays with Numba, without per-sample gradients.

`adamshap.reference.contract` describes steps, runs and models, and is all that this package shares with the oracle.
"""

from adamshap.gpu.api import attribute, influence, marginals, scores, update, utility
from adamshap.gpu.backend import describe

__all__ = ["attribute", "describe", "influence", "marginals", "scores", "update", "utility"]
