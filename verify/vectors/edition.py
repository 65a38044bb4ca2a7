"""The versions of the test vectors: their folders, and the files in each.

A folder holds one JSON file for each function, ``faults.json`` (a description of each named mistake), ``schema.json``,
``README.md`` (how to read the files without this package) and ``SHA256SUMS``, which lists all others. Version 2 adds
``must_refuse.json`` (cases without a right answer) and ``variants.json`` (a description of each accepted variant).
"""

from dataclasses import dataclass
from pathlib import Path

from adamshap.verify.implementation import CAPTURES, FUNCTIONS

__all__ = ["EDITIONS", "FAULTS_FILE", "LATEST", "REFUSALS_FILE", "SUMS", "VARIANTS_FILE", "WRITTEN_BY_HAND", "Edition"]

SUMS, FAULTS_FILE, REFUSALS_FILE, VARIANTS_FILE = "SHA256SUMS", "faults.json", "must_refuse.json", "variants.json"

WRITTEN_BY_HAND = ("README.md", "schema.json")


@dataclass(frozen=True)
class Edition:
    """A version of the test vectors.

    Parameters
    ----------
    version : int
    functions : tuple of str
        The functions with a file of vectors.
    more : tuple of str
        Its files besides those, `WRITTEN_BY_HAND` and `FAULTS_FILE`.
    """

    version: int
    functions: tuple[str, ...]
    more: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder installed with this package."""
        return Path(__file__).parent / f"v{self.version}"

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the folder except `SUMS`."""
        return (*(f"{function}.json" for function in self.functions), FAULTS_FILE, *self.more, *WRITTEN_BY_HAND)


EDITIONS = {
    1: Edition(1, ("update", "utility", "marginals", "scores", "influence")),
    2: Edition(2, (*FUNCTIONS, CAPTURES), (REFUSALS_FILE, VARIANTS_FILE)),
}

LATEST = EDITIONS[2]
