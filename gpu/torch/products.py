"""Matrix products in bfloat16 on the host, by PyTorch, for a contraction in lower precision."""

from typing import Any

import torch

__all__ = ["ROUNDING", "bfloat16_product"]

ROUNDING = (1 + 2.0**-8) ** 3 - 1
"""Largest relative error of a term: those of both factors and of the result, 2⁻⁸ each, as eight bits are kept."""


def bfloat16_product(a: Any, b: Any, out: Any) -> None:
    """Write ``a b`` of arrays in float32, by factors rounded to bfloat16.

    PyTorch adds up in float32 and rounds the result to bfloat16. Its own threads divide the work.

    Parameters
    ----------
    a, b : arrays
        Matrices or stacks of them, of any strides.
    out : array
    """
    low = [torch.from_numpy(factor).to(torch.bfloat16) for factor in (a, b)]
    torch.from_numpy(out).copy_(torch.matmul(*low))
