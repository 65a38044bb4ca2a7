"""Small models around one layer of each kind, for the test vectors that can say which layer is wrong."""

from typing import Any

from adamshap.reference.contract import (
    Activation,
    Attention,
    AvgPool2d,
    Conv2d,
    Embedding,
    Flatten,
    LayerNorm,
    Linear,
    MaxPool2d,
    MeanOverPositions,
    Positions,
    Residual,
    RMSNorm,
    Sequential,
    TiedLinear,
)

__all__ = ["ONE_LAYER"]


def _sequences(*layers: Any) -> Sequential:
    return Sequential(layers, loss="mse")


ONE_LAYER: dict[str, Sequential] = {
    "linear": _sequences(Linear(3, 2), MeanOverPositions()),
    "tied_linear": Sequential((Embedding(4, 3), TiedLinear(3, 4, "0.weight", bias=True))),
    "embedding": Sequential((Embedding(4, 3), MeanOverPositions())),
    "positions": _sequences(Positions(4, 2), Activation("tanh")),
    "layer_norm": _sequences(LayerNorm(4)),
    "rms_norm": _sequences(RMSNorm(3)),
    "attention": _sequences(Attention(4, heads=2)),
    "residual": _sequences(Residual((Linear(3, 3), Activation("gelu")))),
    "activation": _sequences(Linear(2, 3), Activation("silu"), Linear(3, 2)),
    "conv2d": Sequential((Conv2d(2, 4, (2, 3), (2, 1), (1, 1), groups=2),), loss="mse"),
    "avg_pool2d": Sequential((Conv2d(1, 2, (1, 1)), AvgPool2d((2, 2), (1, 2)), Flatten()), loss="mse"),
    "max_pool2d": Sequential((Conv2d(1, 2, (1, 1)), MaxPool2d((2, 2), (1, 2)), Flatten()), loss="mse"),
    "flatten": Sequential((Conv2d(2, 2, (1, 1), bias=False), Flatten()), loss="mse"),
    "mean_over_positions": Sequential((Embedding(3, 2), Linear(2, 3), MeanOverPositions())),
}
"""A model for each kind of layer: the layer, and what it needs before and after it."""
