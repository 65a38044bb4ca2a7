"""Stacks of layers in the kit: JSON, the size of the terms in their results, and the models of the test vectors."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

from adamshap.reference import contract, models
from adamshap.reference.contract import (
    NOT_COUNTED,
    Array,
    Batch,
    Layer,
    Model,
    Params,
    Residual,
    Sequential,
    Step,
    of_kind,
    one_of,
    refuse,
)
from adamshap.reference.contract.layer import Shape, stack_shape
from adamshap.verify.json_values import brief, object_with
from adamshap.verify.models.kind import Draws
from adamshap.verify.models.random_stacks import Choices, random_stack
from adamshap.verify.vectors.numbers import array, integer, one

__all__ = [
    "LAYERS",
    "Sequentials",
    "declared_layers",
    "each_layer",
    "input_shapes",
    "kinds_of_layers",
    "largest_outputs",
    "sequential_of",
]

LAYERS: dict[str, type[Layer]] = {
    layer.kind: layer  # the default of the field
    for layer in (
        contract.Linear,
        contract.TiedLinear,
        contract.Embedding,
        contract.Positions,
        contract.LayerNorm,
        contract.RMSNorm,
        contract.Attention,
        contract.Residual,
        contract.Activation,
        contract.Conv2d,
        contract.AvgPool2d,
        contract.MaxPool2d,
        contract.Flatten,
        contract.MeanOverPositions,
    )
}
"""The descriptions of layers by their kind."""

LONGEST = 6
"""Positions of the longest sequence, unless the model has learned positions for more; most rows of an image."""


def sequential_of(step: Step) -> Sequential:
    """Return the model of a step of a stack of layers."""
    return of_kind("Step.net", step.net, Sequential)


def each_layer(model: Sequential | Residual) -> list[Layer]:
    """Return every layer, those within others too."""
    found: list[Layer] = []
    for layer in model.layers:
        found += [layer, *(each_layer(layer) if isinstance(layer, Residual) else ())]
    return found


def kinds_of_layers(model: Model) -> frozenset[str]:
    """Return the kinds of a model's layers; none for a model that is not a stack."""
    return frozenset(layer.kind for layer in each_layer(model)) if isinstance(model, Sequential) else frozenset()


def declared_layers(supports: Collection[str]) -> frozenset[str]:
    """Return the kinds of layers in what a candidate declares: those that it names, or all if only "sequential"."""
    named = frozenset(LAYERS) & frozenset(supports)
    return frozenset(LAYERS) if not named and "sequential" in supports else named


@lru_cache(maxsize=256)
def input_shapes(model: Sequential, corners: bool = False) -> tuple[Shape, ...]:
    """Return the shapes of one sample among which batches are drawn, the smallest first.

    Both batches of a step draw from them: sequences differ in length, but a model gets either sequences or rows. With
    attention and without `corners`, either all are of one position or none: the gradient of query and key would be
    rounding errors in one batch and not in the other, which bounds without `slope_rounding` do not cover.
    """
    layers = each_layer(model)
    contexts = [layer.context for layer in layers if isinstance(layer, contract.Positions)]
    attends = any(isinstance(layer, contract.Attention) for layer in layers)
    several = attends and not corners and min(contexts, default=LONGEST) > 1
    lengths = [
        *range(1 + several, LONGEST + 1),
        *(length for c in contexts for length in (c - 1, c) if length > LONGEST),
    ]
    convolutions = [layer for layer in layers if isinstance(layer, contract.Conv2d)]
    if model.takes_tokens:
        candidates: list[Shape] = [(length,) for length in lengths]
    elif convolutions:
        sides = range(1, LONGEST + 1)
        candidates = [(convolutions[0].c_in, h, w) for h in sides for w in sides]
    else:
        width = _width(layers)
        rows: list[Shape] = [(width,)] if isinstance(model.layers[0], contract.Linear) else []
        candidates = rows if rows and _accepts(model, rows[0]) else [(length, width) for length in lengths]
    return tuple(shape for shape in candidates if _accepts(model, shape))


