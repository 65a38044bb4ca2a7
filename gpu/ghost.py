"""Ghost contractions: a sample's score ``b_iᵀ P a_i`` without its gradient, exactly or by a low-rank sketch of P.

======  ===========  =================================================
paper   name         meaning
======  ===========  =================================================
P       ``product``  validation gradient times slope, by parameter
a, b    ``Trace``    inputs and weighted output gradients of each layer
r       ``rank``     rank of the sketch
Q, C    ``Factors``  ``P ≈ Q C`` with Q (d_out, r), C (r, d_in)
======  ===========  =================================================
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise as neighbours
from typing import Any

import numpy as np

from adamshap.gpu.layers import EngineContext, Trace, weights_of
from adamshap.gpu.threads import in_parts

__all__ = ["Sketch", "contract", "pairwise", "pairwise_is_cheaper"]

Factors = tuple[Any, Any]
SWEEPS_AT_FIRST = 3  # power iterations from a random basis; from the last step's, one is enough


def contract(
    context: EngineContext,
    trace: Trace,
    product: Mapping[str, Any],
    out: Any,
    factors: Mapping[int, Factors] | None = None,
    score_dtype: str | None = None,
) -> None:
    """Add each row's score to ``out``: ``Σ_layers b_iᵀ (P a_i + p)``, exactly where a layer has no factors.

    With `score_dtype` the large products are made in less precision.
    """
    context.now("contraction")
    widest = max(b.shape[1] for b in trace.grads)
    room = context.buffers.get("contraction", (len(out), widest))

    def some(low: int, high: int) -> None:
        rows = slice(low, high)
        for layer, (all_a, all_b) in enumerate(zip(trace.inputs, trace.grads, strict=True)):
            a, b, p = all_a[rows], all_b[rows], product.get(f"{layer}.bias")
            if factors and layer in factors:
                q, c = factors[layer]
                context.ops.row_dot(b @ q, a @ c.T, None, out[rows])
                if p is not None:
                    out[rows] += b @ p
            else:
                z = room[rows].reshape(-1)[: b.size].reshape(b.shape)
                _score_product(context, a, product[f"{layer}.weight"].T, z, score_dtype)
                context.ops.row_dot(b, z, p, out[rows])

    in_parts(some, len(out), 2 * len(out) * weights_of(context.net))


def _score_product(context: EngineContext, a: Any, p: Any, out: Any, score_dtype: str | None) -> None:
    """Write ``a p`` in the run's dtype, in TF32, or from halves of numbers that are first brought below 1."""
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


def pairwise(context: EngineContext, trace: Trace, validation: Trace) -> Any:
    """Return the dot products of every row's gradient with every validation row's, (rows, validation rows).

    A layer gives ``(b_i · b_v) (a_i · a_v + 1)``, the 1 being the bias's; nothing of a parameter's size is made.
    """
    context.now("contraction")
    xp = context.backend.xp
    total = None
    for a, b, valid_a, valid_b in zip(trace.inputs, trace.grads, validation.inputs, validation.grads, strict=True):
        inner = a @ valid_a.T
        if context.net.bias:
            inner += inner.dtype.type(1)
        inner *= b @ valid_b.T
        total = inner if total is None else xp.add(total, inner, out=total)
    return total


def pairwise_is_cheaper(context: EngineContext, validations: int) -> bool:
    """Tell whether `validations` pairs a sample cost less than one contraction with P."""
    widths = list(neighbours(context.net.sizes))
    return validations * sum(d_in + d_out for d_in, d_out in widths) < sum(d_in * d_out for d_in, d_out in widths)


@dataclass
class Sketch:
    """Low-rank factors of each layer's P, their basis kept from one step to the next.

    P changes little between steps, so that one power iteration from the last step's basis finds the range again
    (Halko, Martinsson & Tropp 2011, subspace iteration).

    Parameters
    ----------
    rank : int
    seed : int
        Of the first step's random basis.
    """

    rank: int
    seed: int = 0
    bases: dict[tuple[int, int], Any] = field(default_factory=dict)

    def pays(self, n: int, d_in: int, d_out: int) -> bool:
        """Tell whether factors cost less than the exact contraction, counting their making."""
        return self.rank * (d_in + d_out) / (d_in * d_out) + 3 * self.rank / n < 1

    def factors(self, context: EngineContext, product: Mapping[str, Any], n: int, group: int = 0) -> dict[int, Factors]:
        """Return ``(Q, C)`` of each layer that gains by it, for `n` samples to score."""
        context.now("sketch")
        found = {}
        for layer, (d_in, d_out) in enumerate(neighbours(context.net.sizes)):
            if self.pays(n, d_in, d_out):
                found[layer] = self._factor(context, product[f"{layer}.weight"], (layer, group))
        return found

    def _factor(self, context: EngineContext, p: Any, key: tuple[int, int]) -> Factors:
        basis = self.bases.get(key)
        sweeps = 1
        if basis is None:
            generator = np.random.default_rng((self.seed, *key))
            basis = context.backend.real(generator.standard_normal((p.shape[1], self.rank)))
            sweeps = SWEEPS_AT_FIRST
        for _ in range(sweeps):
            q = orthonormal(context, shared_product(context, p, basis))
            c = shared_product(context, p.T, q).T
            basis = orthonormal(context, c.T)
        self.bases[key] = basis
        return q, c


def shared_product(context: EngineContext, p: Any, few: Any) -> Any:
    """Return ``p few``, for `few` of few columns, shared out by the rows of `p`."""
    out = context.backend.xp.empty((len(p), few.shape[1]), p.dtype)

    def some(low: int, high: int) -> None:
        context.backend.xp.matmul(p[low:high], few, out=out[low:high])

    in_parts(some, len(p), 2 * p.size * few.shape[1])
    return out


def orthonormal(context: EngineContext, y: Any) -> Any:
    """Return an orthonormal basis of the range of `y` (d, r), d ≥ r, by Cholesky of its Gram matrix in double.

    Directions that the dtype of `y` cannot resolve beside the largest come out as 0.
    """
    wide = y.astype("float64")
    return (wide @ context.ops.whitening(wide.T @ wide)).astype(y.dtype)
