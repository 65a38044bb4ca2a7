"""Who trains and attributes: the engine, where one is installed, or else the oracle.

The oracle may import nothing of ours, so the engine is found as any other implementation would be: by the entry point
``engine`` of the group ``adamshap.trainers``, a module with `attribute`, of the oracle's signature, and `describe`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

from adamshap.reference.contract import Run
from adamshap.reference.run import attribute

GROUP = "adamshap.trainers"


@dataclass(frozen=True)
class Trainer:
    """Who trains.

    Parameters
    ----------
    description : str
        A phrase that says what it runs on.
    attribute : callable
        Trains and attributes.
    """

    description: str
    attribute: Callable[..., Run]


ORACLE = Trainer("the oracle on the CPU, float64", attribute)


def installed_trainer() -> Trainer:
    """Return the engine, or the oracle where no engine can be imported."""
    for point in entry_points(group=GROUP, name="engine"):
        try:
            engine = point.load()
        except ImportError:
            continue
        return Trainer(engine.describe(), engine.attribute)
    return ORACLE
