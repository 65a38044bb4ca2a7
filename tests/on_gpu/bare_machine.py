"""What a machine with a card has: an import hook that hides every other installed package, as `sitecustomize`."""

import re
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, requires

from adamshap.verify.on_gpu.wheels import MACHINE, WHEELS

HEADERS = ("nvidia-cuda-runtime", "nvidia-cuda-nvrtc")
"""What a rehearsal needs beside: CUDA's headers, with which CuPy's kernels are compiled here."""

HOOK = """
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}
find = PathFinder.find_spec


def find_visible(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find(name, path, target)


PathFinder.find_spec = classmethod(find_visible)
"""


def name_of(requirement: str) -> str:
    """Return the package's name in a requirement, as registries spell it."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def with_needs(packages: set[str]) -> set[str]:
    """Return packages and all that they need in turn, without extras, as far as it is installed."""
    found: set[str] = set()
    todo = list(packages)
    while todo:
        package = todo.pop()
        if package in found:
            continue
        found.add(package)
        try:
            needs = requires(package) or []
        except PackageNotFoundError:
            continue
        todo += [name_of(need) for need in needs if "extra ==" not in need]
    return found


def hook() -> str:
    """Return the source of the hook."""
    # pytest loads every plugin that it finds installed, on whatever machine.
    plugins = {name_of(point.dist.name) for point in entry_points(group="pytest11") if point.dist is not None}
    # This project is there, but what it declares to need is so only by `WHEELS`.
    there = with_needs({*MACHINE, *WHEELS, *HEADERS, *plugins} - {"adamshap"}) | {"adamshap"}
    hidden = {
        top
        for top, packages in packages_distributions().items()
        if not {name_of(package) for package in packages} & there
    }
    return HOOK.format(hidden=sorted(hidden))
