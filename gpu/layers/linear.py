"""A linear layer, ``z = W a`` and its bias.

The bias is added after the product: by the activation, in the same pass over z, or by the stack.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.captures import OuterProduct
from adamshap.gpu.context import EngineContext
from adamshap.gpu.products import product

__all__ = ["Linear"]


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

    def capture(self, a: Any, b: Any, a_is_input: bool) -> OuterProduct:
        """Return the layer's capture, from its inputs and the gradients in its outputs."""
        return OuterProduct(self.weight, self.bias, a, b, a_is_input)
