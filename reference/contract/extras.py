"""Packages that an extra installs: where one is missing, the error says which command installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needed"]


@contextmanager
def needed(packages: str, *, by: str, extra: str, error: type[Exception] = ImportError) -> Iterator[None]:
    """Return a context manager for imports that may fail, as the packages are not installed with adamshap.

    Parameters
    ----------
    packages : str
        Their names, for the message.
    by : str
        What needs them.
    extra : str
        The extra that installs them.
    error : class
        Class of the error.

    Raises
    ------
    ImportError, or `error`
        With what is missing, and pip's command.
    """
    try:
        yield
    except ImportError as reason:
        raise error(f'{by} needs {packages} ({reason}): pip install "adamshap[{extra}]"') from reason
