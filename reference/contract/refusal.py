"""The common form of all refusals, and the refusal of masked arrays."""

from typing import Any, NoReturn

import numpy as np

__all__ = ["refuse", "refuse_masked", "refused_field"]

_MARK = "refused_field"


def refuse(field: str, got: object, needs: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise `error` in the common form of all refusals: the field, the value it got, what it needs.

    The error records its field, so that `refused_field` can distinguish it from a bug in the program.
    """
    raised = error(f"{field}: got {got}; needs {needs}")
    vars(raised)[_MARK] = field
    raise raised


def refused_field(error: BaseException) -> str | None:
    """Return the field for which `refuse` raised `error`; None for any other error."""
    field = vars(error).get(_MARK)
    return None if field is None else str(field)


def refuse_masked(field: str, value: Any) -> None:
    """Refuse a masked array, and a list that contains one: NumPy's conversions drop the mask and use masked values."""
    parts = (value, *value) if isinstance(value, list | tuple) else (value,)
    masked = [part for part in parts if isinstance(part, np.ma.MaskedArray)]
    if masked:
        hidden = sum(int(np.count_nonzero(np.ma.getmaskarray(part))) for part in masked)
        got = f"a masked array with {hidden} masked values, which would be used as data"
        refuse(field, got, "a plain array: leave such rows out, or fill them (`filled`)", TypeError)
