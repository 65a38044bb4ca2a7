"""Marginal utilities: their kinds, their arguments and their result."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from adamshap.reference.contract.arrays import Array, as_array, on_host
from adamshap.reference.contract.checks import MOST_STEPS, positive_integer
from adamshap.reference.contract.refusal import refuse

__all__ = [
    "MARGINALS",
    "MARGINAL_LOSSES",
    "MarginalKind",
    "MarginalLoss",
    "Marginals",
    "coalition_mask",
    "permutations_of",
]

MarginalKind = Literal["first", "last", "shapley"]
MarginalLoss = Literal["exact", "first_order"]
MARGINALS: tuple[str, ...] = get_args(MarginalKind)
MARGINAL_LOSSES: tuple[str, ...] = get_args(MarginalLoss)


def permutations_of(value: object) -> int:
    """Return `value` as a number of permutations: even, as orders come in pairs; a standard error needs two pairs."""
    number = positive_integer("permutations", value, minimum=4, maximum=MOST_STEPS)
    if number % 2:
        refuse("permutations", number, "an even number, since orders come in pairs")
    return number


def coalition_mask(coalition: object, n: int) -> Array:
    """Return `coalition` as a boolean mask of shape (n,)."""
    needs = f"a boolean mask of shape ({n},)"
    mask: Array = on_host(as_array("coalition", coalition, needs))
    if mask.dtype != np.bool_:
        refuse("coalition", f"dtype {mask.dtype}", needs, TypeError)
    if mask.shape != (n,):
        refuse("coalition", f"shape {mask.shape}", needs)
    return mask


@dataclass(frozen=True, eq=False)
class Marginals:
    """Each sample's marginal contribution to the step's utility.

    Parameters
    ----------
    values : array (n,)
        In units of the validation loss; positive means that the sample lowered it.
    empty : float
        U(∅): utility of the momentum step taken even without data, the paper's sample-independent history term.
    total : float
        U(B): utility of the whole step.
    standard_error : array (n,)
        Standard error of each value if coalitions were sampled, 0 if all were enumerated.
    """

    values: Array
    empty: float
    total: float
    standard_error: Array
