"""The results of a run of test vectors, as lines of text and as JSON."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from adamshap.verify.vectors.expected_failures import Expectations
from adamshap.verify.vectors.folder import Folder
from adamshap.verify.vectors.running import Result, Status, likely_faults

__all__ = ["Results"]

SHOWN = 20
"""Failures that are printed."""

MISTAKES = 3
"""Likely mistakes that are printed."""


@dataclass(frozen=True)
class Results:
    """The results of one run.

    Parameters
    ----------
    target : str
        The implementation.
    content : Folder
        The vectors.
    results : sequence of Result
        One result per vector.
    expectations : Expectations
        The failures that are expected.
    """

    target: str
    content: Folder
    results: Sequence[Result]
    expectations: Expectations

    def of(self, *statuses: Status) -> list[Result]:
        """Return the results with one of `statuses`."""
        return [one for one in self.results if one.status in statuses]

    @property
    def unexpected(self) -> list[Result]:
        """The failures that are not expected."""
        return [one for one in self.of("failed") if not self.expectations.cover(one.name)]

    @property
    def stale(self) -> list[str]:
        """The expected failures that do not fail."""
        return self.expectations.stale([one.name for one in self.of("failed")])

    @property
    def variants(self) -> Counter[str]:
        """The number of answers that follow each accepted variant."""
        return Counter(one.variant for one in self.results if one.variant)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report."""
        for one in self.unexpected[:SHOWN]:
            yield f"{one.name}: {one.sentence}"
        if len(self.unexpected) > SHOWN:
            yield f"... and {len(self.unexpected) - SHOWN} more failures"
        for name in self._likely()[:MISTAKES]:
            sentence = self.content.faults[name]["sentence"]
            yield f"Likely mistake: your answers equal the oracle's with {sentence} ({name})"
        for name, count in self.variants.items():
            about = self.content.variants[name]["sentence"]
            yield f"{count} answers follow an accepted variant, {about} ({name})"
        for reason, count in Counter(one.sentence for one in self.of("not supported")).most_common():
            yield f"Not supported ({reason}): {count}"
        if asked := len(self.of("not asked")):
            yield f"Not asked: {asked} cases that the contract refuses before a Python implementation sees them"
        for entry in self.stale:
            yield f"{entry}: expected to fail, but nothing of this name does; take it off the list"
        yield f"{self.target}, vectors of version {self.content.edition.version}: {self._verdict()}"

    def to_json(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        return {
            "schema": 1,
            "target": self.target,
            "vectors": self.content.edition.version,
            "adamshap": version("adamshap"),
            "verdict": self._verdict(),
            "likely_mistakes": self._likely(),
            "variants": dict(self.variants),
            "stale_expected_failures": self.stale,
            "results": [
                {
                    "name": one.name,
                    "status": one.status,
                    "expected_failure": one.status == "failed" and self.expectations.cover(one.name),
                    "sentence": one.sentence,
                    "variant": one.variant,
                }
                for one in self.results
            ],
        }

    def _likely(self) -> list[str]:
        return likely_faults(self.results) if self.unexpected else []

    def _verdict(self) -> str:
        expected = len(self.of("failed")) - len(self.unexpected)
        counts = {
            "passed": len(self.of("passed")),
            "failed": len(self.unexpected),
            "failed as expected": expected,
            "not supported": len(self.of("not supported")),
            "not asked": len(self.of("not asked")),
        }
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count or name in ("passed", "failed"))
