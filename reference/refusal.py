"""The one form that every refusal has."""

from typing import NoReturn

__all__ = ["refuse"]


def refuse(field: str, got: object, needs: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise `error` with the one form that every refusal has: the field, what it got, what it needs."""
    raise error(f"{field}: got {got}; needs {needs}")
