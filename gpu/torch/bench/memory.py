"""The peak memory of some training steps, in a process of its own: ``python -m adamshap.torch.bench.memory JSON``.

The largest resident set of a process only grows. It is read before the steps, when everything is imported and compiled,
and after them.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from adamshap.torch.bench.loop import Loop
from adamshap.torch.bench.model import Sizes

__all__ = ["peak_mib"]

STEPS = 3
TINY = Sizes(layers=1, heads=1, width=8, vocabulary=8, context=4, n=2)


def peak_mib(sizes: Sizes, n_val: int, options: dict[str, Any] | None, threads: int) -> float:
    """Return the memory in MiB that the steps of a new process take beyond what it has after the imports.

    Parameters
    ----------
    sizes : Sizes
    n_val : int
    options : dict or None
        Those of `Attribution`; None is the plain step.
    threads : int
    """
    settings = {"sizes": dataclasses.asdict(sizes), "n_val": n_val, "options": options, "threads": threads}
    command = [sys.executable, "-m", "adamshap.torch.bench.memory", json.dumps(settings)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the memory that some steps take."""
    import torch

    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    options = settings["options"]
    for warm in (options, {"slope": "random_order"}):  # both, so that all processes begin alike
        Loop.of(TINY, 1, warm, settings["threads"]).step()
    before = _most()
    loop = Loop.of(Sizes(**settings["sizes"]), settings["n_val"], options, settings["threads"])
    for _ in range(STEPS):
        loop.step()
    loop.ripen()  # a late step has low rank
    loop.step()
    print(_most() - before)


def _most() -> float:
    """Return the largest resident set so far, in MiB: this process's own, where ``ru_maxrss`` has its parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, on macOS


if __name__ == "__main__":
    main()
