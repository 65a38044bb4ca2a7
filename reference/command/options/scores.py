"""Scores: the estimator of the scores."""

from typing import Annotated

import typer

from adamshap.reference.contract import Credit as CreditKind
from adamshap.reference.contract import Gradient as GradientPlace
from adamshap.reference.contract import MarginalKind, ScoreSlope
from adamshap.reference.weighting import Weighting as WeightingKind

PANEL = "Scores"

Slope = Annotated[
    ScoreSlope,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="SLOPE",
        help="How the score follows Adam's update: sgd, frozen, linearized, tangent, secant, random_order, auto or"
        " two_term. The last three are the closest to the Shapley value; auto is random_order where that differs from"
        " secant, and cheaper; two_term is closer in the first steps, and more expensive.",
    ),
]

Kind = Annotated[
    MarginalKind,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="KIND",
        help="What the slope two_term measures: first, the effect of the example alone; last, that of leaving it out of"
        " its batch; shapley, its mean effect over all orders of the batch.",
    ),
]

Gradient = Annotated[
    GradientPlace,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="PLACE",
        help="Where the validation gradient is taken: at the start of the step, at its midpoint, or along its path.",
    ),
]

Credit = Annotated[
    CreditKind,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="CREDIT",
        help="Who is credited with the part of a step that comes from momentum. With step, nobody; with carry, the"
        " earlier examples that caused it, so that the scores add up to the whole change of the validation loss.",
    ),
]

PerValidation = Annotated[
    bool,
    typer.Option(
        "--per-validation",
        rich_help_panel=PANEL,
        help="Also keep the scores for the loss of every validation example, in per_validation.npz, within 1 GiB: a"
        " number for each step of each training example and each validation example.",
    ),
]

Weighting = Annotated[
    WeightingKind | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="WEIGHTING",
        show_default="unit; sum with --credit carry",
        help="How much each step counts in a score: unit, all alike, so that the order of the examples matters less;"
        " sum, as much as the validation loss fell, so that scores add up to that fall and the first batches come out"
        " on top. adamshap show has the same option, for other weightings of the same run.",
    ),
]
