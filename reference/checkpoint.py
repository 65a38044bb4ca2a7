"""Named arrays in a file that is whole or not there, and that tells when it is damaged or somebody else's.

A file is an ``.npz``, which ``numpy.load(path, allow_pickle=False)`` reads, with a comment at its end (the zip
format's own place for one): the words ``adamshap``, the version of this schema, the owner's digest, and the SHA-256
of all that comes before. Files are written beside their place, flushed to the disk, and renamed: whoever is killed
meanwhile leaves the old file as it was.
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
"""Letters of a digest, in hexadecimal."""

_COMMENT = re.compile(rb"adamshap (\d{4}) ([0-9a-f]{64}) ([0-9a-f]{64})", re.ASCII)
_LENGTH = len(b"adamshap 0000 ") + DIGEST + 1 + DIGEST


class CheckpointError(Exception):
    """A file that cannot be read as one of ours: one sentence."""


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content`, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write(path: Path, arrays: Mapping[str, Array], owner: str) -> None:
    """Write `arrays` to `path`, for `owner`, a digest.

    Raises
    ------
    OSError
        The file could not be written; what was at `path` is still there.
    """
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    # The zip's last two bytes say how long its comment is.
    body = buffer.getvalue()[:-2] + struct.pack("<H", _LENGTH)
    write_whole(path, body + _comment(body, owner))


def read(path: Path, owner: str) -> dict[str, Array]:
    """Return the arrays in the file of `owner` at `path`.

    Raises
    ------
    CheckpointError
        It cannot be read, is damaged, belongs to another owner, or was written in another schema.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    body, comment = content[:-_LENGTH], content[-_LENGTH:]
    found = _COMMENT.fullmatch(comment)
    if found is None or hashlib.sha256(body + comment[: -DIGEST - 1]).hexdigest().encode() != found[3]:
        raise CheckpointError(f"{str(path)!r} is damaged, or no file of adamshap's")
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
    """Put `content` at `path`: all of it, or, where that fails, none, and what was there before stays.

    Raises
    ------
    OSError
        It could not be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:  # an interrupt too must leave nothing behind
        beside.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Have the folder's list of names on the disk too, where the system knows of that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
