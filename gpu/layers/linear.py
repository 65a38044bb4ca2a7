"""A linear layer, ``z = W a`` and its bias.

The bias is added after the product: by the activation, in the same pass over z, or by the stack.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import OuterProduct
from adamshap.gpu.context import EngineContext
from adamshap.gpu.products import product

__all__ = ["Linear", "linear_tangent"]


@dataclass(frozen=True)
class Linear:
    """A linear layer; `weight` and `bias` are the names of its parameters."""

    weight: str
    bias: str | None
    d_in: int
    d_out: int

    def forward(self, context: EngineContext, params: Mapping[str, Any], a: Any, z: Any) -> None:
        """Write ``W a`` of each row, without the bias, to `z`."""
        product(context, a, params[self.weight].T, z)

    def bias_of(self, params: Mapping[str, Any]) -> Any:
        """Return the bias (d_out,), or None."""
        return None if self.bias is None else params[self.bias]

    def backward(self, context: EngineContext, params: Mapping[str, Any], b: Any, below: Any) -> None:
        """Write ``Wᵀ b`` of each row, the gradient in the layer's input, to `below`."""
        product(context, b, params[self.weight], below)

    def tangent(
        self, context: EngineContext, params: Mapping[str, Any], direction: Mapping[str, Any], a: Any, tangent: Any
    ) -> Any:
        """Return the derivative of the output along `direction`, from that of the input; None is 0."""
        return linear_tangent(context, params, direction, (self.weight, self.bias), a, tangent)

    def capture(self, a: Any, b: Any, a_is_input: bool) -> OuterProduct:
        """Return the layer's capture, from its inputs and the gradients in its outputs."""
        return OuterProduct(self.weight, self.bias, a, b, a_is_input)


def linear_tangent(
    context: EngineContext,
    params: Mapping[str, Any],
    direction: Mapping[str, Any],
    names: tuple[str, str | None],
    a: Any,
    tangent: Any,
) -> Any:
    """Return ``P a + W ȧ + p``, the derivative of ``W a`` and its bias along P and p.

    Parameters
    ----------
    names : tuple
        Names of the weight and of the bias, or None.
    a : array (rows, d_in)
        Inputs.
    tangent : array (rows, d_in) or None
        ȧ, their derivative; None is 0.
    """
    weight, bias = names
    out = context.backend.xp.empty((len(a), len(params[weight])), a.dtype)
    product(context, a, direction[weight].T, out)
    if tangent is not None:
        through = context.backend.xp.empty_like(out)
        product(context, tangent, params[weight].T, through)
        out += through
    if bias is not None:
        out += direction[bias]
    return out
