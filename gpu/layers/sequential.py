"""The stack of `Sequential`: layers one after the other, then a loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adamshap.gpu.captures import Captures
from adamshap.gpu.context import EngineContext
from adamshap.gpu.forward_mode import LossDerivatives
from adamshap.gpu.layers.activation_layer import ActivationLayer
from adamshap.gpu.layers.attention import Attention
from adamshap.gpu.layers.chain import (
    Residual,
    have_tangents,
    plan_chain,
    plan_chain_back,
    run_back,
    run_forward,
    run_tangents,
)
from adamshap.gpu.layers.convolution import Convolution
from adamshap.gpu.layers.embedding import Embedding, Positions
from adamshap.gpu.layers.norm import Norm
from adamshap.gpu.layers.pooling import AveragePool, MaxPool
from adamshap.gpu.layers.positionwise_linear import PositionwiseLinear
from adamshap.gpu.layers.reshaping import Flatten, MeanOverPositions
from adamshap.gpu.layers.row_weights import weight_of_rows
from adamshap.gpu.layers.sequence_losses import sequence_cross_entropy, sequence_squared_error
from adamshap.gpu.layers.stage import StackLayer, Stage
from adamshap.gpu.threads import in_parts
from adamshap.gpu.windows import Windows
from adamshap.reference import contract

__all__ = ["SequentialStack", "SequentialWorkspace"]

LOSSES = {"cross_entropy": sequence_cross_entropy, "mse": sequence_squared_error}


@dataclass(frozen=True)
class SequentialWorkspace:
    """The stages of one pass.

    ``output`` holds the model's output until the loss turns it into the gradient. It is an array apart from the last
    layer's, ``last``, where that is needed again; else `last` is None.
    """

    x: Any
    stages: tuple[Stage, ...]
    last: Any
    output: Any
    losses: Any

    @property
    def captures(self) -> Captures:
        """The captures of the passes so far, in the order of the layers."""
        uses = tuple(capture for stage in self.stages for capture in stage.layer.captures(stage))
        return Captures(uses, self.losses)

    def rows(self, which: slice) -> "SequentialWorkspace":
        """Return the workspace of some rows, as views."""
        stages = tuple(stage.rows(which) for stage in self.stages)
        last = None if self.last is None else self.last[which]
        return SequentialWorkspace(self.x[which], stages, last, self.output[which], self.losses[which])


@dataclass(frozen=True)
class SequentialStack:
    """The stack of a `Sequential`."""

    layers: tuple[StackLayer, ...]
    loss: str

    @classmethod
    def of(cls, model: contract.Sequential) -> "SequentialStack":
        """Return the stack of `model`; refuse layers that the engine does not have."""
        return cls(layers_of(model.layers, model.names), model.loss)

    def workspace(self, context: EngineContext, name: str, x: Any) -> SequentialWorkspace:
        """Return a workspace for the inputs `x` (rows, …), its other arrays in buffers under `name`."""

        def room(role: str, shape: tuple[int, ...]) -> Any:
            return context.buffers.get(f"{name} {role}", (len(x), *shape))

        stages, (last, free) = plan_chain(self.layers, x, False, room)
        output = last if free else room("output", last.shape[1:])
        plan_chain_back(stages, output, True, False, room)
        _mark_inputs(stages, x)
        return SequentialWorkspace(x, stages, None if free else last, output, room("losses", ()))

    def run(
        self, context: EngineContext, workspace: SequentialWorkspace, params: Mapping[str, Any], y: Any, weight: Any
    ) -> Captures:
        """Run both passes for the loss ``Σ weight · ℓ`` and return the captures, with each row's own loss."""
        count, loss = len(workspace.losses), LOSSES[self.loss]

        def rows_between(low: int, high: int) -> None:
            rows = slice(low, high)
            part = workspace if high - low == count else workspace.rows(rows)
            self.forward(context, part, params)
            part.losses[...] = loss(context.backend.xp, part.output, y[rows], weight_of_rows(weight, rows))
            context.now("backward pass")
            run_back(context, params, part.stages)

        in_parts(rows_between, count, 4 * count * workspace.captures.macs)
        return replace(workspace.captures, origin=LossDerivatives(self, workspace, params, y, weight))

    def losses(self, context: EngineContext, workspace: SequentialWorkspace, params: Mapping[str, Any], y: Any) -> Any:
        """Return each row's loss, by a forward pass alone, which leaves no captures in the workspace."""
        self.forward(context, workspace, params)
        workspace.losses[...] = LOSSES[self.loss](context.backend.xp, workspace.output, y, 1.0)
        return workspace.losses

    @property
    def has_tangents(self) -> bool:
        """Whether every layer has a tangent."""
        return have_tangents(self.layers)

    def add_tangent_dots(
        self,
        context: EngineContext,
        workspace: SequentialWorkspace,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        out: Any,
    ) -> None:
        """Add the derivative of each row's weighted loss along `direction`: that of the output, times its gradient."""
        tangent, b = run_tangents(context, params, direction, workspace.stages, None), workspace.output
        if tangent is not None:
            b, tangent = (array.reshape(len(b), math.prod(b.shape[1:])) for array in (b, tangent))
            context.ops.row_dot(b, tangent, None, out)

    def forward(self, context: EngineContext, workspace: SequentialWorkspace, params: Mapping[str, Any]) -> None:
        """Compute every layer's arrays, and the model's output in the array of its gradient."""
        context.now("forward pass")
        run_forward(context, params, workspace.stages)
        if workspace.last is not None:
            workspace.output[...] = workspace.last