def _accepts(model: Sequential, shape: Shape) -> bool:
    out = stack_shape(model.layers, shape)
    return out is not None and (model.loss == "mse" or 1 <= len(out) <= 2)


def _width(layers: list[Layer]) -> int:
    """Return the width of the inputs, from the first layer that has one."""
    for layer in layers:
        width: int | None = getattr(layer, "d_in", getattr(layer, "width", None))
        if width is not None:
            return width
    return 1


def largest_outputs(model: Sequential, params: Params, size: float) -> float:
    """Return an upper limit on intermediate results and outputs, for inputs of at most `size` in absolute value."""
    return max(_sizes(model.layers, model.names, {name: np.abs(p) for name, p in params.items()}, size)[0], 0.0)


def _sizes(layers: Any, names: Any, params: Params, size: float) -> tuple[float, float]:
    """Return the largest intermediate result, and the largest output; `params` are absolute values."""
    largest = 0.0
    for layer, name in zip(layers, names, strict=True):
        own = {key[len(name) + 1 :]: p for key, p in params.items() if key.startswith(f"{name}.")}
        if isinstance(layer, Residual):
            within, after = _sizes(layer.layers, layer.names, own, size)
            largest, size = max(largest, within), size + after
        else:
            tied = params.get(layer.weight) if isinstance(layer, contract.TiedLinear) else None
            size = _size_after(layer, own if tied is None else own | {"weight": tied}, size)
        largest = max(largest, size)
    return largest, size


def _size_after(layer: Layer, own: Params, size: float) -> float:
    bias = float(own["bias"].max()) if "bias" in own else 0.0
    if isinstance(layer, contract.Linear | contract.TiedLinear | contract.Conv2d):
        if "weight" not in own:  # tied to a parameter outside this residual, whose size is unknown here
            return float("inf")
        weight = own["weight"]
        return size * float(weight.reshape(len(weight), -1).sum(axis=1).max()) + bias
    if isinstance(layer, contract.Embedding):
        return float(own["weight"].max())
    if isinstance(layer, contract.Positions):
        return size + float(own["weight"].max())
    if isinstance(layer, contract.LayerNorm | contract.RMSNorm):
        return float(layer.width**0.5 * own["weight"].max()) + bias
    if isinstance(layer, contract.Attention):
        for matrix, added in (("in_proj_weight", "in_proj_bias"), ("out_proj.weight", "out_proj.bias")):
            size = size * float(own[matrix].sum(axis=1).max()) + (float(own[added].max()) if added in own else 0.0)
        return size
    if isinstance(layer, contract.Activation) and layer.function in ("tanh", "sigmoid"):
        return 1.0 if layer.function == "sigmoid" else min(size, 1.0)
    return size


def input_size(model: Sequential, *batches: Batch) -> float:
    """Return the largest absolute value among the real inputs of `batches`; 0 for tokens."""
    return 0.0 if model.takes_tokens else max(float(np.abs(batch.x).max()) for batch in batches)


def target_size(model: Sequential, batch: Batch) -> float:
    """Return the largest absolute target; 0 for labels."""
    return float(np.abs(batch.y).max()) if model.loss == "mse" else 0.0


