"""Explains why a program cannot be run, in more detail than the operating system's error."""

import errno
import os
import shutil
from pathlib import Path

_SHELL = set("~$`=|;&<>*")

_MEANINGS = {
    errno.ENOENT: "the file exists, but not the loader that it names: it was built for another system",
    errno.ENOEXEC: "it is not a program for this machine, nor a script: a script begins with a line such as #!/bin/sh",
    errno.EACCES: "it may not be executed by this user, or its file system is mounted noexec",
}


def why_not_runnable(program: str) -> str:
    """Return why `program`, the first word of a command, cannot be run and what to do; "" if nothing is found.

    Parameters
    ----------
    program : str
        A path, or a name that is looked up on PATH.

    Returns
    -------
    str
        The end of a sentence that begins with ``cannot run 'PROGRAM': ``.
    """
    if os.path.dirname(program):
        path = Path(program)
    elif found := shutil.which(program):
        path = Path(found)
    else:
        return _why_not_on_path(program)
    if path.is_dir():
        return "it is a folder, not a program"
    if not path.exists():
        hint = "; a command is run without a shell, so write it out" if set(program) & _SHELL else ""
        return f"no such program{hint}"
    if not path.stat().st_mode & 0o111 and os.name == "posix":
        return f"the file has no execute bit: chmod +x {path}, or name its interpreter before it"
    if not os.access(path, os.X_OK):
        return "the file may not be executed by this user, or its file system is mounted noexec"
    return _why_it_would_not_start(path)


def _why_not_on_path(name: str) -> str:
    for folder in os.get_exec_path():
        file = Path(folder, name)
        if folder and file.is_file():
            return f"{file} has no execute bit: chmod +x {file}, or name its interpreter before it"
    if Path(name).is_file():
        return f"no such program on PATH; for the file in this folder write ./{name}"
    if set(name) & _SHELL:
        return "no such program; a command is run without a shell: put shell syntax into a script"
    return "no such program"


def _why_it_would_not_start(path: Path) -> str:
    """Return the problem that an executable file's first bytes show; "" for none."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError:
        return ""  # a program may be executable but not readable
    if not head:
        return "the file is empty"
    if not head.startswith(b"#!"):
        return ""
    first = head[2:].split(b"\n", 1)[0]
    interpreter = os.fsdecode(first.strip().split(b" ")[0].split(b"\t")[0])
    if first.endswith(b"\r") and not os.path.exists(f"{interpreter}\r"):
        return "its first line ends in a carriage return: save the file with Unix line endings"
    if not interpreter:
        return "its first line names no interpreter after #!"
    if not os.path.exists(interpreter):
        return f"its first line names the interpreter {interpreter!r}, which does not exist"
    if os.path.isdir(interpreter) or not os.access(interpreter, os.X_OK):
        return f"its first line names the interpreter {interpreter!r}, which cannot be executed"
    return ""


def why_start_failed(program: str, error: OSError) -> str:
    """Return why a program could not be started although `why_not_runnable` may find no problem.

    Parameters
    ----------
    program : str
        The first word of the command.
    error : OSError
        The error of starting it.

    Returns
    -------
    str
        The end of a sentence that begins with ``cannot run 'PROGRAM': ``.
    """
    return why_not_runnable(program) or _MEANINGS.get(error.errno or 0, str(error))
