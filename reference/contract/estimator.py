"""Which scores there are: slopes, validation gradients, and the nodes of their quadratures."""

from typing import Final, Literal, get_args

from adamshap.reference.contract.checks import one_of, positive_integer, shown
from adamshap.reference.contract.marginals import MARGINALS
from adamshap.reference.contract.refusal import refuse

__all__ = [
    "DENOMINATORS",
    "GRADIENTS",
    "SCORE_SLOPES",
    "SLOPES",
    "TWO_TERM",
    "Denominator",
    "Gradient",
    "ScoreSlope",
    "Slope",
    "check_kind",
    "quadrature_nodes",
]

Slope = Literal["sgd", "frozen", "linearized", "tangent", "secant", "random_order"]
ScoreSlope = Literal[Slope, "two_term"]
Gradient = Literal["start", "midpoint", "path"]
Denominator = Literal["exact", "previous"]
SLOPES: tuple[str, ...] = get_args(Slope)
SCORE_SLOPES: tuple[str, ...] = get_args(ScoreSlope)
GRADIENTS: tuple[str, ...] = get_args(Gradient)
DENOMINATORS: tuple[str, ...] = get_args(Denominator)

TWO_TERM: Final = "two_term"
"""The one of `SCORE_SLOPES` that is no single slope, and has a `kind`."""


def quadrature_nodes(value: object, slope: str) -> tuple[int, int]:
    """Return ``nodes=(path, normal)`` as two ints; the normal rule needs two nodes to have one beside zero.

    None is (4, 4), and for "two_term", which gains more from places than from the normal's nodes, (8, 2).
    """
    if value is None:
        return (8, 2) if slope == TWO_TERM else (4, 4)
    if not isinstance(value, tuple | list) or len(value) != 2:
        refuse("nodes", shown(value), "two integers (path, normal), or None", TypeError)
    return positive_integer("nodes[0]", value[0]), positive_integer("nodes[1]", value[1], minimum=2)


def check_kind(slope: str, kind: object) -> None:
    """Refuse a `kind` that is none, or that only "two_term" could follow."""
    if one_of("kind", kind, MARGINALS) != "shapley" and slope != TWO_TERM:
        refuse("kind", f"{kind!r} with slope {slope!r}", f"slope {TWO_TERM!r}, which alone is made for one marginal")
