"""Activations, in place. The backward pass reads ReLU's values and the derivatives of the others, nothing else."""

from typing import Any

from adamshap.gpu.context import EngineContext

__all__ = ["activate", "keeps_derivative", "scale_by_derivative"]

WITHOUT_DERIVATIVE = ("relu", "identity")  # ReLU's is read from the activation, the identity has none


def keeps_derivative(name: str) -> bool:
    """Whether the forward pass writes the derivative in an array of its own."""
    return name not in WITHOUT_DERIVATIVE


def activate(context: EngineContext, name: str, z: Any, bias: Any, derivative: Any) -> None:
    """Write the activation of `z` + bias to `z`, and the derivative where one is kept."""
    context.ops.activate(name, z, bias, derivative)


def scale_by_derivative(context: EngineContext, name: str, b: Any, activation: Any, derivative: Any) -> None:
    """Multiply the gradient in the activation by its derivative, in place."""
    context.ops.scale_by_derivative(name, b, activation if name == "relu" else derivative)
