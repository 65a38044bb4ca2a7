"""The training and validation samples of a run, in the space or, where they are a memory map, in their file."""

from dataclasses import dataclass
from typing import Any

from adamshap.gpu.arrays import is_mapped
from adamshap.gpu.layers import Workshop
from adamshap.gpu.step import Judged
from adamshap.reference.contract import Array, Batch

__all__ = ["Data"]


@dataclass(frozen=True)
class Data:
    """Both data sets in the space, and one array in which a batch's inputs follow the validation inputs.

    A memory map stays where it is: only the rows of a batch are read.
    """

    shop: Workshop
    x: Any
    y: Any
    valid_x: Any
    valid_y: Any
    together: Any

    @classmethod
    def of(cls, shop: Workshop, train: Batch, valid: Batch, largest: int) -> "Data":
        """Return the data of a run whose largest batch has so many samples."""
        space = shop.space
        together = shop.buffers.get("batch", (valid.n + largest, shop.net.sizes[0]))
        together[: valid.n] = space.held("valid.x", valid.x)
        x = train.x if is_mapped(train.x) else space.held("train.x", train.x)
        y = train.y if is_mapped(train.y) else space.targets("train.y", train.y)
        return cls(shop, x, y, together[: valid.n], space.targets("valid.y", valid.y), together)

    def batch(self, index: Array, where: Any) -> Judged:
        """Return the samples at `index`, which is `where` in the space; the next batch overwrites them."""
        n_val, space = len(self.valid_x), self.shop.space
        both = self.together[: n_val + len(index)]
        self.inputs(index, where, both[n_val:])
        y = space.labels(self.y[index]) if is_mapped(self.y) else self.y[where]
        return Judged(both[n_val:], y, self.valid_x, self.valid_y, both)

    def inputs(self, index: Array, where: Any, out: Any) -> None:
        """Write the inputs of the samples at `index`, which is `where` in the space."""
        space = self.shop.space
        if is_mapped(self.x):
            out[...] = space.real(self.x[index])
        else:
            # NumPy buffers the output of a take that checks its indices; these are a permutation's.
            unchecked = {} if space.on_cuda else {"mode": "clip"}
            space.xp.take(self.x, where, axis=0, out=out, **unchecked)
