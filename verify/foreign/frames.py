"""Messages between the kit and the process of a candidate: their length, then their bytes.

The kit sends pickles. It never unpickles a reply, since the candidate might have written it: replies are a JSON header,
then the numbers of an answer in float64.
"""

import json
import struct
from typing import IO

import numpy as np

from adamshap.reference.contract import Array
from adamshap.verify.implementation import Answer

START = b"\x00adamshap candidate\x00"
"""Precedes the first message; output of a Python start-up file before it is skipped."""

LONGEST = 1 << 30
"""Largest size of a message in bytes."""

_LENGTH = struct.Struct("<Q")


def write_frame(stream: IO[bytes], frame: bytes) -> None:
    """Write one message."""
    stream.write(_LENGTH.pack(len(frame)) + frame)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes:
    """Return one message.

    Raises
    ------
    EOFError
        The other side has closed the stream.
    ValueError
        The message is too long.
    """
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    if length > LONGEST:
        raise ValueError(f"a message of {length} bytes")
    return _read(stream, length)


def _read(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def skip_to_start(stream: IO[bytes]) -> None:
    """Read up to the end of `START`.

    Raises
    ------
    EOFError
        The stream ends before it.
    """
    seen = b""
    while not seen.endswith(START):
        seen = (seen + _read(stream, 1))[-len(START) :]


def reply(kind: str, text: str = "", answer: Answer | None = None) -> bytes:
    """Return a message from the candidate's process: a `kind`, with a text or an answer."""
    arrays = {} if answer is None else answer
    header = json.dumps({"kind": kind, "text": text, "shapes": {name: a.shape for name, a in arrays.items()}}).encode()
    numbers = b"".join(np.ascontiguousarray(array, dtype="<f8").tobytes() for array in arrays.values())
    return _LENGTH.pack(len(header)) + header + numbers


def read_reply(frame: bytes) -> tuple[str, str, Answer]:
    """Return the kind, the text and the arrays of a message from the candidate's process.

    Raises
    ------
    ValueError
        The message does not come from `reply`.
    """
    try:
        (length,) = _LENGTH.unpack_from(frame)
        start = _LENGTH.size + length
        header = json.loads(frame[_LENGTH.size : start])
        answer: dict[str, Array] = {}
        for name, shape in header["shapes"].items():
            count = int(np.prod(shape, dtype=np.int64))
            answer[name] = np.frombuffer(frame, "<f8", count, start).reshape(shape).astype(np.float64)
            start += 8 * count
        return str(header["kind"]), str(header["text"]), answer
    except (struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no reply: {error}") from error
