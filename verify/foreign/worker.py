"""The process of a candidate: loads it, and answers calls until the kit closes the pipe.

The oracle must not run here. The kit's messages pass through the standard input and output that the process starts
with; the candidate gets replacements, and its output goes to standard error.
"""

import os
import pickle
import sys
import traceback
from typing import IO, Any

from adamshap.verify.foreign.frames import START, read_frame, reply, write_frame
from adamshap.verify.implementation import Hung, Implementation, LoadError, Misbehaviour, Unsupported, answer, load


def main() -> None:
    """Serve the candidate that the kit names in its first message."""
    status = 0
    try:
        _serve(*_own_pipes())
    except (EOFError, BrokenPipeError):  # the kit has closed the pipe
        pass
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)  # threads that the candidate left running must not delay the end


def _serve(receive: IO[bytes], send: IO[bytes]) -> None:
    send.write(START)
    send.flush()
    target, path, timeout = pickle.loads(read_frame(receive))
    sys.path[:0] = path
    try:
        candidate = load(target)
    except LoadError as error:
        write_frame(send, reply("cannot load", str(error)))
        return
    declared = (candidate.offers, candidate.extras, candidate.supports)
    write_frame(send, reply("offers", ";".join(" ".join(sorted(names)) for names in declared)))
    while True:
        step, query = pickle.loads(read_frame(receive))
        write_frame(send, _reply(candidate, step, query, timeout))


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return the pipes of standard input and output, and replace both for the candidate."""
    receive, send = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return receive, send


def _reply(candidate: Implementation, step: Any, query: Any, timeout: float | None) -> bytes:
    try:
        return reply("answer", answer=answer(candidate, step, query, timeout))
    except Unsupported as reason:
        return reply("unsupported", str(reason))
    except Hung as error:
        return reply("hung", str(error))
    except Misbehaviour as error:
        return reply("misbehaviour", str(error))
