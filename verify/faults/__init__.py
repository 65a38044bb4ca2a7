"""Known mistakes: each is the oracle with one thing wrong, a name, a sentence, and where it was seen.

Each has three uses: the harness must catch it, test vectors must expose it, and a candidate's wrong numbers are
compared with its. Vectors and pages list them in this order, and call them by these names.
"""

from adamshap.verify.faults import game, model, optimiser, precision, slope, validation
from adamshap.verify.faults.fault import Fault, Wrap
from adamshap.verify.faults.precision import FLOAT32
from adamshap.verify.faults.slope import other_nodes

__all__ = ["BY_NAME", "FAULTS", "FLOAT32", "Fault", "Wrap", "other_nodes"]

FAULTS: tuple[Fault, ...] = (
    *optimiser.FAULTS,
    *game.FAULTS,
    *model.FAULTS,
    *validation.LOSSES,
    *slope.FAULTS,
    *validation.GRADIENTS,
    *precision.FAULTS,
)

BY_NAME: dict[str, Fault] = {fault.name: fault for fault in FAULTS}
