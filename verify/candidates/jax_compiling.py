"""Compilation of functions that see many shapes, and are called only a few times with each."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from adamshap.reference.contract import Array

__all__ = ["compiled", "padded"]

FAST_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""XLA's options with which a gradient compiles in a quarter of the time."""


def compiled(*static: int) -> Callable[[Any], Any]:
    """Return a decorator: ``jax.jit`` with these arguments `static`."""
    options = FAST_TO_COMPILE if jax.default_backend() == "cpu" else None
    return partial(jax.jit, static_argnums=static, compiler_options=options)


def padded(vector: Array) -> Array:
    """Return a vector with ones after it, up to a power of four, so that few lengths need compilation."""
    size = 16
    while size < len(vector):
        size *= 4
    return np.append(vector, np.ones(size - len(vector), vector.dtype))
