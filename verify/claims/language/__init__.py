"""Language models: the origin of the contrast between SGD's formula and the linearised one.

Small transformers are trained on text, and their steps are examined with exact utilities. Every estimator is compared
with every target by several protocols: within a step, pooled over steps, and by totals over the run. Whole runs of
smaller models are compared with training again, and put to use: pruning, and finding a passage.
"""

from collections.abc import Sequence
from typing import Any

from adamshap.verify.claims.language import corpora, experiment, presentation, whole_runs
from adamshap.verify.claims.language.presentation import CLAIM, TITLE
from adamshap.verify.claims.language.settings import FULL, QUICK, Settings
from adamshap.verify.claims.section import Section
from adamshap.verify.claims.statistics import Record

NAME = "language"

__all__ = ["CLAIM", "FULL", "NAME", "QUICK", "TITLE", "Settings", "measure", "pieces", "section"]


def pieces(settings: Settings) -> tuple[Any, ...]:
    """Return the pieces of the study, which `measure` takes one by one.

    The plays are left out where they are missing, and whole runs where PyTorch is.
    """
    there = tuple(piece for piece in settings.marginals if corpora.exist(piece.run.corpus))
    return there + (settings.whole if whole_runs.available() else ())


def measure(piece: Any, seed: int) -> list[Record]:
    """Return the records of a piece with `seed`."""
    if isinstance(piece, whole_runs.WholeRun):
        return whole_runs.measure(piece, seed)
    return list(experiment.measure(piece.exact, piece.run, seed))


def section(settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    return presentation.section(NAME, settings, records)
