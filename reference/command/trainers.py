"""Chooses the trainer: the engine if it is installed, otherwise the oracle.

The oracle may not import the engine, so it finds it as it would find any other implementation: by the entry point
``engine`` of the group ``adamshap.trainers``, a module with `attribute` (the oracle's signature) and `describe`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

from adamshap.reference.contract import Run
from adamshap.reference.run import attribute

GROUP = "adamshap.trainers"


@dataclass(frozen=True)
class Trainer:
    """An implementation that trains and attributes.

    Parameters
    ----------
    description : str
        A phrase on what it runs on.
    attribute : callable
        With the signature of `reference.attribute`.
    """

    description: str
    attribute: Callable[..., Run]


ORACLE = Trainer("the oracle on the CPU, float64", attribute)


def installed_trainer() -> Trainer:
    """Return the engine, or the oracle if no engine can be imported."""
    for point in entry_points(group=GROUP, name="engine"):
        try:
            engine = point.load()
        except ImportError:
            continue
        return Trainer(engine.describe(), engine.attribute)
    return ORACLE
