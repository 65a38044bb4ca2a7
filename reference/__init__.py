"""The oracle: Adam, exact fixed-state utilities and every estimator, in float64, to be read alongside the paper.

It is slow and obviously correct: per-sample gradients are materialised, network gradients are computed by autograd, and
each equation of the method is one function. `contract` describes steps, runs and models; `perceptron`, `layers`,
`images`, `function`, `losses`, `models`, `adam`, `game`, `slopes`, `validation`, `scoring`, `carry`, `run`,
`weighting` and `retraining` follow the derivation from the forward pass to the scores of a training run.
"""

from adamshap.reference.adam import update
from adamshap.reference.contract import (
    Activation,
    Adam,
    AdamGroups,
    AdamState,
    Attention,
    AvgPool2d,
    Batch,
    Clipped,
    Conv2d,
    Embedding,
    Flatten,
    Function,
    LayerNorm,
    LazyRows,
    Linear,
    Marginals,
    MaxPool2d,
    MeanOverPositions,
    Network,
    Positions,
    Progress,
    Residual,
    RMSNorm,
    Run,
    RunConfig,
    Schedule,
    Sequential,
    Step,
    TiedLinear,
    convnet,
    transformer,
)
from adamshap.reference.forward_mode import directional_derivatives
from adamshap.reference.game import marginals, utility
from adamshap.reference.retraining import metagradient, retrained
from adamshap.reference.run import attribute
from adamshap.reference.scoring import influence, scores
from adamshap.reference.torch_bridge import from_torch
from adamshap.reference.weighting import weighted

Rows = LazyRows  # its former name

__all__ = [
    "Activation",
    "Adam",
    "AdamGroups",
    "AdamState",
    "Attention",
    "AvgPool2d",
    "Batch",
    "Clipped",
    "Conv2d",
    "Embedding",
    "Flatten",
    "Function",
    "LayerNorm",
    "LazyRows",
    "Linear",
    "Marginals",
    "MaxPool2d",
    "MeanOverPositions",
    "Network",
    "Positions",
    "Progress",
    "RMSNorm",
    "Residual",
    "Rows",
    "Run",
    "RunConfig",
    "Schedule",
    "Sequential",
    "Step",
    "TiedLinear",
    "attribute",
    "convnet",
    "directional_derivatives",
    "from_torch",
    "influence",
    "marginals",
    "metagradient",
    "retrained",
    "scores",
    "transformer",
    "update",
    "utility",
    "weighted",
]
