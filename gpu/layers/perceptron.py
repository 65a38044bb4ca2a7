"""The multilayer perceptron: linear layers with an activation between them, and a loss after the last.

The gradient of sample i's loss in a layer's weight is the outer product ``b_i a_iᵀ``, and ``b_i`` in its bias; neither
is ever an array of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from adamshap.gpu import products
from adamshap.gpu.captures import Captures
from adamshap.gpu.context import EngineContext
from adamshap.gpu.forward_mode import LossDerivatives
from adamshap.gpu.layers.activation import activate, keeps_derivative, scale_by_derivative
from adamshap.gpu.layers.cross_entropy import cross_entropy
from adamshap.gpu.layers.linear import Linear
from adamshap.gpu.layers.row_weights import weight_of_rows
from adamshap.gpu.layers.squared_error import squared_error
from adamshap.gpu.threads import in_parts
from adamshap.reference.contract import Network

__all__ = ["Perceptron", "PerceptronWorkspace"]

LOSSES = {"cross_entropy": cross_entropy, "mse": squared_error}


@dataclass(frozen=True)
class PerceptronWorkspace:
    """The arrays of one pass: for each layer its inputs, and the gradients in its outputs.

    ``gradients[-1]`` holds the model's output until the loss turns it into the gradient. ``derivatives`` has one array
    for each activation, or None where none is kept.
    """

    layers: tuple[Linear, ...]
    inputs: list[Any]
    gradients: list[Any]
    derivatives: list[Any]
    losses: Any

    @property
    def captures(self) -> Captures:
        """The captures of the passes so far, one per layer."""
        triples = zip(self.layers, self.inputs, self.gradients, strict=True)
        return Captures(tuple(layer.capture(a, b, a is self.inputs[0]) for layer, a, b in triples), self.losses)

    def rows(self, which: slice) -> "PerceptronWorkspace":
        """Return the workspace of some rows, as views."""
        return PerceptronWorkspace(
            self.layers,
            [a[which] for a in self.inputs],
            [b[which] for b in self.gradients],
            [None if d is None else d[which] for d in self.derivatives],
            self.losses[which],
        )


@dataclass(frozen=True)
class Perceptron:
    """The stack of a `Network`."""

    layers: tuple[Linear, ...]
    activation: str
    loss: str

    @classmethod
    def of(cls, net: Network) -> "Perceptron":
        """Return the stack of `net`."""
        layers = tuple(
            Linear(f"{number}.weight", f"{number}.bias" if net.bias else None, d_in, d_out)
            for number, (d_in, d_out) in enumerate(pairwise(net.sizes))
        )
        return cls(layers, net.activation, net.loss)

    def workspace(self, context: EngineContext, name: str, x: Any) -> PerceptronWorkspace:
        """Return a workspace for the inputs `x` (rows, d_in), its other arrays in buffers under `name`."""
        get, rows = context.buffers.get, len(x)
        widths = list(enumerate((layer.d_out for layer in self.layers[:-1]), 1))
        inputs = [x, *(get(f"{name} inputs {number}", (rows, width)) for number, width in widths)]
        gradients = [get(f"{name} gradients {number}", (rows, layer.d_out)) for number, layer in enumerate(self.layers)]
        kept = keeps_derivative(self.activation)
        derivatives = [get(f"{name} derivatives {number}", (rows, d)) if kept else None for number, d in widths]
        return PerceptronWorkspace(self.layers, inputs, gradients, derivatives, get(f"{name} losses", (rows,)))

    def run(
        self, context: EngineContext, workspace: PerceptronWorkspace, params: Mapping[str, Any], y: Any, weight: Any
    ) -> Captures:
        """Run both passes for the loss ``Σ weight · ℓ`` and return the captures, with each row's own loss."""
        loss, count = LOSSES[self.loss], len(workspace.losses)

        def rows_between(low: int, high: int) -> None:
            rows = slice(low, high)
            part = workspace if high - low == count else workspace.rows(rows)
            self.forward(context, part, params)
            part.losses[...] = loss(context.backend.xp, part.gradients[-1], y[rows], weight_of_rows(weight, rows))
            self.backward(context, part, params)

        if count < products.FEW_ROWS:
            rows_between(0, count)
        else:
            in_parts(rows_between, count, 4 * count * sum(layer.d_in * layer.d_out for layer in self.layers))
        return replace(workspace.captures, origin=LossDerivatives(self, workspace, params, y, weight))

    def losses(self, context: EngineContext, workspace: PerceptronWorkspace, params: Mapping[str, Any], y: Any) -> Any:
        """Return each row's loss, by a forward pass alone, which leaves no captures in the workspace."""
        self.forward(context, workspace, params)
        workspace.losses[...] = LOSSES[self.loss](context.backend.xp, workspace.gradients[-1], y, 1.0)
        return workspace.losses

    @property
    def has_tangents(self) -> bool:
        """True."""
        return True

    def add_tangent_dots(
        self,
        context: EngineContext,
        workspace: PerceptronWorkspace,
        params: Mapping[str, Any],
        direction: Mapping[str, Any],
        out: Any,
    ) -> None:
        """Add the derivative of each row's weighted loss along `direction`."""
        tangent = None
        for number, layer in enumerate(self.layers):
            tangent = layer.tangent(context, params, direction, workspace.inputs[number], tangent)
            if number + 1 < len(self.layers):
                activation, derivative = workspace.inputs[number + 1], workspace.derivatives[number]
                scale_by_derivative(context, self.activation, tangent, activation, derivative)
        context.ops.row_dot(workspace.gradients[-1], tangent, None, out)

    def forward(self, context: EngineContext, workspace: PerceptronWorkspace, params: Mapping[str, Any]) -> None:
        """Compute every layer's inputs, and the model's output in the array of the last layer's gradients."""
        context.now("forward pass")
        *hidden, last = self.layers
        for number, layer in enumerate(hidden):
            z = workspace.inputs[number + 1]
            layer.forward(context, params, workspace.inputs[number], z)
            activate(context, self.activation, z, layer.bias_of(params), workspace.derivatives[number])
        output, bias = workspace.gradients[-1], last.bias_of(params)
        last.forward(context, params, workspace.inputs[-1], output)
        if bias is not None:
            output += bias

    def backward(self, context: EngineContext, workspace: PerceptronWorkspace, params: Mapping[str, Any]) -> None:
        """Propagate the gradients in the outputs from the last layer to the first."""
        context.now("backward pass")
        for number in range(len(self.layers) - 1, 0, -1):
            b = workspace.gradients[number - 1]
            self.layers[number].backward(context, params, workspace.gradients[number], b)
            derivative = workspace.derivatives[number - 1]
            scale_by_derivative(context, self.activation, b, workspace.inputs[number], derivative)
