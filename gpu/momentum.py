"""The credit owed through the momentum of the parameters with one β1: running sums in blocks of steps (docs/engine.md).

========  ==============  ============================================================
method 6  name            meaning
========  ==============  ============================================================
K         ``Block.owed``  Σ_{u in the block} β1^{u−first} O_u, a running sum
========  ==============  ============================================================
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adamshap.gpu.arrays import Arrays
from adamshap.gpu.captures.sums import CACHED
from adamshap.gpu.charge import RunningSum
from adamshap.gpu.context import EngineContext
from adamshap.gpu.threads import in_parts
from adamshap.gpu.window import FLOPS_OF_A_COPY, Block

__all__ = ["FORGOTTEN", "Momentum", "momenta_of"]

GROWTH = 2.0
"""Largest weight β1^{−k} within a block, a bound on terms that are added and subtracted again."""

FORGOTTEN = 1e-3
"""β1^k at the end of the window, unless its length is given."""


@dataclass
class Momentum:
    """The parameters with one β1 > 0, and what later steps owe to their momentum.

    Parameters
    ----------
    context : EngineContext
    beta1 : float
    names : tuple of str
    length : int
        Number of steps of a block.
    later : int
        Number of whole blocks after its own that credit a batch.
    loses : bool
        Whether the run is longer than this window, so that credit is lost.
    exposed : array (N,)
        Σ β1^k ‖x_i‖ over each sample's batches that have left this window, in the backend.
    """

    context: EngineContext
    beta1: float
    names: tuple[str, ...]
    length: int
    later: int
    loses: bool
    exposed: Any
    blocks: deque[Block] = field(default_factory=deque)

    @classmethod
    def of(
        cls, context: EngineContext, beta1: float, names: tuple[str, ...], count: int, steps: int, window: int | None
    ) -> "Momentum":
        """Return what a run of `steps` steps over `count` samples owes before its first step."""
        rate = -math.log(beta1)
        length = min(max(1, int(math.log(GROWTH) / rate)), steps)
        later = math.ceil((window or math.ceil(-math.log(FORGOTTEN) / rate) or 1) / length)
        exposed = context.backend.xp.zeros(count)
        return cls(context, beta1, names, length, later, (later + 1) * length < steps, exposed)

    @property
    def steps(self) -> int:
        """The most steps that have batches in this window."""
        return (self.later + 1) * self.length

    def running(self, number: int) -> RunningSum:
        """Return K of the block of the step after `number` completed ones; the block begins if that step is its first.

        ``less · K`` leaves out what the batch is paid later, with the whole block's K.
        """
        if not self.blocks or number - self.blocks[-1].first == self.length:
            xp, dtype = self.context.backend.xp, self.context.backend.dtype
            self.blocks.append(Block(number, {name: xp.zeros(self.context.shapes[name], dtype) for name in self.names}))
        block, beta1 = self.blocks[-1], self.beta1
        passed = number - block.first
        less = (1 - beta1) * beta1 ** (-passed - 1) if self.length > 1 else 0.0
        return RunningSum(block.owed, beta1**passed, less)

    def due(self, number: int) -> bool:
        """Whether the oldest block is to be paid, after the step that follows `number` completed ones."""
        return number + 1 - self.blocks[-1].first == self.length and len(self.blocks) > self.later

    def oldest(self, done: int) -> int:
        """Return the first step of the oldest block, after `done` completed ones."""
        return self.length * max(0, done // self.length - self.later)

    def owed_to_oldest(self) -> Arrays:
        """Return K from the oldest block's first step on; a block of one step owes nothing to its own batch."""
        oldest, *others = self.blocks
        return self.continued([oldest, *others] if self.length > 1 else others, None)

    def continued(self, blocks: list[Block], later: Arrays | None) -> Arrays:
        """Return K of consecutive blocks, continued by that of later ones, ``K + β1^length (K' + …)``, in a buffer."""
        context, on_cuda = self.context, self.context.backend.on_cuda
        total = {name: context.buffers.get(f"owed from here on {name}", context.shapes[name]) for name in self.names}
        for key, whole in total.items():
            flat, parts = whole.reshape(-1), [block.owed[key].reshape(-1) for block in reversed(blocks)]
            factor = whole.dtype.type(self.beta1**self.length)

            def elements_between(
                low: int, high: int, flat: Any = flat, parts: list[Any] = parts, factor: Any = factor
            ) -> None:
                size = high - low if on_cuda else CACHED
                for start in range(low, high, size):
                    piece = slice(start, min(start + size, high))
                    here = flat[piece]
                    for number, owed in enumerate(parts):
                        if number or later is not None:
                            here *= factor
                            here += owed[piece]
                        else:
                            here[...] = owed[piece]

            in_parts(elements_between, flat.size, 2 * FLOPS_OF_A_COPY * flat.size * len(parts))
        return total

    def share(self, block: Block, number: int) -> float:
        """Return the factor of ⟨K, x_i⟩ in the credit of the batch of the step after `number` completed ones."""
        first = block.first + 1 if self.length == 1 else block.first
        return (1 - self.beta1) * self.beta1 ** (first - number - 1)

    def bytes(self) -> int:
        """Return the bytes of the running sums of a full window."""
        size = sum(math.prod(self.context.shapes[name]) for name in self.names)
        return (self.later + 1) * self.context.backend.dtype.itemsize * size


def momenta_of(
    context: EngineContext, beta1: Mapping[str, float], count: int, steps: int, window: int | None
) -> list[Momentum]:
    """Return the momenta of a run, one for each β1 > 0; `beta1` is by parameter, `count` the number of samples."""
    names: dict[float, list[str]] = {}
    for name, value in beta1.items():
        names.setdefault(value, []).append(name)
    return [Momentum.of(context, value, tuple(some), count, steps, window) for value, some in names.items() if value]
