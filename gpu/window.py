"""The window of a run with ``credit="carry"``: batches that are still owed credit, and running sums."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adamshap.gpu.arrays import Arrays
from adamshap.gpu.captures import Captures
from adamshap.gpu.context import EngineContext
from adamshap.gpu.threads import in_parts
from adamshap.reference.contract import Array, Snapshot

__all__ = ["FLOPS_OF_A_COPY", "Block", "KeptArrays", "Pending"]

FLOPS_OF_A_COPY = 60
"""Cost of copying a number, as flops of matrix products that take as long."""


@dataclass(frozen=True)
class Pending:
    """A batch that is still owed credit.

    Parameters
    ----------
    number : int
        Completed steps before its own.
    index, where : arrays (n,)
        Its samples, on the host and in the backend.
    arrays : dict of arrays
        Its captures' arrays, before clipping.
    factor : number or None
        c of its step; None without clipping.
    decays : dict of arrays
        L2 decay d = λ₂ θ of its step, which is credited like one more sample.
    """

    number: int
    index: Array
    where: Any
    arrays: dict[str, Any]
    factor: Any = None
    decays: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """Consecutive steps from ``first`` on, and the weighted running sum of the credit that they owe."""

    first: int
    owed: Arrays


@dataclass
class KeptArrays:
    """Copies of the arrays that rebuild a batch's captures.

    Parameters
    ----------
    context : EngineContext
    like : Captures
        Captures without rows.
    unused : list
        Arrays of batches that have left the window, for reuse.
    """

    context: EngineContext
    like: Captures
    unused: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, context: EngineContext, x: Any) -> "KeptArrays":
        """Return an empty store for a model whose inputs are like the rows of `x`."""
        return cls(context, context.stack.workspace(context, "kept", x[:0]).captures)

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row of each array, by the array's name."""
        return {name: array.shape[1:] for name, array in self.like.kept().items()}

    def bytes(self, rows: int) -> int:
        """Return the memory of a batch of `rows` rows."""
        return rows * self.context.backend.dtype.itemsize * sum(math.prod(shape) for shape in self.row_shapes.values())

    def copies(self, captures: Captures) -> dict[str, Any]:
        """Return copies of the arrays that rebuild `captures`."""
        arrays = captures.kept()
        copies = self.unused.pop() if self.unused else {}
        if {name: a.shape for name, a in arrays.items()} != {name: a.shape for name, a in copies.items()}:
            copies = {name: self.context.backend.xp.empty_like(a) for name, a in arrays.items()}

        def rows_between(low: int, high: int) -> None:
            for name, array in arrays.items():
                copies[name][low:high] = array[low:high]

        in_parts(rows_between, captures.n, FLOPS_OF_A_COPY * sum(a.size for a in arrays.values()))
        return copies

    def captures(self, arrays: Mapping[str, Any], inputs: Any) -> Captures:
        """Return the captures of a batch, from its copies and its inputs."""
        return self.like.rebuilt(arrays, inputs)

    def snapshot(self, waiting: list[Pending], batches: int, rows: int) -> dict[str, Array]:
        """Return arrays for a snapshot, with a row for each of `batches` batches, 0 for those that are missing."""
        arrays = {}
        for name, shape in self.row_shapes.items():
            whole = arrays[f"window/{name}"] = np.zeros((batches, rows, *shape), self.context.backend.dtype)
            for row, batch in enumerate(waiting):
                whole[row, : len(batch.where)] = self.context.backend.host(batch.arrays[name])
        return arrays

    def restored(self, snapshot: Snapshot, row: int, rows: int) -> dict[str, Any]:
        """Return the arrays of the batch of `rows` samples at `row` of a snapshot's arrays."""
        real = self.context.backend.real
        return {name: real(snapshot[f"window/{name}"][row, :rows].copy()) for name in self.row_shapes}
