"""Matrix products divided among threads, and in lower precision."""

from typing import Any

import numpy as np

from adamshap.gpu.backend import Backend
from adamshap.gpu.context import EngineContext
from adamshap.gpu.threads import in_parts
from adamshap.reference.contract import Estimator, refuse

__all__ = ["FEW_ROWS", "NARROW_COST", "product", "product_by_rows", "refuse_score_dtype", "score_product"]

FEW_ROWS = 64
"""Number of rows of a perceptron below which its products are divided, not its rows: reading weights takes longest."""

NARROW_COST = 2  # a product with few rows or columns runs at half the speed of others


def product(context: EngineContext, a: Any, b: Any, out: Any) -> None:
    """Write ``a b``, divided by the rows of `a` or, if these are fewer, by the columns of `b`.

    Each thread reads all of the other factor. Within a part of divided work nothing is divided.
    """
    xp, count, d_out = context.backend.xp, len(a), b.shape[1]
    narrow = min(count, d_out) < FEW_ROWS
    turned = narrow and not context.backend.on_cuda and b.flags.f_contiguous

    def rows(low: int, high: int) -> None:
        xp.matmul(a[low:high], b, out=out[low:high])

    def columns(low: int, high: int) -> None:
        if turned:  # bᵀ aᵀ takes OpenBLAS two thirds of the time
            out[:, low:high] = xp.matmul(b[:, low:high].T, a.T).T
        else:
            xp.matmul(a, b[:, low:high], out=out[:, low:high])

    flops = 2 * a.size * d_out * (NARROW_COST if narrow else 1)
    if count > d_out:
        in_parts(rows, count, flops)
    else:
        in_parts(columns, d_out, flops)


def product_by_rows(context: EngineContext, a: Any, b: Any) -> Any:
    """Return ``a b``, for `b` of few columns, divided by the rows of `a`."""
    out = context.backend.xp.empty((len(a), b.shape[1]), a.dtype)

    def rows(low: int, high: int) -> None:
        context.backend.xp.matmul(a[low:high], b, out=out[low:high])

    in_parts(rows, len(a), 2 * a.size * b.shape[1] * NARROW_COST)
    return out


def score_product(context: EngineContext, a: Any, p: Any, out: Any, score_dtype: str | None) -> None:
    """Write ``a p`` in the run's dtype, in TF32, in float16 with both factors scaled to at most 1, or in bfloat16."""
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
    elif score_dtype == "bfloat16":
        if context.bfloat16_product is None:
            raise AssertionError("no product in bfloat16")
        context.bfloat16_product(a, p, out)
    else:
        xp.matmul(a, p, out=out)


def refuse_score_dtype(estimator: Estimator, backend: Backend, *, in_a_loop: bool = False) -> None:
    """Refuse a `score_dtype` that the device does not have; "bfloat16" is PyTorch's, `in_a_loop` of it on the host."""
    kind, known = estimator.score_dtype, ("bfloat16",) * in_a_loop
    if backend.on_cuda:
        known = ("tf32", "float16")
    if kind is None or (kind in known and backend.dtype == np.float32):
        return
    where = f"{backend.dtype} on {'a CUDA device' if backend.on_cuda else 'the host'}"
    needs = "None, or float32 on a CUDA device ('tf32', 'float16')"
    loop = "a model in float32 on the host" if in_a_loop else "adamshap.torch with a model in float32 on the host"
    refuse("score_dtype", f"{kind!r} for {where}", f"{needs}, or {loop} ('bfloat16')")
