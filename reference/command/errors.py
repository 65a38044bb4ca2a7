"""The errors that the command shows as one line. The traceback of an internal error goes to a file."""

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

# The shell's exit codes for Ctrl-C and for SIGTERM.
INTERRUPTED = 130
TERMINATED = 143
# Training diverged (non-finite values); the scores so far are written.
TRAINING_DIVERGED = 3
# An internal error: EX_SOFTWARE in sysexits.h.
INTERNAL = 70

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk."""

TRACEBACKS = "traceback.txt"
"""File in a run's folder to which tracebacks are appended."""


class CommandError(Exception):
    """An error that is shown as one line on stderr; `exit_code` becomes the command's."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def one_line(folder: Path | None = None) -> Iterator[None]:
    """Turn every error of the block into a `CommandError`.

    The user can fix what the contract refuses, too little memory and a full disk. Everything else is an internal error:
    its traceback goes to a file, in `folder` if given.
    """
    try:
        yield
    # BrokenPipeError: the reader wants no more output (`| head`).
    except (CommandError, typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
        raise
    except MemoryError as error:
        raise CommandError(f"not enough memory: {error}") from error
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise internal_error(error, folder) from error
        raise CommandError(f"cannot write the output: {error.strerror}") from error
    except Exception as error:
        if refused_field(error) is not None:
            raise CommandError(str(error)) from error
        raise internal_error(error, folder) from error


def internal_error(error: BaseException, folder: Path | None = None, during: str = "internal error") -> CommandError:
    """Save the traceback of an internal error, and return the error that names its file."""
    return CommandError(f"{during}: {type(error).__name__}: {error}; {keep_traceback(error, folder)}", INTERNAL)


def why_no_picture(error: Exception, folder: Path | None = None) -> str:
    """Return why nothing could be drawn; save the traceback unless only a package is missing."""
    if isinstance(error, ImportError):
        return str(error)
    return f"matplotlib failed ({type(error).__name__}: {error}); {keep_traceback(error, folder)}"


def keep_traceback(error: BaseException, folder: Path | None = None) -> str:
    """Append the traceback of `error` to a file, and return a phrase that says where it is.

    The file is in `folder`, or else among the temporary files. If neither can be written to, print it to stderr.
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
