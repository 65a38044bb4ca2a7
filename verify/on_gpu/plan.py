"""The stages of a run, their time limits, and the settings shared by all stages.

A change to the engine adds its checks to the matching stage: a kernel, layer or slope to `smoke`, a speed to
`throughput`, a property to `adamshap.verify.properties`, which `suite` runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adamshap.verify.on_gpu.child import Reporter

__all__ = ["RECEIPT_SECONDS", "STAGES", "Setting", "Stage", "Task", "limit_of"]

RECEIPT_SECONDS = 5.0
"""Time reserved at the end for ending the last processes and writing the receipt."""


@dataclass(frozen=True)
class Setting:
    """Settings of the run, shared by all stages.

    Parameters
    ----------
    rehearsal : bool
        Whether to use CuPy on the CPU and small sizes.
    scratch : str
        Folder for files that one task leaves for a later one.
    checkout : str
        The repository, for its tests and its commit; "" for none.
    commit : str
        The commit, given by the user or git.
    ghostsuite : str
        A checkout of GhostSuite; "" for none.
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
        Called with a `Reporter`; an exception fails the task, and the stage continues in a new process.
    required : bool
        Whether the stage counts as cut short without it.
    fresh : bool
        Whether to end the process after it, so that the next task starts in a new one.
    """

    name: str
    run: "Callable[[Reporter], None]"
    required: bool = True
    fresh: bool = False


@dataclass(frozen=True)
class Stage:
    """A module with tasks, and its limits.

    Parameters
    ----------
    name : str
    purpose : str
    weight : float
        Its share of the time left at its start, relative to the weights of the later stages.
    task_seconds : float
        Time limit of a task, after which its process is ended.
    processes : int
        Maximum number of concurrent processes; limited by the number of cores.
    module : str
        Module with the tasks; by default the one of this package with the stage's name.
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
    """Return the time limit of stage `number`, given the seconds `left`; unused time goes to later stages."""
    return max(0.0, left) * stages[number].weight / sum(stage.weight for stage in stages[number:])