class Sequentials:
    """The kind of stacks of layers; the methods are described in `ModelKind`."""

    def to_json(self, model: Sequential) -> dict[str, Any]:
        """Return the stack as plain types: each layer with its kind and all of its fields."""
        return {**_stack_to_json(model), "loss": model.loss}

    def from_json(self, value: Any) -> Sequential:
        """Return the stack that `value` describes."""
        given = object_with("network", value, ("layers", "names", "loss"))
        return Sequential(_layers("network", given["layers"]), given["names"], given["loss"])

    def longest_sum(self, model: Sequential) -> int:
        """Return the largest size of a parameter, or of an input: a sum is over one axis or over positions."""
        inputs = [size for shape in input_shapes(model) for size in shape]
        return max(*(size for shape in model.shapes.values() for size in shape), *inputs, LONGEST**2)

    def products(self, model: Sequential) -> int:
        """Return two per layer with a weight, eight per attention: two of parameters, two of activations."""
        count = sum(4 if isinstance(layer, contract.Attention) else 1 for layer in each_layer(model))
        return 2 * count

    def loss_terms(self, step: Step) -> float:
        """Return the largest output; for squared errors, the square of its size and the largest target's."""
        net = sequential_of(step)
        outputs = float(np.abs(models.outputs(net, step.params, step.valid.x)).max())
        return (outputs + target_size(net, step.valid)) ** 2 if net.loss == "mse" else outputs

    def loss_limit(self, step: Step) -> float:
        """Return the same for an upper limit on the outputs, from the sums of each layer's absolute weights."""
        net = sequential_of(step)
        size = largest_outputs(net, step.params, input_size(net, step.valid))
        return (size + target_size(net, step.valid)) ** 2 if net.loss == "mse" else size

    def plain_model(self, draw: Random, seed: int) -> Sequential:
        """Return a stack of at most six layers."""
        return random_stack(_PlainChoices(draw))

    def plain_batch(self, draw: Random, model: Sequential, n: int) -> Batch:
        """Return a batch; one in four has a repeated sample."""
        shape = one(draw, input_shapes(model))

        def whole(size: tuple[int, ...], below: int) -> Array:
            return np.array([integer(draw, 0, below - 1) for _ in range(int(np.prod(size)))]).reshape(size)

        out = model.out_shape("x", shape)
        vocab = getattr(model.layers[0], "vocab", 0)
        x = whole((n, *shape), vocab) if model.takes_tokens else array(draw, (n, *shape), one(draw, (2.0, 2.0, 0.1)))
        if model.loss == "mse":
            y = array(draw, (n, *out), 2.0)
        else:
            y = whole((n, *out[:-1]), out[-1])
            if len(out) == 2:
                y = uncounted(y, array(draw, y.shape, 1.0) > 0.4)
        if draw.random() < 0.25:
            x[-1], y[-1] = x[0], y[0]
        return Batch(x, y)

    @property
    def draws(self) -> Draws:
        """The Hypothesis strategies of stacks of layers."""
        from adamshap.verify.models.sequential_draws import SequentialDraws  # Hypothesis is optional

        return SequentialDraws()


def uncounted(labels: Array, where: Array) -> Array:
    """Return labels (n, T) with −100 in the mask `where`, except that each sample keeps its last."""
    dropped = where.copy()
    dropped[:, -1] &= ~dropped.all(axis=1)
    return np.where(dropped, NOT_COUNTED, labels)


class _PlainChoices(Choices):
    """Choices by ``random()`` alone."""

    def __init__(self, draw: Random) -> None:
        self.draw = draw

    def integer(self, low: int, high: int, label: str) -> int:
        return integer(self.draw, low, high)

    def one(self, options: Any, label: str) -> Any:
        return one(self.draw, options)


# --- JSON ------------------------------------------------------------------------------------------------------------


def _stack_to_json(model: Sequential | Residual) -> dict[str, Any]:
    return {"layers": [_layer_to_json(layer) for layer in model.layers], "names": list(model.names)}


def _layer_to_json(layer: Layer) -> dict[str, Any]:
    if isinstance(layer, Residual):
        return {"kind": layer.kind, **_stack_to_json(layer)}
    given = {name: getattr(layer, name) for name in _fields(type(layer))}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {"kind": layer.kind, **plain}


def _fields(layer: type[Layer]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(layer) if field.init)


def _layers(where: str, value: Any) -> tuple[Layer, ...]:
    if not isinstance(value, list):
        refuse(f"{where}.layers", brief(value), "a list of layers", TypeError)
    return tuple(_layer(f"{where}.layers[{i}]", each) for i, each in enumerate(value))


def _layer(where: str, value: Any) -> Layer:
    if not isinstance(value, Mapping) or "kind" not in value:
        refuse(where, brief(value), "an object with a kind", TypeError)
    layer = LAYERS[one_of(f"{where}.kind", value["kind"], tuple(LAYERS))]
    given = object_with(where, dict(value), ("kind", *_fields(layer)))
    own = {name: given[name] for name in _fields(layer)}
    if layer is Residual:
        own["layers"] = _layers(where, own["layers"])
    return layer(**own)
