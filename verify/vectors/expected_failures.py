"""A list of the vectors that an implementation is known to fail, kept by its owner.

A text file with a name on each line, or a pattern with ``*``; what follows ``#`` is a remark::

    scores-layers-012      # attention with an odd number of heads
    update-convnet-*       # no max pooling yet
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

__all__ = ["Expectations", "ExpectationsError", "read_expectations"]


class ExpectationsError(Exception):
    """The list cannot be read, or names no vector; the message is one sentence."""


@dataclass(frozen=True)
class Expectations:
    """The failures that are expected.

    Parameters
    ----------
    entries : tuple of str
        Names of vectors, or patterns.
    """

    entries: tuple[str, ...] = ()

    def cover(self, name: str) -> bool:
        """Return whether the vector `name` is expected to fail."""
        return any(fnmatchcase(name, entry) for entry in self.entries)

    def stale(self, failed: Collection[str]) -> list[str]:
        """Return the entries that none of the vectors `failed` matches."""
        return [entry for entry in self.entries if not any(fnmatchcase(name, entry) for name in failed)]


def read_expectations(file: Path, names: Iterable[str]) -> Expectations:
    """Return the list in `file`.

    Parameters
    ----------
    file : Path
    names : iterable of str
        Names of all vectors; each entry must match one of them.

    Raises
    ------
    ExpectationsError
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ExpectationsError(f"cannot read {str(file)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ExpectationsError(f"{str(file)!r} is not text in UTF-8") from error
    known, entries = list(names), []
    for number, line in enumerate(lines, start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        if not any(fnmatchcase(name, entry) for name in known):
            raise ExpectationsError(f"{str(file)!r}, line {number}: no vector has the name {entry!r}")
        entries.append(entry)
    return Expectations(tuple(entries))
