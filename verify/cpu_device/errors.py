"""What can go wrong before, and outside, a kernel."""

__all__ = ["KernelError", "NotCoveredError", "UnavailableError"]


class UnavailableError(RuntimeError):
    """The CPU device cannot be installed here: the message says what is missing or in the way."""


class NotCoveredError(NotImplementedError):
    """CuPy called something that the CPU device does not cover: the message names it.

    Parameters
    ----------
    what : str
        What was called.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"CuPy on CPU does not cover {what}; only a real GPU can run this")


class KernelError(RuntimeError):
    """A kernel could not go on: a barrier that is never released, a failed assertion. The message names the kernel."""
