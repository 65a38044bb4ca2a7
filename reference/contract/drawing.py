"""matplotlib for figures that are written to files, independent of ``MPLBACKEND`` and of the user's style.

A figure that is only written needs no backend, but ``import matplotlib`` fails if ``MPLBACKEND`` names one that is not
installed, and a notebook sets it for all of its child processes.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from adamshap.reference.contract.extras import needed

__all__ = ["import_matplotlib", "plain_style"]

BACKEND = "MPLBACKEND"


def import_matplotlib() -> None:
    """Import matplotlib, with the backend that ``MPLBACKEND`` names if that exists.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    wanted = None if "matplotlib" in sys.modules else os.environ.pop(BACKEND, None)
    try:
        with needed("matplotlib", by="a plot", extra="demo"):
            import matplotlib.figure
    finally:
        if wanted is not None:
            os.environ[BACKEND] = wanted
    if wanted:
        with suppress(ValueError):  # no such backend: matplotlib picks one if the user's program needs it
            matplotlib.rcParams["backend"] = wanted


@contextmanager
def plain_style() -> Iterator[None]:
    """Draw in matplotlib's default style, ignoring settings of the user's matplotlibrc or program (``text.usetex``).

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    import_matplotlib()
    import matplotlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated settings, and characters that the font lacks
        style: dict[Any, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
        with matplotlib.rc_context(style):
            yield
