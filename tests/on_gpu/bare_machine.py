"""Simulates the packages of a GPU machine: an import hook, as `sitecustomize`, that hides all other packages."""

import re
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, requires

from adamshap.verify.on_gpu.wheels import MACHINE, WHEELS

HEADERS = ("nvidia-cuda-runtime", "nvidia-cuda-nvrtc")
"""Additional needs of a rehearsal: CUDA's headers, to compile CuPy's kernels."""

HOOK = """
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}
find = PathFinder.find_spec


def find_visible(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find(name, path, target)


PathFinder.find_spec = classmethod(find_visible)
"""


def name_of(requirement: str) -> str:
    """Return the normalised package name of a requirement."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def with_needs(packages: set[str]) -> set[str]:
    """Return packages with their transitive dependencies, without extras, as far as installed."""
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
    # pytest loads every installed plugin, on any machine.
    plugins = {name_of(point.dist.name) for point in entry_points(group="pytest11") if point.dist is not None}
    # This project is installed, but not its declared dependencies, unless in `WHEELS`.
    there = with_needs({*MACHINE, *WHEELS, *HEADERS, *plugins} - {"adamshap"}) | {"adamshap"}
    hidden = {
        top
        for top, packages in packages_distributions().items()
        if not {name_of(package) for package in packages} & there
    }
    return HOOK.format(hidden=sorted(hidden))
