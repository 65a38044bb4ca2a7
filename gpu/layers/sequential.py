"""The stack of `Sequential`: layers one after the other, then a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import Captures
from adamshap.gpu.context import EngineContext
from adamshap.gpu.layers.activation_layer import ActivationLayer
from adamshap.gpu.layers.attention import Attention
from adamshap.gpu.layers.chain import Residual, plan_chain, plan_chain_back, run_back, run_forward
from adamshap.gpu.layers.embedding import Embedding, Positions
from adamshap.gpu.layers.norm import Norm
from adamshap.gpu.layers.positionwise_linear import PositionwiseLinear
from adamshap.gpu.layers.reshaping import Flatten, MeanOverPositions
from adamshap.gpu.layers.row_weights import weight_of_rows
from adamshap.gpu.layers.sequence_losses import sequence_cross_entropy, sequence_squared_error
from adamshap.gpu.layers.stage import Stage, StackLayer
from adamshap.gpu.threads import in_parts
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
        return workspace.captures

    def losses(self, context: EngineContext, workspace: SequentialWorkspace, params: Mapping[str, Any], y: Any) -> Any:
        """Return each row's loss, by a forward pass alone, which leaves no captures in the workspace."""
        self.forward(context, workspace, params)
        workspace.losses[...] = LOSSES[self.loss](context.backend.xp, workspace.output, y, 1.0)
        return workspace.losses

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
            found.append(_layer_of(layer, name, isinstance(after, contract.Activation)))
    return tuple(found)


def _layer_of(layer: Any, name: str, activated: bool) -> StackLayer:
    bias = f"{name}.bias" if getattr(layer, "bias", False) else None
    weight = f"{name}.weight"
    match layer.kind:
        case "linear":
            return PositionwiseLinear(weight, bias, layer.d_out, activated)
        case "tied_linear":
            return PositionwiseLinear(layer.weight, bias, layer.d_out, activated)
        case "embedding":
            return Embedding(weight, layer.width)
        case "positions":
            return Positions(weight)
        case "layer_norm" | "rms_norm":
            return Norm(weight, bias, layer.eps, layer.kind == "layer_norm")
        case "attention":
            return Attention(name, layer.heads, layer.bias)
        case "residual":
            return Residual(layers_of(layer.layers, [f"{name}.{inner}" for inner in layer.names]))
        case "flatten":
            return Flatten()
        case "mean_over_positions":
            return MeanOverPositions()
    contract.refuse(
        "model.layers",
        f"layer {name!r} of kind {layer.kind!r}",
        "layers that the engine has: linear, tied_linear, embedding, positions, layer_norm, rms_norm, attention, "
        "residual, activation, flatten, mean_over_positions; the oracle, `adamshap.reference`, has all",
    )


def _mark_inputs(stages: Sequence[Stage], x: Any) -> None:
    """Mark the stages whose input is the model's, which a kept capture is rebuilt from."""
    for stage in stages:
        if stage["x"] is x:
            stage.in_place.add("input")
        _mark_inputs(stage.inner, x)
