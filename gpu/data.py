"""The training and validation samples of a run, in the backend or, for a memory map, in their file."""

from dataclasses import dataclass
from typing import Any

from adamshap.gpu.backend import is_mapped
from adamshap.gpu.context import EngineContext
from adamshap.gpu.state import StepBatch
from adamshap.reference.contract import Array, Batch, real_parts

__all__ = ["Data"]


@dataclass(frozen=True)
class Data:
    """Both data sets in the backend, and one array in which a batch's inputs follow the validation inputs.

    A memory map stays where it is: only the rows of a batch are read. Sequences of other lengths than the validation
    samples' do not follow them: ``together`` holds the batch's alone.
    """

    context: EngineContext
    x: Any
    y: Any
    valid_x: Any
    valid_y: Any
    together: Any
    tokens: bool
    labels: bool

    @classmethod
    def of(cls, context: EngineContext, train: Batch, valid: Batch, largest: int) -> "Data":
        """Return the data of a run whose largest batch has `largest` samples."""
        backend = context.backend
        tokens, labels = (part not in real_parts(context.model, train) for part in ("x", "y"))
        valid_x, follow = backend.inputs("valid.x", valid.x, tokens), valid.x.shape[1:] == train.x.shape[1:]
        together = _room(context, "batch", (follow * valid.n + largest, *train.x.shape[1:]), tokens)
        if follow:
            together[: valid.n] = valid_x
            valid_x = together[: valid.n]
        x = train.x if is_mapped(train.x) else backend.inputs("train.x", train.x, tokens)
        y = train.y if is_mapped(train.y) else backend.targets("train.y", train.y, labels)
        return cls(context, x, y, valid_x, backend.targets("valid.y", valid.y, labels), together, tokens, labels)

    def room(self, name: str, rows: int) -> Any:
        """Return an array for inputs of some rows: a buffer under `name`, or a new array of integers for tokens."""
        return _room(self.context, name, (rows, *self.together.shape[1:]), self.tokens)

    @property
    def no_inputs(self) -> Any:
        """Training inputs without rows."""
        return self.together[:0]

    def batch(self, index: Array, where: Any) -> StepBatch:
        """Return the samples at `index`, which is `where` in the backend; the next batch overwrites them."""
        follow = self.valid_x.shape[1:] == self.together.shape[1:]
        first, backend = len(self.valid_x) if follow else 0, self.context.backend
        rows = self.together[: first + len(index)]
        self.inputs(index, where, rows[first:])
        y = backend.labels(self.y[index], self.labels) if is_mapped(self.y) else self.y[where]
        return StepBatch(rows[first:], y, self.valid_x, self.valid_y, rows if follow else None)

    def inputs(self, index: Array, where: Any, out: Any) -> None:
        """Write the inputs of the samples at `index`, which is `where` in the backend."""
        backend = self.context.backend
        if is_mapped(self.x):
            out[...] = backend.xp.asarray(self.x[index], dtype=out.dtype)
        else:
            # NumPy buffers the output of a take that checks its indices; a permutation's are valid.
            unchecked = {} if backend.on_cuda else {"mode": "clip"}
            backend.xp.take(self.x, where, axis=0, out=out, **unchecked)


def _room(context: EngineContext, name: str, shape: tuple[int, ...], tokens: bool) -> Any:
    return context.backend.xp.empty(shape, "int64") if tokens else context.buffers.get(name, shape)
