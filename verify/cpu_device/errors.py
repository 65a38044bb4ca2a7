"""The errors of CuPy on the CPU."""

__all__ = ["KernelError", "NotCoveredError", "UnavailableError"]


class UnavailableError(RuntimeError):
    """The CPU device cannot be installed here; the message names the reason."""


class NotCoveredError(NotImplementedError):
    """CuPy called something that the CPU device does not cover; the message names it.

    Parameters
    ----------
    what : str
        Name of the function or feature.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"CuPy on CPU does not cover {what}; only a real GPU can run this")


class KernelError(RuntimeError):
    """A kernel failed: a barrier that is never released, a failed assertion. The message names the kernel."""
