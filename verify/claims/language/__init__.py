"""Language models: the origin of the contrast between SGD's formula and the linearised one.

Small transformers are trained on text, and their steps are examined with exact utilities. Every estimator is compared
with every target by several protocols: within a step, pooled over steps, and by totals over the run.
"""

from typing import Any

from adamshap.verify.claims.language import experiment
from adamshap.verify.claims.language.presentation import section
from adamshap.verify.claims.language.settings import FULL, QUICK, Settings
from adamshap.verify.claims.statistics import Record

NAME = "language"
TITLE = "Language models: where the contrast comes from"
CLAIM = (
    "The linearised ghost approximation reaches Pearson R > 0.99 with the exact fixed-state marginals, SGD's formula"
    " about 0.11: by which protocol?"
)

__all__ = ["CLAIM", "FULL", "NAME", "QUICK", "TITLE", "Settings", "measure", "pieces", "section"]


def pieces(settings: Settings) -> tuple[Any, ...]:
    """Return the pieces of the study, which `measure` takes one by one."""
    return settings.marginals


def measure(piece: Any, seed: int) -> list[Record]:
    """Return the records of a piece with `seed`."""
    return list(experiment.measure(piece.exact, piece.run, seed))
