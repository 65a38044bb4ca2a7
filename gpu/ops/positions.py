"""Softmax and norms of sequences in array operations, NumPy's or CuPy's (``xp``); `Ops` says what they compute."""

import math
from typing import Any

__all__ = ["FUNCTIONS"]


def causal_softmax(xp: Any, scores: Any, factor: float) -> None:
    """Write softmax(factor · scores) of each row over the positions up to its own, and 0 at the others."""
    seen, none = xp.tri(scores.shape[-1], dtype=bool), scores.dtype.type(0)
    scores *= scores.dtype.type(factor)
    scores -= xp.where(seen, scores, scores.dtype.type(-math.inf)).max(axis=-1, keepdims=True)
    scores[...] = xp.where(seen, xp.exp(xp.where(seen, scores, none)), none)
    scores /= scores.sum(axis=-1, keepdims=True)


def softmax_derivative(xp: Any, s: Any, weights: Any, factor: float) -> None:
    """Write factor · W ⊙ (s − Σ W ⊙ s) of each row to `s`."""
    s -= (s * weights).sum(axis=-1, keepdims=True)
    s *= weights
    s *= weights.dtype.type(factor)


def normalise(xp: Any, x: Any, eps: float, centred: bool, gain: Any, bias: Any, out: tuple[Any, Any, Any]) -> None:
    """Write x̂, 1/s and the output."""
    normalised, inverse, output = out
    if centred:
        xp.subtract(x, x.mean(axis=1, keepdims=True), out=normalised)
    else:
        normalised[...] = x
    variance = xp.einsum("nd,nd->n", normalised, normalised)[:, None] / x.dtype.type(x.shape[1])
    inverse[...] = 1 / xp.sqrt(variance + x.dtype.type(eps))
    normalised *= inverse
    xp.multiply(normalised, gain, out=output)
    if bias is not None:
        output += bias


def norm_derivative(xp: Any, g: Any, gain: Any, normalised: Any, inverse: Any, centred: bool, out: Any) -> None:
    """Write the derivative of x̂ in x times g ⊙ gain."""
    if gain is not None:
        g = xp.multiply(g, gain, out=out)
    along = xp.einsum("nd,nd->n", g, normalised)[:, None] / g.dtype.type(g.shape[1])
    xp.subtract(g, g.mean(axis=1, keepdims=True) if centred else g.dtype.type(0), out=out)
    out -= normalised * along
    out *= inverse


FUNCTIONS = (causal_softmax, softmax_derivative, normalise, norm_derivative)
