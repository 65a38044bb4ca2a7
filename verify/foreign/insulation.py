"""Keeps a candidate's changes to process-wide state apart from the kit's state.

This covers floating-point handling (NumPy's, and the processor's rounding and flushing), warnings filters, the working
folder, the locale, the recursion limit, the umask and the standard streams. Each call of the candidate sees the state
that the candidate set, and the kit's state is restored afterwards. If Python can intercept the end of the process, it
becomes an exception; otherwise a candidate needs a process of its own.
"""

import contextlib
import ctypes
import io
import locale
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

STANDARD_STREAMS = (0, 1, 2)
_GLOBAL: Any = np.random  # its stubs lack two functions
STREAM_NAMES = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")


class Exited(BaseException):
    """Raised instead of calling ``os._exit``, which would end the kit too."""

    def __init__(self, status: object) -> None:
        super().__init__(f"os._exit({status!r})")


class Insulation:
    """The process state that one candidate has set; `around` applies it for a call and restores the kit's."""

    def __init__(self) -> None:
        self._candidate_state: dict[str, Any] = {}

    @contextmanager
    def around(self) -> Iterator[None]:
        """Run the candidate in this block.

        Raises
        ------
        KeyboardInterrupt
            The user pressed Ctrl-C, even if the candidate swallowed it.
        RaisedInterrupt
            The candidate itself raised a KeyboardInterrupt.
        """
        process, ours = os.getpid(), _state()
        for name, value in self._candidate_state.items():
            _put(name, value)
        try:
            with _open_streams():
                before = _state()
                try:
                    with _no_exit(process), _interrupts():
                        yield
                finally:
                    self._keep(before, _state())
        finally:
            if os.getpid() != process:
                os._exit(0)  # a forked copy, which must not continue the kit's work
            for name, value in ours.items():
                _put(name, value)

    def _keep(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Remember the state that the candidate set."""
        self._candidate_state |= {name: after[name] for name in LASTING if after[name] != before[name]}


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the state of `random` and of `numpy.random` after the block."""
    # Too slow for every call. The kit uses generators of its own.
    python, generator = random.getstate(), _GLOBAL.get_bit_generator()
    state = generator.state
    try:
        yield
    finally:
        random.setstate(python)
        _GLOBAL.set_bit_generator(generator)
        generator.state = state


# --- readers and setters of each state --------------------------------------------------------------------------------


def _warnings() -> Any:
    hooks = {name: vars(warnings)[name] for name in ("showwarning", "_showwarnmsg_impl") if name in vars(warnings)}
    return warnings.filters, list(warnings.filters), hooks


def _set_warnings(value: Any) -> None:
    filters, entries, hooks = value
    if warnings.filters is not filters or list(filters) != entries:
        warnings.filters = filters
        warnings.resetwarnings()  # also clears Python's cache of earlier filter decisions
        filters.extend(entries)
    vars(warnings).update(hooks)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _set_folder(folder: str | None) -> None:
    if folder is not None and _folder() != folder:
        os.chdir(folder)


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it
    os.umask(mask)
    return mask


def _numpy() -> Any:
    return np.geterr(), np.geterrcall()


def _set_numpy(value: Any) -> None:
    np.seterr(**value[0])
    np.seterrcall(value[1])


def _find_environment_functions() -> tuple[Any, Any] | None:
    """Return C's ``fegetenv`` and ``fesetenv``, or None."""
    try:
        library = ctypes.CDLL(None)
        return library.fegetenv, library.fesetenv
    except (OSError, TypeError, AttributeError):
        return None


_ENVIRONMENT = _find_environment_functions()


def _processor() -> Any:
    if _ENVIRONMENT is None:
        return None
    state = ctypes.create_string_buffer(256)  # larger than any platform's fenv_t
    _ENVIRONMENT[0](state)
    return state


def _set_processor(state: Any) -> None:
    if _ENVIRONMENT is not None:
        _ENVIRONMENT[1](state)


def _streams() -> dict[str, Any]:
    streams = {name: getattr(sys, name, None) for name in STREAM_NAMES}
    return {name: (stream, _encoding(stream)) for name, stream in streams.items()}


def _set_streams(streams: dict[str, Any]) -> None:
    for name, (stream, encoding) in streams.items():
        setattr(sys, name, stream)
        if encoding != _encoding(stream):
            stream.reconfigure(**encoding)


def _encoding(stream: Any) -> dict[str, Any]:
    """Return the settings of an output stream that `reconfigure` may change; {} for any other stream."""
    if not hasattr(stream, "reconfigure") or stream.closed or not stream.writable():
        return {}
    return {"encoding": stream.encoding, "errors": stream.errors}


_STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "processor": (_processor, _set_processor),
    "numpy": (_numpy, _set_numpy),
    "warnings": (_warnings, _set_warnings),
    "locale": (lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
    "recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
    "streams": (_streams, _set_streams),
    "umask": (_umask, os.umask),
    "folder": (_folder, _set_folder),
}

LASTING = ("numpy", "warnings", "locale", "folder")
"""States that a candidate may set once and rely on, for instance at import."""


def _state() -> dict[str, Any]:
    return {name: get() for name, (get, _) in _STATES.items()}


def _put(name: str, value: Any) -> None:
    # A deleted folder, a mixed locale, a recursion limit below the current depth.
    with contextlib.suppress(OSError, locale.Error, RecursionError):
        _STATES[name][1](value)


# --- streams ----------------------------------------------------------------------------------------------------------


class _Unclosable:
    """A stream whose `close` does nothing."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @property
    def buffer(self) -> Any:
        return _Unclosable(self._stream.buffer)

    def close(self) -> None:
        return None

    def detach(self) -> NoReturn:
        raise io.UnsupportedOperation("detach: the stream is the kit's")


@contextmanager
def _open_streams() -> Iterator[None]:
    """Keep the standard streams open in the block, and restore their file descriptors afterwards."""
    for name in STREAM_NAMES:
        stream = getattr(sys, name, None)
        if "in" not in name and stream is not None and not isinstance(stream, _Unclosable):
            setattr(sys, name, _Unclosable(stream))
    saved = {}
    for number in STANDARD_STREAMS:
        with contextlib.suppress(OSError):  # already closed
            saved[number] = os.dup(number)
    try:
        yield
    finally:
        for number, copy in saved.items():
            with contextlib.suppress(OSError):  # the copy was closed too
                if not _is_open_on(number, copy):
                    os.dup2(copy, number)
                os.close(copy)


def _is_open_on(number: int, copy: int) -> bool:
    try:
        return os.path.samestat(os.fstat(number), os.fstat(copy))
    except OSError:
        return False


# --- exits and interrupts ---------------------------------------------------------------------------------------------


@contextmanager
def _no_exit(process: int) -> Iterator[None]:
    exit_now = os._exit

    def refuse(status: int) -> NoReturn:
        if os.getpid() != process:
            exit_now(status)  # a forked child may exit
        raise Exited(status)

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = exit_now


class RaisedInterrupt(BaseException):
    """A KeyboardInterrupt that did not come from the user."""


@contextmanager
def _interrupts() -> Iterator[None]:
    """Pass on the user's Ctrl-C even if the block swallows it, and replace a KeyboardInterrupt of the block's own."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    interrupted = False

    def interrupt(*_: object) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if interrupted:
            raise
        raise RaisedInterrupt from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted:
            raise KeyboardInterrupt
