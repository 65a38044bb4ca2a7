"""The one form that every refusal has, and the arrays that nothing here takes."""

from typing import Any, NoReturn

import numpy as np

__all__ = ["refuse", "refuse_masked"]


def refuse(field: str, got: object, needs: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise `error` with the one form that every refusal has: the field, what it got, what it needs."""
    raise error(f"{field}: got {got}; needs {needs}")


def refuse_masked(field: str, value: Any) -> None:
    """Refuse a masked array, and a list that holds one: NumPy's conversions drop the mask and use what it hides."""
    parts = (value, *value) if isinstance(value, list | tuple) else (value,)
    masked = [part for part in parts if isinstance(part, np.ma.MaskedArray)]
    if masked:
        hidden = sum(int(np.count_nonzero(np.ma.getmaskarray(part))) for part in masked)
        got = f"a masked array with {hidden} values masked, which would count as they are"
        refuse(field, got, "a plain array: leave such rows out, or fill them (`filled`)", TypeError)
