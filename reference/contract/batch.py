"""Samples with their labels or targets."""

from dataclasses import dataclass

from adamshap.reference.contract.arrays import LABELS, Array, as_array, read_only, real_array
from adamshap.reference.contract.refusal import refuse
from adamshap.reference.contract.rows import LazyRows

__all__ = ["Batch"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples: inputs with labels, or with targets.

    Parameters
    ----------
    x : array or `LazyRows` (n, d_in), or array (n, ...)
        Inputs, finite: rows, tokens (n, T) of an integer dtype, sequences (n, T, d), images (n, c, h, w).
    y : int array (n,) or (n, T), or array (n, d_out)
        Labels for the loss "cross_entropy", a sample's or each position's; real targets for "mse".
    """

    x: Array
    y: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", real_array("Batch.x", self.x, (None, None), or_more=True))
        y = self.y if isinstance(self.y, LazyRows) else as_array("Batch.y", self.y, LABELS)
        if y.ndim == 1:
            if y.dtype.kind not in "iu":
                refuse("Batch.y", f"dtype {y.dtype} of shape {y.shape}", LABELS, TypeError)
            y = read_only(y)
        else:
            y = real_array("Batch.y", y, (None, None), LABELS, or_more=True)
        if len(y) != len(self.x):
            refuse("Batch.y", f"{len(y)} rows", f"as many as Batch.x, {len(self.x)}")
        object.__setattr__(self, "y", y)

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.x)

    def take(self, index: Array) -> "Batch":
        """Return some of the samples, at least one.

        Parameters
        ----------
        index : int array, or bool array (n,)
            Indices of the samples, in order; or a mask.

        Returns
        -------
        Batch
            Those samples.
        """
        where = as_array("index", index, f"integers, or a mask of shape ({self.n},)")
        if where.ndim != 1 or where.dtype.kind not in "iub" or (where.dtype.kind == "b" and len(where) != self.n):
            got = f"dtype {where.dtype} of shape {where.shape}"
            refuse("index", got, f"integers of shape (any,), or a mask of shape ({self.n},)", TypeError)
        if not (where.any() if where.dtype.kind == "b" else len(where)):
            refuse("index", "no sample", "at least one")
        if where.dtype.kind != "b" and not -self.n <= where.min() <= where.max() < self.n:
            refuse("index", f"samples from {where.min()} to {where.max()}", f"samples from {-self.n} to {self.n - 1}")
        return Batch(self.x[where], self.y[where])
