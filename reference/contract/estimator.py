"""The choice of a score: the slope, the validation gradient, and the nodes of their quadratures."""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from adamshap.reference.contract.checks import one_of, positive_integer, shown, true_or_false
from adamshap.reference.contract.marginals import MARGINALS, MarginalKind
from adamshap.reference.contract.optimiser import CompletedSteps
from adamshap.reference.contract.refusal import refuse

__all__ = [
    "AUTO",
    "CONTRACTIONS",
    "DENOMINATORS",
    "GRADIENTS",
    "SCORE_SLOPES",
    "SLOPES",
    "TWO_TERM",
    "Contraction",
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
ScoreSlope = Literal[Slope, "auto", "two_term"]
Gradient = Literal["start", "midpoint", "path"]
Denominator = Literal["exact", "previous"]
Variance = Literal["exact", "rank_one"]
ScoreDtype = Literal["tf32", "float16", "bfloat16"]
Contraction = Literal["ghost", "forward"]
SLOPES: tuple[str, ...] = get_args(Slope)
SCORE_SLOPES: tuple[str, ...] = get_args(ScoreSlope)
GRADIENTS: tuple[str, ...] = get_args(Gradient)
DENOMINATORS: tuple[str, ...] = get_args(Denominator)
CONTRACTIONS: tuple[str, ...] = get_args(Contraction)

AUTO: Final = "auto"
"""The entry of `SCORE_SLOPES` that is "random_order" where it differs from "secant", and else "secant"."""

TWO_TERM: Final = "two_term"
"""The entry of `SCORE_SLOPES` that combines two terms instead of one slope, and has a `kind`."""


@dataclass(frozen=True)
class Estimator:
    """The choice of a score. Refuses unknown names and invalid combinations; the error names the argument.

    Parameters
    ----------
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "auto", "two_term"}
        S: the response of the update to a sample's gradient.
    gradient : {"start", "midpoint", "path"}
        Γ: where the validation gradient is taken.
    efficient : bool
        Spread the difference to U(B) − U(∅) equally over the batch.
    per_validation : bool
        One score for each validation sample's own loss.
    nodes : tuple of two ints, optional
        (path, normal), as for `scores`; None is replaced by the slope's default.
    denominator : {"exact", "previous"}
        The denominator of "linearized".
    kind : {"first", "last", "shapley"}
        The marginal that "two_term" approximates.
    variance : {"exact", "rank_one"}
        σ² of "random_order", "auto" and "two_term". The oracle has only "exact".
    rank : int, optional
        Rank of the engine's sketch of P, not with "two_term"; None is exact.
    score_dtype : {"tf32", "float16", "bfloat16"}, optional
        Precision of the engine's contraction: the first two on a CUDA device, the last in a PyTorch loop on the host.
    contraction : {"ghost", "forward"}
        ⟨P, x_i⟩ from x_i (oracle) or captures (engine), or as the derivative of the loss along P; the latter not with
        "two_term", `rank` and `score_dtype`.

    Notes
    -----
    Conditions on the step or the device are checked where these are known.
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
    contraction: Contraction = "ghost"

    def __post_init__(self) -> None:
        one_of("slope", self.slope, SCORE_SLOPES)
        one_of("gradient", self.gradient, GRADIENTS)
        one_of("denominator", self.denominator, DENOMINATORS)
        one_of("kind", self.kind, MARGINALS)
        if self.kind != "shapley" and self.slope != TWO_TERM:
            needs = f"slope {TWO_TERM!r}, the only one with a kind"
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
        self._refuse_with_forward_mode()
        object.__setattr__(self, "nodes", quadrature_nodes(self.nodes, self.slope))
        if self.denominator == "previous" and self.slope != "linearized":
            needs = "slope 'linearized', the only one with this variant"
            refuse("denominator", f"'previous' with slope {self.slope!r}", needs)

    def _refuse_with_forward_mode(self) -> None:
        """Refuse what a derivative of the loss along P cannot give."""
        one_of("contraction", self.contraction, CONTRACTIONS)
        if self.contraction != "forward":
            return
        if self.slope == TWO_TERM:
            needs = "'ghost', or another slope: the second term, in sign(x) √|x|, is no derivative of the loss"
            refuse("contraction", f"'forward' with slope {self.slope!r}", needs)
        for name in ("rank", "score_dtype"):
            if (value := getattr(self, name)) is not None:
                needs = f"'ghost', or {name}=None: a derivative of the loss has no product with P to approximate"
                refuse("contraction", f"'forward' with {name}={shown(value)}", needs)

    def refuse_with_carry(self) -> None:
        """Refuse forward mode with ``credit="carry"``: later steps' P would need the parameters of this one again."""
        if self.contraction != "ghost":
            needs = "'ghost': a derivative along a later step's P would need the parameters of every step in the window"
            refuse("contraction", f"{self.contraction!r} with credit 'carry'", needs)

    def refuse_large_batches(self, size: int, count: int) -> None:
        """Refuse "auto" for batches of more than half of the `count` samples, whose gradient does not tell σ²."""
        if self.slope == AUTO and 2 * size > count:
            needs = (
                "'random_order', or batches of at most half of the samples: a larger one's gradient says little of σ²"
            )
            refuse("slope", f"{self.slope!r} for a batch of {size} of {count} samples", needs)

    def refuse_first_step(self, completed_steps: CompletedSteps) -> None:
        """Refuse the denominator "previous" before the first completed step: it divides by 1 − β2⁰ = 0."""
        if self.denominator == "previous" and completed_steps == 0:
            needs = "'exact', or a state of at least one step"
            refuse("denominator", "'previous' at t = 1, where 1 − β2⁰ = 0", needs)


def quadrature_nodes(value: object, slope: str) -> tuple[int, int]:
    """Return ``nodes=(path, normal)`` as two ints; a normal rule of one node would only have the node 0.

    None is (4, 4), or (8, 2) for "two_term", which gains more from path nodes than from normal nodes.
    """
    if value is None:
        return (8, 2) if slope == TWO_TERM else (4, 4)
    if not isinstance(value, tuple | list) or len(value) != 2:
        refuse("nodes", shown(value), "two integers (path, normal), or None", TypeError)
    return positive_integer("nodes[0]", value[0]), positive_integer("nodes[1]", value[1], minimum=2)
