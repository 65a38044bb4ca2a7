"""The training and validation samples of a run, in the backend or, for a memory map, in their file."""

from dataclasses import dataclass
from typing import Any

from adamshap.gpu.backend import is_mapped
from adamshap.gpu.context import EngineContext
from adamshap.gpu.state import StepBatch
from adamshap.reference.contract import Array, Batch

__all__ = ["Data"]


@dataclass(frozen=True)
class Data:
    """Both data sets in the backend, and one array in which a batch's inputs follow the validation inputs.

    A memory map stays where it is: only the rows of a batch are read.
    """

    context: EngineContext
    x: Any
    y: Any
    valid_x: Any
    valid_y: Any
    together: Any

    @classmethod
    def of(cls, context: EngineContext, train: Batch, valid: Batch, largest: int) -> "Data":
        """Return the data of a run whose largest batch has `largest` samples."""
        backend = context.backend
        together = context.buffers.get("batch", (valid.n + largest, *valid.x.shape[1:]))
        together[: valid.n] = backend.held("valid.x", valid.x)
        x = train.x if is_mapped(train.x) else backend.held("train.x", train.x)
        y = train.y if is_mapped(train.y) else backend.targets("train.y", train.y)
        return cls(context, x, y, together[: valid.n], backend.targets("valid.y", valid.y), together)

    def batch(self, index: Array, where: Any) -> StepBatch:
        """Return the samples at `index`, which is `where` in the backend; the next batch overwrites them."""
        n_val, backend = len(self.valid_x), self.context.backend
        rows = self.together[: n_val + len(index)]
        self.inputs(index, where, rows[n_val:])
        y = backend.labels(self.y[index]) if is_mapped(self.y) else self.y[where]
        return StepBatch(rows[n_val:], y, self.valid_x, self.valid_y, rows)

    def inputs(self, index: Array, where: Any, out: Any) -> None:
        """Write the inputs of the samples at `index`, which is `where` in the backend."""
        backend = self.context.backend
        if is_mapped(self.x):
            out[...] = backend.real(self.x[index])
        else:
            # NumPy buffers the output of a take that checks its indices; a permutation's are valid.
            unchecked = {} if backend.on_cuda else {"mode": "clip"}
            backend.xp.take(self.x, where, axis=0, out=out, **unchecked)
