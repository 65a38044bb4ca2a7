"""Language models: the origin of the contrast between SGD's formula and the linearised one.

Small transformers are trained on text, and their steps are examined with exact utilities. Every estimator is compared
with every target by several protocols: within a step, pooled over steps, and by totals over the run.
"""

from collections.abc import Sequence
from typing import Any

from adamshap.verify.claims.language import corpora, experiment, presentation
from adamshap.verify.claims.language.presentation import CLAIM, TITLE
from adamshap.verify.claims.language.settings import FULL, QUICK, Settings
from adamshap.verify.claims.section import Section
from adamshap.verify.claims.statistics import Record

NAME = "language"

__all__ = ["CLAIM", "FULL", "NAME", "QUICK", "TITLE", "Settings", "measure", "pieces", "section"]


def pieces(settings: Settings) -> tuple[Any, ...]:
    """Return the pieces of the study, which `measure` takes one by one; without the plays where they are missing."""
    return tuple(piece for piece in settings.marginals if corpora.exist(piece.run.corpus))


def measure(piece: Any, seed: int) -> list[Record]:
    """Return the records of a piece with `seed`."""
    return list(experiment.measure(piece.exact, piece.run, seed))


def section(settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    return presentation.section(NAME, settings, records)
