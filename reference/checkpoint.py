"""Named arrays in a file that is written atomically and detects damage and foreign owners.

A file is an ``.npz``, which ``numpy.load(path, allow_pickle=False)`` reads, with a zip comment at its end: the word
``adamshap``, the version of this schema, the owner's digest, and the SHA-256 of everything before it. Files are written
beside their destination, flushed to the disk, and renamed: a process killed meanwhile leaves the old file intact.
"""

import hashlib
import io
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adamshap.reference.contract import Array

__all__ = ["DIGEST", "CheckpointError", "digest", "read", "write", "write_whole"]

SCHEMA = 1
DIGEST = 64
"""Length of a digest, in hexadecimal digits."""

_COMMENT = re.compile(rb"adamshap (\d{4}) ([0-9a-f]{64}) ([0-9a-f]{64})", re.ASCII)
_LENGTH = len(b"adamshap 0000 ") + DIGEST + 1 + DIGEST


class CheckpointError(Exception):
    """A file that is not a readable checkpoint of its owner; the message is one sentence."""


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content`, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write(path: Path, arrays: Mapping[str, Array], owner: str) -> None:
    """Write `arrays` to `path`, for `owner`, a digest.

    Raises
    ------
    OSError
        The file could not be written; an existing file at `path` is unchanged.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    # The zip's last two bytes hold the length of its comment.
    body = buffer.getvalue()[:-2] + struct.pack("<H", _LENGTH)
    write_whole(path, body + _comment(body, owner))


def read(path: Path, owner: str) -> dict[str, Array]:
    """Return the arrays in the file of `owner` at `path`.

    Raises
    ------
    CheckpointError
        The file cannot be read, is damaged, belongs to another owner, or was written in another schema.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    body, comment = content[:-_LENGTH], content[-_LENGTH:]
    found = _COMMENT.fullmatch(comment)
    if found is None or hashlib.sha256(body + comment[: -DIGEST - 1]).hexdigest().encode() != found[3]:
        raise CheckpointError(f"{str(path)!r} is damaged, or not a file of adamshap")
    if int(found[1]) != SCHEMA:
        raise CheckpointError(f"{str(path)!r} was written in version {int(found[1])}; needs version {SCHEMA}")
    if found[2] != owner.encode():
        raise CheckpointError(f"{str(path)!r} belongs to another run")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)


def _comment(body: bytes, owner: str) -> bytes:
    start = f"adamshap {SCHEMA:04d} {owner}".encode("ascii")
    return start + b" " + hashlib.sha256(body + start).hexdigest().encode()


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: on failure an existing file is unchanged.

    Raises
    ------
    OSError
        The file could not be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:  # an interrupt must leave nothing behind either
        beside.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Flush the folder's entries to the disk, on systems that support it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
