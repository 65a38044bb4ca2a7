"""Short constructors of usual models."""

from collections.abc import Sequence
from typing import Literal, get_args

from adamshap.reference.contract.checks import one_of, positive_integer, shown, true_or_false
from adamshap.reference.contract.images import AvgPool2d, Conv2d, MaxPool2d
from adamshap.reference.contract.layer import Layer
from adamshap.reference.contract.layers import Activation, Flatten, LayerNorm, Linear, Residual, RMSNorm, TiedLinear
from adamshap.reference.contract.model import ActivationName, Loss
from adamshap.reference.contract.refusal import refuse
from adamshap.reference.contract.sequences import Attention, Embedding, Positions
from adamshap.reference.contract.sequential import Sequential

__all__ = ["convnet", "transformer"]

Norm = Literal["layer", "rms"]
PositionKind = Literal["learned"]
Pool = Literal["max", "avg"]


def transformer(
    *,
    vocab: int,
    context: int,
    width: int,
    depth: int,
    heads: int,
    hidden: int | None = None,
    norm: Norm = "layer",
    tied: bool = True,
    bias: bool = True,
    activation: ActivationName = "gelu",
    positions: PositionKind = "learned",
) -> Sequential:
    """Return a causal language model: norms before attention and before two linear layers, each with a residual.

    Parameters have the names and layouts of a module with ``embedding`` and ``positions``, both ``nn.Embedding``,
    ``encoder``, an ``nn.TransformerEncoder`` with ``norm_first=True`` and a last ``norm``, and ``head``, an
    ``nn.Linear`` without bias.

    Parameters
    ----------
    vocab, context : int
        How many tokens there are; the longest sequence.
    width, depth, heads : int
        Length of a position's vector; count of blocks; heads of attention, a divisor of the width.
    hidden : int, optional
        Width between a block's two linear layers; by default 4 width.
    norm : {"layer", "rms"}
        `LayerNorm` or `RMSNorm`, both with ε = 1e-5.
    tied : bool
        Whether the output uses the embedding's weight.
    bias : bool
        Whether linear layers, attention and norms have biases; the head has none.
    activation : str
        Between a block's two linear layers; as for `Activation`.
    positions : {"learned"}
        Kind of positions.

    Returns
    -------
    Sequential
        Takes tokens (n, T) and labels (n, T).
    """
    given = {"vocab": vocab, "context": context, "width": width, "depth": depth, "heads": heads}
    for field, value in given.items():
        positive_integer(field, value)
    if width % heads:
        refuse("heads", heads, f"a divisor of the width, {width}")
    hidden = 4 * width if hidden is None else positive_integer("hidden", hidden)
    one_of("norm", norm, get_args(Norm))
    one_of("positions", positions, get_args(PositionKind))
    tied, bias = true_or_false("tied", tied), true_or_false("bias", bias)

    def normed() -> Layer:
        return LayerNorm(width, bias) if norm == "layer" else RMSNorm(width)

    attention = Residual((normed(), Attention(width, heads, bias)), ("norm1", "self_attn"))
    linears = (Linear(width, hidden, bias), Activation(activation), Linear(hidden, width, bias))
    feed_forward = Residual((normed(), *linears), ("norm2", "linear1", "activation", "linear2"))
    head = TiedLinear(width, vocab, "embedding.weight") if tied else Linear(width, vocab, bias=False)
    blocks = [(f"encoder.layers.{k}", part) for k in range(depth) for part in (attention, feed_forward)]
    named: list[tuple[str, Layer]] = [("embedding", Embedding(vocab, width)), ("positions", Positions(context, width))]
    named += [*blocks, ("encoder.norm", normed()), ("head", head)]
    return Sequential(tuple(layer for _, layer in named), tuple(name for name, _ in named))


def convnet(
    *,
    image: Sequence[int],
    channels: Sequence[int],
    outputs: int,
    kernel: int = 3,
    pool: Pool = "max",
    activation: ActivationName = "relu",
    bias: bool = True,
    loss: Loss = "cross_entropy",
) -> Sequential:
    """Return a small convolutional network: convolution, activation and pooling by 2, again and again, then linear.

    Parameters have the names and layouts of the ``nn.Sequential`` of the same layers.

    Parameters
    ----------
    image : (int, int, int)
        Channels, height and width of the inputs.
    channels : sequence of int
        Output channels of each convolution.
    outputs : int
        Of the linear layer: classes, or the width of targets.
    kernel : int
        Odd; padding keeps height and width.
    pool : {"max", "avg"}
        `MaxPool2d` or `AvgPool2d` after each activation; left out where height or width is 1.
    activation : str
        As for `Activation`.
    bias : bool
        Whether convolutions and the linear layer have biases.
    loss : {"cross_entropy", "mse"}
        As for `Sequential`.

    Returns
    -------
    Sequential
        Takes images (n, c, h, w).
    """
    for name, value in (("image", image), ("channels", channels)):
        if not isinstance(value, list | tuple) or not value:
            refuse(name, shown(value), "a sequence of positive integers", TypeError)
    if len(image) != 3:
        refuse("image", shown(image), "channels, height and width")
    c, h, w = (positive_integer(f"image[{i}]", size) for i, size in enumerate(image))
    if positive_integer("kernel", kernel) % 2 == 0:
        refuse("kernel", kernel, "an odd integer")
    one_of("pool", pool, get_args(Pool))
    layers: list[Layer] = []
    for i, count in enumerate(channels):
        size, half = (kernel, kernel), (kernel // 2, kernel // 2)
        layers += [
            Conv2d(c, positive_integer(f"channels[{i}]", count), size, padding=half, bias=bias),
            Activation(activation),
        ]
        if min(h, w) > 1:
            layers.append(MaxPool2d((2, 2)) if pool == "max" else AvgPool2d((2, 2)))
            h, w = h // 2, w // 2
        c = count
    layers += [Flatten(), Linear(c * h * w, positive_integer("outputs", outputs), bias)]
    return Sequential(tuple(layers), loss=loss)
