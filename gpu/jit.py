"""Numba's compilation of the engine's loops."""

import os
from collections.abc import Callable
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock

__all__ = ["FAST", "compiled"]

FAST = {"contract", "nsz"}


def compiled(signature: Any, sums: bool = False) -> Callable[[Any], Any]:
    """Return the decorator that compiles a loop; with `sums`, the compiler may reorder additions.

    Without a writable folder for Numba's cache (RuntimeError), or on a full disk, each process compiles anew.
    """
    fast = FAST | ({"reassoc"} if sums else set())
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fast}

    def compile_loop(loop: Any) -> Any:
        try:
            return numba.njit(signature, cache=True, **options)(loop)
        except (RuntimeError, OSError):
            return numba.njit(signature, **options)(loop)

    return compile_loop


if hasattr(os, "register_at_fork"):  # no fork during a compilation: the child would wait for it forever
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
