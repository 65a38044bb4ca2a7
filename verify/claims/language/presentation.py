"""The study's section of the page."""

from collections.abc import Sequence

from adamshap.verify.claims.language.settings import Settings
from adamshap.verify.claims.section import Section
from adamshap.verify.claims.statistics import Record


def section(settings: Settings, records: Sequence[Record]) -> Section:
    """Return the claim's section of the page."""
    raise NotImplementedError
