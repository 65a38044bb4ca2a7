"""Chooses the trainer: the engine if it is installed, otherwise the oracle.

The oracle may not import the engine, so it finds it as it would find any other implementation: by the entry point
``engine`` of the group ``adamshap.trainers``, a module with `attribute` (the oracle's signature) and `describe`, which
takes a device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points

from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.job import Device
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
    describe : callable, optional
        Returns the phrase for a device, or raises RuntimeError if it cannot be used; without it, only the CPU can.
    slow_start : str
        Why the first step may take long, for a user who waits for it; empty if there is no reason.
    """

    description: str
    attribute: Callable[..., Run]
    describe: Callable[[str], str] | None = None
    slow_start: str = ""

    def on(self, device: Device) -> "Trainer":
        """Return this trainer on `device`; "auto" leaves the choice to it.

        Raises
        ------
        CommandError
            The device cannot be used.
        """
        if device == "auto":
            return self
        if self.describe is None and device == "cuda":
            raise CommandError(f"--device: got 'cuda' for {self.description}; needs cpu, or the engine and a GPU")
        try:
            description = self.description if self.describe is None else self.describe(device)
        except RuntimeError as error:
            raise CommandError(f"--{error}") from error
        return Trainer(description, partial(self.attribute, device=device), self.describe, self.slow_start)


COMPILING = "On its first run on a machine, the engine compiles its code; this takes about 20 s, once."
ORACLE = Trainer("the oracle on the CPU, float64", attribute)


def installed_trainer() -> Trainer:
    """Return the engine, or the oracle if no engine can be imported."""
    for point in entry_points(group=GROUP, name="engine"):
        try:
            engine = point.load()
        except ImportError:
            continue
        return Trainer(engine.describe(), engine.attribute, engine.describe, COMPILING)
    return ORACLE
