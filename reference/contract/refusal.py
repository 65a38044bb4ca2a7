"""The one form that every refusal has, and the arrays that nothing here takes."""

from typing import Any, NoReturn

import numpy as np

__all__ = ["refuse", "refuse_masked", "refused_field"]

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


def refuse_masked(field: str, value: Any) -> None:
    """Refuse a masked array, and a list that holds one: NumPy's conversions drop the mask and use what it hides."""
    parts = (value, *value) if isinstance(value, list | tuple) else (value,)
    masked = [part for part in parts if isinstance(part, np.ma.MaskedArray)]
    if masked:
        hidden = sum(int(np.count_nonzero(np.ma.getmaskarray(part))) for part in masked)
        got = f"a masked array with {hidden} values masked, which would count as they are"
        refuse(field, got, "a plain array: leave such rows out, or fill them (`filled`)", TypeError)
