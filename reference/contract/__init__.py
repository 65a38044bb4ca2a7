"""The contract of the oracle, the engine and the kit: descriptions of steps, runs and models, checks, results.

It holds no mathematics and imports nothing else of adamshap. Descriptions are frozen dataclasses that refuse bad input
when they are built: the error names the field, the value it got and what it needs. Arrays are kept as read-only views,
not copied, in their own dtype; inputs are never changed.

=================  ===================================================================================================
module             holds
=================  ===================================================================================================
`refusal`          the common form of all refusals
`extras`           packages that may be missing
`checks`           checks of names, numbers, flags and functions
`arrays`           input arrays, NumPy's or by DLPack
`rows`             data larger than memory
`finite`           overflow: NaN and infinities
`model`            the `Model` protocol, and the perceptron
`layer`            what a layer is, and a stack of them
`layers`           layers of any data
`sequences`        embedding, positions, attention
`images`           convolution and pooling
`sequential`       a stack of layers as a model
`architectures`    `transformer` and `convnet`
`function`         a model that is a function of parameters and batch
`optimiser`        Adam's settings and state, clipping
`schedule`         settings by groups of parameters, learning rates by step
`batch`, `step`    samples; one training step before it is taken
`marginals`        kinds of marginal utilities, and their values
`estimator`        the choice of a score
`run`              settings, order and results of a run
`validation_steps` the steps of a run that take the validation gradient anew
`progress`         reports of a run in progress
`snapshot`         the state from which a run resumes
`blas`             one thread for BLAS; the versions that affect the last digits
`views`            a run's scores as a table and a figure
`drawing`          matplotlib without a display
=================  ===================================================================================================
"""

from adamshap.reference.contract.architectures import convnet, transformer
from adamshap.reference.contract.arrays import Array, Params, named_arrays
from adamshap.reference.contract.batch import Batch
from adamshap.reference.contract.blas import one_blas_thread
from adamshap.reference.contract.checks import (
    check_callable,
    of_kind,
    one_of,
    positive_integer,
    seed_of,
    shown,
    true_or_false,
)
from adamshap.reference.contract.estimator import (
    AUTO,
    CONTRACTIONS,
    DENOMINATORS,
    GRADIENTS,
    SCORE_SLOPES,
    SLOPES,
    TWO_TERM,
    Contraction,
    Denominator,
    Estimator,
    Gradient,
    ScoreDtype,
    ScoreSlope,
    Slope,
    Variance,
    quadrature_nodes,
)
from adamshap.reference.contract.extras import needed
from adamshap.reference.contract.finite import first_not_finite, refuse_overflow
from adamshap.reference.contract.function import Function
from adamshap.reference.contract.images import AvgPool2d, Conv2d, MaxPool2d
from adamshap.reference.contract.layer import Layer
from adamshap.reference.contract.layers import Activation, Flatten, LayerNorm, Linear, Residual, RMSNorm, TiedLinear
from adamshap.reference.contract.marginals import (
    MARGINAL_LOSSES,
    MARGINALS,
    MarginalKind,
    MarginalLoss,
    Marginals,
    coalition_mask,
    permutations_of,
)
from adamshap.reference.contract.model import (
    ACTIVATIONS,
    LOSSES,
    ActivationName,
    Loss,
    Model,
    Network,
    model_of,
    real_parts,
)
from adamshap.reference.contract.optimiser import (
    Adam,
    AdamState,
    Clipped,
    CompletedSteps,
    Optimiser,
    StepNumber,
    adam_in,
    optimiser_in,
    optimiser_of,
    refuse_zero_denominator,
)
from adamshap.reference.contract.progress import Progress, logged
from adamshap.reference.contract.refusal import refuse, refused_field
from adamshap.reference.contract.rows import LazyRows, parts
from adamshap.reference.contract.run import CREDITS, Credit, Diverged, Run, RunConfig, batch_order, step_index
from adamshap.reference.contract.schedule import AdamGroups, Schedule
from adamshap.reference.contract.sequences import Attention, Embedding, MeanOverPositions, Positions
from adamshap.reference.contract.sequential import NOT_COUNTED, Sequential
from adamshap.reference.contract.snapshot import (
    Checkpointer,
    Snapshot,
    checksum,
    recorded_arithmetic,
    resumed,
    run_settings,
)
from adamshap.reference.contract.step import REDUCTIONS, Reduction, Step, float64_step
from adamshap.reference.contract.step_scores import StepScores, keeps_step_scores
from adamshap.reference.contract.validation_steps import (
    is_validated,
    last_validated,
    only_validated,
    recorded_interval,
    validation_interval,
)

__all__ = [
    "ACTIVATIONS",
    "AUTO",
    "CONTRACTIONS",
    "CREDITS",
    "DENOMINATORS",
    "GRADIENTS",
    "LOSSES",
    "MARGINALS",
    "MARGINAL_LOSSES",
    "NOT_COUNTED",
    "REDUCTIONS",
    "SCORE_SLOPES",
    "SLOPES",
    "TWO_TERM",
    "Activation",
    "ActivationName",
    "Adam",
    "AdamGroups",
    "AdamState",
    "Array",
    "Attention",
    "AvgPool2d",
    "Batch",
    "Checkpointer",
    "Clipped",
    "CompletedSteps",
    "Contraction",
    "Conv2d",
    "Credit",
    "Denominator",
    "Diverged",
    "Embedding",
    "Estimator",
    "Flatten",
    "Function",
    "Gradient",
    "Layer",
    "LayerNorm",
    "LazyRows",
    "Linear",
    "Loss",
    "MarginalKind",
    "MarginalLoss",
    "Marginals",
    "MaxPool2d",
    "MeanOverPositions",
    "Model",
    "Network",
    "Optimiser",
    "Params",
    "Positions",
    "Progress",
    "RMSNorm",
    "Reduction",
    "Residual",
    "Run",
    "RunConfig",
    "Schedule",
    "ScoreDtype",
    "ScoreSlope",
    "Sequential",
    "Slope",
    "Snapshot",
    "Step",
    "StepNumber",
    "StepScores",
    "TiedLinear",
    "Variance",
    "adam_in",
    "batch_order",
    "check_callable",
    "checksum",
    "coalition_mask",
    "convnet",
    "first_not_finite",
    "float64_step",
    "is_validated",
    "keeps_step_scores",
    "last_validated",
    "logged",
    "model_of",
    "named_arrays",
    "needed",
    "of_kind",
    "one_blas_thread",
    "one_of",
    "only_validated",
    "optimiser_in",
    "optimiser_of",
    "parts",
    "permutations_of",
    "positive_integer",
    "quadrature_nodes",
    "real_parts",
    "recorded_arithmetic",
    "recorded_interval",
    "refuse",
    "refuse_overflow",
    "refuse_zero_denominator",
    "refused_field",
    "resumed",
    "run_settings",
    "seed_of",
    "shown",
    "step_index",
    "transformer",
    "true_or_false",
    "validation_interval",
]
