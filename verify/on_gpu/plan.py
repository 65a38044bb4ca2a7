"""The stages of a run, their time limits, and the settings that every stage reads.

A later change of the engine adds its checks to the module of the stage that they belong to: a kernel, layer or slope to
`smoke`, a speed to `throughput`, a property to `adamshap.verify.properties`, from where `suite` takes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adamshap.verify.on_gpu.child import Reporter

__all__ = ["RECEIPT_SECONDS", "STAGES", "Setting", "Stage", "Task", "limit_of"]

RECEIPT_SECONDS = 5.0
"""Kept from the whole time for the end: the last processes are ended and the receipt is written."""


@dataclass(frozen=True)
class Setting:
    """What every stage knows of the run.

    Parameters
    ----------
    rehearsal : bool
        CuPy on the CPU and small sizes.
    scratch : str
        A folder for files that one task leaves for a later one.
    checkout : str
        The repository, for the tests in it and its commit; "" where there is none.
    commit : str
        The commit, where the user gave it.
    ghostsuite : str
        A checkout of GhostSuite; "" where there is none.
    """

    rehearsal: bool
    scratch: str
    checkout: str = ""
    commit: str = ""
    ghostsuite: str = ""


@dataclass(frozen=True)
class Task:
    """One check or measurement.

    Parameters
    ----------
    name : str
    run : callable
        Called with a `Reporter`; an exception fails the task, and the rest of the stage goes on in a new process.
    required : bool
        Whether the stage is cut short without it.
    fresh : bool
        Whether the process ends after it, so that the next task starts in a new one.
    """

    name: str
    run: "Callable[[Reporter], None]"
    required: bool = True
    fresh: bool = False


@dataclass(frozen=True)
class Stage:
    """A module with tasks, and what it may cost.

    Parameters
    ----------
    name : str
    purpose : str
    weight : float
        Its part of the time that is left when it begins, in proportion to the later stages' weights.
    task_seconds : float
        After which a task counts as hanging, and its process is ended.
    processes : int
        How many work at the same time, at most; fewer where there are fewer cores.
    module : str
        Which has the tasks; by default the one of this package with the stage's name.
    """

    name: str
    purpose: str
    weight: float
    task_seconds: float
    processes: int = 1
    module: str = ""


STAGES = (
    Stage("machine", "the card, the driver, the libraries, the sources", 20, 30),
    Stage("smoke", "every kernel, layer and slope against the oracle", 100, 60, processes=4),
    Stage("throughput", "what attribution costs on this card", 240, 150),
    Stage("suite", "the properties, then the engine's tests", 200, 90, processes=14),
    Stage("repeat", "the same call gives the same bits", 40, 40),
    Stage("edges", "two streams, no memory left, more than 2^31 elements", 80, 60),
)


def limit_of(number: int, left: float, stages: tuple[Stage, ...] = STAGES) -> float:
    """Return the seconds that stage `number` may take of those `left`: time that it does not use goes to later ones."""
    return max(0.0, left) * stages[number].weight / sum(stage.weight for stage in stages[number:])
