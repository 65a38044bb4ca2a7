"""Known mistakes: each is the oracle with one error, a name, a sentence, and its origin.

Each has three uses: the kit must catch it, test vectors must expose it, and the diagnosis compares its results with a
candidate's. Vectors and documentation list the faults in this order, by these names. `LAYER_FAULTS` are mistakes in
layers that perceptrons lack, `LOOP_FAULTS` mistakes with groups, schedules, clipping and L2 decay, `AUTO_FAULTS`
mistakes in the slope "auto", and `EDGE_FAULTS` mistakes that show at edges alone: the vectors v1 cannot expose them.

A tenth of all, `Fault.held_out`, is out of sight while strategies are written: only then is it tried.
"""

from adamshap.verify.faults import (
    auto,
    convolution,
    edges,
    game,
    loop,
    model,
    optimiser,
    precision,
    sequences,
    slope,
    validation,
)
from adamshap.verify.faults.fault import Fault, Wrap
from adamshap.verify.faults.precision import FLOAT32
from adamshap.verify.faults.slope import other_nodes

__all__ = [
    "AUTO_FAULTS",
    "BY_NAME",
    "CATALOGUE",
    "EDGE_FAULTS",
    "FAULTS",
    "FLOAT32",
    "LATER_FAULTS",
    "LAYER_FAULTS",
    "LOOP_FAULTS",
    "Fault",
    "Wrap",
    "other_nodes",
]

FAULTS: tuple[Fault, ...] = (
    *optimiser.FAULTS,
    *game.FAULTS,
    *model.FAULTS,
    *validation.LOSSES,
    *slope.FAULTS,
    *validation.GRADIENTS,
    *precision.FAULTS,
)

LAYER_FAULTS: tuple[Fault, ...] = (*sequences.FAULTS, *convolution.FAULTS)

LATER_FAULTS: tuple[Fault, ...] = model.LATER_FAULTS
"""Mistakes that perceptrons show, named after the release of the vectors v1, which do not list them."""

LOOP_FAULTS: tuple[Fault, ...] = loop.FAULTS

AUTO_FAULTS: tuple[Fault, ...] = auto.FAULTS

EDGE_FAULTS: tuple[Fault, ...] = edges.FAULTS

CATALOGUE: tuple[Fault, ...] = (*FAULTS, *LATER_FAULTS, *LAYER_FAULTS, *LOOP_FAULTS, *AUTO_FAULTS, *EDGE_FAULTS)
"""All known mistakes."""

BY_NAME: dict[str, Fault] = {fault.name: fault for fault in FAULTS}
