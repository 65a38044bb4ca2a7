"""Matrix products divided among threads, and in lower precision."""

from typing import Any

import numpy as np

from adamshap.gpu.context import EngineContext
from adamshap.gpu.threads import in_parts

__all__ = ["FEW_ROWS", "product", "product_by_rows", "score_product"]

FEW_ROWS = 64
"""Number of rows below which they are not divided among threads: reading the weights then takes most of the time."""


def product(context: EngineContext, a: Any, b: Any, out: Any) -> None:
    """Write ``a b``, divided by the columns of `b` if `a` has few rows: else each thread would read all of `b`."""

    def columns(low: int, high: int) -> None:
        context.backend.xp.matmul(a, b[:, low:high], out=out[:, low:high])

    if len(a) < FEW_ROWS:
        in_parts(columns, b.shape[1], 2 * a.size * b.shape[1])
    else:
        context.backend.xp.matmul(a, b, out=out)


def product_by_rows(context: EngineContext, a: Any, b: Any) -> Any:
    """Return ``a b``, for `b` of few columns, divided by the rows of `a`."""
    out = context.backend.xp.empty((len(a), b.shape[1]), a.dtype)

    def rows(low: int, high: int) -> None:
        context.backend.xp.matmul(a[low:high], b, out=out[low:high])

    in_parts(rows, len(a), 2 * a.size * b.shape[1])
    return out


def score_product(context: EngineContext, a: Any, p: Any, out: Any, score_dtype: str | None) -> None:
    """Write ``a p`` in the run's dtype, in TF32, or in float16 with both factors scaled to at most 1."""
    xp = context.backend.xp
    if score_dtype == "tf32":
        from cupy._core import _routines_linalg as linalg  # no public switch: CUPY_TF32 is read once, at import

        kind = np.dtype(np.float32)
        before = linalg.get_compute_type(kind)
        linalg.set_compute_type(kind, linalg.COMPUTE_TYPE_TF32)
        try:
            xp.matmul(a, p, out=out)
        finally:
            linalg.set_compute_type(kind, before)
    elif score_dtype == "float16":
        tops = [xp.maximum(abs(x).max(), xp.finfo(x.dtype).tiny) for x in (a, p)]
        xp.multiply((a / tops[0]).astype("float16") @ (p / tops[1]).astype("float16"), tops[0] * tops[1], out=out)
    else:
        xp.matmul(a, p, out=out)
