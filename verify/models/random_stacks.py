"""Small random stacks of layers, from any source of choices: Hypothesis, or the generator of the test vectors.

The first choice of each is the simplest: Hypothesis shrinks towards it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from adamshap.reference.contract import (
    ACTIVATIONS,
    Activation,
    Attention,
    AvgPool2d,
    Conv2d,
    Embedding,
    Flatten,
    Layer,
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

__all__ = ["Choices", "inputs_of", "random_stack"]

MOST = 6
"""Layers of a stack; a residual counts as one."""

WIDEST, VOCAB, CONTEXT = 8, 7, 6

FIRST = {
    "sequences": ("layer_norm", "rms_norm", "positions", "attention"),
    "tokens": ("embedding",),
    "images": ("conv2d",),
    "rows": ("linear",),
}
"""Layers with parameters that can be the first, by the inputs of a stack."""

Option = TypeVar("Option")


class Choices(Protocol):
    """A source of choices."""

    def integer(self, low: int, high: int, label: str) -> int:
        """Return an integer from `low` to `high`."""

    def one(self, options: Sequence[Any], label: str) -> Any:
        """Return one of `options`."""


@dataclass(frozen=True)
class _Layers:
    """A source of layers: choices, the kinds of layers to choose from (None for all), and whether corners are drawn."""

    choices: Choices
    kinds: Collection[str] | None
    corners: bool = False

    def has(self, kind: str) -> bool:
        """Return whether a kind may be used."""
        return self.kinds is None or kind in self.kinds

    def among(self, names: Sequence[str]) -> list[str]:
        """Return those of `names` that may be used."""
        return [name for name in names if self.has(name)]

    def flag(self, label: str, *kinds: str) -> bool:
        """Return True or False; False without a choice unless all of `kinds` may be used."""
        return all(map(self.has, kinds)) and _flag(self.choices, label)


def inputs_of(kinds: Collection[str] | None) -> tuple[str, ...]:
    """Return the inputs that stacks of some kinds of layers can have; None stands for all kinds."""
    layers = _Layers(None, kinds)  # type: ignore[arg-type]
    return tuple(inputs for inputs, first in FIRST.items() if layers.among(first))


def random_stack(choices: Choices, kinds: Collection[str] | None = None, corners: bool = False) -> Sequential:
    """Return a stack of 1 to 6 layers of rows, sequences, tokens or images, with either loss.

    Only layers of some `kinds` are used, if given; `inputs_of` must not be empty for them. With `corners`, norms over
    one or two numbers may have any ε: what passes through them, but for ε, is a sign, and the gradients below are
    rounding errors alone. Bounds without `slope_rounding`, such as those of the test vectors, do not cover these.
    """
    of = _Layers(choices, kinds, corners)
    takes = choices.one(inputs_of(kinds), "inputs")
    if takes == "images":
        return _of_images(of)
    tokens, width = takes == "tokens", choices.integer(1, WIDEST, "width")
    loss = choices.one(("mse", "cross_entropy"), "loss")
    layers: list[Layer] = []
    if tokens:
        layers.append(Embedding(choices.integer(2, VOCAB, "vocab"), width))
    if takes == "rows":
        layers.append(Linear(width, width := choices.integer(1, WIDEST, "outputs"), _flag(choices, "bias")))
    # The end takes up to two layers; without any other layer, sequences need one with parameters.
    least = 1 if takes == "sequences" else 0
    for _ in range(choices.integer(least, MOST - 2 - len(layers), "layers between")):
        layers += _between(of, width, takes != "rows", bool(layers))
    if not any(layer.shapes for layer in layers):
        layers[:1] = [_plain(of, of.among(FIRST["sequences"])[0], width)]
    return Sequential((*layers, *_end(of, layers, width, takes, loss)), loss=loss)


def _flag(choices: Choices, label: str) -> bool:
    return bool(choices.one((False, True), label))


def _between(of: _Layers, width: int, sequence: bool, deep: bool) -> list[Layer]:
    """Return a layer that keeps the width, or none if there is none."""
    inner = of.among(("layer_norm", "rms_norm", "linear", *(("attention",) if sequence else ())))
    names = ["layer_norm", "rms_norm", "linear"] if deep else ["layer_norm", "rms_norm"]
    names += ["positions", "attention", "attention"] if sequence else []
    names += (["residual"] if inner else []) + ["activation"] if deep or sequence else []
    names = of.among(names)
    if not names:
        return []
    name = of.choices.one(names, "layer")
    if name != "residual":
        return [_plain(of, name, width)]
    within = [_plain(of, of.choices.one(inner, "inner layer"), width)]
    if of.flag("two inner layers"):
        within.append(_plain(of, of.choices.one((*inner, *of.among(("activation",))), "inner layer"), width))
    return [Residual(tuple(within))]


def _plain(of: _Layers, name: str, width: int) -> Layer:
    choices = of.choices
    if name in ("layer_norm", "rms_norm"):
        return _norm(of, name, width)
    if name == "linear":
        return Linear(width, width, _flag(choices, "bias"))
    if name == "positions":
        return Positions(choices.integer(1, CONTEXT, "context"), width)
    if name == "attention":
        heads = [count for count in range(1, width + 1) if width % count == 0]
        return Attention(width, choices.one(heads, "heads"), _flag(choices, "bias"))
    return Activation(choices.one(ACTIVATIONS, "activation"))


def _norm(of: _Layers, name: str, width: int) -> Layer:
    """Return a norm, without corners with a large ε over one or two numbers; LayerNorm over one number is 0."""
    eps = of.choices.one((1e-5, 1e-12, 0.1), "eps") if of.corners or width > 2 - (name != "layer_norm") else 0.1
    if name == "layer_norm" and (width > 1 or of.corners or not of.has("rms_norm")):
        return LayerNorm(width, _flag(of.choices, "bias"), eps)
    return RMSNorm(width, eps)


def _end(of: _Layers, layers: list[Layer], width: int, takes: str, loss: str) -> list[Layer]:
    """Return the last layers: none, the mean over positions, or an output at every position or for the sample."""
    choices = of.choices
    if takes == "tokens" and of.flag("tied", "tied_linear"):
        vocab: int = layers[0].vocab  # type: ignore[attr-defined]
        return [TiedLinear(width, vocab, "0.weight", _flag(choices, "bias"))]
    pooled: list[Layer] = []
    if takes != "rows" and of.flag("mean over positions", "mean_over_positions"):
        pooled = [MeanOverPositions()]
    elif takes != "rows" and loss == "mse" and of.flag("flatten", "flatten"):
        # A linear layer after this one would fix the length of the sequences.
        return [Flatten()]
    if of.flag("output layer", "linear"):
        return [*pooled, Linear(width, choices.integer(1, WIDEST, "outputs"), _flag(choices, "bias"))]
    return pooled


def _pair(choices: Choices, low: int, high: tuple[int, int], label: str) -> tuple[int, int]:
    """Return numbers for height and width, each of at least `low`."""
    return choices.integer(low, high[0], label), choices.integer(low, high[1], label)


def _of_images(of: _Layers) -> Sequential:
    """Return one or two convolutions, with or without activation, pooling, and a linear layer after them."""
    choices = of.choices
    h, w = (choices.integer(1, 5, side) for side in ("height", "width"))
    c = choices.integer(1, 3, "channels")
    layers: list[Layer] = []
    for _ in range(choices.integer(1, 2, "convolutions")):
        groups = choices.one([count for count in range(1, c + 1) if c % count == 0], "groups")
        out = groups * choices.integer(1, 2, "channels of a group")
        padding = _pair(choices, 0, (1, 1), "padding")
        kernel = _pair(choices, 1, (min(3, h + 2 * padding[0]), min(3, w + 2 * padding[1])), "kernel")
        stride = _pair(choices, 1, (2, 2), "stride")
        layers.append(Conv2d(c, out, kernel, stride, padding, groups, _flag(choices, "bias")))
        shape = layers[-1].out_shape((c, h, w))
        assert shape is not None
        c, h, w = shape
        extras = of.among(("max_pool2d", "avg_pool2d", "max_pool2d", "activation"))
        extra = choices.one((None, *extras), "after the convolution")
        if extra == "activation":
            layers.append(Activation(choices.one(ACTIVATIONS, "activation")))
        elif extra is not None:
            window = tuple(choices.one((min(2, size), 1), "window") for size in (h, w))
            step = choices.one((None, (1, 1)), "stride of the pool")
            layers.append((MaxPool2d if extra == "max_pool2d" else AvgPool2d)(window, step))
            shape = layers[-1].out_shape((c, h, w))
            assert shape is not None
            c, h, w = shape
    if not of.flag("output layer", "flatten", "linear"):
        return Sequential(tuple(layers), loss="mse")
    last = Linear(c * h * w, choices.integer(1, WIDEST, "outputs"), _flag(choices, "bias"))
    return Sequential((*layers, Flatten(), last), loss=choices.one(("mse", "cross_entropy"), "loss"))
