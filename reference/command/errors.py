"""The errors that the command shows as one line. The traceback of a mistake of the program goes to a file."""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import typer

from adamshap.reference.contract import refused_field

# As shells have it for Ctrl-C and for SIGTERM.
INTERRUPTED = 130
TERMINATED = 143
# A run that came upon numbers that are not finite: the scores up to there are written.
BROKE_OFF = 3
# A mistake of the program, by the number that sysexits.h has for it.
INTERNAL = 70

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a full disk."""

TRACEBACKS = "traceback.txt"
"""File in a run's folder that tracebacks are added to."""


class CommandError(Exception):
    """An error that is shown as one line on stderr; `exit_code` is the command's."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def one_line(folder: Path | None = None) -> Iterator[None]:
    """Turn every error of the block into a `CommandError`.

    What the contract refuses, too little memory, and a full disk are the user's to mend. Everything else is a mistake
    of the program: its traceback goes to a file, in `folder` where one is given.
    """
    try:
        yield
    # The last one is a reader that wants no more output (`| head`).
    except (CommandError, typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
        raise
    except MemoryError as error:
        raise CommandError(f"not enough memory: {error}") from error
    except OSError as error:
        if error.errno not in FULL:
            raise internal_error(error, folder) from error
        raise CommandError(f"cannot write the output: {error.strerror}") from error
    except Exception as error:
        if refused_field(error) is not None:
            raise CommandError(str(error)) from error
        raise internal_error(error, folder) from error


def internal_error(error: BaseException, folder: Path | None = None, during: str = "internal error") -> CommandError:
    """Return the line for a mistake of the program, whose traceback is then in the file that the line names."""
    return CommandError(f"{during}: {type(error).__name__}: {error}; {keep_traceback(error, folder)}", INTERNAL)


def why_no_picture(error: Exception, folder: Path | None = None) -> str:
    """Return why nothing could be drawn; the traceback of what is no missing package is then in a file."""
    if isinstance(error, ImportError):
        return str(error)
    return f"matplotlib failed ({type(error).__name__}: {error}); {keep_traceback(error, folder)}"


def keep_traceback(error: BaseException, folder: Path | None = None) -> str:
    """Add the traceback of `error` to a file, and return where it is.

    It is in `folder`, or else among the temporary files; where neither can be written to, it is printed to stderr.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    trace = "".join(traceback.format_exception(error))
    text = f"{when} adamshap {version('adamshap')}: {' '.join(map(repr, sys.argv))}\n{trace}\n"
    for place in (folder, None):
        with suppress(OSError):
            path = _temporary_file() if place is None else place / TRACEBACKS
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return f"the traceback is in {path}"
    print(text, end="", file=sys.stderr)
    return "no file could be written: the traceback is above"


def _temporary_file() -> Path:
    descriptor, path = tempfile.mkstemp(prefix="adamshap-traceback-", suffix=".txt")
    os.close(descriptor)
    return Path(path)
