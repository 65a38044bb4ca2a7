"""Hooks that stay with their module: copies of a model, by deepcopy or pickle, do not capture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["OfThisModule"]


@dataclass(frozen=True)
class OfThisModule:
    """A hook that does nothing in a copy of its module.

    Else a copy, such as a moving average of the weights, would have a copy of the captures, and PyTorch could not
    save a model with a hook that pickle has no name for.

    Parameters
    ----------
    hook : callable
    """

    hook: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the hook."""
        return self.hook(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _nothing


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing."""