def layers_of(layers: Sequence[contract.Layer], names: Sequence[str]) -> tuple[StackLayer, ...]:
    """Return the engine's layers; an activation adds the bias of the linear layer before it."""
    found: list[StackLayer] = []
    for number, (layer, name) in enumerate(zip(layers, names, strict=True)):
        before = found[-1] if found else None
        after = layers[number + 1] if number + 1 < len(layers) else None
        if isinstance(layer, contract.Activation):
            added = before.bias if isinstance(before, PositionwiseLinear) and before.bias_later else None
            found.append(ActivationLayer(layer.function, added))
        else:
            build = BUILDERS.get(layer.kind)
            if build is None:
                contract.refuse(
                    "model.layers",
                    f"layer {name!r} of kind {layer.kind!r}",
                    f"layers that the engine has, {', '.join(sorted((*BUILDERS, 'activation')))}; "
                    "`adamshap.reference` has all",
                )
            found.append(build(layer, name, isinstance(after, contract.Activation)))
    return tuple(found)


def _bias_of(layer: Any, name: str) -> str | None:
    return f"{name}.bias" if layer.bias else None


BUILDERS: Mapping[str, Callable[[Any, str, bool], StackLayer]] = {
    "linear": lambda layer, name, activated: PositionwiseLinear(
        f"{name}.weight", _bias_of(layer, name), layer.d_out, activated
    ),
    "tied_linear": lambda layer, name, activated: PositionwiseLinear(
        layer.weight, _bias_of(layer, name), layer.d_out, activated
    ),
    "embedding": lambda layer, name, _: Embedding(f"{name}.weight", layer.width),
    "positions": lambda _, name, __: Positions(f"{name}.weight"),
    "layer_norm": lambda layer, name, _: Norm(f"{name}.weight", _bias_of(layer, name), layer.eps, True),
    "rms_norm": lambda layer, name, _: Norm(f"{name}.weight", None, layer.eps, False),
    "attention": lambda layer, name, _: Attention(name, layer.heads, layer.bias),
    "residual": lambda layer, name, _: Residual(layers_of(layer.layers, [f"{name}.{one}" for one in layer.names])),
    "conv2d": lambda layer, name, _: Convolution(
        f"{name}.weight",
        _bias_of(layer, name),
        layer.c_out,
        Windows(layer.kernel, layer.stride, layer.padding),
        layer.groups,
    ),
    "avg_pool2d": lambda layer, *_: AveragePool(Windows(layer.kernel, layer.steps)),
    "max_pool2d": lambda layer, *_: MaxPool(Windows(layer.kernel, layer.steps)),
    "flatten": lambda *_: Flatten(),
    "mean_over_positions": lambda *_: MeanOverPositions(),
}
"""Function that builds a layer, by its kind, from its description, its name and whether an activation follows.

Activations are built in `layers_of`, as they may add the bias of the layer before.
"""


def _mark_inputs(stages: Sequence[Stage], x: Any) -> None:
    """Mark the stages whose input is the model's, which a kept capture is rebuilt from."""
    for stage in stages:
        if stage["x"] is x:
            stage.in_place.add("input")
        _mark_inputs(stage.inner, x)
