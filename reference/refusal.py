"""The one form that every refusal has."""

from typing import NoReturn

__all__ = ["refuse", "refused_field"]

_MARK = "refused_field"


def refuse(field: str, got: object, needs: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise `error` with the one form that every refusal has: the field, what it got, what it needs.

    The error remembers its field, so that `refused_field` can tell it from a mistake of the program.
    """
    raised = error(f"{field}: got {got}; needs {needs}")
    vars(raised)[_MARK] = field
    raise raised


def refused_field(error: BaseException) -> str | None:
    """Return the field that `refuse` raised `error` for; None for every other error."""
    field = vars(error).get(_MARK)
    return None if field is None else str(field)
