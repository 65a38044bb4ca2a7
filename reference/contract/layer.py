"""The base class of layers, and stacks of layers: shapes, fresh parameters, checks.

Shapes here are those of one sample, without the leading axis n.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from adamshap.reference.contract.arrays import Array, Params
from adamshap.reference.contract.checks import positive_integer, shown, true_or_false
from adamshap.reference.contract.refusal import refuse

__all__ = [
    "Layer",
    "Shape",
    "check_name",
    "flag_field",
    "integer_fields",
    "named_stack",
    "pair_fields",
    "stack_shape",
    "stack_shapes",
    "uniform",
]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """Base class of all layers."""

    kind: str = field(default="", init=False, repr=False)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name and shape of each of its own parameters, in their order."""
        return {}

    @property
    def takes(self) -> str:
        """The accepted shape of one sample, in words, for errors."""
        return "any shape"

    @property
    def takes_tokens(self) -> bool:
        """Whether its inputs are tokens, integers in place of real numbers."""
        return False

    def out_shape(self, shape: Shape) -> Shape | None:
        """Return the shape of one sample's output.

        Parameters
        ----------
        shape : tuple of int
            Of one sample's input.

        Returns
        -------
        tuple of int or None
            None for an input that the layer cannot take.
        """
        return self._out(shape)

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
        return {name: self._fresh(name, shape, generator) for name, shape in self.shapes.items()}

    def _out(self, shape: Shape) -> Shape | None:
        return shape

    def _fresh(self, name: str, shape: Shape, generator: np.random.Generator) -> Array:
        raise NotImplementedError


# --- stacks ----------------------------------------------------------------------------------------------------------


def named_stack(owner: str, layers: object, names: object) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Return the layers and names of a stack, checked; without names they are "0", "1" and so on."""
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        refuse(f"{owner}.layers", shown(layers), "a sequence of layers", TypeError)
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer) or not layer.kind:
            refuse(f"{owner}.layers[{i}]", shown(layer), "a layer", TypeError)
        if i and layer.takes_tokens:
            refuse(f"{owner}.layers[{i}]", shown(layer), "a layer that takes real numbers: only the first takes tokens")
    if not layers:
        refuse(f"{owner}.layers", shown(layers), "at least one layer")
    if not isinstance(names, Sequence) or isinstance(names, str):
        refuse(f"{owner}.names", shown(names), "a sequence of names, one a layer", TypeError)
    if names and len(names) != len(layers):
        refuse(f"{owner}.names", f"{len(names)} names", f"one for each of {len(layers)} layers")
    for i, name in enumerate(names):
        check_name(f"{owner}.names[{i}]", name)
    return tuple(layers), tuple(names) or tuple(map(str, range(len(layers))))


def stack_shapes(owner: str, names: Sequence[str], layers: Sequence[Layer]) -> dict[str, Shape]:
    """Return name and shape of each parameter of a stack; refuses names that occur twice."""
    shapes: dict[str, Shape] = {}
    for prefix, layer in zip(names, layers, strict=True):
        for name, shape in layer.shapes.items():
            full = f"{prefix}.{name}"
            if full in shapes:
                refuse(f"{owner}.names", f"two parameters {full!r}", "names that give each parameter its own")
            shapes[full] = shape
    return shapes


def stack_shape(layers: Sequence[Layer], shape: Shape) -> Shape | None:
    """Return the shape of a stack's output for one sample's input; None where a layer cannot take what it gets."""
    found: Shape | None = shape
    for layer in layers:
        found = None if found is None else layer.out_shape(found)
    return found


# --- checks and shapes -----------------------------------------------------------------------------------------------


def integer_fields(layer: Layer, *fields: str) -> None:
    """Check and convert fields that are positive integers."""
    for name in fields:
        value = positive_integer(f"{type(layer).__name__}.{name}", getattr(layer, name))
        object.__setattr__(layer, name, value)


def flag_field(layer: Layer, name: str) -> None:
    """Check and convert a field that is True or False."""
    object.__setattr__(layer, name, true_or_false(f"{type(layer).__name__}.{name}", getattr(layer, name)))


def pair_fields(layer: Layer, *fields: str, minimum: int = 1) -> None:
    """Check and convert fields that are pairs of integers: height and width."""
    for name in fields:
        value, where = getattr(layer, name), f"{type(layer).__name__}.{name}"
        if isinstance(value, list | tuple):
            if len(value) != 2:
                refuse(where, shown(value), "one integer, or two: height and width")
            pair = tuple(positive_integer(f"{where}[{i}]", v, minimum) for i, v in enumerate(value))
        else:
            pair = (positive_integer(where, value, minimum),) * 2
        object.__setattr__(layer, name, pair)


def check_name(where: str, value: object) -> None:
    """Refuse a value that cannot be the name of a layer or parameter."""
    if not isinstance(value, str) or not value or not all(value.split(".")):
        refuse(where, shown(value), "a name, with dots only between its parts", TypeError)


def uniform(shape: Shape, fan_in: int, generator: np.random.Generator) -> Array:
    """Return random numbers on ±1/√`fan_in`."""
    bound = 1 / math.sqrt(fan_in)
    return generator.uniform(-bound, bound, shape)
