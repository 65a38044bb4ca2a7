"""Cross-entropy of logits z with labels y, and its gradient, without cancellation for a confident sample."""

from typing import Any

from adamshap.gpu.layers.row_weights import in_dtype_of

__all__ = ["cross_entropy"]


def cross_entropy(xp: Any, z: Any, y: Any, weight: Any) -> Any:
    """Return −log softmax(z)_y and turn `z` into its gradient, softmax(z) − onehot(y), times `weight`.

    Where the label's probability is nearly 1, neither is computed by subtraction: with e_j = exp(z_j − max z), the
    label's own gradient is −Σ_{j≠y} e_j / Σ e, and the loss log1p(Σ_{j≠y} e_j).
    """
    f = z.dtype.type
    hit = xp.arange(z.shape[1]) == y[:, None]
    top = z.max(axis=1, keepdims=True)
    gap = top - xp.where(hit, z, f(0)).sum(axis=1, keepdims=True)
    e = xp.exp(z - top)
    rest = xp.where(hit, f(0), e).sum(axis=1, keepdims=True)
    total = rest + xp.exp(-gap)
    xp.multiply(xp.where(hit, -rest, e), in_dtype_of(z, weight) / total, out=z)
    return xp.where(gap > 0, xp.log(total) + gap, xp.log1p(rest))[:, 0]
