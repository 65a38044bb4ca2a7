"""The rounding of the backward pass that gave p.grad, where it is coarser than that of the parameter's dtype.

Under autocast the gradient of a weight is a product of bfloat16 or float16 numbers, summed in float32 and rounded once
to the low dtype. With TF32, which PyTorch's convolutions on a card use unless told otherwise, the factors of each
product are rounded before it is computed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adamshap.torch.memory import HALVES

__all__ = ["Roundoff", "joined", "roundoff_of"]

FACTORS = {"tf32": 2.0**-10, "bf16": 2.0**-8}
"""Largest relative error of a factor in these settings of PyTorch: TF32 keeps 11 bits, perhaps by truncation."""

PRODUCTS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNCellBase)
"""Modules whose parameters have products of inputs and gradients as they are, and sums of these: exact in float32."""


@dataclass(frozen=True)
class Roundoff:
    """The rounding of Σ_i x_i in a backward pass, beside that of sums in the parameter's dtype.

    Parameters
    ----------
    factors : float
        Largest relative error of a factor of each product.
    result : float
        Largest relative error of a result.
    least : float
        Largest absolute error of a result: half of the smallest positive number of its dtype.
    terms : bool
        Whether each sample's part may have been rounded so, too: x̂ of a norm, before it is multiplied.
    """

    factors: float = 0.0
    result: float = 0.0
    least: float = 0.0
    terms: bool = False

    def __or__(self, other: "Roundoff") -> "Roundoff":
        """Return the coarser of both."""
        return Roundoff(
            max(self.factors, other.factors),
            max(self.result, other.result),
            max(self.least, other.least),
            self.terms or other.terms,
        )


def joined(passes: Iterable[Mapping[str, Roundoff]]) -> dict[str, Roundoff]:
    """Return the coarsest rounding of each parameter in several passes."""
    found: dict[str, Roundoff] = {}
    for one in passes:
        for name, roundoff in one.items():
            found[name] = found.get(name, roundoff) | roundoff
    return found


def roundoff_of(module: Any, a: torch.Tensor, b: torch.Tensor) -> Roundoff:
    """Return the rounding of a module's gradient, by the dtypes of its input `a` and output gradient `b`.

    Parameters
    ----------
    module : torch.nn.Module
    a, b : tensors

    Returns
    -------
    Roundoff
        Of the lowest dtype of the two.
    """
    halves = [torch.finfo(one.dtype) for one in (a, b) if one.dtype in HALVES]
    if halves:
        coarsest = max(halves, key=lambda info: info.eps)
        least = max(info.smallest_normal * info.eps / 2 for info in halves)
        return Roundoff(0.0, coarsest.eps / 2, least, not isinstance(module, PRODUCTS))
    return Roundoff(FACTORS.get(_precision_of(module, b), 0.0) if b.dtype == torch.float32 else 0.0)


def _precision_of(module: Any, b: torch.Tensor) -> str:
    """Return PyTorch's setting for products of float32 numbers: "ieee", "none", "tf32" or "bf16"."""
    backends: Any = torch.backends
    is_convolution, on_cpu = isinstance(module, nn.modules.conv._ConvNd), b.device.type == "cpu"
    library = backends.mkldnn if on_cpu else backends.cudnn if is_convolution else backends.cuda
    owner = getattr(library, "conv" if is_convolution else "matmul", None)
    # PyTorch before 2.9 has no such setting; TF32 is its default for convolutions on a card.
    return str(getattr(owner, "fp32_precision", "ieee" if on_cpu else "tf32"))
