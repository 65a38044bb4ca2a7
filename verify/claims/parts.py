"""Finished parts of an interrupted command, one JSON file each, so that it can go on.

A part is one piece of a claim's settings with one seed. Its file is named after all that determines its records: the
claim, the piece, the seed and the version of adamshap. So a part of other settings is not found, and stays.
"""

import hashlib
import json
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adamshap.verify.claims.statistics import Record


class Parts:
    """Parts in a folder, which is created with the first one; without a folder nothing is kept or found."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def find(self, name: str, piece: Any, seed: int) -> list[Record] | None:
        """Return the records of a finished part; None if it is not there or cannot be read."""
        if self.folder is None:
            return None
        try:
            kept = json.loads(self._path(name, piece, seed).read_text(encoding="utf-8"))
            records: list[Record] = kept["records"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return records

    def keep(self, name: str, piece: Any, seed: int, records: list[Record]) -> None:
        """Write a finished part, whole or not at all."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(name, piece, seed)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({**_about(name, piece, seed), "records": records}), encoding="utf-8")
        os.replace(unfinished, path)

    def _path(self, name: str, piece: Any, seed: int) -> Path:
        assert self.folder is not None
        digest = hashlib.sha256(json.dumps(_about(name, piece, seed), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name}-{seed}-{digest[:16]}.json"


def _about(name: str, piece: Any, seed: int) -> dict[str, Any]:
    """Return all that determines a part's records."""
    return {
        "claim": name,
        "kind": type(piece).__name__,
        "piece": asdict(piece),
        "seed": seed,
        "version": version("adamshap"),
    }
