"""Layers of a `Sequential` model: plain descriptions, with PyTorch's names, layouts and defaults of parameters.

=================  ==========================  ================================================================
layer              shape of each sample        parameters, as PyTorch's module names them
=================  ==========================  ================================================================
Linear             (…, d_in) to (…, d_out)     ``weight`` (d_out, d_in), ``bias``
TiedLinear         (…, d_in) to (…, d_out)     another layer's ``weight``; ``bias`` of its own
LayerNorm          (…, width), kept            ``weight``, ``bias`` (width,)
RMSNorm            (…, width), kept            ``weight`` (width,)
Residual           any, kept                   those of its layers
Activation         any, kept                   none
Flatten            any to (d,)                 none
Embedding          (T,) to (T, width)          ``weight`` (vocab, width)
Positions          (T, width), kept            ``weight`` (context, width)
Attention          (T, width), kept            ``in_proj_weight`` (3 width, width), ``out_proj.weight``, biases
MeanOverPositions  (T, d) to (d,)              none
Conv2d             (c_in, h, w) to (c_out, …)  ``weight`` (c_out, c_in/groups, kh, kw), ``bias``
AvgPool2d          (c, h, w) to (c, …)         none
MaxPool2d          (c, h, w) to (c, …)         none
=================  ==========================  ================================================================

Shapes here are those of one sample, without the leading axis n. Embedding, positions, attention and the mean over
positions are in `sequences`, convolution and pooling in `images`.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from adamshap.reference.contract.arrays import Array, Params
from adamshap.reference.contract.checks import not_negative, one_of
from adamshap.reference.contract.layer import (
    Layer,
    Shape,
    check_name,
    flag_field,
    integer_fields,
    named_stack,
    stack_shape,
    stack_shapes,
    uniform,
)
from adamshap.reference.contract.model import ACTIVATIONS, ActivationName

__all__ = [
    "Activation",
    "Flatten",
    "LayerNorm",
    "Linear",
    "RMSNorm",
    "Residual",
    "TiedLinear",
]


@dataclass(frozen=True)
class Linear(Layer):
    """A linear layer at every position, y = x Wᵀ + b, as ``nn.Linear``.

    Parameters
    ----------
    d_in, d_out : int
        Widths of input and output.
    bias : bool
        Whether it has a bias.
    """

    d_in: int
    d_out: int
    bias: bool = True
    kind: str = field(default="linear", init=False, repr=False)

    def __post_init__(self) -> None:
        integer_fields(self, "d_in", "d_out")
        flag_field(self, "bias")

    @property
    def shapes(self) -> dict[str, Shape]:
        """``weight`` (d_out, d_in), and ``bias`` (d_out,) if it has one."""
        return {"weight": (self.d_out, self.d_in)} | ({"bias": (self.d_out,)} if self.bias else {})

    @property
    def takes(self) -> str:
        """Any shape with the last axis d_in."""
        return f"(…, {self.d_in})"

    def _out(self, shape: Shape) -> Shape | None:
        return (*shape[:-1], self.d_out) if shape and shape[-1] == self.d_in else None

    def _fresh(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        return uniform(shape, self.d_in, generator)


@dataclass(frozen=True)
class TiedLinear(Layer):
    """A linear layer that uses another layer's weight, such as an output tied to the embedding.

    Parameters
    ----------
    d_in, d_out : int
        Widths of input and output.
    weight : str
        Full name in the model of a parameter of shape (d_out, d_in), such as ``"embedding.weight"``.
    bias : bool
        Whether it has a bias, of its own.
    """

    d_in: int
    d_out: int
    weight: str
    bias: bool = False
    kind: str = field(default="tied_linear", init=False, repr=False)

    def __post_init__(self) -> None:
        integer_fields(self, "d_in", "d_out")
        check_name("TiedLinear.weight", self.weight)
        flag_field(self, "bias")

    @property
    def shapes(self) -> dict[str, Shape]:
        """``bias`` (d_out,) if it has one."""
        return {"bias": (self.d_out,)} if self.bias else {}

    @property
    def takes(self) -> str:
        """Any shape with the last axis d_in."""
        return f"(…, {self.d_in})"

    def _out(self, shape: Shape) -> Shape | None:
        return (*shape[:-1], self.d_out) if shape and shape[-1] == self.d_in else None

    def _fresh(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        return uniform(shape, self.d_in, generator)


@dataclass(frozen=True)
class LayerNorm(Layer):
    """Mean 0 and variance 1 over the last axis, then a gain and a bias, as ``nn.LayerNorm``.

    Parameters
    ----------
    width : int
        Length of the last axis.
    bias : bool
        Whether it has a bias.
    eps : float
        Added to the variance, inside the root.
    """

    width: int
    bias: bool = True
    eps: float = 1e-5
    kind: str = field(default="layer_norm", init=False, repr=False)

    def __post_init__(self) -> None:
        integer_fields(self, "width")
        flag_field(self, "bias")
        object.__setattr__(self, "eps", not_negative("LayerNorm.eps", self.eps))

    @property
    def shapes(self) -> dict[str, Shape]:
        """``weight`` (width,), and ``bias`` (width,) if it has one."""
        return dict.fromkeys(("weight", "bias") if self.bias else ("weight",), (self.width,))

    @property
    def takes(self) -> str:
        """Any shape with the last axis width."""
        return f"(…, {self.width})"

    def _out(self, shape: Shape) -> Shape | None:
        return shape if shape and shape[-1] == self.width else None

    def _fresh(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        return np.ones(shape) if name == "weight" else np.zeros(shape)


@dataclass(frozen=True)
class RMSNorm(Layer):
    """Mean square 1 over the last axis, then a gain, as ``nn.RMSNorm``.

    Parameters
    ----------
    width : int
        Length of the last axis.
    eps : float
        Added to the mean square, inside the root. PyTorch's own default depends on the dtype.
    """

    width: int
    eps: float = 1e-5
    kind: str = field(default="rms_norm", init=False, repr=False)

    def __post_init__(self) -> None:
        integer_fields(self, "width")
        object.__setattr__(self, "eps", not_negative("RMSNorm.eps", self.eps))

    @property
    def shapes(self) -> dict[str, Shape]:
        """``weight`` (width,)."""
        return {"weight": (self.width,)}

    @property
    def takes(self) -> str:
        """Any shape with the last axis width."""
        return f"(…, {self.width})"

    def _out(self, shape: Shape) -> Shape | None:
        return shape if shape and shape[-1] == self.width else None

    def _fresh(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        return np.ones(shape)


@dataclass(frozen=True)
class Residual(Layer):
    """Adds its layers' output to their input.

    Parameters
    ----------
    layers : sequence of layers
        The output has the input's shape.
    names : sequence of str, optional
        Of the layers, as for `Sequential`.
    """

    layers: tuple[Layer, ...]
    names: tuple[str, ...] = ()
    kind: str = field(default="residual", init=False, repr=False)

    def __post_init__(self) -> None:
        layers, names = named_stack("Residual", self.layers, self.names)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "names", names)
        stack_shapes("Residual", names, layers)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Those of its layers, each with its layer's name before it."""
        return stack_shapes("Residual", self.names, self.layers)

    @property
    def takes(self) -> str:
        """What its layers map to the same shape."""
        return "what its layers take and return in the same shape"

    def _out(self, shape: Shape) -> Shape | None:
        out = stack_shape(self.layers, shape)
        return shape if out == shape else None

    def init(self, generator: np.random.Generator) -> Params:
        """Return fresh float64 parameters.

        Parameters
        ----------
        generator : numpy.random.Generator
            Of the random numbers.

        Returns
        -------
        dict of arrays
            One per parameter, with the names and shapes of `shapes`.
        """
        return {
            f"{prefix}.{name}": p
            for prefix, layer in zip(self.names, self.layers, strict=True)
            for name, p in layer.init(generator).items()
        }


@dataclass(frozen=True)
class Activation(Layer):
    """An elementwise function.

    Parameters
    ----------
    function : {"relu", "tanh", "gelu", "silu", "sigmoid", "identity"}
        As for `Network`.
    """

    function: ActivationName = "gelu"
    kind: str = field(default="activation", init=False, repr=False)

    def __post_init__(self) -> None:
        one_of("Activation.function", self.function, ACTIVATIONS)


@dataclass(frozen=True)
class Flatten(Layer):
    """All of a sample in one axis, as ``nn.Flatten``."""

    kind: str = field(default="flatten", init=False, repr=False)

    def _out(self, shape: Shape) -> Shape | None:
        return (math.prod(shape),)
