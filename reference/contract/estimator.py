"""Which score is computed: the slope, the validation gradient, and the nodes of their quadratures."""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from adamshap.reference.contract.checks import one_of, positive_integer, shown, true_or_false
from adamshap.reference.contract.marginals import MARGINALS, MarginalKind
from adamshap.reference.contract.optimiser import CompletedSteps
from adamshap.reference.contract.refusal import refuse

__all__ = [
    "DENOMINATORS",
    "GRADIENTS",
    "SCORE_SLOPES",
    "SLOPES",
    "TWO_TERM",
    "Denominator",
    "Estimator",
    "Gradient",
    "ScoreDtype",
    "ScoreSlope",
    "Slope",
    "Variance",
    "quadrature_nodes",
]

Slope = Literal["sgd", "frozen", "linearized", "tangent", "secant", "random_order"]
ScoreSlope = Literal[Slope, "two_term"]
Gradient = Literal["start", "midpoint", "path"]
Denominator = Literal["exact", "previous"]
Variance = Literal["exact", "rank_one"]
ScoreDtype = Literal["tf32", "float16"]
SLOPES: tuple[str, ...] = get_args(Slope)
SCORE_SLOPES: tuple[str, ...] = get_args(ScoreSlope)
GRADIENTS: tuple[str, ...] = get_args(Gradient)
DENOMINATORS: tuple[str, ...] = get_args(Denominator)

TWO_TERM: Final = "two_term"
"""The one of `SCORE_SLOPES` that is no single slope, and has a `kind`."""


@dataclass(frozen=True)
class Estimator:
    """Which score is computed. Refuses unknown names and combinations that do not exist, by the argument's name.

    Parameters
    ----------
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "two_term"}
        S: how much of a sample's gradient arrives in the update.
    gradient : {"start", "midpoint", "path"}
        Γ: where the validation gradient is taken.
    efficient : bool
        Spread what is missing to U(B) − U(∅) equally over the batch.
    per_validation : bool
        One score for each validation sample's own loss.
    nodes : tuple of two ints, optional
        (path, normal), as for `scores`; the field holds the default of the slope where None was given.
    denominator : {"exact", "previous"}
        Of "linearized".
    kind : {"first", "last", "shapley"}
        Of "two_term".
    variance : {"exact", "rank_one"}
        σ² of "random_order" and "two_term". The oracle has "exact" alone.
    rank : int, optional
        Of a sketch of P, which the engine has and "two_term" does not; None is exact.
    score_dtype : {"tf32", "float16"}, optional
        In which the engine computes the contraction on a CUDA device.

    Notes
    -----
    Whether a step or a device can take the estimator is for those to say that have one.
    """

    slope: ScoreSlope = "random_order"
    gradient: Gradient = "midpoint"
    efficient: bool = False
    per_validation: bool = False
    nodes: Any = None
    denominator: Denominator = "exact"
    kind: MarginalKind = "shapley"
    variance: Variance = "exact"
    rank: int | None = None
    score_dtype: ScoreDtype | None = None

    def __post_init__(self) -> None:
        one_of("slope", self.slope, SCORE_SLOPES)
        one_of("gradient", self.gradient, GRADIENTS)
        one_of("denominator", self.denominator, DENOMINATORS)
        one_of("kind", self.kind, MARGINALS)
        if self.kind != "shapley" and self.slope != TWO_TERM:
            needs = f"slope {TWO_TERM!r}, which alone is made for one marginal"
            refuse("kind", f"{self.kind!r} with slope {self.slope!r}", needs)
        if self.rank is not None:
            if self.slope == TWO_TERM:
                refuse("rank", f"{shown(self.rank)} with slope {self.slope!r}", "None: both terms are scored exactly")
            object.__setattr__(self, "rank", positive_integer("rank", self.rank))
        one_of("variance", self.variance, get_args(Variance))
        for name in ("efficient", "per_validation"):
            object.__setattr__(self, name, true_or_false(name, getattr(self, name)))
        if self.score_dtype is not None:
            one_of("score_dtype", self.score_dtype, get_args(ScoreDtype))
        object.__setattr__(self, "nodes", quadrature_nodes(self.nodes, self.slope))
        if self.denominator == "previous" and self.slope != "linearized":
            needs = "slope 'linearized', which alone has this variant"
            refuse("denominator", f"'previous' with slope {self.slope!r}", needs)

    def refuse_first_step(self, completed_steps: CompletedSteps) -> None:
        """Refuse the denominator "previous" where no step was completed: it divides by 1 − β2⁰ = 0."""
        if self.denominator == "previous" and completed_steps == 0:
            needs = "'exact', or a state of at least one step"
            refuse("denominator", "'previous' at t = 1, where 1 − β2⁰ = 0", needs)


def quadrature_nodes(value: object, slope: str) -> tuple[int, int]:
    """Return ``nodes=(path, normal)`` as two ints; the normal rule needs two nodes to have one beside zero.

    None is (4, 4), and for "two_term", which gains more from places than from the normal's nodes, (8, 2).
    """
    if value is None:
        return (8, 2) if slope == TWO_TERM else (4, 4)
    if not isinstance(value, tuple | list) or len(value) != 2:
        refuse("nodes", shown(value), "two integers (path, normal), or None", TypeError)
    return positive_integer("nodes[0]", value[0]), positive_integer("nodes[1]", value[1], minimum=2)
