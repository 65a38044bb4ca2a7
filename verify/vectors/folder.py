"""Folders of test vectors: written completely or not at all, and read only if every checksum is right."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamshap.verify.cases import CaseError
from adamshap.verify.cases import dumps as compact
from adamshap.verify.cases import loads as parse
from adamshap.verify.json_values import Json
from adamshap.verify.vectors.edition import (
    EDITIONS,
    FAULTS_FILE,
    LATEST,
    REFUSALS_FILE,
    SUMS,
    VARIANTS_FILE,
    WRITTEN_BY_HAND,
    Edition,
)
from adamshap.verify.vectors.vector import Refusal, Vector, refusal_from_json, vector_from_json, vector_to_json

__all__ = ["FORMAT", "Folder", "VectorError", "export", "read", "write"]

FORMAT = "adamshap-vectors"


class VectorError(Exception):
    """The folder is not a vector folder, is damaged, or cannot be written."""


@dataclass(frozen=True)
class Folder:
    """The content of a folder of test vectors.

    Parameters
    ----------
    edition : Edition
        Its version.
    vectors : list of Vector
        The cases with answers.
    refusals : list of Refusal
        The cases that an implementation must refuse; none in version 1.
    faults, variants : dict
        The descriptions of the mistakes and of the accepted variants by name.
    """

    edition: Edition
    vectors: list[Vector]
    refusals: list[Refusal]
    faults: Json
    variants: Json

    @property
    def counted(self) -> str:
        """The numbers of vectors and of refusals, in words."""
        refused = f" and {len(self.refusals)} cases to refuse" if self.refusals else ""
        return f"{len(self.vectors)} vectors{refused}"


# --- writing ---------------------------------------------------------------------------------------------------------


def write(folder: Path, content: Folder) -> None:
    """Write a folder of test vectors, completely or not at all.

    Raises
    ------
    VectorError
        `folder` exists and is not empty, or cannot be written.
    """
    edition = content.edition
    files = {name: (edition.folder / name).read_bytes() for name in WRITTEN_BY_HAND}
    lines: dict[str, list[str]] = {function: [] for function in edition.functions}
    for vector in content.vectors:
        lines[vector.query.function].append(compact(vector_to_json(vector, edition.version)))
    for function, texts in lines.items():
        files[f"{function}.json"] = _file_of_lines(_head(edition, function), texts)
    if REFUSALS_FILE in edition.files:
        texts = [compact({"name": one.name, "flag": "must_refuse", **_refusal_rest(one)}) for one in content.refusals]
        files[REFUSALS_FILE] = _file_of_lines(_head(edition, "must_refuse"), texts)
    for name, explained in ((FAULTS_FILE, content.faults), (VARIANTS_FILE, content.variants)):
        if name in edition.files:
            texts = [f"{compact(each)}:{compact(about)}" for each, about in explained.items()]
            files[name] = "".join(("{\n", ",\n".join(texts), "\n}\n")).encode()
    _write_files(folder, files)


def _head(edition: Edition, function: str) -> Json:
    return {"format": FORMAT, "version": edition.version, "function": function}


def _refusal_rest(one: Refusal) -> Json:
    return {"field": one.field, "reason": one.reason, "case": one.case}


def _file_of_lines(head: Json, texts: Iterable[str]) -> bytes:
    return "".join((compact(head)[:-1], ',"vectors":[\n', ",\n".join(texts), "\n]}\n")).encode()


def export(folder: Path, edition: Edition = LATEST) -> None:
    """Copy the installed vectors to `folder`, completely or not at all.

    Raises
    ------
    VectorError
        `folder` exists and is not empty, or cannot be written, or the installed vectors are damaged.
    """
    _write_files(folder, _undamaged(edition.folder)[1])


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    sums = "".join(f"{_digest(files[name])}  {name}\n" for name in sorted(files))
    temporary = None
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise VectorError(f"{str(folder)!r} exists and is not an empty folder")
        parent = folder.absolute().parent
        if not parent.is_dir():
            raise VectorError(f"cannot write to {str(folder)!r}: its parent folder does not exist")
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=parent))
        for name, content in {**files, SUMS: sums.encode()}.items():
            (temporary / name).write_bytes(content)
        temporary.chmod(0o755)
        os.replace(temporary, folder)
        temporary = None
    except OSError as error:
        raise VectorError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


# --- reading ---------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Folder:
    """Return the content of a folder after verifying its checksums.

    Raises
    ------
    VectorError
        One sentence about the first problem.
    """
    edition, files = _undamaged(folder)
    vectors: list[Vector] = []
    refusals: list[Refusal] = []
    try:
        faults, variants = (
            parse(files[name].decode(), name) if name in files else {} for name in (FAULTS_FILE, VARIANTS_FILE)
        )
        for function in edition.functions:
            name = f"{function}.json"
            for place, one in enumerate(_lines(files[name], name, edition, function)):
                where = f"{name}, vector {place}"
                vectors.append(vector_from_json(one, where, function, edition.version))
                _check_explained(vectors[-1], where, faults, variants)
        if REFUSALS_FILE in files:
            given = _lines(files[REFUSALS_FILE], REFUSALS_FILE, edition, "must_refuse")
            refusals = [refusal_from_json(one, f"{REFUSALS_FILE}, vector {i}") for i, one in enumerate(given)]
    except (UnicodeDecodeError, KeyError, TypeError, CaseError) as error:
        raise VectorError(f"{str(folder)!r}: {_sentence(error)}") from error
    names = [*(vector.name for vector in vectors), *(refusal.name for refusal in refusals)]
    if len(set(names)) < len(names):
        raise VectorError(f"{str(folder)!r}: two vectors have the same name")
    return Folder(edition, vectors, refusals, faults, variants)


def _lines(content: bytes, name: str, edition: Edition, function: str) -> Any:
    head = parse(content.decode(), name)
    wanted = _head(edition, function)
    if not isinstance(head, dict) or {key: head.get(key) for key in wanted} != wanted:
        raise CaseError(f"{name}: is not a file of {FORMAT}, version {edition.version}, for {function}")
    return head["vectors"]


def _check_explained(vector: Vector, where: str, faults: Json, variants: Json) -> None:
    for names, known, file, verb in (
        (vector.exposes, faults, FAULTS_FILE, "exposes"),
        ([variant.name for variant in vector.variants], variants, VARIANTS_FILE, "accepts"),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise CaseError(f"{where}: {verb} {unknown[0]!r}, which {file} does not know")


def _sentence(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _undamaged(folder: Path) -> tuple[Edition, dict[str, bytes]]:
    """Return a folder's version, and every file's content after verifying the checksums and that no other exists."""
    where = f"{str(folder)!r}"
    try:
        there = sorted(path.name for path in folder.iterdir())
        if SUMS not in there:
            raise VectorError(f"{where} has no {SUMS}: it is not a folder of test vectors")
        edition, sums = _sums(where, (folder / SUMS).read_text(encoding="ascii"))
        files = {name: (folder / name).read_bytes() for name in there if name in sums}
    except OSError as error:
        raise VectorError(f"cannot read {where}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise VectorError(f"{where}: {SUMS} is damaged (it is not text)") from error
    for name in sums:
        if name not in files:
            raise VectorError(f"{where}: {name} is missing")
        if _digest(files[name]) != sums[name]:
            raise VectorError(f"{where}: {name} is damaged (its checksum is not the one in {SUMS})")
    foreign = [name for name in there if name not in sums and name != SUMS]
    if foreign:
        raise VectorError(f"{where}: {foreign[0]} is not listed in {SUMS}: it does not belong there")
    return edition, files


def _sums(where: str, text: str) -> tuple[Edition, dict[str, str]]:
    parts = [line.split("  ", 1) for line in text.splitlines()]
    listed = sorted(part[-1] for part in parts)
    for edition in EDITIONS.values():
        if listed == sorted(edition.files) and all(len(part) == 2 for part in parts):
            return edition, {name: digest for digest, name in parts}
    raise VectorError(f"{where}: {SUMS} is damaged (it must list {', '.join(sorted(LATEST.files))})")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
